"""A disk's lone commands: which flush is sent, when again, and what its failure means."""

from __future__ import annotations

from dataclasses import replace

import pytest
import trio
from trio.testing import MockClock

from aoefs.engine.settings import Settings
from aoefs.errors import AtaError, TargetError, TargetLost
from aoefs.protocol.ata import ErrorBit, Identity, Opcode
from aoefs.protocol.wire import AoeCommand, AtaArgument, AtaFlag, Flag, decode_ata_untrusted
from tests.engine.answers import FLUSHES, flushes, is_flush, refuse_flush
from tests.scene import DELAY, Announce, SimulatedTarget, open_scene, target_mac


@pytest.mark.parametrize(
    ("flush", "flush_ext", "lba48", "expected"),
    [
        (True, True, True, Opcode.FLUSH_EXT),
        (False, True, True, Opcode.FLUSH_EXT),
        (True, False, True, Opcode.FLUSH),
        (True, True, False, Opcode.FLUSH),
        (False, False, True, None),
        (False, True, False, None),
    ],
)
async def test_the_flush_is_the_one_that_identify_announces(
    autojump_clock: MockClock, flush: bool, flush_ext: bool, lba48: bool, expected: Opcode | None
) -> None:
    async with open_scene() as scene:
        target = scene.add_target()
        identity = Identity(256, "S", "M", "F", lba48=lba48, flush=flush, flush_ext=flush_ext)
        target.identify_as(identity)
        disk = await scene.disk()
        await disk.write(0, b"x" * 512)
        assert disk.target.dirty
        began = trio.current_time()
        await disk.flush()
        assert not disk.target.dirty
        sent = [registers for opcode in FLUSHES for _, registers in scene.wire.ata(opcode)]
        if expected is None:
            assert sent == []
            assert trio.current_time() == began
            assert not disk.target.statistics().flush_supported
        else:
            assert [registers.command for registers in sent] == [expected]
            assert bool(sent[0].flags & AtaFlag.LBA48) == (expected == Opcode.FLUSH_EXT)
            assert trio.current_time() - began == pytest.approx(2 * DELAY, abs=1e-9)
            assert disk.target.flushes == 1


async def test_a_flush_is_sent_also_when_nothing_was_written(autojump_clock: MockClock) -> None:
    async with open_scene() as scene:
        target = scene.add_target()
        disk = await scene.disk()
        await disk.flush()
        assert len(flushes(scene)) == 1
        assert target.export.counters.flushes == 1


async def test_an_abort_means_not_supported_and_is_remembered(autojump_clock: MockClock, announce: Announce) -> None:
    announce("e0.0 refuses its own flush command")
    async with open_scene() as scene:
        target = scene.add_target()
        refuse_flush(target, ErrorBit.ABRT)
        disk = await scene.disk()
        assert disk.target.statistics().flush_supported
        for _ in range(3):
            await disk.write(0, b"x" * 512)
            await disk.flush()
            assert not disk.target.dirty
        assert len(flushes(scene)) == 1
        assert not disk.target.statistics().flush_supported


@pytest.mark.parametrize(("status", "error"), [(0x61, 0), (0x41, ErrorBit.UNC), (0x41, ErrorBit.IDNF)])
async def test_an_error_reaches_the_caller_and_the_target_stays_dirty(
    autojump_clock: MockClock, status: int, error: int
) -> None:
    async with open_scene() as scene:
        target = scene.add_target()
        refuse_flush(target, error, status)
        disk = await scene.disk()
        await disk.write(0, b"x" * 512)
        for count in (1, 2):
            with pytest.raises(AtaError):
                await disk.flush()
            assert disk.target.dirty
            assert disk.target.errors == count
        assert disk.target.flushes == 0
        target.answer = lambda _frame, reply: [(0.0, reply)]
        await disk.flush()
        assert not disk.target.dirty


async def test_an_aoe_error_to_a_flush_reaches_the_caller(autojump_clock: MockClock) -> None:
    async with open_scene() as scene:
        target = scene.add_target()
        disk = await scene.disk()
        await disk.write(0, b"x" * 512)
        target.answer = lambda _frame, reply: [
            (0.0, reply[:14] + bytes([0x10 | Flag.RESPONSE | Flag.ERROR, 6]) + reply[16:24])  # no registers at all
        ]
        with pytest.raises(TargetError) as caught:
            await disk.flush()
        assert caught.value.code == 6
        assert disk.target.dirty
        assert disk.target.errors == 1


async def test_a_flush_is_sent_again_after_one_second_doubling_up_to_eight(autojump_clock: MockClock) -> None:
    async with open_scene(Settings(deadsecs=40)) as scene:
        target = scene.add_target()
        disk = await scene.disk()
        await disk.write(0, b"x" * 512)
        target.answer = lambda frame, reply: [] if is_flush(frame) else [(0.0, reply)]
        began = trio.current_time()
        with pytest.raises(TargetLost):
            await disk.flush()
        assert trio.current_time() - began == pytest.approx(40)
        assert [at - began for at in flushes(scene)] == pytest.approx([0, 1, 3, 7, 15, 23, 31, 39])
        tags = [header.tag for _, header, frame in scene.wire.sent(AoeCommand.ATA) if is_flush(frame)]
        assert len(set(tags)) == len(tags), "each sending has a tag of its own"
        assert disk.target.dirty
        assert disk.target.errors == 1


