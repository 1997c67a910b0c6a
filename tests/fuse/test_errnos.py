"""The file system's operations called directly, without a mount, on an engine on a simulated segment."""

from __future__ import annotations

import errno
import json
import logging
import os
import stat
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any, cast

import pyfuse3
import pytest
import trio
from pyfuse3 import EntryAttributes, FUSEError
from trio.testing import MockClock

from aoefs.engine.changes import Change
from aoefs.engine.disk import Disk
from aoefs.engine.settings import Settings
from aoefs.fuse.kernel import Notice
from aoefs.fuse.operations import AoeOperations
from aoefs.fuse.tree import BLOCK_BYTES, CONTROL, ROOT, Tree
from aoefs.protocol.ata import ErrorBit, Status
from aoefs.protocol.wire import AoeCommand, Flag
from tests.engine.answers import data_only, error_answer, flushes, is_flush, refuse_flush
from tests.fuse.mounted import CONTEXT, Listing, fails, mounted
from tests.scene import Announce, SimulatedTarget, nothing_is_left, target_mac


def make_fields(**which: bool) -> pyfuse3.SetattrFields:
    class Fields:
        update_atime = update_mtime = update_ctime = update_mode = update_uid = update_gid = update_size = False

    fields = Fields()
    for name, value in which.items():
        setattr(fields, name, value)
    return cast(pyfuse3.SetattrFields, fields)


# ── names and attributes ──────────────────────────────────────────────────────────────────────────────────────────


async def test_a_target_is_a_file_of_the_disks_size(autojump_clock: MockClock) -> None:
    async with mounted() as mount:
        mount.scene.add_target(3, 7, sectors=257)
        await mount.scene.disk(3, 7)
        entry = await mount.lookup("e3.7")
        assert (entry.st_size, entry.st_blocks, entry.st_blksize) == (257 * 512, 257, BLOCK_BYTES)
        assert entry.st_mode == stat.S_IFREG | 0o600
        assert (entry.st_uid, entry.st_gid) == (1000, 1001)
        assert entry.st_nlink == 1
        again = await mount.operations.getattr(entry.st_ino, CONTEXT)
        await trio.sleep(100)
        for name in ("st_ino", "st_size", "st_mtime_ns", "st_ctime_ns", "st_atime_ns", "st_mode"):
            assert getattr(again, name) == getattr(entry, name)


@pytest.mark.parametrize(
    "name",
    ["e0.1", "e0.00", "e00.0", "0.0", "E0.0", "e0.0 ", " e0.0", "e0.0\n", "e65535.255", "e0", "e", "", "x", "e0.0.0"],
)
async def test_any_other_name_does_not_exist(autojump_clock: MockClock, name: str) -> None:
    async with mounted() as mount:
        mount.scene.add_target()
        await mount.scene.disk()
        assert await mount.inode("e0.0") >= 16
        with fails(errno.ENOENT):
            await mount.lookup(name)
        with fails(errno.ENOENT):
            await mount.lookup("e0.0", await mount.inode("e0.0"))


async def test_names_that_are_no_text_do_not_exist(autojump_clock: MockClock) -> None:
    async with mounted() as mount:
        for name in (b"\xff\xfe", b"e\xd9\xa0.0", b"e0.0\0", b"x" * 300):
            with fails(errno.ENOENT):
                await mount.operations.lookup(ROOT, name, CONTEXT)


async def test_the_directories_lead_to_each_other(autojump_clock: MockClock) -> None:
    async with mounted() as mount:
        assert await mount.inode(".") == ROOT
        assert await mount.inode("..") == ROOT
        assert await mount.inode(".aoefs") == CONTROL
        assert await mount.inode(".", CONTROL) == CONTROL
        assert await mount.inode("..", CONTROL) == ROOT
        assert 2 < await mount.inode("status.json", CONTROL) < 16
        for inode in (ROOT, CONTROL):
            entry = await mount.operations.getattr(inode, CONTEXT)
            assert stat.S_ISDIR(entry.st_mode)
        with fails(errno.ENOENT):
            await mount.lookup("status.json")


