"""Control files read and written through the file system's operations, on an engine on a simulated segment."""

from __future__ import annotations

import errno
import json
import logging
import os
import stat
from dataclasses import replace

import pytest
import trio
from trio.testing import MockClock

from aoefs.engine.changes import Change
from aoefs.engine.lookout import FORGET_AFTER
from aoefs.engine.settings import Settings
from aoefs.errors import ControlError
from aoefs.fuse.control import CONFIG_SECONDS, format_event
from aoefs.fuse.kernel import Notice
from aoefs.fuse.operations import CONTROL_BYTES_PER_SECOND, CONTROL_CREDIT
from aoefs.fuse.tree import CONTROL, ROOT
from aoefs.protocol.ata import Opcode, encode_identify
from aoefs.protocol.wire import (
    AoeCommand,
    ConfigArgument,
    ErrorCode,
    Flag,
    Header,
    decode_config_untrusted,
    encode,
)
from aoefs.status.events import Event
from tests.engine.queries import broadcasts
from tests.fuse.mounted import CONTEXT, OWNER, Mounted, context, fails, mounted
from tests.memorystore import answer_at_once
from tests.scene import OUR_MAC, Announce, SimulatedTarget, target_mac

QUICK = Settings(deadsecs=2.0)


async def find(mount: Mounted, path: str) -> int:
    """The inode of ``.aoefs/<path>``."""
    inode = CONTROL
    for name in path.split("/"):
        inode = await mount.inode(name, inode)
    return inode


async def open_control(mount: Mounted, path: str, flags: int, by: int = OWNER) -> int:
    return int((await mount.operations.open(await find(mount, path), flags, context(by))).fh)


async def cat(mount: Mounted, path: str) -> bytes:
    handle = await open_control(mount, path, os.O_RDONLY)
    data = await mount.read(handle, 0, 1 << 20)
    assert await mount.read(handle, len(data), 1 << 20) == b"", "then end of file"
    await mount.operations.flush(handle)
    await mount.operations.release(handle)
    return data


async def echo(mount: Mounted, order: bytes, path: str, by: int = OWNER) -> None:
    """``echo order > path``, as a shell does it for the user with this number."""
    handle = await open_control(mount, path, os.O_WRONLY | os.O_TRUNC, by)
    try:
        assert await mount.write(handle, 0, order) == len(order)
    finally:
        await mount.operations.flush(handle)
        await mount.operations.release(handle)


async def take_down(mount: Mounted, target: SimulatedTarget) -> None:
    """Let a target fall silent until it is down."""
    target.silent = True
    address = target.export.address
    with pytest.raises(Exception, match="not answer"):
        await mount.scene.engine.disks[address].read(0, 512)


def config_of(target: SimulatedTarget) -> bytes:
    """The config string that the target has."""
    header = Header(target.mac, OUR_MAC, target.export.address, AoeCommand.CONFIG, 1)
    reply = answer_at_once(target.export, encode(header, ConfigArgument()), mac=target.mac, max_sectors=2)
    assert reply is not None
    return decode_config_untrusted(reply).string


def names(mount: Mounted) -> list[str]:
    return sorted(disk.target.name for disk in mount.scene.engine.disks.values())


def queries(mount: Mounted) -> int:
    """Broadcast ones."""
    return len(broadcasts(mount.scene))


# ── modes ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("umask", "read_only"), [(0o077, False), (0, False), (0o022, True)])
async def test_modes_allow_what_is_possible_and_only_the_owner_may_write(
    autojump_clock: MockClock, umask: int, read_only: bool
) -> None:
    expected = {"status.json": 0o444, "events": 0o444, "interfaces": 0o644, "e0.0/ident": 0o444, "e0.0/stats": 0o444}
    expected |= {"discover": 0o200, "revalidate": 0o200, "flush": 0o200, "e0.0/config": 0o644}
    async with mounted(umask=umask, read_only=read_only) as mount:
        mount.scene.add_target()
        await mount.scene.disk()
        for path, mode in expected.items():
            entry = await mount.operations.getattr(await find(mount, path), CONTEXT)
            allowed = mode & ~umask & ~(0o222 if read_only else 0)
            assert (entry.st_mode, entry.st_size) == (stat.S_IFREG | allowed, 0)
        entry = await mount.operations.getattr(await find(mount, "e0.0"), CONTEXT)
        assert stat.S_ISDIR(entry.st_mode)
        if read_only:
            with fails(errno.EROFS):
                await open_control(mount, "discover", os.O_WRONLY)


