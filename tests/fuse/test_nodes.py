"""Partitions as files beside the whole disk, through the file system's operations on a simulated segment."""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from aoefs.engine.disk import Disk
from aoefs.engine.roster import PERSISTENCE
from aoefs.engine.settings import Settings
from aoefs.fuse.kernel import Notice
from aoefs.fuse.operations import TABLE_SECONDS
from aoefs.fuse.tree import BY_SERIAL, ROOT
from aoefs.protocol.ata import Opcode
from aoefs.protocol.wire import AoeCommand
from tests.fuse.mounted import CONTEXT, Listing, Mounted, fails, mounted
from tests.fuse.tables import boot_record, entry
from tests.scene import DELAY, Announce, SimulatedTarget, nothing_is_left

TWO = [(16, 8), (32, 100)]


def write_table(target: SimulatedTarget, parts: Sequence[tuple[int, int]]) -> None:
    """An MBR with these partitions (first sector, sectors), as if another host wrote it."""
    target.data[:512] = boot_record(*(entry(0x83, *part) for part in parts))


@asynccontextmanager
async def partitioned(
    parts: Sequence[tuple[int, int]] = TWO, settings: Settings | None = None, **options: Any
) -> AsyncIterator[tuple[Mounted, SimulatedTarget, Disk]]:
    """A mount with one disk that has this table, already read."""
    async with mounted(settings, **options) as mount:
        target = mount.scene.add_target()
        write_table(target, parts)
        disk = await mount.scene.disk()
        await mount.operations.read_table(disk)
        yield mount, target, disk


