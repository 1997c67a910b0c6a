"""The file system's operations called directly, without a mount, on an engine on a simulated segment."""

from __future__ import annotations

import errno
import os
from collections.abc import Awaitable, Coroutine
from dataclasses import replace
from typing import Any, cast

import pyfuse3
import pytest
import trio
from pyfuse3 import EntryAttributes, FUSEError
from trio.testing import MockClock

from aoefs.engine.changes import Change
from aoefs.engine.roster import PERSISTENCE
from aoefs.engine.waits import Stepped
from aoefs.fuse.kernel import Notice
from aoefs.fuse.tree import CONTROL, ROOT
from aoefs.protocol.ata import Status
from aoefs.protocol.wire import AoeCommand
from tests.engine.answers import flushes, is_flush, refuse_flush
from tests.fuse.mounted import CONTEXT, fails, mounted
from tests.scene import Announce, nothing_is_left

# ── the file system as a whole ────────────────────────────────────────────────────────────────────────────────────────


def make_fields(**which: bool) -> pyfuse3.SetattrFields:
    class Fields:
        update_atime = update_mtime = update_ctime = update_mode = update_uid = update_gid = update_size = False

    fields = Fields()
    for name, value in which.items():
        setattr(fields, name, value)
    return cast(pyfuse3.SetattrFields, fields)


async def test_the_file_system_is_as_large_as_its_disks_and_full(autojump_clock: MockClock) -> None:
    async with mounted() as mount:
        mount.scene.add_target(0, 0, sectors=100)
        mount.scene.add_target(0, 1, sectors=50)
        await mount.scene.disk(0, 1)
        await mount.scene.disk(0, 0)
        data = await mount.operations.statfs(CONTEXT)
        assert (data.f_frsize, data.f_blocks, data.f_bfree, data.f_bavail, data.f_files) == (512, 150, 0, 0, 2)


async def test_what_waits_for_nothing_takes_no_turn_of_the_loop(autojump_clock: MockClock) -> None:
    """``fuse.workerloop`` steps the handlers: a task for each of these would double what opening a file takes."""
    async with mounted() as mount:
        mount.scene.add_target()
        await mount.scene.disk()
        operations, callers = mount.operations, mount.scene.engine.driver.callers

        def step(handler: Awaitable[Any]) -> Any:
            coroutine = cast(Coroutine[Any, Any, Any], handler)
            callers.stepping = Stepped(coroutine)
            try:
                with pytest.raises(StopIteration) as ended:
                    coroutine.send(None)
            finally:
                callers.stepping = None
            return ended.value.value

        inode = step(operations.lookup(ROOT, b"e0.0", CONTEXT)).st_ino
        assert step(operations.getattr(inode, CONTEXT)).st_ino == inode
        step(operations.statfs(CONTEXT))
        assert step(operations.opendir(ROOT, CONTEXT)) == ROOT
        for flags in (os.O_RDONLY, os.O_RDWR):
            number = step(operations.open(inode, flags, CONTEXT)).fh
            if flags == os.O_RDONLY:
                step(operations.flush(number))
            step(operations.release(number))


async def test_truncation_and_times_succeed_and_change_nothing(autojump_clock: MockClock) -> None:
    async with mounted() as mount:
        target = mount.scene.add_target()
        await mount.scene.disk()
        content = bytes(target.data)
        before = await mount.lookup("e0.0")
        wanted = EntryAttributes()
        wanted.st_size = wanted.st_mtime_ns = 0
        for which in ("update_size", "update_mtime", "update_atime", "update_ctime"):
            after = await mount.operations.setattr(before.st_ino, wanted, make_fields(**{which: True}), None, CONTEXT)
            assert (after.st_size, after.st_mtime_ns) == (before.st_size, before.st_mtime_ns)
        handle = await mount.open(flags=os.O_WRONLY | os.O_TRUNC | os.O_CREAT)
        assert await mount.write(handle, 0, b"new") == 3
        assert target.data == b"new" + content[3:]
        assert (await mount.lookup("e0.0")).st_size == before.st_size


@pytest.mark.parametrize("which", ["update_mode", "update_uid", "update_gid"])
async def test_owner_and_mode_belong_to_the_mount(autojump_clock: MockClock, which: str) -> None:
    async with mounted() as mount:
        mount.scene.add_target()
        await mount.scene.disk()
        with fails(errno.EPERM):
            await mount.operations.setattr(
                await mount.inode("e0.0"), EntryAttributes(), make_fields(**{which: True}), None, CONTEXT
            )


