"""Writes that are answered before the target acknowledged them: which, what waits for them, what their loss means."""

from __future__ import annotations

import errno
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from aoefs.engine.changes import Change
from aoefs.engine.disk import Disk
from aoefs.engine.settings import Settings
from aoefs.engine.supervisor import Supervisor
from aoefs.engine.writebehind import IN_ORDER, MAX_BYTES
from aoefs.errors import AtaError, TargetLost
from aoefs.fuse.readahead import ReadAhead, ReadAheads
from aoefs.protocol.ata import ErrorBit, Status
from aoefs.protocol.wire import AoeCommand
from tests.engine.answers import error_answer, flushes
from tests.fuse.mounted import Mounted, fails, mounted
from tests.scene import DELAY, Announce, SimulatedTarget, nothing_is_left, open_scene
from tests.segment import is_write

BLOCK = 1024  # bytes: what one frame of these segments carries
SLOW = 0.008  # seconds that the targets here may take to acknowledge a write: below the least RTO


def acknowledge_slowly(target: SimulatedTarget, seconds: float = SLOW) -> None:
    target.answer = lambda frame, reply: [(seconds if is_write(frame) else 0.0, reply)]


@asynccontextmanager
async def slow_disk() -> AsyncIterator[tuple[SimulatedTarget, Disk]]:
    """A target that acknowledges slowly, and its disk, on an engine of their own."""
    async with open_scene() as scene:
        target = scene.add_target()
        disk = await scene.disk()
        acknowledge_slowly(target)
        yield target, disk


def refuse_writes(target: SimulatedTarget, seconds: float = 0.0) -> None:
    refused = Status.DRDY | Status.ERR
    target.answer = lambda frame, reply: [
        (seconds, error_answer(reply, refused, ErrorBit.UNC) if is_write(frame) else reply)
    ]


async def write_behind(disk: Disk, block: int, data: bytes = b"n" * BLOCK) -> float:
    """Write, and do not insist on the acknowledgement; the seconds that it took."""
    began = trio.current_time()
    await disk.write(block * BLOCK, data, behind=True)
    return trio.current_time() - began


async def begin_stream(mount: Mounted, handle: int) -> int:
    """Write until the next write in order is one of a stream; where that is."""
    for block in range(IN_ORDER):
        await mount.write(handle, block * BLOCK, b"o" * BLOCK)
    return IN_ORDER * BLOCK


async def timed(mount: Mounted, handle: int, offset: int, data: bytes = b"n" * BLOCK) -> float:
    began = trio.current_time()
    assert await mount.write(handle, offset, data) == len(data)
    return trio.current_time() - began


# ── a disk ────────────────────────────────────────────────────────────────────────────────────────────────────────


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


async def test_nothing_is_answered_early_while_the_target_is_silent(autojump_clock: MockClock) -> None:
    """However many writes come: what is pending was sent before it fell silent."""
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


async def test_what_was_read_ahead_before_a_write_was_answered_is_not_used_after(autojump_clock: MockClock) -> None:
    """The write waits for the window, somebody reads ahead meanwhile, and the read overtakes the write."""
    async with open_scene() as scene:
        target = scene.add_target()
        disk = await scene.disk()
        await disk.write(0, b"o" * 64 * BLOCK)
        ahead = ReadAhead(disk, ReadAheads(Supervisor(scene.nursery)))
        scene.wire.route = lambda frame: [(SLOW if is_write(frame) else DELAY, frame)]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(disk.read, 64 * BLOCK, target.export.buffer_count * BLOCK)
            await trio.sleep(DELAY / 4)
            nursery.start_soon(write_behind, disk, 20)
            await trio.sleep(DELAY / 4)
            for block in range(3):
                nursery.start_soon(ahead.read, block * BLOCK, BLOCK, 64 * BLOCK)
        assert disk.write_behind.pending
        assert ahead._chunks
        assert await ahead.read(20 * BLOCK, BLOCK, 64 * BLOCK) == b"n" * BLOCK
        assert not disk.write_behind.pending


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


