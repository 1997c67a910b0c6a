"""The log of slow requests: which are in it, and where it says that they waited."""

from __future__ import annotations

import logging

import pytest
import trio
from trio.testing import MockClock

from aoefs.engine.settings import Settings
from aoefs.errors import TargetLost
from aoefs.protocol.ata import Opcode
from tests.engine.slowwrites import BLOCK, SLOW, acknowledge_slowly, write_behind
from tests.scene import Announce, SimulatedTarget, nothing_is_left, open_scene

LOGGED = Settings(slow=SLOW / 2)
BY = "by seg0 to 02:aa:00:00:00:00"


def answer_slowly(target: SimulatedTarget, opcode: int) -> None:
    target.answer = lambda frame, reply: [(SLOW if frame[27] == opcode else 0.0, reply)]


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What was logged of slow calls."""
    return [record.getMessage() for record in caplog.records if "slow" in record.getMessage()]


@pytest.fixture
def caplog(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.WARNING, "aoefs")
    return caplog


async def test_a_fast_call_is_not_logged(autojump_clock: MockClock, caplog: pytest.LogCaptureFixture) -> None:
    async with open_scene(LOGGED) as scene:
        target = scene.add_target()
        disk = await scene.disk()
        await disk.write(100, b"x" * 1000)
        assert await disk.read(0, 4096) == target.data[:4096]
        await disk.flush()
        assert lines(caplog) == []
        assert nothing_is_left(disk.target)


async def test_nothing_is_logged_unless_it_is_wanted(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_scene() as scene:
        target = scene.add_target()
        disk = await scene.disk()
        answer_slowly(target, Opcode.READ_EXT)
        await disk.read(0, 512)
        assert lines(caplog) == []


async def test_a_slow_answer_was_on_the_wire(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture, announce: Announce
) -> None:
    announce("slow read")
    async with open_scene(LOGGED) as scene:
        target = scene.add_target()
        disk = await scene.disk()
        answer_slowly(target, Opcode.READ_EXT)
        await disk.read(5 * 512 + 1, 700)
        (line,) = lines(caplog)
        waited = "0.008 s (claim 0.000, queue 0.000, wire 0.008, flush 0.000)"
        assert line == f"e0.0: slow read of 700 bytes at LBA 5 {BY}: {waited}"
        assert nothing_is_left(disk.target)


async def test_what_waits_for_room_in_the_window_is_in_the_queue(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture, announce: Announce
) -> None:
    announce("slow read")
    async with open_scene(LOGGED) as scene:
        target = scene.add_target(bufcnt=1)
        disk = await scene.disk()
        answer_slowly(target, Opcode.READ_EXT)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(disk.read, 0, 512)
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(disk.read, 1024, 512)
        assert "0.008 s (claim 0.000, queue 0.000, wire 0.008, flush 0.000)" in lines(caplog)[0]
        assert "0.016 s (claim 0.000, queue 0.008, wire 0.008, flush 0.000)" in lines(caplog)[1]


async def test_a_write_waits_for_the_claim_of_an_earlier_one(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture, announce: Announce
) -> None:
    announce("slow write")
    async with open_scene(LOGGED) as scene:
        target = scene.add_target()
        disk = await scene.disk()
        acknowledge_slowly(target)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(disk.write, 0, bytes(1024))
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(disk.write, 512, bytes(1024))
        assert "0.016 s (claim 0.008, queue 0.000, wire 0.008, flush 0.000)" in lines(caplog)[1]
        assert nothing_is_left(disk.target)


async def test_a_flush_waits_for_early_answers_and_then_for_the_target(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture, announce: Announce
) -> None:
    announce("slow flush")
    announce("slow acknowledgement")
    async with open_scene(LOGGED) as scene:
        target = scene.add_target()
        disk = await scene.disk()
        target.answer = lambda _frame, reply: [(SLOW, reply)]
        assert await write_behind(disk, 3) == 0
        await disk.flush()
        acknowledged, flushed = lines(caplog)
        place = f"e0.0: slow acknowledgement of a write of {BLOCK} bytes at LBA 6 {BY}"
        assert acknowledged == f"{place}: 0.008 s (claim 0.000, queue 0.000, wire 0.008, flush 0.000)"
        assert flushed == "e0.0: slow flush: 0.016 s (claim 0.008, queue 0.000, wire 0.000, flush 0.008)"


async def test_a_request_that_is_never_answered_is_logged_when_it_fails(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture, announce: Announce
) -> None:
    announce("slow read")
    announce("is down")
    async with open_scene(Settings(slow=0.5, deadsecs=1)) as scene:
        target = scene.add_target()
        disk = await scene.disk()
        target.silent = True
        with pytest.raises(TargetLost):
            await disk.read(0, 512)
        (line,) = lines(caplog)
        assert "1.000 s (claim 0.000, queue 0.000, wire 1.000, flush 0.000)" in line


async def test_all_lines_of_reads_and_writes_are_of_one_kind_for_the_limit_of_the_log(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture, announce: Announce
) -> None:
    announce("slow read")
    announce("slow write")
    async with open_scene(LOGGED) as scene:
        target = scene.add_target()
        disk = await scene.disk()
        target.answer = lambda _frame, reply: [(SLOW, reply)]
        for block in range(3):
            await disk.read(block * BLOCK, BLOCK)
            await disk.write(block * BLOCK, bytes(BLOCK))
        assert len(lines(caplog)) == 6
        assert len({record.msg for record in caplog.records if "slow" in record.getMessage()}) == 1
