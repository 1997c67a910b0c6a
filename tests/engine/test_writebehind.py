"""Writes that are answered before the target acknowledged them: which, what waits for them, what their loss means."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
from trio.testing import MockClock

from aoefs.engine.changes import Change
from aoefs.engine.disk import Disk
from aoefs.engine.settings import Settings
from aoefs.errors import AtaError, TargetLost
from tests.engine.answers import flushes
from tests.engine.slowwrites import BLOCK, SLOW, acknowledge_slowly, refuse_writes, write_behind
from tests.scene import DELAY, Announce, SimulatedTarget, nothing_is_left, open_scene
from tests.segment import is_write


@asynccontextmanager
async def slow_disk() -> AsyncIterator[tuple[SimulatedTarget, Disk]]:
    """A target that acknowledges slowly, and its disk, on an engine of their own."""
    async with open_scene() as scene:
        target = scene.add_target()
        disk = await scene.disk()
        acknowledge_slowly(target)
        yield target, disk


async def test_a_write_is_answered_when_its_frames_are_on_the_wire(autojump_clock: MockClock) -> None:
    async with slow_disk() as (target, disk):
        assert await write_behind(disk, 0) == 0
        assert disk.target.dirty
        assert len(disk.write_behind.pending) == 1
        await disk.write_behind.wait_acknowledged()
        assert trio.current_time() > SLOW
        assert target.data[:BLOCK] == b"n" * BLOCK
        assert nothing_is_left(disk.target)
        assert not disk.write_behind.pending


async def test_a_write_that_does_not_fit_into_the_window_waits_until_all_of_it_is_sent(
    autojump_clock: MockClock,
) -> None:
    async with open_scene() as scene:
        target = scene.add_target(bufcnt=4)
        disk = await scene.disk()
        acknowledge_slowly(target)
        window = disk.target.paths[0].window.size
        took = [await write_behind(disk, block) for block in range(window + 1)]
        assert took[:window] == [0.0] * window
        assert SLOW < took[window] < 2 * SLOW
        assert await write_behind(disk, 20, b"l" * 10 * BLOCK) > SLOW
        assert disk.target.in_flight <= 4
        await disk.write_behind.wait_acknowledged()
        assert target.data[20 * BLOCK : 30 * BLOCK] == b"l" * 10 * BLOCK


async def test_what_the_socket_did_not_take_is_not_on_the_wire(autojump_clock: MockClock) -> None:
    async with open_scene() as scene:
        scene.add_target()
        disk = await scene.disk()
        scene.link.set_room(1)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(write_behind, disk, 0, b"n" * 2 * BLOCK)
            await trio.sleep(0.5)
            assert len(nursery.child_tasks) == 1
            scene.link.set_room(1000)
        assert not disk.write_behind.pending
        assert nothing_is_left(disk.target)


async def test_what_is_sent_on_a_link_that_is_down_is_not_on_the_wire(autojump_clock: MockClock) -> None:
    async with open_scene() as scene:
        target = scene.add_target()
        disk = await scene.disk()
        await disk.write(0, b"o" * BLOCK)
        acknowledge_slowly(target)
        await write_behind(disk, 0)
        scene.wire.route = lambda _frame: []
        scene.engine.link_changed(scene.link, up=False)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(write_behind, disk, 1)
            await trio.sleep(SLOW / 2)
            assert len(nursery.child_tasks) == len(disk.write_behind.pending) == 1
            scene.wire.route = lambda frame: [(DELAY, frame)]
            scene.engine.link_changed(scene.link, up=True)
        await disk.write_behind.wait_acknowledged()
        assert target.data[: 2 * BLOCK] == b"n" * 2 * BLOCK


async def test_nothing_is_answered_early_while_the_target_is_silent(
    autojump_clock: MockClock, announce: Announce
) -> None:
    """However many writes come: what is pending was sent before it fell silent."""
    announce(r"does not answer: \d+ request")
    async with open_scene(Settings(deadsecs=0)) as scene:
        target = scene.add_target()
        disk = await scene.disk()
        await disk.write(0, b"o" * BLOCK)
        target.silent = True
        await write_behind(disk, 0)
        await trio.sleep(0.1)
        pending = len(disk.write_behind.pending)
        assert pending == 1
        async with trio.open_nursery() as nursery:
            for block in range(1, 8):
                nursery.start_soon(write_behind, disk, block)
            await trio.sleep(30)
            assert len(nursery.child_tasks) == 7
            assert len(disk.write_behind.pending) == pending
            target.silent = False
        await disk.flush()
        assert target.data[: 8 * BLOCK] == b"n" * 8 * BLOCK


async def test_partial_sectors_are_never_answered_early(autojump_clock: MockClock) -> None:
    async with slow_disk() as (_target, disk):
        assert await write_behind(disk, 0, b"n" * (BLOCK + 1)) > SLOW
        assert not disk.write_behind.pending


async def test_a_read_waits_for_what_is_pending_in_its_range_only(autojump_clock: MockClock) -> None:
    async with slow_disk() as (target, disk):
        await write_behind(disk, 2)
        began = trio.current_time()
        for other in (0, 1, 3):
            await disk.read(other * BLOCK, BLOCK)
        assert trio.current_time() - began < SLOW / 2
        assert await disk.read(3 * BLOCK - 1, 2) == b"n" + target.data[3 * BLOCK : 3 * BLOCK + 1]
        assert trio.current_time() - began > SLOW


async def test_a_write_waits_for_what_is_pending_in_its_range(autojump_clock: MockClock) -> None:
    async with slow_disk() as (target, disk):
        await write_behind(disk, 2)
        assert await write_behind(disk, 2, b"m" * BLOCK) > SLOW
        await disk.write_behind.wait_acknowledged()
        assert target.data[2 * BLOCK : 3 * BLOCK] == b"m" * BLOCK


async def test_a_flush_goes_out_after_the_last_acknowledgement(autojump_clock: MockClock) -> None:
    async with open_scene() as scene:
        target = scene.add_target()
        disk = await scene.disk()
        acknowledge_slowly(target)
        for block in range(4):
            await write_behind(disk, block)
        await disk.flush()
        assert flushes(scene)[0] > SLOW
        assert not disk.target.dirty


async def test_a_flush_does_not_wait_for_writes_that_came_later(autojump_clock: MockClock) -> None:
    async with slow_disk() as (_target, disk):
        await write_behind(disk, 0)
        began = trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(disk.flush)
            await trio.sleep(SLOW / 2)
            await write_behind(disk, 1)
        assert trio.current_time() - began < SLOW + 10 * DELAY
        assert disk.target.dirty, "the later one is still pending"
        await disk.flush()
        assert not disk.target.dirty


async def test_a_late_copy_of_a_pending_write_keeps_its_range(autojump_clock: MockClock) -> None:
    async with open_scene() as scene:
        target = scene.add_target()
        disk = await scene.disk()
        await disk.write(0, b"o" * BLOCK)
        lost: list[bytes] = []

        def lose_first(frame: bytes) -> list[tuple[float, bytes]]:
            if is_write(frame) and not lost:
                lost.append(frame)
                return [(0.4, frame)]
            return [(DELAY, frame)]

        scene.wire.route = lose_first
        await write_behind(disk, 0)
        await disk.write_behind.wait_acknowledged()
        assert trio.current_time() < 0.4, "the second sending was acknowledged"
        await disk.write(0, b"m" * BLOCK)
        await trio.sleep(1)
        assert target.data[:BLOCK] == b"m" * BLOCK


async def test_a_cancelled_write_that_was_not_sent_is_not_pending(autojump_clock: MockClock) -> None:
    async with open_scene() as scene:
        target = scene.add_target()
        disk = await scene.disk()
        scene.link.set_room(0)
        with trio.move_on_after(0.1) as scope:
            await write_behind(disk, 0)
        assert scope.cancelled_caught
        scene.link.set_room(1000)
        await trio.sleep(5)
        assert target.data[:BLOCK] != b"n" * BLOCK
        assert not disk.write_behind.pending
        assert nothing_is_left(disk.target)


async def test_a_target_that_goes_down_loses_what_is_pending_and_says_so(
    autojump_clock: MockClock, announce: Announce
) -> None:
    announce(r"does not answer: \d+ request")
    announce("e0.0 is down")
    announce("e0.0: a write failed after it was answered: ")
    changes: list[Change] = []
    async with open_scene(Settings(deadsecs=5), on_change=lambda _disk, change: changes.append(change)) as scene:
        target = scene.add_target()
        disk = await scene.disk()
        await disk.write(0, b"o" * BLOCK)
        target.silent = True
        await write_behind(disk, 0)
        await disk.write_behind.wait_acknowledged()
        assert 4.5 < trio.current_time() < 6
        assert disk.write_behind.lost == 1
        assert Change.REVALIDATED in changes
        await trio.sleep(5)
        assert nothing_is_left(disk.target)


async def test_the_end_of_the_mount_does_not_fail_what_was_answered(autojump_clock: MockClock) -> None:
    """As at the end of a mount: the last flush waits for it, and it is retransmitted if it was lost."""
    async with open_scene() as scene:
        target = scene.add_target()
        disk = await scene.disk()
        await disk.write(0, b"o" * BLOCK)
        target.silent = True
        await write_behind(disk, 0)
        await trio.sleep(0.05)
        async with trio.open_nursery() as nursery:

            async def write_and_fail() -> None:
                with pytest.raises(TargetLost):
                    await disk.write(BLOCK, b"n" * BLOCK)

            nursery.start_soon(write_and_fail)
            await trio.sleep(0.05)
            scene.engine.close()
        target.silent = False
        disk.target.life.end()
        await disk.flush()
        assert target.data[:BLOCK] == b"n" * BLOCK
        assert disk.write_behind.lost == 0


async def test_a_refused_write_is_lost_with_its_own_reason(autojump_clock: MockClock, announce: Announce) -> None:
    announce("failed after it was answered: ")
    async with open_scene() as scene:
        target = scene.add_target()
        disk = await scene.disk()
        refuse_writes(target)
        await write_behind(disk, 3)
        await disk.write_behind.wait_acknowledged()
        assert isinstance(disk.write_behind.error, AtaError)
        assert disk.write_behind.error.lba == 6
        assert len([frame for _, _, frame in scene.wire.sent() if is_write(frame)]) == 1
