"""What was flushed is on the disk, and a failed flush is reported: by fsync, close, O_SYNC, umount, the exit code."""

from __future__ import annotations

import errno
import os
import signal
import time
from pathlib import Path

import pytest

from aoefs.protocol.ata import Opcode
from tests.faults.live import errno_of, log_of, mount_until, pattern, read, serve_journal, write
from tests.faults.powercut import read_journal
from tests.lab import COMMANDS, INITIATOR, Lab, opened, wait_until
from tests.lab.forwarder import BLACK_HOLE, Misdeeds, Wire

SIZE = 4 << 20
FLUSHES_LOST = Misdeeds(lost_opcodes=(Opcode.FLUSH, Opcode.FLUSH_EXT))


def test_fsync_fails_within_deadsecs_when_the_target_never_answers_a_flush(lab: Lab, wire: Wire) -> None:
    lab.vblade(0, 0, lab.image("disk", SIZE))
    mount = mount_until(lab, "e0.0", deadsecs=2)
    with opened(mount.here / "e0.0") as file:
        wire.misbehave(out=FLUSHES_LOST)
        write(file, pattern(1))
        began = time.monotonic()
        assert errno_of(lambda: os.fsync(file)) == errno.EIO
        assert 1.5 < time.monotonic() - began < 60, "as long as the default deadsecs"
        wait_until(lambda: mount.target()["state"] == "up")  # nothing else was under way: it may have been down
        assert read(file, 4096) == pattern(1), "everything else goes on"
        assert mount.target()["dirty"]
        again = os.dup(file)
        assert errno_of(lambda: os.close(again)) == errno.EIO
        wire.faults()
        wait_until(lambda: mount.target()["state"] == "up")  # it was down: nothing else was under way
        os.fsync(file)
        assert not mount.target()["dirty"]
    assert "e0.0: flush failed" in log_of(mount)


def test_a_flush_that_the_disk_fails_fails_the_fsync_and_the_close_and_the_umount(lab: Lab, wire: Wire) -> None:
    serve_journal(lab, lab.image("disk", SIZE), "fail")
    mount = mount_until(lab, "e0.0", deadsecs=8)  # a FLUSH that is lost goes out again after a quarter of that
    file = os.open(mount.here / "e0.0", os.O_RDWR | os.O_DIRECT)
    write(file, pattern(1))
    assert errno_of(lambda: os.fsync(file)) == errno.EIO
    assert mount.target()["dirty"]
    assert errno_of(lambda: os.close(file)) == errno.EIO
    assert mount.target()["errors"] >= 2
    wire.misbehave(BLACK_HOLE)
    umount = lab.popen(INITIATOR, [COMMANDS / "aoefs", "umount", mount.path])
    wait_until(
        lambda: "waiting for e0.0 to flush its last writes" in umount.output, what="umount reports what it waits for"
    )
    wire.faults()
    assert umount.wait(30) == 1
    assert "e0.0 could not be flushed" in umount.output
    assert umount.output.count("\n") == 2
    assert mount.process is not None
    assert mount.process.wait(30) == 1


def test_a_signal_flushes_and_the_exit_code_says_whether_that_succeeded(lab: Lab, wire: Wire) -> None:
    journal = serve_journal(lab, lab.image("disk", SIZE, seed=None))
    mount = mount_until(lab, "e0.0")
    with opened(mount.here / "e0.0") as file:
        write(file, pattern(1))
        assert mount.process is not None
        mount.process.send_signal(signal.SIGTERM)
        wait_until(lambda: not mount.mounted)
        write(file, pattern(2))  # open files are served
    assert mount.process.wait(30) == 0, log_of(mount)
    assert flushed(journal) == [(0, pattern(2))]


def test_a_disk_that_does_not_know_its_flush_command_is_remembered_and_shown(lab: Lab, wire: Wire) -> None:
    serve_journal(lab, lab.image("disk", SIZE), "refuse")
    mount = mount_until(lab, "e0.0")
    assert mount.target()["flush_supported"]
    with opened(mount.here / "e0.0") as file:
        for number in range(3):
            write(file, pattern(number))
            os.fsync(file)
    assert not mount.target()["flush_supported"]
    assert not mount.target()["dirty"]
    assert log_of(mount).count("e0.0 refuses its own flush command") == 1


def flushed(journal: Path) -> list[tuple[int, bytes]]:
    """The blocks of 4096 bytes (offset, data) that the last flush made durable; nothing may follow it."""
    disk: dict[int, bytes] = {}
    entries = list(read_journal(journal))
    assert entries[-1].is_flush, "the last entry is not a flush"
    for entry in entries:
        for start in range(0, len(entry.data), 512):
            disk[entry.offset + start] = entry.data[start : start + 512]
    blocks = sorted({offset // 4096 * 4096 for offset in disk})
    return [(block, b"".join(disk[block + start] for start in range(0, 4096, 512))) for block in blocks]


@pytest.mark.parametrize("direct", [False, True])
@pytest.mark.parametrize("flag", [os.O_SYNC, os.O_DSYNC])
def test_a_synchronous_write_is_flushed_before_it_returns(lab: Lab, wire: Wire, direct: bool, flag: int) -> None:
    journal = serve_journal(lab, lab.image("disk", SIZE, seed=None))
    mount = mount_until(lab, "e0.0", direct=direct)
    with opened(mount.here / "e0.0", os.O_WRONLY | flag) as file:
        os.pwrite(file, pattern(1), 0)
        assert flushed(journal) == [(0, pattern(1))]
        os.pwrite(file, pattern(2), 8192)
        assert flushed(journal) == [(0, pattern(1)), (8192, pattern(2))]


def test_what_was_fsynced_outlives_the_daemon_and_the_next_start_replaces_the_dead_mount(lab: Lab, wire: Wire) -> None:
    disk = lab.image("disk", SIZE)
    lab.vblade(0, 0, disk)
    mount = mount_until(lab, "e0.0")
    with opened(mount.here / "e0.0", os.O_RDWR) as file:
        os.pwrite(file, pattern(1, 65536), 0)
        os.fsync(file)
        os.pwrite(file, pattern(2, 65536), 1 << 20)
        assert mount.process is not None
        mount.process.kill()
        mount.process.wait()
        assert errno_of(lambda: os.pread(file, 4096, 2 << 20)) in (errno.ENOTCONN, errno.ECONNABORTED)
    assert mount.mounted
    assert disk.read_bytes()[:65536] == pattern(1, 65536)
    lab.aoefs("-i", "aoe0", mount.path)
    assert (mount.here / "e0.0").read_bytes()[:65536] == pattern(1, 65536)
    mount.umount()
    assert not mount.mounted