@pytest.mark.parametrize("path", ["discover", "revalidate", "flush"])
async def test_orders_cannot_be_read(autojump_clock: MockClock, path: str) -> None:
    async with mounted() as mount:
        for flags in (os.O_RDONLY, os.O_RDWR):
            with fails(errno.EACCES):
                await open_control(mount, path, flags)


@pytest.mark.parametrize("path", ["status.json", "events", "e0.0/ident", "e0.0/stats"])
async def test_snapshots_cannot_be_written(autojump_clock: MockClock, path: str) -> None:
    async with mounted() as mount:
        mount.scene.add_target()
        await mount.scene.disk()
        for flags in (os.O_WRONLY, os.O_RDWR):
            with fails(errno.EACCES):
                await open_control(mount, path, flags)
        with fails(errno.EISDIR):
            await mount.operations.open(CONTROL, os.O_RDONLY, CONTEXT)


# ── discover, revalidate ──────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("order", [b"1\n", b"\n", b"anything at all"])
async def test_anything_written_to_discover_starts_a_discovery(autojump_clock: MockClock, order: bytes) -> None:
    async with mounted() as mount:
        await trio.sleep(10)
        mount.scene.add_target()
        before = queries(mount)
        await echo(mount, order, "discover")
        await trio.sleep(0.05)
        assert queries(mount) == before + 1
        await mount.scene.disk()


@pytest.mark.parametrize(
    ("order", "asked"),
    [(b"e0.1\n", [1]), (b"0.0", [0]), (b"e0.0, e0.1\n", [0, 1]), (b"\n", [0, 1]), (b"all\n", [0, 1])],
)
async def test_revalidate_asks_for_identify_again(autojump_clock: MockClock, order: bytes, asked: list[int]) -> None:
    async with mounted() as mount:
        targets = [mount.scene.add_target(0, slot) for slot in (0, 1)]
        disks = [await mount.scene.disk(0, slot) for slot in (0, 1)]
        await trio.sleep(10)
        for target in targets:
            target.heard.clear()
        identified = len(mount.scene.wire.ata(Opcode.IDENTIFY))
        mount.changes.clear()
        await echo(mount, order, "revalidate")
        assert sorted(disks.index(disk) for disk, change in mount.changes if change is Change.REVALIDATED) == asked
        assert len(mount.changes) == len(asked)
        await trio.sleep(1)
        heard = [[header.command for _, header, _ in target.heard] for target in targets]
        look = AoeCommand.ATA  # the partition table is read at once
        assert heard == [[AoeCommand.CONFIG, look, AoeCommand.ATA] if slot in asked else [] for slot in (0, 1)]
        assert len(mount.scene.wire.ata(Opcode.IDENTIFY)) == identified + len(asked)


async def test_revalidate_sees_a_grown_disk_and_drops_what_is_cached(
    autojump_clock: MockClock, announce: Announce
) -> None:
    announce("e0.0 grew")
    async with mounted() as mount:
        target = mount.scene.add_target()
        await mount.scene.disk()
        await mount.inode("e0.0")
        await trio.sleep(1)
        target.resize(1024)
        mount.kernel.take()
        await echo(mount, b"e0.0\n", "revalidate")
        assert mount.kernel.take() == [Notice(await mount.inode("e0.0"))]
        await trio.sleep(2)
        assert (await mount.lookup("e0.0")).st_size == 1024 * 512


async def test_a_down_target_can_be_revalidated(autojump_clock: MockClock, announce: Announce) -> None:
    announce("e0.0 is down")
    async with mounted(QUICK) as mount:
        target = mount.scene.add_target()
        disk = await mount.scene.disk()
        await take_down(mount, target)
        await trio.sleep(100)
        target.silent = False
        await echo(mount, b"e0.0\n", "revalidate")
        await trio.sleep(0.5)
        assert disk.target.life.state.value == "up"


