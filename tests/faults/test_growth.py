"""A disk that changes its size while it is mounted."""

from __future__ import annotations

import errno
import os
import signal
import time

import pytest

from tests.faults.live import errno_of, log_of, mount_until, pattern, read, write
from tests.lab import INITIATOR, Lab, Process, opened, wait_until
from tests.lab.forwarder import Wire

SIZE = 4 << 20


@pytest.mark.parametrize("kind", ["vblade", "ours"])
def test_the_size_of_the_file_follows_the_disk_without_a_remount(lab: Lab, wire: Wire, kind: str) -> None:
    disk = lab.image("disk", SIZE)

    def start() -> Process:
        return lab.vblade(0, 0, disk) if kind == "vblade" else lab.target(f"0.0={disk}")

    target = start()
    mount = mount_until(lab, "e0.0")
    file = mount.here / "e0.0"
    inode = file.stat().st_ino
    assert file.stat().st_size == SIZE
    device = lab.losetup(mount.file("e0.0"))

    def loop_size() -> int:
        lab.run(INITIATOR, ["losetup", "-c", device])
        return int(lab.run(INITIATOR, ["blockdev", "--getsize64", device]).stdout)

    with opened(file) as descriptor:
        target.stop(signal.SIGKILL)
        os.truncate(disk, 2 * SIZE)
        target = start()
        wait_until(lambda: os.fstat(descriptor).st_size == 2 * SIZE, 40, "the open file grew")
        assert file.stat().st_size == 2 * SIZE
        assert file.stat().st_ino == inode
        write(descriptor, pattern(1), 2 * SIZE - 4096)
        assert read(descriptor, 4096, 2 * SIZE - 4096) == pattern(1)
        assert loop_size() == 2 * SIZE

        target.stop(signal.SIGKILL)
        os.truncate(disk, SIZE)
        target = start()
        wait_until(lambda: file.stat().st_size == SIZE, 40, "the file shrank")
        assert os.fstat(descriptor).st_size == SIZE
        assert errno_of(lambda: write(descriptor, pattern(1), SIZE)) == errno.ENOSPC
        assert loop_size() == SIZE
    assert mount.target()["size"] == SIZE
    assert f"e0.0 grew from {SIZE} to {2 * SIZE} bytes" in log_of(mount)
    assert f"e0.0 shrank from {2 * SIZE} to {SIZE} bytes" in log_of(mount)


def test_a_disk_that_changes_twice_within_a_second_is_seen_as_it_is_in_the_end(lab: Lab, wire: Wire) -> None:
    """Its second announcement comes so soon after the first one that it causes no query at once."""
    disk = lab.image("disk", SIZE)
    target = lab.vblade(0, 0, disk)
    mount = mount_until(lab, "e0.0")
    mounted = time.monotonic()
    file = mount.here / "e0.0"
    wait_until(lambda: time.monotonic() > mounted + 1.5, what="the first queries are over")
    for size in (2 * SIZE, 3 * SIZE):
        target.stop(signal.SIGKILL)
        os.truncate(disk, size)
        target = lab.vblade(0, 0, disk)
        wait_until(lambda size=size: file.stat().st_size == size, 30, f"the file has {size} bytes")  # type: ignore[misc]
