"""The flush of a disk: which command it is, and what its failure means."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from aoefs.errors import AtaError, TargetError
from aoefs.protocol.ata import ErrorBit, Identity, Opcode
from aoefs.protocol.wire import AtaFlag, Flag
from tests.engine.answers import FLUSHES, flushes, is_flush, refuse_flush
from tests.memorystore import MemoryStore
from tests.scene import DELAY, Announce, open_scene


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
        assert isinstance(target.export.store, MemoryStore)
        assert target.export.store.syncs == 1


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


async def test_an_abort_of_a_flush_that_worked_before_is_a_failure(autojump_clock: MockClock) -> None:
    """A refusal means that flush is not supported only if none succeeded before."""
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