@pytest.mark.parametrize("seconds", [0.5, 1.5, 6.0, 20.0])
async def test_a_slow_flush_is_waited_for(autojump_clock: MockClock, seconds: float) -> None:
    async with open_scene() as scene:
        target = scene.add_target()
        disk = await scene.disk()
        await disk.write(0, b"x" * 512)
        target.answer = lambda frame, reply: [(seconds if is_flush(frame) else 0.0, reply)]
        began = trio.current_time()
        await disk.flush()
        assert trio.current_time() - began == pytest.approx(seconds + 2 * DELAY)
        assert not disk.target.dirty
        assert disk.target.paths[0].rtt.srtt < 0.01, "a flush is no sample"
        assert disk.target.statistics().retransmits == 0


async def test_a_write_acknowledged_during_a_flush_leaves_the_target_dirty(autojump_clock: MockClock) -> None:
    async with open_scene() as scene:
        target = scene.add_target()
        disk = await scene.disk()
        await disk.write(0, b"x" * 512)
        target.answer = lambda frame, reply: [(0.5 if is_flush(frame) else 0.0, reply)]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(disk.flush)
            await trio.sleep(0.1)
            await disk.write(0, b"y" * 512)
        assert disk.target.dirty
        await disk.flush()
        assert not disk.target.dirty


async def test_the_answer_to_a_flush_counts_only_from_a_path_of_the_target(autojump_clock: MockClock) -> None:
    async with open_scene() as scene:
        target = scene.add_target()
        disk = await scene.disk()
        await trio.sleep(1)
        unknown = scene.link.rx_unknown
        forged = target_mac(666)
        target.answer = lambda frame, reply: (
            [(0.0, reply[:6] + forged + reply[12:]), (0.2, reply)] if is_flush(frame) else [(0.0, reply)]
        )
        began = trio.current_time()
        await disk.flush()
        assert trio.current_time() - began == pytest.approx(0.2 + 2 * DELAY)
        assert scene.link.rx_unknown == unknown + 1


async def test_a_flush_goes_out_on_a_healthy_path(autojump_clock: MockClock) -> None:
    """The target moved to another link: its old path is scorned, and a flush does not wait for it."""
    async with open_scene() as scene:
        target = scene.add_target()
        disk = await scene.disk()
        other = SimulatedTarget(scene.wire, target.export, mac=target_mac(99))
        scene.engine.lookout.discover()
        await trio.sleep(6)
        assert len(disk.target.paths) == 2
        target.silent = True
        for _ in range(20):
            await disk.write(0, bytes(100 * 512))
        assert [path.degraded for path in disk.target.paths] == [True, False]
        for _ in range(4):
            began = trio.current_time()
            await disk.flush()
            assert trio.current_time() - began == pytest.approx(2 * DELAY)
        assert other.heard


async def test_a_flush_to_a_target_that_comes_back_goes_out_as_soon_as_it_is_known_again(
    autojump_clock: MockClock,
) -> None:
    async with open_scene() as scene:
        target = scene.add_target()
        disk = await scene.disk()
        await disk.write(0, b"x" * 512)
        target.silent = True
        async with trio.open_nursery() as nursery:
            nursery.start_soon(disk.flush)
            nursery.start_soon(disk.read, 0, 512)
            await trio.sleep(30)
            assert disk.target.suspended
            target.silent = False
            while disk.target.suspended:  # noqa: ASYNC110
                await trio.sleep(0.001)
            back = trio.current_time()
        assert trio.current_time() - back <= 0.02
        assert not disk.target.dirty


async def test_a_command_carries_its_registers_and_gives_the_whole_answer(autojump_clock: MockClock) -> None:
    async with open_scene() as scene:
        scene.add_target()
        disk = await scene.disk()
        registers = replace(decode_ata_untrusted(bytes(36)), command=Opcode.CHECK_POWER_MODE)
        answer = await disk.commands.ata(registers)
        assert isinstance(answer.argument, AtaArgument)
        assert answer.argument.count == 0xFF


async def test_a_target_that_is_silent_to_a_flush_alone_must_be_identified_before_its_answer_counts(
    autojump_clock: MockClock,
) -> None:
    """Else the flush of another disk that came in its place would be taken for the one that was asked for."""
    async with open_scene() as scene:
        target = scene.add_target()
        disk = await scene.disk()
        await disk.write(0, b"x" * 512)
        target.silent = True
        with trio.move_on_after(5):
            await disk.flush()
        assert disk.target.suspended


async def test_an_abort_of_a_flush_that_worked_before_is_a_failure(autojump_clock: MockClock) -> None:
    """Only a disk that never flushed may say that it cannot."""
    async with open_scene() as scene:
        target = scene.add_target()
        disk = await scene.disk()
        await disk.write(0, b"x" * 512)
        await disk.flush()
        await disk.write(0, b"y" * 512)
        refuse_flush(target, ErrorBit.ABRT)
        with pytest.raises(AtaError):
            await disk.flush()
        assert disk.target.dirty
        assert not disk.target.flush_unknown