async def names(mount: Mounted, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    listing = Listing(monkeypatch)
    while await listing.read(mount, ROOT, 2):
        pass
    return listing.names[2:]


# ── names and bytes ───────────────────────────────────────────────────────────────────────────────────────────────────


async def test_each_partition_is_a_file_of_its_size_at_its_place(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with partitioned() as (mount, target, disk):
        assert await names(mount, monkeypatch) == ["e0.0", "e0.0p1", "e0.0p2"]
        for number, (first, sectors) in enumerate(TWO, 1):
            entry = await mount.lookup(f"e0.0p{number}")
            assert (entry.st_size, entry.st_blocks, entry.entry_timeout) == (sectors * 512, sectors, 0)
            handle = await mount.open(f"e0.0p{number}")
            start, size = first * 512, sectors * 512
            assert await mount.read(handle, 0, 1 << 20) == target.data[start : start + size]
            data = os.urandom(700)
            assert await mount.write(handle, 3, data) == 700
            assert target.data[start + 3 : start + 703] == data
            assert await mount.read(handle, 3, 700) == data
            await mount.operations.release(handle)
        assert nothing_is_left(disk.target)


async def test_a_partition_ends_as_a_disk_does(autojump_clock: MockClock) -> None:
    async with partitioned() as (mount, target, _):
        after = bytes(target.data[24 * 512 : 32 * 512])
        handle = await mount.open("e0.0p1", os.O_RDWR | os.O_TRUNC)
        assert await mount.write(handle, 8 * 512 - 3, b"across") == 3
        assert await mount.read(handle, 8 * 512 - 3, 100) == b"acr"
        assert await mount.read(handle, 8 * 512, 100) == b""
        for offset in (8 * 512, 1 << 40):
            with fails(errno.ENOSPC):
                await mount.write(handle, offset, b"x")
        assert target.data[24 * 512 : 32 * 512] == after
        direct = await mount.open("e0.0p1", os.O_RDWR | os.O_DIRECT)
        with fails(errno.ENOSPC):
            await mount.write(direct, 8 * 512 - 3, b"across")


async def test_fsync_of_a_partition_flushes_its_disk(autojump_clock: MockClock) -> None:
    async with partitioned() as (mount, _, disk):
        handle = await mount.open("e0.0p1")
        await mount.write(handle, 0, b"x")
        assert disk.target.dirty
        await mount.operations.fsync(handle, False)
        assert (disk.target.dirty, disk.target.flushes) == (False, 1)


@pytest.mark.parametrize(
    "name", ["e0.0p", "e0.0p0", "e0.0p3", "e0.0p01", "e0.0p1p1", "e0.1p1", "p1", "e0.0P1", "0.0p1"]
)
async def test_names_of_no_partition_do_not_exist(autojump_clock: MockClock, name: str) -> None:
    async with partitioned() as (mount, _, _):
        with fails(errno.ENOENT):
            await mount.lookup(name)


async def test_the_size_of_the_file_system_counts_whole_disks_only(autojump_clock: MockClock) -> None:
    async with partitioned() as (mount, _, _):
        data = await mount.operations.statfs(CONTEXT)
        assert (data.f_blocks, data.f_files) == (256, 1)


# ── two views of the same bytes ───────────────────────────────────────────────────────────────────────────────────────


async def test_files_that_overlap_are_never_both_open_for_writing(autojump_clock: MockClock) -> None:
    async with partitioned() as (mount, _, _):
        first, second = await mount.open("e0.0p1"), await mount.open("e0.0p2")
        again = await mount.open("e0.0p1")
        reader = await mount.open("e0.0", os.O_RDONLY)
        for handle in (first, second):
            for flags in (os.O_RDWR, os.O_WRONLY | os.O_TRUNC):
                with fails(errno.EBUSY):
                    await mount.open("e0.0", flags)
            await mount.operations.release(handle)
        with fails(errno.EBUSY):
            await mount.open("e0.0")
        await mount.operations.release(again)
        await mount.operations.release(reader)
        whole = await mount.open("e0.0")
        for number in (1, 2):
            with fails(errno.EBUSY):
                await mount.open(f"e0.0p{number}")
            await mount.operations.release(await mount.open(f"e0.0p{number}", os.O_RDONLY))
        await mount.operations.release(whole)
        await mount.open("e0.0p1")


async def test_each_open_of_a_disk_with_partitions_drops_cached_pages(autojump_clock: MockClock) -> None:
    async with partitioned() as (mount, target, disk):
        for name in ("e0.0", "e0.0", "e0.0p1", "e0.0p1"):
            assert not (await mount.operations.open(await mount.inode(name), os.O_RDONLY, CONTEXT)).keep_cache
        write_table(target, [])
        await mount.operations.read_table(disk)
        assert (await mount.operations.open(await mount.inode("e0.0"), os.O_RDONLY, CONTEXT)).keep_cache


async def test_one_reservation_serves_all_files_of_a_disk(autojump_clock: MockClock) -> None:
    async with partitioned(reserve=True) as (mount, target, _):
        target.answer = lambda frame, reply: [
            (0.0, reply[:14] + b"\x18\0" + reply[16:] if frame[19] == AoeCommand.RESERVE else reply)
        ]

        def sent() -> int:
            return len(mount.scene.wire.sent(AoeCommand.RESERVE))

        first, second = await mount.open("e0.0p1"), await mount.open("e0.0p2")
        assert sent() == 1
        await mount.operations.release(first)
        assert sent() == 1
        await mount.operations.release(second)
        assert sent() == 2


async def test_a_reservation_that_is_refused_leaves_no_writer_behind(
    autojump_clock: MockClock, announce: Announce
) -> None:
    announce("e0.0: reservation failed: AoE error 6")
    async with partitioned(reserve=True) as (mount, target, disk):
        target.answer = lambda frame, reply: [
            (0.0, reply[:14] + b"\x1c\x06" + reply[16:] if frame[19] == AoeCommand.RESERVE else reply)
        ]
        with fails(errno.EBUSY):
            await mount.open("e0.0p1")
        target.answer = lambda frame, reply: [
            (0.0, reply[:14] + b"\x18\0" + reply[16:] if frame[19] == AoeCommand.RESERVE else reply)
        ]
        await mount.open("e0.0")
        assert disk.opened == 1


async def test_a_disk_is_open_while_a_partition_of_it_is(autojump_clock: MockClock) -> None:
    async with partitioned() as (mount, _, disk):
        handles = [await mount.open("e0.0p1"), await mount.open("e0.0p2", os.O_RDONLY)]
        assert disk.opened == 2
        for handle in handles:
            await mount.operations.release(handle)
        assert disk.opened == 0


# ── the table changes ─────────────────────────────────────────────────────────────────────────────────────────────────


async def test_after_a_close_of_the_whole_disk_its_partitions_are_those_of_the_new_table(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with partitioned() as (mount, _, _):
        before = [await mount.inode(f"e0.0p{number}") for number in (1, 2)]
        handle = await mount.open("e0.0")
        await mount.write(handle, 0, boot_record(entry(0x83, 16, 8), entry(0x83, 40, 50), entry(0x83, 100, 5)))
        assert await names(mount, monkeypatch) == ["e0.0", "e0.0p1", "e0.0p2"], "as long as it is open"
        await mount.operations.flush(handle)
        assert sorted(await names(mount, monkeypatch)) == ["e0.0", "e0.0p1", "e0.0p2", "e0.0p3"]
        assert await mount.inode("e0.0p1") == before[0]
        assert await mount.inode("e0.0p2") > before[1], "other bytes, another file"
        assert (await mount.lookup("e0.0p2")).st_size == 50 * 512
        assert mount.kernel.take()[-2:] == [Notice(ROOT, b"e0.0p2"), Notice(before[1])]
        with fails(errno.ESTALE):
            await mount.operations.open(before[1], os.O_RDONLY, CONTEXT)
        looked = len(mount.scene.wire.ata(Opcode.READ_EXT))
        await mount.operations.release(handle)
        await trio.sleep(1)
        assert len(mount.scene.wire.ata(Opcode.READ_EXT)) > looked, "pages of a mapping may have been written since"
        assert mount.kernel.take() == []


async def test_handles_of_a_partition_that_went_fail_and_the_others_go_on(
    autojump_clock: MockClock, announce: Announce
) -> None:
    announce("e0.0: (read|write) failed: e0.0p1 is not the same part of the disk any more")
    async with partitioned() as (mount, target, disk):
        inode = await mount.inode("e0.0p1")
        moved, kept = await mount.open("e0.0p1"), await mount.open("e0.0p2")
        write_table(target, [(17, 7), TWO[1]])
        await mount.operations.read_table(disk)
        content = bytes(target.data)
        with fails(errno.ESTALE):
            await mount.read(moved, 0, 512)
        with fails(errno.ESTALE):
            await mount.write(moved, 0, b"evil")
        assert target.data == content
        await mount.write(kept, 0, b"good")
        assert target.data[32 * 512 : 32 * 512 + 4] == b"good"
        assert await mount.inode("e0.0p1") != inode
        new = await mount.open("e0.0p1")
        assert await mount.read(new, 0, 512) == target.data[17 * 512 : 18 * 512]
        assert await mount.operations.getattr(inode, CONTEXT), "fstat of what is open"
        await mount.operations.release(moved)
        with fails(errno.ESTALE):
            await mount.operations.getattr(inode, CONTEXT)


async def test_a_broken_table_leaves_no_files_and_one_log_line(
    autojump_clock: MockClock, announce: Announce, caplog: pytest.LogCaptureFixture
) -> None:
    announce("e0.0: its partition table is broken and gives no files: partitions 1 and 2 overlap")
    async with partitioned([(16, 8), (17, 8)]) as (mount, target, disk):
        for _ in range(3):
            await mount.operations.read_table(disk)
        assert len(caplog.records) == 1
        with fails(errno.ENOENT):
            await mount.lookup("e0.0p1")
        write_table(target, TWO)
        await mount.operations.read_table(disk)
        await mount.lookup("e0.0p1")
        write_table(target, [(16, 8), (17, 8)])
        await mount.operations.read_table(disk)
        assert len(caplog.records) == 2, "broken once more"


async def test_a_disk_that_is_silent_keeps_its_partitions(autojump_clock: MockClock, announce: Announce) -> None:
    announce("e0.0 is down")
    async with partitioned(settings=Settings(deadsecs=2)) as (mount, target, disk):
        inode = await mount.inode("e0.0p1")
        target.silent = True
        await mount.operations.read_table(disk)
        assert disk.target.life.state.value == "down"
        assert await mount.inode("e0.0p1") == inode
        assert mount.kernel.take() == []


async def test_a_close_waits_a_second_at_most_for_the_table_of_a_slow_disk(autojump_clock: MockClock) -> None:
    async with partitioned() as (mount, target, _):
        handle = await mount.open("e0.0")
        target.answer = lambda _frame, reply: [(3.0, reply)]
        began = trio.current_time()
        await mount.operations.flush(handle)
        assert trio.current_time() - began == pytest.approx(TABLE_SECONDS)


async def test_a_table_is_read_once_for_all_calls_at_the_same_time(autojump_clock: MockClock) -> None:
    async with partitioned() as (mount, target, disk):
        before = disk.target.reads
        target.answer = lambda _frame, reply: [(0.1, reply)]
        async with trio.open_nursery() as nursery:
            for _ in range(50):
                nursery.start_soon(mount.operations.read_table, disk)
        assert disk.target.reads - before == 2, "one under way, and one that sees what was written since"


async def test_a_disk_that_shrinks_while_its_table_is_read_gives_no_files(
    autojump_clock: MockClock, announce: Announce
) -> None:
    announce("e0.0 shrank")
    announce("e0.0: its partition table is broken and gives no files: the disk shrank")
    async with partitioned([(16, 8)]) as (mount, target, disk):
        handle = await mount.open("e0.0p1", os.O_RDONLY)
        target.data[:512] = boot_record(entry(0x83, 16, 8), entry(0x05, 200, 40))
        target.answer = lambda frame, reply: [(2.0 if frame[27] in (0x20, 0x24) else 0.0, reply)]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(mount.operations.read_table, disk)
            await trio.sleep(0.1)
            target.resize(100)
            mount.scene.engine.lookout.revalidate(disk)
        with fails(errno.ENOENT):
            await mount.lookup("e0.0p1")
        await mount.operations.release(handle)


async def test_a_partition_beyond_the_end_of_a_disk_that_shrank_reads_and_writes_nothing_there(
    autojump_clock: MockClock, announce: Announce
) -> None:
    announce("e0.0 shrank")
    announce("e0.0: its partition table is broken and gives no files: partition 1 .* is not within 1 to 99")
    announce("e0.0: read failed: e0.0p1 is not the same part of the disk any more")
    async with partitioned([(16, 200)]) as (mount, target, disk):
        handle = await mount.open("e0.0p1")
        target.resize(100)
        mount.scene.engine.lookout.revalidate(disk)
        while disk.size_bytes != 100 * 512:  # noqa: ASYNC110 (virtual time; the table is not read again yet)
            await trio.sleep(DELAY / 2)
        with fails(errno.ENOSPC):
            await mount.write(handle, 84 * 512, b"x")
        assert len(await mount.read(handle, 0, 1 << 20)) == 84 * 512
        await trio.sleep(1)
        with fails(errno.ESTALE):
            await mount.read(handle, 0, 512)


async def test_partitions_go_with_their_disk(autojump_clock: MockClock, announce: Announce) -> None:
    announce("e0.0: another disk answers there")
    announce("e0.0 is another disk now")
    announce("e0.0: read failed")
    async with partitioned() as (mount, target, disk):
        handle = await mount.open("e0.0p1")
        inodes = [await mount.inode(name) for name in ("e0.0", "e0.0p1", "e0.0p2")]
        target.identify_as(target.export.identity.__class__(256, "another", "M", "F"))
        mount.kernel.take()
        target.announce()
        await trio.sleep(PERSISTENCE + 5)
        with fails(errno.ESTALE):
            await mount.read(handle, 0, 512)
        assert [notice.inode for notice in mount.kernel.take() if not notice.name] == inodes
        new = mount.scene.engine.disks[disk.target.address]
        await mount.operations.read_table(disk)
        await mount.operations.read_table(new)
        assert await mount.inode("e0.0p1") > inodes[2]


# ── by-serial ─────────────────────────────────────────────────────────────────────────────────────────────────────


async def links(mount: Mounted, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """What is in by-serial, and where it leads."""
    listing = Listing(monkeypatch)
    await listing.read(mount, BY_SERIAL, 100)
    found = {}
    for name, inode in listing.entries:
        entry = await mount.lookup(name, BY_SERIAL)
        assert (entry.st_ino, entry.st_mode) == (inode, stat.S_IFLNK | 0o777)
        leads_to = await mount.operations.readlink(inode, CONTEXT)
        assert entry.st_size == len(leads_to)
        found[name] = leads_to.decode()
    return found


async def test_a_disk_and_its_partitions_have_a_link_by_serial_as_udev_writes_it(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with partitioned() as (mount, target, disk):
        assert await mount.inode("by-serial") == BY_SERIAL
        assert await mount.inode("..", BY_SERIAL) == ROOT
        mount.scene.add_target(1, 2, serial=" WD/1  é;2 ")
        await mount.scene.disk(1, 2)
        first = {"serial_e0.0": "../e0.0", "serial_e0.0-part1": "../e0.0p1", "serial_e0.0-part2": "../e0.0p2"}
        other = {name: leads_to for name, leads_to in (await links(mount, monkeypatch)).items() if name not in first}
        assert list(other.values()) == ["../e1.2"]
        assert re.fullmatch(r"WD_1_[_]+2", next(iter(other)))
        inode = await mount.inode("serial_e0.0-part2", BY_SERIAL)
        write_table(target, TWO[:1])
        await mount.operations.read_table(disk)
        with fails(errno.ENOENT):
            await mount.inode("serial_e0.0-part2", BY_SERIAL)
        with fails(errno.ESTALE):
            await mount.operations.readlink(inode, CONTEXT)
        with fails(errno.ENOENT):
            await mount.inode("e0.0", BY_SERIAL)


async def test_a_serial_that_two_disks_claim_has_no_link_and_an_event_says_so(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch, announce: Callable[[str], None]
) -> None:
    announce("^e0.0, e5.5 have the same serial serial e0.0: by-serial leads to none of them$")
    async with partitioned() as (mount, _, _):
        assert len(await links(mount, monkeypatch)) == 3
        mount.scene.add_target(5, 5, serial="serial e0.0")
        await mount.scene.disk(5, 5)
        assert await links(mount, monkeypatch) == {}


async def test_two_serials_that_have_one_name_have_no_link_either(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch, announce: Callable[[str], None]
) -> None:
    announce("^e0.0, e5.5 have the same serial serial/e0.0: by-serial leads to none of them$")
    async with partitioned() as (mount, _, _):
        mount.scene.add_target(5, 5, serial="serial/e0.0")
        await mount.scene.disk(5, 5)
        assert await links(mount, monkeypatch) == {}