# ── flush ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("order", [b"\n", b"all\n", b"e0.0\n"])
async def test_flush_forgets_what_is_down_and_not_open(
    autojump_clock: MockClock, announce: Announce, order: bytes
) -> None:
    announce("e0.0 is down")
    async with mounted(QUICK) as mount:
        target = mount.scene.add_target(0, 0)
        mount.scene.add_target(0, 1)
        await mount.scene.disk(0, 1)
        disk = await mount.scene.disk(0, 0)
        old = await mount.inode("e0.0")
        old_directory = await find(mount, "e0.0")
        await take_down(mount, target)
        assert await mount.inode("e0.0") == old, "a down target keeps its file"
        await echo(mount, order, "flush")
        for parent in (1, CONTROL):
            with fails(errno.ENOENT):
                await mount.lookup("e0.0", parent)
        assert await mount.inode("e0.1") != old
        assert (disk, Change.FORGOTTEN) in mount.changes
        assert mount.kernel.take()[-3:] == [Notice(ROOT, b"e0.0"), Notice(old), Notice(CONTROL, b"e0.0")]
        for inode in (old, old_directory):
            with fails(errno.ESTALE):
                await mount.operations.getattr(inode, CONTEXT)
        target.silent = False
        await echo(mount, b"\n", "discover")
        await mount.scene.disk()
        assert await mount.inode("e0.0") > old, "an inode number is never used again"
        assert not mount.scene.engine.roster.dirty_lost


async def test_flush_of_a_target_in_use_is_busy_and_forgets_nothing(
    autojump_clock: MockClock, announce: Announce
) -> None:
    announce("e0.0 is down")
    announce("e0.1 is down")
    async with mounted(QUICK) as mount:
        targets = [mount.scene.add_target(0, slot) for slot in (0, 1, 2)]
        disks = [await mount.scene.disk(0, slot) for slot in (0, 1, 2)]
        handle = await mount.open("e0.0", os.O_RDONLY)
        for slot in (0, 1):
            await take_down(mount, targets[slot])
        for order in (b"e0.0", b"e0.1 e0.0", b"e0.1,e0.2"):
            with fails(errno.EBUSY):
                await echo(mount, order, "flush")
            assert sorted(mount.scene.engine.disks.values(), key=disks.index) == disks
        await echo(mount, b"\n", "flush")
        assert names(mount) == ["e0.0", "e0.2"]
        await mount.operations.release(handle)
        await echo(mount, b"e0.0", "flush")
        assert names(mount) == ["e0.2"]


async def test_a_target_goes_by_itself_after_an_hour_down_and_not_open(
    autojump_clock: MockClock, announce: Announce
) -> None:
    announce("e0.0 is down")
    announce("e0.1 is down")
    async with mounted(QUICK) as mount:
        targets = [mount.scene.add_target(0, slot) for slot in (0, 1, 2)]
        for slot in (0, 1, 2):
            await mount.scene.disk(0, slot)
        handle = await mount.open("e0.0", os.O_RDONLY)
        for slot in (0, 1):
            await take_down(mount, targets[slot])
        await trio.sleep(FORGET_AFTER - 10)
        assert names(mount) == ["e0.0", "e0.1", "e0.2"]
        await trio.sleep(20)
        assert names(mount) == ["e0.0", "e0.2"], "e0.0 is open, e0.2 is up"
        await mount.operations.release(handle)
        await trio.sleep(2)
        assert names(mount) == ["e0.2"]


async def test_forgetting_a_target_with_unflushed_writes_is_said_and_remembered(
    autojump_clock: MockClock, announce: Announce
) -> None:
    announce("e0.0 is down")
    announce("e0.0 is forgotten, though its last writes were not flushed")
    async with mounted(QUICK) as mount:
        target = mount.scene.add_target()
        disk = await mount.scene.disk()
        await disk.write(0, bytes(512))
        await take_down(mount, target)
        await echo(mount, b"e0.0", "flush")
        assert mount.scene.engine.roster.dirty_lost


async def test_a_target_of_which_a_late_write_may_travel_is_not_forgotten(
    autojump_clock: MockClock, announce: Announce
) -> None:
    announce("e0.0 is down")
    async with mounted(Settings(deadsecs=0.1)) as mount:
        target = mount.scene.add_target()
        disk = await mount.scene.disk()
        await disk.read(0, 512)
        target.silent = True
        with pytest.raises(Exception, match="not answered"):
            await disk.write(0, bytes(512))
        assert disk.target.life.state.value == "down"
        with fails(errno.EBUSY):
            await echo(mount, b"e0.0", "flush")
        await trio.sleep(5)
        await echo(mount, b"e0.0", "flush")
        assert not mount.scene.engine.disks