async def test_who_fails_all_that_waits_does_not_fail_what_was_answered(autojump_clock: MockClock) -> None:
    """As at the end of a mount: the last flush waits for it, and sends it again if it must."""
    async with open_scene() as scene:
        target = scene.add_target()
        disk = await scene.disk()
        await disk.write(0, b"o" * BLOCK)
        target.silent = True
        await write_behind(disk, 0)
        await trio.sleep(0.05)
        async with trio.open_nursery() as nursery:

            async def write_in_vain() -> None:
                with pytest.raises(TargetLost):
                    await disk.write(BLOCK, b"n" * BLOCK)

            nursery.start_soon(write_in_vain)
            await trio.sleep(0.05)
            scene.engine.fail_all()
        target.silent = False
        await disk.flush()
        assert target.data[:BLOCK] == b"n" * BLOCK
        assert disk.write_behind.lost == 0


# ── an open file ──────────────────────────────────────────────────────────────────────────────────────────────────


async def test_writes_in_order_become_a_stream_and_others_do_not(autojump_clock: MockClock) -> None:
    async with mounted() as mount:
        target = mount.scene.add_target()
        await mount.scene.disk()
        handle = await mount.open()
        acknowledge_slowly(target)
        took = [await timed(mount, handle, block * BLOCK) for block in range(IN_ORDER + 2)]
        assert min(took[:IN_ORDER]) > SLOW
        assert took[IN_ORDER:] == [0.0, 0.0]
        assert await timed(mount, handle, 100 * BLOCK) > SLOW, "elsewhere"
        other = await mount.open()
        assert await timed(mount, other, 101 * BLOCK) > SLOW, "another open file"
        assert await timed(mount, handle, 101 * BLOCK) > SLOW, "a stream begins anew"


@pytest.mark.parametrize(
    ("flags", "options"),
    [
        (os.O_DIRECT, {}),
        (os.O_SYNC, {}),
        (os.O_DSYNC, {}),
        (0, {"direct": True}),
        (0, {"sync": True}),
    ],
    ids=["O_DIRECT", "O_SYNC", "O_DSYNC", "--direct", "--sync"],
)
async def test_who_asked_for_more_gets_no_early_answer(
    autojump_clock: MockClock, flags: int, options: dict[str, Any]
) -> None:
    async with mounted(**options) as mount:
        target = mount.scene.add_target()
        await mount.scene.disk()
        handle = await mount.open(flags=os.O_RDWR | flags)
        acknowledge_slowly(target)
        for block in range(3 * IN_ORDER):
            assert await timed(mount, handle, block * BLOCK) > SLOW


async def test_close_waits_for_what_is_pending(autojump_clock: MockClock) -> None:
    async with mounted() as mount:
        target = mount.scene.add_target()
        await mount.scene.disk()
        handle = await mount.open()
        offset = await begin_stream(mount, handle)
        acknowledge_slowly(target)
        began = trio.current_time()
        assert await timed(mount, handle, offset) == 0
        await mount.operations.flush(handle)
        assert trio.current_time() - began > SLOW
        assert flushes(mount.scene)[-1] > began + SLOW


async def test_a_reservation_is_held_until_nothing_is_pending(autojump_clock: MockClock) -> None:
    """The kernel writes the pages of a mapping after the last close, of which comes only the release then."""
    async with mounted(reserve=True) as mount:
        target = mount.scene.add_target()
        disk = await mount.scene.disk()
        handle = await mount.open()
        offset = await begin_stream(mount, handle)
        acknowledge_slowly(target)
        began = trio.current_time()
        assert await timed(mount, handle, offset) == 0
        await mount.operations.release(handle)
        assert not disk.write_behind.pending
        given_back = mount.scene.wire.sent(AoeCommand.RESERVE)[-1][0]
        assert given_back > began + SLOW