@pytest.mark.parametrize(
    ("umask", "read_only", "file_mode", "directory_mode", "status_mode"),
    [
        (0o077, False, 0o600, 0o700, 0o400),
        (0o000, False, 0o666, 0o755, 0o444),
        (0o022, False, 0o644, 0o755, 0o444),
        (0o027, True, 0o440, 0o550, 0o440),
        (0o777, False, 0o000, 0o000, 0o000),
    ],
)
async def test_modes_follow_umask_and_read_only(
    autojump_clock: MockClock, umask: int, read_only: bool, file_mode: int, directory_mode: int, status_mode: int
) -> None:
    async with mounted(umask=umask, read_only=read_only) as mount:
        mount.scene.add_target()
        await mount.scene.disk()
        assert stat.S_IMODE((await mount.lookup("e0.0")).st_mode) == file_mode
        assert stat.S_IMODE((await mount.lookup("status.json", CONTROL)).st_mode) == status_mode
        for name in (".", ".aoefs"):
            assert stat.S_IMODE((await mount.lookup(name)).st_mode) == directory_mode


async def test_an_inode_that_nobody_was_told_of_is_stale(autojump_clock: MockClock) -> None:
    async with mounted() as mount:
        with fails(errno.ESTALE):
            await mount.operations.getattr(99, CONTEXT)
        with fails(errno.ESTALE):
            await mount.operations.open(99, os.O_RDONLY, CONTEXT)


async def test_the_file_system_is_as_large_as_its_disks_and_full(autojump_clock: MockClock) -> None:
    async with mounted() as mount:
        mount.scene.add_target(0, 0, sectors=100)
        mount.scene.add_target(0, 1, sectors=50)
        await mount.scene.disk(0, 1)
        await mount.scene.disk(0, 0)
        data = await mount.operations.statfs(CONTEXT)
        assert (data.f_frsize, data.f_blocks, data.f_bfree, data.f_bavail, data.f_files) == (512, 150, 0, 0, 2)


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


# ── directories ───────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("room", [1, 2, 3, 100])
async def test_a_directory_is_listed_in_pieces(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch, room: int
) -> None:
    async with mounted() as mount:
        for slot in range(7):
            mount.scene.add_target(0, slot, sectors=8)
        for slot in range(7):
            await mount.scene.disk(0, slot)
        handle = await mount.operations.opendir(ROOT, CONTEXT)
        listing = Listing(monkeypatch)
        while await listing.read(mount, handle, room):
            pass
        assert sorted(listing.names) == [".aoefs", *(f"e0.{slot}" for slot in range(7))]
        for name, inode in listing.entries:
            assert await mount.inode(name) == inode


