"""Errors of the engine as errno, and handlers that fail."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from aoefs.engine.changes import Change
from aoefs.engine.disk import Disk
from aoefs.engine.settings import Settings
from aoefs.errors import (
    AoeFsError,
    AtaError,
    ControlError,
    IdentityChanged,
    NotPermitted,
    TargetBusy,
    TargetError,
    TargetLost,
)
from aoefs.fuse.errnos import errno_of
from aoefs.fuse.nodes import DiskNodes
from aoefs.fuse.tree import ROOT, Tree
from aoefs.protocol.ata import ErrorBit, Status
from aoefs.protocol.wire import ErrorCode, Flag
from tests.engine.answers import data_only, error_answer
from tests.fuse.mounted import CONTEXT, fails, mounted
from tests.scene import Announce, SimulatedTarget, nothing_is_left


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (TargetError(ErrorCode.UNRECOGNIZED_COMMAND), errno.EIO),
        (TargetError(ErrorCode.DEVICE_UNAVAILABLE), errno.ENXIO),
        (TargetError(ErrorCode.TARGET_IS_RESERVED), errno.EBUSY),
        (TargetLost("no answer"), errno.EIO),
        (IdentityChanged("another disk"), errno.ESTALE),
        (ControlError("no such name"), errno.EINVAL),
        (TargetBusy("it is open"), errno.EBUSY),
        (NotPermitted("for root"), errno.EPERM),
        (AtaError(0x41, ErrorBit.UNC, write=True), errno.EIO),
        (AtaError(0x41, ErrorBit.ABRT, write=True), errno.EROFS),
        (AtaError(0x41, ErrorBit.ABRT, write=False), errno.EIO),
    ],
    ids=repr,
)
def test_each_kind_of_error_has_one_errno_for_a_disk_that_was_never_written(error: AoeFsError, code: int) -> None:
    assert errno.errorcode[errno_of(error, ever_written=False)] == errno.errorcode[code]
    written = errno.EIO if code == errno.EROFS else code
    assert errno.errorcode[errno_of(error)] == errno.errorcode[written]


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
        await trio.sleep(0.05)  # its partition table is read
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
    announce(r"does not answer: \d+ request")
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

        monkeypatch.setattr(Disk, "flush", defect)
        if operation in ("lookup", "getattr", "readdir"):
            monkeypatch.setattr(Tree, "attributes", defect)
        if operation == "open":
            monkeypatch.setattr(DiskNodes, "may_keep_pages", defect)
        calls: dict[str, Callable[[], Awaitable[object]]] = {
            "read": lambda: mount.read(handle + 1, 0, 1),  # compiled: nothing stands in for what it calls
            "write": lambda: mount.write(handle + 1, 0, b"x"),
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