# ── config, ident, stats ──────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("order", "string"),
    [(b"ours\n", b"ours"), (b"a\nb\n\n", b"a\nb\n"), (b"\n", b""), (b"\xff\0", b"\xff\0"), (b"x" * 1024, b"x" * 1024)],
)
async def test_the_config_string_is_read_and_set(autojump_clock: MockClock, order: bytes, string: bytes) -> None:
    async with mounted() as mount:
        target = mount.scene.add_target()
        await mount.scene.disk()
        assert await cat(mount, "e0.0/config") == b"\n"
        await echo(mount, b"before\n", "e0.0/config")
        assert await cat(mount, "e0.0/config") == b"before\n"
        await echo(mount, order, "e0.0/config")
        assert config_of(target) == string
        assert await cat(mount, "e0.0/config") == string + b"\n"


@pytest.mark.parametrize("order", [b"x" * 1025, b"x" * 1025 + b"\n"])
async def test_a_config_string_that_is_too_long_is_refused(autojump_clock: MockClock, order: bytes) -> None:
    async with mounted() as mount:
        target = mount.scene.add_target()
        await mount.scene.disk()
        with fails(errno.EINVAL):
            await echo(mount, order, "e0.0/config")
        assert config_of(target) == b""
        await echo(mount, b"x" * 1024 + b"\n", "e0.0/config")


async def test_a_refusal_of_the_target_is_an_errno_and_an_event(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "aoefs")
    async with mounted() as mount:
        target = mount.scene.add_target()
        await mount.scene.disk()
        refusal = bytes([0x10 | Flag.RESPONSE | Flag.ERROR, ErrorCode.TARGET_IS_RESERVED])
        target.answer = lambda _frame, reply: [(0.0, reply[:14] + refusal + reply[16:])]
        with fails(errno.EBUSY):
            await echo(mount, b"ours", "e0.0/config")
        assert ".aoefs/e0.0/config: AoE error 6 (target is reserved)" in caplog.messages


async def test_a_silent_target_makes_the_config_string_wait_for_a_second_only(autojump_clock: MockClock) -> None:
    async with mounted() as mount:
        target = mount.scene.add_target()
        await mount.scene.disk()
        target.silent = True
        began = trio.current_time()
        with fails(errno.EIO):
            await echo(mount, b"ours", "e0.0/config")
        assert trio.current_time() - began == pytest.approx(CONFIG_SECONDS)
        target.silent = False
        await trio.sleep(100)
        assert config_of(target) == b"", "nothing more was sent"


async def test_a_malformed_answer_to_a_config_set_is_none(autojump_clock: MockClock) -> None:
    async with mounted() as mount:
        target = mount.scene.add_target()
        await mount.scene.disk()
        target.answer = lambda _frame, reply: [(0.0, reply[:30] + b"\xff\xff" + reply[32:])]
        with fails(errno.EIO):
            await echo(mount, b"ours", "e0.0/config")


async def test_ident_is_the_last_identify_answer(autojump_clock: MockClock) -> None:
    async with mounted() as mount:
        target = mount.scene.add_target()
        await mount.scene.disk()
        assert await cat(mount, "e0.0/ident") == encode_identify(target.export.identity)
        target.identify_as(replace(target.export.identity, firmware="NEWER"))
        await echo(mount, b"e0.0", "revalidate")
        await trio.sleep(1)
        ident = await cat(mount, "e0.0/ident")
        assert ident == encode_identify(target.export.identity)
        assert len(ident) == 512
        assert b"ENEW R" in ident


async def test_stats_are_those_of_the_status(autojump_clock: MockClock) -> None:
    async with mounted() as mount:
        mount.scene.add_target(3, 4)
        disk = await mount.scene.disk(3, 4)
        await trio.sleep(1)  # its partition table was read
        await disk.read(0, 4096)
        (target,) = json.loads(await cat(mount, "status.json"))["targets"]
        assert json.loads(await cat(mount, "e3.4/stats")) == target
        assert target["read_bytes"] == 512 + 4096