@pytest.mark.parametrize(("read_only", "code"), [(False, errno.EPERM), (True, errno.EROFS)])
async def test_nothing_is_made_removed_or_renamed(autojump_clock: MockClock, read_only: bool, code: int) -> None:
    async with mounted(read_only=read_only) as mount:
        calls: dict[str, tuple[object, ...]] = {
            "create": (ROOT, b"new", 0o644, os.O_RDWR, CONTEXT),
            "mknod": (ROOT, b"new", 0o644, 0, CONTEXT),
            "mkdir": (ROOT, b"new", 0o755, CONTEXT),
            "unlink": (ROOT, b"e0.0", CONTEXT),
            "rmdir": (ROOT, b".aoefs", CONTEXT),
            "rename": (ROOT, b"e0.0", ROOT, b"e0.1", 0, CONTEXT),
            "symlink": (ROOT, b"new", b"e0.0", CONTEXT),
            "link": (16, ROOT, b"new", CONTEXT),
        }
        for name, arguments in calls.items():
            with fails(code):
                await getattr(mount.operations, name)(*arguments)


# ── data ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_reads_and_writes_at_any_place(autojump_clock: MockClock) -> None:
    async with mounted() as mount:
        target = mount.scene.add_target(sectors=33)
        disk = await mount.scene.disk()
        handle = await mount.open()
        expected = bytearray(target.data)
        for offset, size in [(0, 512), (1, 1), (510, 4), (511, 513), (7, 8000), (512, 4096), (32 * 512 + 3, 100)]:
            data = os.urandom(size)
            assert await mount.write(handle, offset, data) == size
            expected[offset : offset + size] = data
            assert await mount.read(handle, offset, size) == data
        assert target.data == expected
        assert nothing_is_left(disk.target)


async def test_a_read_is_short_only_at_the_end_of_the_disk(autojump_clock: MockClock) -> None:
    async with mounted() as mount:
        target = mount.scene.add_target(sectors=9)
        await mount.scene.disk()
        size = 9 * 512
        handle = await mount.open()
        assert await mount.read(handle, size - 100, 4096) == target.data[-100:]
        assert await mount.read(handle, 0, 1 << 20) == target.data
        for offset in (size, size + 1, 1 << 62):
            assert await mount.read(handle, offset, 4096) == b""
        assert await mount.read(handle, 0, 0) == b""


async def test_a_write_across_the_end_is_short_and_one_behind_it_is_enospc(autojump_clock: MockClock) -> None:
    async with mounted() as mount:
        target = mount.scene.add_target(sectors=9)
        await mount.scene.disk()
        size = 9 * 512
        handle = await mount.open()
        assert await mount.write(handle, size - 700, b"z" * 1000) == 700
        assert target.data[-700:] == b"z" * 700
        assert await mount.write(handle, size - 1, b"yy") == 1
        for offset in (size, size + 1, 1 << 62):
            with fails(errno.ENOSPC):
                await mount.write(handle, offset, b"x")
        assert target.data[-2:] == b"zy"