async def test_a_target_that_appears_during_a_listing_fits_in_and_none_is_listed_twice(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with mounted() as mount:
        for slot in (3, 9, 5):
            mount.scene.add_target(0, slot, sectors=8)
            await trio.sleep(0.3)
        await mount.scene.disk(0, 5)
        listing = Listing(monkeypatch)
        await listing.read(mount, ROOT, 2)
        for slot in (0, 4, 7):
            mount.scene.add_target(0, slot, sectors=8).announce()
            await trio.sleep(0.3)
            await listing.read(mount, ROOT, 1)
        while await listing.read(mount, ROOT, 1):
            pass
        assert sorted(listing.names) == [".aoefs", "e0.0", "e0.3", "e0.4", "e0.5", "e0.7", "e0.9"]


async def test_the_control_directory_has_a_directory_for_each_target(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with mounted() as mount:
        for slot in (0, 1):
            mount.scene.add_target(0, slot)
            await mount.scene.disk(0, slot)
        listing = Listing(monkeypatch)
        while await listing.read(mount, await mount.operations.opendir(CONTROL, CONTEXT), 3):
            pass
        files = ["status.json", "events", "discover", "revalidate", "flush", "interfaces"]
        assert listing.names == [*files, "e0.0", "e0.1"]
        for name, inode in listing.entries:
            assert await mount.inode(name, CONTROL) == inode
        inner = Listing(monkeypatch)
        directory = await mount.inode("e0.1", CONTROL)
        while await inner.read(mount, await mount.operations.opendir(directory, CONTEXT), 2):
            pass
        assert inner.names == ["ident", "config", "stats"]
        assert await mount.inode("..", directory) == CONTROL
        assert (await mount.operations.getattr(CONTROL, CONTEXT)).st_nlink == 4
        with fails(errno.ENOENT):
            await mount.lookup("status.json", directory)
        with fails(errno.ENOENT):
            await mount.lookup("e0.2", CONTROL)


# ── data ──────────────────────────────────────────────────────────────────────────────────────────────────────────


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


async def test_a_write_across_the_end_is_short_and_one_behind_it_finds_no_space(autojump_clock: MockClock) -> None:
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


# ── errors ────────────────────────────────────────────────────────────────────────────────────────────────────────


def answer_data_with(target: SimulatedTarget, change: Callable[[bytes], bytes]) -> None:
    target.answer = lambda frame, reply: [(0.0, change(reply) if data_only(frame) else reply)]


def aoe_error(code: int) -> Callable[[bytes], bytes]:
    return lambda reply: reply[:14] + bytes([0x10 | Flag.RESPONSE | Flag.ERROR, code]) + reply[16:60]


def ata_error(error: int, status: int = Status.DRDY | Status.ERR) -> Callable[[bytes], bytes]:
    return lambda reply: error_answer(reply, status, error)


@pytest.mark.parametrize(
    ("change", "read_code", "write_code"),
    [
        (aoe_error(1), errno.EIO, errno.EIO),
        (aoe_error(2), errno.EIO, errno.EIO),
        (aoe_error(3), errno.ENXIO, errno.ENXIO),
        (aoe_error(4), errno.EIO, errno.EIO),
        (aoe_error(5), errno.EIO, errno.EIO),
        (aoe_error(6), errno.EBUSY, errno.EBUSY),
        (aoe_error(77), errno.EIO, errno.EIO),
        (ata_error(ErrorBit.UNC), errno.EIO, errno.EIO),
        (ata_error(ErrorBit.IDNF), errno.EIO, errno.EIO),
        (ata_error(ErrorBit.ABRT), errno.EIO, errno.EROFS),
        (ata_error(0, Status.DRDY | Status.DF), errno.EIO, errno.EIO),
    ],
    ids=["AoE 1", "AoE 2", "AoE 3", "AoE 4", "AoE 5", "AoE 6", "AoE 77", "UNC", "IDNF", "ABRT", "DF"],
)
async def test_each_error_has_its_errno_and_one_line_in_the_log(
    autojump_clock: MockClock,
    caplog: pytest.LogCaptureFixture,
    announce: Announce,
    change: Callable[[bytes], bytes],
    read_code: int,
    write_code: int,
) -> None:
    announce("e0.0: read at LBA 4 failed: ")
    announce("e0.0: write at LBA 6 failed: ")
    async with mounted() as mount:
        target = mount.scene.add_target()
        disk = await mount.scene.disk()
        answer_data_with(target, change)
        handle = await mount.open()
        began = trio.current_time()
        with fails(read_code):
            await mount.read(handle, 4 * 512, 512)
        with fails(write_code):
            await mount.write(handle, 6 * 512, bytes(512))
        assert trio.current_time() - began < 0.01, "at once"
        assert len([record for record in caplog.records if record.levelno >= logging.WARNING]) == 2
        assert disk.target.errors == 2


async def test_an_abort_of_a_write_is_an_error_of_the_disk_once_a_write_succeeded(
    autojump_clock: MockClock, announce: Announce
) -> None:
    announce("write at LBA 0 failed")
    async with mounted() as mount:
        target = mount.scene.add_target()
        await mount.scene.disk()
        handle = await mount.open()
        await mount.write(handle, 0, bytes(512))
        answer_data_with(target, ata_error(ErrorBit.ABRT))
        with fails(errno.EIO):
            await mount.write(handle, 0, bytes(512))


async def test_a_lost_target_is_an_io_error(autojump_clock: MockClock, announce: Announce) -> None:
    announce("e0.0 is down")
    announce("e0.0: read failed: ")
    announce("e0.0: write failed: ")
    announce("e0.0: flush failed: ")
    async with mounted(Settings(deadsecs=10)) as mount:
        target = mount.scene.add_target()
        await mount.scene.disk()
        handle = await mount.open()
        target.silent = True
        began = trio.current_time()
        with fails(errno.EIO):
            await mount.read(handle, 0, 512)
        assert trio.current_time() - began == pytest.approx(10, abs=0.1)
        with fails(errno.EIO):
            await mount.write(handle, 0, bytes(512))
        with fails(errno.EIO):
            await mount.operations.fsync(handle, False)
        assert trio.current_time() - began == pytest.approx(10, abs=0.1)
        assert (await mount.lookup("e0.0")).st_size == 256 * 512, "the file stays"
        target.silent = False
        await trio.sleep(16)
        assert await mount.read(handle, 0, 512) == target.data[:512], "open files go on"
        assert [change for _, change in mount.changes] == [Change.APPEARED, Change.DOWN, Change.RETURNED]


@pytest.mark.parametrize("operation", ["read", "write", "fsync", "flush", "lookup", "getattr", "readdir", "open"])
async def test_nothing_but_fuseerror_leaves_a_handler(
    autojump_clock: MockClock, announce: Announce, monkeypatch: pytest.MonkeyPatch, operation: str
) -> None:
    announce(f"{operation} failed unexpectedly")
    async with mounted() as mount:
        mount.scene.add_target()
        await mount.scene.disk()
        handle, inode = await mount.open(), await mount.inode("e0.0")
        await mount.write(handle, 0, b"dirty")

        def defect(*_arguments: object, **_named: object) -> Any:
            raise ZeroDivisionError("a defect")

        for name in ("read", "write", "flush"):
            monkeypatch.setattr(Disk, name, defect)
        if operation in ("lookup", "getattr", "readdir"):
            monkeypatch.setattr(Tree, "attributes", defect)
        if operation == "open":
            monkeypatch.setattr(AoeOperations, "_add_handle", defect)
        calls: dict[str, Callable[[], Awaitable[object]]] = {
            "read": lambda: mount.read(handle, 0, 1),
            "write": lambda: mount.write(handle, 0, b"x"),
            "fsync": lambda: mount.operations.fsync(handle, False),
            "flush": lambda: mount.operations.flush(handle),
            "lookup": lambda: mount.lookup("e0.0"),
            "getattr": lambda: mount.operations.getattr(inode, CONTEXT),
            "readdir": lambda: mount.operations.readdir(ROOT, 0, object()),
            "open": lambda: mount.operations.open(inode, os.O_RDONLY, CONTEXT),
        }
        with fails(errno.EIO):
            await calls[operation]()


@pytest.mark.parametrize("operation", ["read", "write", "fsync", "flush", "release"])
async def test_an_unknown_handle_is_an_error_and_not_the_end(
    autojump_clock: MockClock, announce: Announce, operation: str
) -> None:
    announce(f"{operation} failed unexpectedly")
    async with mounted() as mount:
        arguments = {"read": (9, 0, 1), "write": (9, 0, b"x"), "fsync": (9, False), "flush": (9,), "release": (9,)}
        with fails(errno.EIO):
            await getattr(mount.operations, operation)(*arguments[operation])


async def test_a_cancelled_handler_is_cancelled(autojump_clock: MockClock) -> None:
    async with mounted() as mount:
        target = mount.scene.add_target()
        disk = await mount.scene.disk()
        handle = await mount.open()
        target.silent = True
        with trio.move_on_after(0.5) as scope:
            await mount.read(handle, 0, 512)
        assert scope.cancelled_caught
        target.silent = False
        await trio.sleep(5)
        assert nothing_is_left(disk.target)


# ── durability ────────────────────────────────────────────────────────────────────────────────────────────────────


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


async def test_a_failed_flush_fails_the_fsync_and_the_next_close_asks_again(
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


# ── caches and identity ───────────────────────────────────────────────────────────────────────────────────────────


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
            await trio.sleep(2)
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


async def test_the_kernel_is_told_what_changed(autojump_clock: MockClock, announce: Announce) -> None:
    announce("e0.0 grew")
    async with mounted() as mount:
        target = mount.scene.add_target()
        disk = await mount.scene.disk()
        inode = await mount.inode("e0.0")
        target.resize(512)
        mount.scene.engine.lookout.discover()
        await trio.sleep(1)
        assert (await mount.lookup("e0.0")).st_size == 512 * 512
        assert [change for _, change in mount.changes] == [Change.APPEARED, Change.RESIZED]
        assert mount.kernel.take() == [Notice(inode, pages=False)]
        for change, notices in ((Change.RETURNED, [Notice(inode)]), (Change.DOWN, [])):
            mount.scene.engine.changes.publish(disk, change)
            assert mount.kernel.take() == notices


# ── status ────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_the_status_is_a_picture_taken_at_open(autojump_clock: MockClock) -> None:
    async with mounted(Settings(shards=2)) as mount:
        mount.scene.add_target(1, 2, sectors=100, serial="SER")
        await mount.scene.disk(1, 2)
        await trio.sleep(1)  # its partition table was read
        handle = await mount.open("e1.2")
        await mount.read(handle, 0, 512)
        await mount.write(handle, 0, bytes(512))
        entry = await mount.lookup("status.json", CONTROL)
        info = await mount.operations.open(entry.st_ino, os.O_RDONLY, CONTEXT)
        assert info.direct_io
        whole = await mount.read(info.fh, 0, 1 << 20)
        await mount.read(handle, 0, 1024)
        pieces = [await mount.read(info.fh, offset, 100) for offset in range(0, len(whole), 100)]
        assert b"".join(pieces) == whole
        assert await mount.read(info.fh, len(whole), 100) == b""
        status = json.loads(whole)
        assert (status["mountpoint"], status["pid"]) == ("/mnt/aoe", 4711)
        (target,) = status["targets"]
        expected = {
            "name": "e1.2",
            "shelf": 1,
            "slot": 2,
            "size": 51200,
            "serial": "SER",
            "state": "up",
            "reads": 2,
            "read_bytes": 1024,
            "writes": 1,
            "write_bytes": 512,
            "in_flight": 0,
            "errors": 0,
            "retransmits": 0,
            "dirty": True,
        }
        assert {key: target[key] for key in expected} == expected
        assert target["rtt_us"] == pytest.approx(200, rel=0.01)
        (path,) = target["paths"]
        assert (path["interface"], path["mac"], path["bufcnt"], path["sectors"]) == (
            "seg0",
            target_mac(0x102).hex(":"),
            16,
            2,
        )
        assert [shard["id"] for shard in status["shards"]] == [0, 1]
        assert [link["interface"] for link in status["links"]] == ["seg0"]
        await mount.operations.flush(info.fh)
        await mount.operations.fsync(info.fh, False)
        await mount.operations.release(info.fh)


async def test_the_status_cannot_be_written(autojump_clock: MockClock) -> None:
    async with mounted() as mount:
        status = await mount.inode("status.json", CONTROL)
        with fails(errno.EACCES):
            await mount.operations.open(status, os.O_WRONLY, CONTEXT)
        info = await mount.operations.open(status, os.O_RDONLY, CONTEXT)
        with fails(errno.EBADF):
            await mount.write(info.fh, 0, b"x")


# ── reservations ──────────────────────────────────────────────────────────────────────────────────────────────────


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


async def test_a_disk_that_somebody_else_reserved_is_busy(autojump_clock: MockClock, announce: Announce) -> None:
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