# ── bad orders ────────────────────────────────────────────────────────────────────────────────────────────────────────


BAD_NAMES = [b"e0.9\n", b"e0.0 e0.9", b"nonsense", b"e0.0;e0.1", b"all e0.0", b"e0.0p1", b"\xff", b"e0.00", b"x" * 5000]


@pytest.mark.parametrize("path", ["revalidate", "flush"])
@pytest.mark.parametrize("order", BAD_NAMES)
async def test_a_bad_order_is_invalid_and_changes_nothing(
    autojump_clock: MockClock, announce: Announce, path: str, order: bytes
) -> None:
    announce("e0.0 is down")
    async with mounted(QUICK) as mount:
        target = mount.scene.add_target()
        disk = await mount.scene.disk()
        await take_down(mount, target)
        mount.changes.clear()
        before = queries(mount)
        with fails(errno.EINVAL):
            await echo(mount, order, path)
        assert mount.changes == []
        assert queries(mount) == before
        assert list(mount.scene.engine.disks.values()) == [disk]


async def test_interfaces_are_listed_and_set_as_a_whole(autojump_clock: MockClock) -> None:
    asked: list[tuple[list[str], bool]] = []

    def set_interfaces(names: list[str], *, by_root: bool) -> None:
        if "eth9" in names:
            raise ControlError("interface eth9 does not exist")
        asked.append((names, by_root))

    async with mounted(set_interfaces=set_interfaces) as mount:
        mount.scene.add_wire("seg1")
        assert await cat(mount, "interfaces") == b"seg0\nseg1\n"
        await echo(mount, b"seg1, seg0\n", "interfaces")
        await echo(mount, b"any\n", "interfaces")
        for order in (b"eth9 seg0", b"\n", b" , ", b"\xe4"):
            with fails(errno.EINVAL):
                await echo(mount, order, "interfaces")
        assert asked == [(["seg1", "seg0"], False), ([], False)]
        await echo(mount, b"any\n", "interfaces", by=0)
        assert asked.pop() == ([], True)


# ── snapshots ─────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_events_are_lines_of_time_level_and_text(autojump_clock: MockClock) -> None:
    async with mounted() as mount:
        mount.ring.emit(logging.LogRecord("aoefs", logging.WARNING, "", 0, "e0.0 is\n %s", ("d\x1b[31mown",), None))
        mount.ring.emit(logging.LogRecord("aoefs", logging.INFO, "", 0, "e0.0 is back", (), None))
        handle = await open_control(mount, "events", os.O_RDONLY)
        mount.ring.emit(logging.LogRecord("aoefs", logging.INFO, "", 0, "too late for this snapshot", (), None))
        first, second = (await mount.read(handle, 0, 1 << 20)).decode().splitlines()
        assert first.split(" ", 1)[1] == r"warning e0.0 is d\x1b[31mown"
        assert second.split(" ", 1)[1] == "info e0.0 is back"
        assert (await cat(mount, "events")).count(b"\n") == 3


def test_the_time_of_an_event_has_its_offset() -> None:
    line = format_event(Event(1_700_000_000.25, "info", "text"))
    assert line.split(" ")[0][19:26] == ".250000"
    assert line.split(" ")[0][26] in "+-"


# ── status ────────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_the_status_is_a_snapshot_taken_at_open(autojump_clock: MockClock) -> None:
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


async def test_a_loop_that_reads_a_large_control_file_waits_and_one_that_reads_a_small_one_does_not(
    autojump_clock: MockClock,
) -> None:
    async with mounted() as mount:
        mount.scene.add_target()
        await mount.scene.disk()
        began = trio.current_time()
        for _ in range(500):
            await cat(mount, "e0.0/ident")
        assert trio.current_time() == began
        for _ in range(200):
            mount.ring.emit(logging.makeLogRecord({"msg": "x" * 4000, "levelno": logging.INFO}))
        size = len(await cat(mount, "events"))
        began = trio.current_time()
        for _ in range(40):
            await cat(mount, "events")
        seconds = trio.current_time() - began
        assert 0.9 < seconds / (40 * size / CONTROL_BYTES_PER_SECOND - CONTROL_CREDIT) < 1.2
