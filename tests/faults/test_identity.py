"""Another disk under the same address: never mixed with the first one, never written to by files opened on that one."""

from __future__ import annotations

import errno
import os
import signal
import time
from pathlib import Path

from tests.faults.live import errno_of, log_of, mount_until, pattern, read, write
from tests.lab import INITIATOR, TARGET, Lab, Process, opened, wait_until
from tests.lab.forwarder import BLACK_HOLE, Wire

SIZE = 4 << 20
NOTICED = (
    1.0  # seconds of silence, more than enough until a target is suspended: it gets nothing until identified again
)


def serve(lab: Lab, disk: Path) -> Process:
    """Our target: unlike vblade's, its serial numbers differ between files."""
    return lab.target(f"0.0={disk}")


def test_an_open_file_fails_when_another_disk_has_taken_the_address_and_writes_nothing_to_it(
    lab: Lab, wire: Wire
) -> None:
    old, new = lab.image("old", SIZE), lab.image("new", SIZE, seed=1)
    contents = new.read_bytes()
    target = serve(lab, old)
    mount = mount_until(lab, "e0.0")
    inode = (mount.here / "e0.0").stat().st_ino
    with opened(mount.here / "e0.0") as direct, opened(mount.here / "e0.0", os.O_RDWR) as buffered:
        assert os.pread(buffered, 4096, 0) == read(direct, 4096) == old.read_bytes()[:4096]
        target.stop(signal.SIGKILL)
        serve(lab, new)  # it announces itself
        wait_until(lambda: "e0.0 is another disk now" in log_of(mount))
        for call in (
            lambda: write(direct, pattern(7), 8192),
            lambda: write(direct, pattern(7), 8192),
            lambda: read(direct, 4096, 1 << 20),
            lambda: os.pread(buffered, 4096, 1 << 20),
            lambda: os.pwrite(buffered, pattern(8), 8192),
            lambda: os.fsync(buffered),
        ):
            assert errno_of(call) in (errno.EIO, errno.ESTALE)
        assert (mount.here / "e0.0").stat().st_ino != inode, "the name leads to the new disk"
        with opened(mount.here / "e0.0") as again:
            assert read(again, 4096) == contents[:4096]
        assert errno_of(lambda: read(direct, 4096)) in (errno.EIO, errno.ESTALE)
    assert new.read_bytes() == contents


def test_writes_that_wait_for_a_silent_target_never_reach_the_disk_that_replaced_it(lab: Lab, wire: Wire) -> None:
    """Nothing announces the new disk: retransmitted frames find it."""
    old, new = lab.image("old", SIZE), lab.image("new", SIZE, seed=1)
    contents = new.read_bytes()
    target = serve(lab, old)
    mount = mount_until(lab, "e0.0")
    fill = f"dd if=/dev/zero of={mount.file('e0.0')} bs=64k count={SIZE >> 16} oflag=direct conv=notrunc"
    writer = lab.popen(INITIATOR, ["sh", "-c", f"while {fill}; do :; done; exit 1"])  # never over before it fails
    wait_until(lambda: mount.target()["writes"] > 3)
    wire.misbehave(BLACK_HOLE)
    silent_since = time.monotonic()
    target.stop(signal.SIGKILL)
    serve(lab, new)
    wait_until(lambda: time.monotonic() - silent_since > NOTICED)
    assert writer.poll() is None
    wire.faults()
    assert writer.wait(30) == 1, writer.output
    assert "e0.0 is another disk now" in log_of(mount)
    assert new.read_bytes() == contents


def test_a_second_disk_with_the_same_address_is_refused_and_reported(lab: Lab, wire: Wire) -> None:
    first, second = lab.image("first", SIZE), lab.image("second", SIZE, seed=1)
    contents = second.read_bytes()
    serve(lab, first)
    other = lab.cable(INITIATOR, TARGET)
    mount = mount_until(lab, "e0.0")
    lab.target(f"0.0={second}", interfaces=[other[1]])
    wait_until(lambda: mount.status()["refused_identities"] > 0, what="the second disk is refused")
    with opened(mount.here / "e0.0") as file:
        for index in range(32):
            write(file, pattern(index), index * 4096)
        for index in range(32):
            assert read(file, 4096, index * 4096) == pattern(index)
    assert second.read_bytes() == contents
    assert [path["mac"] for path in mount.target()["paths"]] == [lab.mac(TARGET, 0).hex(":")]
    (line,) = [line for line in log_of(mount).splitlines() if "is refused" in line]
    assert "it is another disk (serial " in line
    assert mount.status()["strangers"][0]["state"] == "refused"


def test_two_disks_that_answer_from_one_mac_are_both_refused(lab: Lab, wire: Wire) -> None:
    """Two vblades on one interface, started with the same address by mistake."""
    lab.vblade(0, 0, lab.image("first", SIZE))
    lab.vblade(0, 0, lab.image("second", SIZE * 2))
    lab.vblade(0, 1, lab.image("third", SIZE))
    capture = lab.capture()
    mount = mount_until(lab, "e0.1")
    wait_until(lambda: "two disks answer" in log_of(mount))
    assert "e0.0" not in os.listdir(mount.here)
    asked = len(capture.frames())
    wait_until(lambda: len(capture.frames()) > asked + 6, what="they were queried again")
    assert log_of(mount).count("two disks answer") == 1
