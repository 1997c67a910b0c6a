"""Write-behind: what a killed daemon, a bad network and a bad disk do to streams of writes that are answered early."""

from __future__ import annotations

import errno
import os
import signal
import time
from pathlib import Path

import pytest

from aoefs.protocol.ata import Opcode
from tests.faults.live import Worker, errno_of, log_of, mount_until, pattern, serve_journal
from tests.lab import Lab, wait_until
from tests.lab.forwarder import BLACK_HOLE, Misdeeds, Wire
from tests.segment import Faults

SIZE = 64 << 20
BLOCK = 4096
FAR = Misdeeds(Faults(jitter=0.02))  # so that several writes of a stream are pending at any time
WRITES_LOST = Misdeeds(lost_opcodes=(Opcode.WRITE, Opcode.WRITE_EXT))


class Stream(Worker):
    """Writes numbered blocks in order until the first error; ``taken`` is how many of them write(2) took."""

    def __init__(self, file: Path) -> None:
        self.descriptor = os.open(file, os.O_RDWR)
        self.taken = 0
        self.error: OSError | None = None
        super().__init__(self._write)

    def _write(self, number: int) -> None:
        if self.error is not None:
            time.sleep(0.01)
            return
        try:
            assert os.pwrite(self.descriptor, pattern(number + 1, BLOCK), number % (SIZE // BLOCK) * BLOCK) == BLOCK
            self.taken = number + 1
        except OSError as error:
            self.error = error

    def close(self) -> int | None:
        return errno_of(lambda: os.close(self.descriptor))


def blocks_in_order(disk: Path) -> int:
    """How many blocks of a stream are on a disk, from its beginning, without a gap."""
    data = disk.read_bytes()
    return next(
        (n for n in range(SIZE // BLOCK) if data[n * BLOCK : (n + 1) * BLOCK] != pattern(n + 1, BLOCK)), SIZE // BLOCK
    )


@pytest.mark.parametrize("lab", [1500, 9000], indirect=True)
def test_a_daemon_that_is_killed_loses_no_write_of_a_stream(lab: Lab, wire: Wire) -> None:
    disk = lab.image("disk", SIZE, seed=None)
    lab.vblade(0, 0, disk)
    mount = mount_until(lab, "e0.0")
    wire.misbehave(out=FAR)
    with Stream(mount.here / "e0.0") as stream:
        stream.wait_for_steps(100)
        wait_until(lambda: mount.target()["in_flight"] > 4, what="several writes under way at once")
        assert mount.process is not None
        mount.process.kill()
        mount.process.wait()
        wait_until(lambda: stream.error is not None)
        stream.close()
    wait_until(wire.is_quiet)
    wait_until(lambda: blocks_in_order(disk) >= stream.taken, what="all that write(2) took is on the disk")


def test_a_stream_over_a_bad_network_is_whole_after_fsync(lab: Lab, wire: Wire) -> None:
    disk = lab.image("disk", SIZE, seed=None)
    lab.vblade(0, 0, disk)
    mount = mount_until(lab, "e0.0")
    wire.misbehave(Misdeeds(Faults(loss=0.02, duplicate=0.02, reorder=0.05, jitter=0.001), 0.01, 0.1))
    stream = Stream(mount.here / "e0.0")
    with stream:
        stream.wait_for_steps(1500, timeout=120)
    os.fsync(stream.descriptor)
    assert stream.error is None
    assert blocks_in_order(disk) == stream.taken
    assert mount.target()["retransmits"] > 0
    assert stream.close() is None


def test_a_target_that_stops_taking_writes_fails_the_stream_and_its_close(lab: Lab, wire: Wire) -> None:
    disk = lab.image("disk", SIZE, seed=None)
    lab.vblade(0, 0, disk)
    mount = mount_until(lab, "e0.0", deadsecs=2)
    with Stream(mount.here / "e0.0") as stream:
        stream.wait_for_steps(100)
        wire.misbehave(out=WRITES_LOST)
        wait_until(lambda: stream.error is not None, 60)
        assert stream.error is not None
        assert stream.error.errno == errno.EIO
        assert stream.taken - blocks_in_order(disk) <= mount.target()["paths"][0]["bufcnt"], "no more than the window"
        wire.faults()
        wait_until(lambda: mount.target()["state"] == "up")
        assert "failed after it was answered" in log_of(mount)
        read = os.pread(stream.descriptor, BLOCK, (stream.taken - 1) * BLOCK)
        assert read == disk.read_bytes()[(stream.taken - 1) * BLOCK :][:BLOCK], (
            "the kernel still shows a write that was lost"
        )
        os.close(os.open(mount.here / "e0.0", os.O_RDWR))
        stream.close()
    mount.umount()


def test_a_signal_while_a_lost_write_is_not_yet_reported_is_an_unclean_end(lab: Lab, wire: Wire) -> None:
    serve_journal(lab, lab.image("disk", SIZE, seed=None))
    mount = mount_until(lab, "e0.0", deadsecs=1)
    with Stream(mount.here / "e0.0") as stream:
        stream.wait_for_steps(100)
        wire.misbehave(BLACK_HOLE)
        assert mount.process is not None
        wait_until(lambda: "failed after it was answered" in log_of(mount), 60)
        wire.faults()
        mount.process.send_signal(signal.SIGTERM)
        mount.process.send_signal(signal.SIGTERM)
        assert mount.process.wait(30) == 1
        stream.close()
