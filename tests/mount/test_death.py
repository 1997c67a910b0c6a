"""A mount that is killed, or that loses its target: what was synced stays, and the next mount replaces it."""

from __future__ import annotations

import errno
import os
import signal

import pytest

from tests.lab import INITIATOR, Lab, Mount, is_gone, opened, wait_until
from tests.mount.place import MIB, fails_as_dead, fails_with, nothing_is_left, reader


def kill(mount: Mount) -> None:
    pid = mount.pid
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: is_gone(pid), what="it is dead")


@pytest.mark.parametrize("held", [False, True], ids=["unused", "with an open file"])
def test_a_mount_that_was_killed_is_replaced_by_the_next(lab: Lab, held: bool) -> None:
    image = lab.image("image", MIB)
    lab.vblade(0, 0, image)
    mount = lab.mount()
    holder = reader(lab, mount) if held else None
    kill(mount)
    fails_as_dead(lambda: os.statvfs(mount.here))
    lab.aoefs("-i", "aoe0", mount.path)
    lab.run(INITIATOR, ["cmp", image, mount.file("e0.0")])
    assert sum(f" {mount.path} " in line for line in lab.sides[INITIATOR].mounts()) == 1
    if holder is not None:
        holder.stop()
    mount.umount()
    assert nothing_is_left(lab, mount)


def test_umount_removes_what_a_killed_mount_left(lab: Lab) -> None:
    lab.vblade(0, 0, lab.image("image", MIB))
    mount = lab.mount()
    kill(mount)
    answer = mount.umount()
    assert "dead already" in answer.stderr
    assert nothing_is_left(lab, mount)


def test_what_was_synced_before_a_kill_is_on_the_disk(lab: Lab) -> None:
    image = lab.image("image", 4 * MIB)
    lab.target(f"0.0={image}")
    mount = lab.mount()
    data = os.urandom(3 * MIB)
    with opened(mount.here / "e0.0", os.O_RDWR) as file:
        os.pwrite(file, data, 0)
        os.fsync(file)
        kill(mount)
        fails_as_dead(lambda: os.pwrite(file, b"x", 0))
    assert image.read_bytes()[: len(data)] == data


def abort(lab: Lab, mount: Mount, device: int) -> None:
    """As an administrator, through fusectl: the kernel ends this connection."""
    place = lab.directory / "fusectl"
    place.mkdir()
    script = f"mount -t fusectl none {place} && echo 1 > {place}/{os.minor(device)}/abort; umount {place}"
    lab.run(INITIATOR, ["sh", "-c", script])


@pytest.mark.parametrize("stopping", [False, True], ids=["live", "stopping"])
def test_a_connection_that_the_kernel_aborts_ends_the_mount_which_flushes(lab: Lab, stopping: bool) -> None:
    image = lab.image("image", MIB)
    lab.target(f"0.0={image}")
    mount = lab.mount(foreground=True)
    assert mount.process is not None
    wait_until((mount.here / "e0.0").exists)
    with opened(mount.here / "e0.0", os.O_RDWR) as file:
        device = os.fstat(file).st_dev
        if stopping:
            mount.process.send_signal(signal.SIGTERM)
            wait_until(lambda: not mount.mounted)
        os.pwrite(file, b"acknowledged", 0)
        abort(lab, mount, device)
        assert mount.process.wait(30) == 0
    assert "flush" not in mount.process.output
    assert image.read_bytes().startswith(b"acknowledged")
    if not stopping:
        assert "dead already" in mount.umount().stderr
    assert nothing_is_left(lab, mount)


def test_umount_ends_when_the_target_is_gone(lab: Lab) -> None:
    target = lab.vblade(0, 0, lab.image("image", MIB))
    mount = lab.mount(deadsecs=1)
    pid = mount.pid
    with opened(mount.here / "e0.0", os.O_RDWR) as file:
        os.pwrite(file, b"acknowledged", 0)
        target.stop(signal.SIGKILL)
        fails_with(errno.EIO, lambda: os.pwrite(file, b"nobody there", 0))
        fails_with(errno.EIO, lambda: os.fsync(file))
    answer = mount.umount(check=False)
    assert answer.returncode == 1
    assert "e0.0 could not be flushed: Input/output error" in answer.stderr
    assert is_gone(pid)
    assert nothing_is_left(lab, mount)


def test_umount_sends_no_flush_to_a_clean_target_that_has_just_died(lab: Lab) -> None:
    target = lab.vblade(0, 0, lab.image("image", MIB))
    mount = lab.mount()  # a flush would wait for deadsecs, three minutes
    with opened(mount.here / "e0.0", os.O_RDWR) as file:
        os.pwrite(file, b"written and flushed", 0)
    target.stop(signal.SIGKILL)
    lab.aoefs("umount", mount.path, timeout=60)
    assert nothing_is_left(lab, mount)
