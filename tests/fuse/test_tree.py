"""Names, attributes and listings of the mount."""

from __future__ import annotations

import errno
import os
import stat

import pytest
import trio
from trio.testing import MockClock

from aoefs.fuse.tree import BLOCK_BYTES, CONTROL, ROOT
from tests.fuse.mounted import CONTEXT, Listing, fails, mounted

# ── names and attributes ──────────────────────────────────────────────────────────────────────────────────────────────


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


async def test_an_inode_that_was_never_given_out_is_stale(autojump_clock: MockClock) -> None:
    async with mounted() as mount:
        with fails(errno.ESTALE):
            await mount.operations.getattr(99, CONTEXT)
        with fails(errno.ESTALE):
            await mount.operations.open(99, os.O_RDONLY, CONTEXT)


# ── directories ───────────────────────────────────────────────────────────────────────────────────────────────────────


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
        assert sorted(listing.names) == [".aoefs", "by-serial", *(f"e0.{slot}" for slot in range(7))]
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
        assert sorted(listing.names) == [".aoefs", "by-serial", "e0.0", "e0.3", "e0.4", "e0.5", "e0.7", "e0.9"]


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
        files = ["status.json", "events", "discover", "revalidate", "flush", "options", "interfaces"]
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