@pytest.mark.parametrize("how", ["write", "fsync"])
async def test_each_open_file_is_told_of_a_lost_write_once_by_write_and_once_by_fsync(
    autojump_clock: MockClock, announce: Announce, how: str
) -> None:
    announce("e0.0: a write at LBA 16 failed after it was answered: ")
    announce("e0.0: (write|an earlier write) at LBA 16 failed: ")
    async with mounted() as mount:
        target = mount.scene.add_target()
        disk = await mount.scene.disk()
        handle, other = await mount.open(), await mount.open()
        offset = await begin_stream(mount, handle)
        refuse_writes(target, SLOW)
        assert await timed(mount, handle, offset) == 0
        await trio.sleep(0.1)
        assert disk.write_behind.lost == 1
        assert (disk, Change.REVALIDATED) in mount.changes, "the kernel shows what the disk does not have"
        target.answer = lambda _frame, reply: [(0.0, reply)]
        for told in (handle, other):
            for _ in range(2):
                with fails(errno.EIO):
                    await mount.operations.flush(told)  # the close of a copy
            if how == "write":
                with fails(errno.EIO):
                    await mount.write(told, offset + BLOCK, b"n" * BLOCK)
                await mount.write(told, offset + BLOCK, b"n" * BLOCK)
                with fails(errno.EIO):
                    await mount.operations.flush(told)  # what was lost may be somebody else's
            with fails(errno.EIO):
                await mount.operations.fsync(told, False)
            await mount.write(told, offset, b"n" * BLOCK)
            await mount.operations.fsync(told, False)
            await mount.operations.flush(told)
        later = await mount.open()
        await mount.write(later, 0, b"n" * BLOCK)
        await mount.operations.fsync(later, False)


@pytest.mark.parametrize("blocks_on", [0, 1])
async def test_whoever_tries_again_after_a_loss_is_told_at_once(
    autojump_clock: MockClock, announce: Announce, blocks_on: int
) -> None:
    """Whether he begins with what was lost, or with the next one, which he was told to have failed."""
    announce("failed after it was answered: ")
    announce("e0.0: write at LBA 16 failed: ")
    if blocks_on:
        announce("e0.0: write at LBA 18 failed: ")
    async with mounted() as mount:
        target = mount.scene.add_target()
        disk = await mount.scene.disk()
        handle = await mount.open()
        offset = await begin_stream(mount, handle)
        refuse_writes(target, SLOW)
        assert await timed(mount, handle, offset) == 0
        await trio.sleep(0.1)
        for _ in range(3):
            with fails(errno.EIO):
                await mount.write(handle, offset + blocks_on * BLOCK, b"n" * BLOCK)
        assert disk.write_behind.lost == 1


async def test_fsync_fails_for_a_write_that_fails_while_it_waits(autojump_clock: MockClock, announce: Announce) -> None:
    announce("failed after it was answered: ")
    announce("an earlier write at LBA 16 failed: ")
    async with mounted() as mount:
        target = mount.scene.add_target()
        await mount.scene.disk()
        handle = await mount.open()
        offset = await begin_stream(mount, handle)
        refuse_writes(target, SLOW)
        assert await timed(mount, handle, offset) == 0
        with fails(errno.EIO):
            await mount.operations.fsync(handle, False)


async def test_fsync_that_fails_on_a_silent_target_has_told_of_what_it_lost(
    autojump_clock: MockClock, announce: Announce
) -> None:
    announce("e0.0 is down")
    announce("failed after it was answered: ")
    announce("e0.0: (flush|an earlier write) failed: ")
    async with mounted(Settings(deadsecs=5)) as mount:
        target = mount.scene.add_target()
        disk = await mount.scene.disk()
        handle = await mount.open()
        offset = await begin_stream(mount, handle)
        target.silent = True
        assert await timed(mount, handle, offset) == 0
        with fails(errno.EIO):
            await mount.operations.fsync(handle, False)
        assert disk.write_behind.reported == disk.write_behind.lost == 1
        target.silent = False
        await trio.sleep(60)
        await mount.write(handle, offset, b"n" * BLOCK)
        await mount.operations.fsync(handle, False)


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


async def test_large_writes_of_a_stream_are_not_answered_early(autojump_clock: MockClock) -> None:
    async with mounted() as mount:
        target = mount.scene.add_target(sectors=(IN_ORDER + 1) * (MAX_BYTES // 512 + 1), max_sectors=17)
        mount.scene.link.max_sectors = 17
        disk = await mount.scene.disk()
        handle = await mount.open()
        large = MAX_BYTES + 512
        for number in range(IN_ORDER):
            await mount.write(handle, number * large, bytes(large))
        acknowledge_slowly(target)
        await mount.write(handle, IN_ORDER * large, bytes(large))
        assert not disk.write_behind.pending