async def test_many_writers_of_neighbouring_bytes_lose_nothing(autojump_clock: MockClock) -> None:
    async with mounted() as mount:
        target = mount.scene.add_target(sectors=4)
        await mount.scene.disk()
        handle = await mount.open()
        expected = b"".join(bytes([number & 0xFF]) * 5 for number in range(4 * 512 // 5))
        async with trio.open_nursery() as nursery:
            for number in range(4 * 512 // 5):
                nursery.start_soon(mount.write, handle, number * 5, bytes([number & 0xFF]) * 5)
        assert target.data[: len(expected)] == expected


async def test_a_read_only_mount_refuses_to_write(autojump_clock: MockClock) -> None:
    async with mounted(read_only=True) as mount:
        target = mount.scene.add_target()
        await mount.scene.disk()
        for flags in (os.O_WRONLY, os.O_RDWR, os.O_RDWR | os.O_TRUNC):
            with fails(errno.EROFS):
                await mount.open(flags=flags)
        handle = await mount.open(flags=os.O_RDONLY)
        assert await mount.read(handle, 0, 512) == target.data[:512]


# ── durability ────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_fsync_always_asks_the_target_and_close_only_after_a_write(autojump_clock: MockClock) -> None:
    async with mounted() as mount:
        mount.scene.add_target()
        await mount.scene.disk()
        handle = await mount.open()

        async def asks(call: Awaitable[object]) -> int:
            before = len(flushes(mount.scene))
            await call
            return len(flushes(mount.scene)) - before

        assert await asks(mount.operations.flush(handle)) == 0
        assert await asks(mount.operations.fsync(handle, False)) == 1
        assert await asks(mount.operations.fsync(handle, True)) == 1
        await mount.write(handle, 0, b"x")
        assert await asks(mount.operations.flush(handle)) == 1
        assert await asks(mount.operations.flush(handle)) == 0, "the close of a duplicate"
        other = await mount.open()
        await mount.write(handle, 0, b"x")
        assert await asks(mount.operations.flush(other)) == 1, "the cache belongs to the target"
        await mount.read(handle, 0, 512)
        assert await asks(mount.operations.flush(handle)) == 0
        assert await asks(mount.operations.fsyncdir(ROOT, False)) == 0


async def test_a_failed_flush_fails_the_fsync_and_the_next_close_flushes_again(
    autojump_clock: MockClock, announce: Announce
) -> None:
    announce("e0.0: flush failed: ")
    async with mounted() as mount:
        target = mount.scene.add_target()
        await mount.scene.disk()
        handle = await mount.open()
        await mount.write(handle, 0, b"x")
        refuse_flush(target, 0, Status.DRDY | Status.DF | Status.ERR)
        with fails(errno.EIO):
            await mount.operations.fsync(handle, False)
        with fails(errno.EIO):
            await mount.operations.flush(handle)
        target.answer = lambda _frame, reply: [(0.0, reply)]
        await mount.operations.flush(handle)
        assert len(flushes(mount.scene)) == 3


async def test_fsync_waits_for_the_answer(autojump_clock: MockClock) -> None:
    async with mounted() as mount:
        target = mount.scene.add_target()
        await mount.scene.disk()
        handle = await mount.open()
        target.answer = lambda frame, reply: [(7.0 if is_flush(frame) else 0.0, reply)]
        began = trio.current_time()
        await mount.operations.fsync(handle, False)
        assert trio.current_time() - began >= 7


@pytest.mark.parametrize("flags", [os.O_SYNC, os.O_DSYNC])
async def test_a_sync_write_of_a_direct_mount_is_flushed(autojump_clock: MockClock, flags: int) -> None:
    async with mounted(direct=True) as mount:
        mount.scene.add_target()
        await mount.scene.disk()
        handle = await mount.open(flags=os.O_RDWR | flags)
        await mount.write(handle, 0, b"x")
        assert len(flushes(mount.scene)) == 1
        plain = await mount.open()
        await mount.write(plain, 0, b"x")
        assert len(flushes(mount.scene)) == 1


# ── caches and identity ───────────────────────────────────────────────────────────────────────────────────────────────


async def test_the_first_open_drops_the_cached_pages_and_later_ones_keep_them(autojump_clock: MockClock) -> None:
    async with mounted() as mount:
        mount.scene.add_target()
        await mount.scene.disk()
        inode = await mount.inode("e0.0")

        async def opened() -> tuple[int, bool, bool]:
            info = await mount.operations.open(inode, os.O_RDONLY, CONTEXT)
            return info.fh, info.keep_cache, info.direct_io

        first, keep, direct = await opened()
        assert (keep, direct) == (False, False)
        second, keep, _ = await opened()
        assert keep
        await mount.operations.release(first)
        third, keep, _ = await opened()
        assert keep
        await mount.operations.release(second)
        await mount.operations.release(third)
        assert (await opened())[1] is False
        assert len({first, second, third}) == 3


async def test_a_direct_mount_opens_without_the_page_cache(autojump_clock: MockClock) -> None:
    async with mounted(direct=True) as mount:
        mount.scene.add_target()
        await mount.scene.disk()
        info = await mount.operations.open(await mount.inode("e0.0"), os.O_RDONLY, CONTEXT)
        assert info.direct_io


async def test_another_disk_under_the_name_gets_another_inode_and_old_handles_fail(
    autojump_clock: MockClock, announce: Announce
) -> None:
    announce("e0.0: another disk answers there")
    announce("e0.0 is another disk now")
    announce("e0.0: (read|write|flush) failed")
    async with mounted() as mount:
        target = mount.scene.add_target()
        await mount.scene.disk()
        inodes = [await mount.inode("e0.0")]
        handle = await mount.open()
        await mount.write(handle, 0, b"old")
        for number in range(3):
            target.identify_as(replace(target.export.identity, serial=f"another {number}"))
            mount.kernel.take()
            target.announce()
            await trio.sleep(PERSISTENCE + 5)
            gone = inodes[-1]
            assert mount.kernel.take() == [Notice(ROOT, b"e0.0"), Notice(gone), Notice(CONTROL, b"e0.0")]
            inodes.append(await mount.inode("e0.0"))
        assert len(set(inodes)) == 4
        assert inodes == sorted(inodes)
        with fails(errno.ESTALE):
            await mount.read(handle, 0, 512)
        with fails(errno.ESTALE):
            await mount.write(handle, 0, b"evil")
        with pytest.raises(FUSEError):
            await mount.operations.fsync(handle, False)
        assert target.data[:3] == b"old"
        await mount.operations.release(handle)
        assert (await mount.lookup("e0.0")).entry_timeout == 0, "the kernel asks before it opens the name again"
        new = await mount.open()
        assert await mount.read(new, 0, 3) == b"old"


async def test_the_kernel_is_notified_of_what_changed(autojump_clock: MockClock, announce: Announce) -> None:
    announce("e0.0 grew")
    async with mounted() as mount:
        target = mount.scene.add_target()
        disk = await mount.scene.disk()
        inode = await mount.inode("e0.0")
        target.resize(512)
        mount.scene.engine.lookout.discover()
        await trio.sleep(2)
        assert (await mount.lookup("e0.0")).st_size == 512 * 512
        assert [change for _, change in mount.changes] == [Change.APPEARED, Change.RESIZED]
        assert mount.kernel.take() == [Notice(inode, pages=False)]
        for change, notices in ((Change.RETURNED, [Notice(inode)]), (Change.DOWN, [])):
            mount.scene.engine.changes.publish(disk, change)
            assert mount.kernel.take() == notices


# ── reservations ──────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_reservation_is_taken_by_the_first_writer_and_given_back_by_the_last(
    autojump_clock: MockClock,
) -> None:
    async with mounted(reserve=True) as mount:
        target = mount.scene.add_target()
        await mount.scene.disk()
        target.answer = lambda frame, reply: [
            (0.0, reply[:14] + b"\x18\0" + reply[16:] if frame[19] == AoeCommand.RESERVE else reply)
        ]

        def sent() -> int:
            return len(mount.scene.wire.sent(AoeCommand.RESERVE))

        reader = await mount.open(flags=os.O_RDONLY)
        assert sent() == 0
        first, second = await mount.open(), await mount.open()
        assert sent() == 1
        await mount.operations.release(first)
        await mount.operations.release(reader)
        assert sent() == 1
        await mount.operations.release(second)
        assert sent() == 2


async def test_a_file_that_goes_while_it_is_opened_is_stale_and_its_reservation_is_given_back(
    autojump_clock: MockClock,
) -> None:
    async with mounted(reserve=True) as mount:
        target = mount.scene.add_target()
        await mount.scene.disk()
        target.answer = lambda frame, reply: [
            (0.5, reply[:14] + b"\x18\0" + reply[16:] if frame[19] == AoeCommand.RESERVE else reply)
        ]
        node = mount.operations.tree.nodes[await mount.inode("e0.0")]
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def go() -> None:
                await trio.sleep(0.25)
                mount.operations.tree.mark_gone([node])

            with fails(errno.ESTALE):
                await mount.open()
        assert (node.opened, node.writing, node.disk.opened) == (0, 0, 0)
        assert len(mount.scene.wire.sent(AoeCommand.RESERVE)) == 2


async def test_a_disk_that_another_host_reserved_is_busy(autojump_clock: MockClock, announce: Announce) -> None:
    announce("e0.0: reservation failed: AoE error 6")
    async with mounted(reserve=True) as mount:
        target = mount.scene.add_target()
        await mount.scene.disk()
        target.answer = lambda frame, reply: [
            (0.0, reply[:14] + b"\x1c\x06" + reply[16:] if frame[19] == AoeCommand.RESERVE else reply)
        ]
        with fails(errno.EBUSY):
            await mount.open()
        assert await mount.read(await mount.open(flags=os.O_RDONLY), 0, 1)
