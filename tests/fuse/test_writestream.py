"""Open files whose writes are answered before the target acknowledged them, and how a loss is reported."""

from __future__ import annotations

import errno
import os
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from aoefs.engine.changes import Change
from aoefs.engine.settings import Settings
from aoefs.engine.writebehind import IN_ORDER, MAX_BYTES
from aoefs.protocol.wire import AoeCommand
from tests.engine.answers import flushes
from tests.engine.slowwrites import BLOCK, SLOW, acknowledge_slowly, refuse_writes
from tests.fuse.mounted import Mounted, fails, mounted
from tests.scene import Announce


async def begin_stream(mount: Mounted, handle: int) -> int:
    """Write until the next write in order is one of a stream; where that is."""
    for block in range(IN_ORDER):
        await mount.write(handle, block * BLOCK, b"o" * BLOCK)
    return IN_ORDER * BLOCK


async def timed(mount: Mounted, handle: int, offset: int, data: bytes = b"n" * BLOCK) -> float:
    began = trio.current_time()
    assert await mount.write(handle, offset, data) == len(data)
    return trio.current_time() - began


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
        assert await timed(mount, handle, 101 * BLOCK) > SLOW, "a new stream begins"


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
async def test_files_opened_for_more_safety_get_no_early_answer(
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
    """The kernel may write the pages of a mapping after the last close; then only a release follows."""
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
async def test_a_lost_write_is_reported_through_each_open_file_once_by_write_and_once_by_fsync(
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
        for one in (handle, other):
            for _ in range(2):
                with fails(errno.EIO):
                    await mount.operations.flush(one)  # the close of a copy
            if how == "write":
                with fails(errno.EIO):
                    await mount.write(one, offset + BLOCK, b"n" * BLOCK)
                await mount.write(one, offset + BLOCK, b"n" * BLOCK)
                with fails(errno.EIO):
                    await mount.operations.flush(one)  # the data of another writer may be lost
            with fails(errno.EIO):
                await mount.operations.fsync(one, False)
            await mount.write(one, offset, b"n" * BLOCK)
            await mount.operations.fsync(one, False)
            await mount.operations.flush(one)
        later = await mount.open()
        await mount.write(later, 0, b"n" * BLOCK)
        await mount.operations.fsync(later, False)


@pytest.mark.parametrize("blocks_on", [0, 1])
async def test_a_write_that_is_tried_again_after_a_loss_fails_at_once(
    autojump_clock: MockClock, announce: Announce, blocks_on: int
) -> None:
    """Whether it begins with the block that was lost, or with the next one, whose write failed."""
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


async def test_fsync_that_fails_on_a_silent_target_has_reported_what_it_lost(
    autojump_clock: MockClock, announce: Announce
) -> None:
    announce(r"does not answer: \d+ request")
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
