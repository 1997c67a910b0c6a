"""What other users of this host can do with a mount, and to those who use one: nothing that they were not given."""

from __future__ import annotations

import os
import signal
import subprocess

from tests.lab import INITIATOR, TARGET, Lab, Mount, is_gone, require, wait_until

NOBODY = 65534
AS_NOBODY = ("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups")


def write_as_nobody(lab: Lab, mount: Mount, name: str, order: str) -> subprocess.CompletedProcess[str]:
    script = f"/bin/echo {order} > {mount.path}/.aoefs/{name}"
    return lab.run(INITIATOR, [*AS_NOBODY, "sh", "-c", script], check=False, timeout=20)


def test_the_owner_of_a_mount_gets_no_more_interfaces_than_the_mounter_named() -> None:
    require("setpriv")
    with Lab(pairs=3) as lab:
        for number in range(3):
            lab.target(f"0.{number}={lab.image(f'disk{number}', 1 << 20)}", side=TARGET, interfaces=[f"aoe{number}"])
        mount = lab.mount(interfaces=["aoe0", "aoe1"], uid=NOBODY, allow_other=True)
        listing = mount.here / ".aoefs/interfaces"
        for order in ("any", "aoe2", "aoe0,aoe2"):
            answer = write_as_nobody(lab, mount, "interfaces", order)
            assert "Operation not permitted" in answer.stderr, (order, answer.stderr)
            assert listing.read_text() == "aoe0\naoe1\n"
        assert "given aoe0, aoe1" in (mount.here / ".aoefs/events").read_text()
        assert write_as_nobody(lab, mount, "interfaces", "aoe1").returncode == 0
        assert listing.read_text() == "aoe1\n"
        assert write_as_nobody(lab, mount, "interfaces", "aoe0,aoe1").returncode == 0, "back to what was given"
        listing.write_text("aoe2\n")  # by root
        assert listing.read_text() == "aoe2\n"
        assert write_as_nobody(lab, mount, "interfaces", "aoe0").returncode != 0, "root took it away"


def test_a_mount_that_is_stopped_unmounts_itself_although_its_parent_is_a_link_by_now(lab: Lab) -> None:
    """The owner of the parent may rename it, and put a link in its place, while root has a mount below."""
    parent, elsewhere = lab.directory / "parent", lab.directory / "elsewhere"
    for place in (parent, elsewhere):
        (place / "mnt").mkdir(parents=True)
    lab.run(INITIATOR, ["mount", "-t", "tmpfs", "victim", elsewhere / "mnt"])
    lab.target(f"0.0={lab.image('disk', 1 << 20)}")
    pid_file = lab.directory / "pid"
    lab.aoefs("-i", "aoe0", "--pid-file", pid_file, parent / "mnt")
    pid = int(pid_file.read_text())
    parent.rename(lab.directory / "moved")
    parent.symlink_to(elsewhere)
    os.kill(pid, signal.SIGTERM)
    wait_until(lambda: is_gone(pid), what="the mount has ended")
    mounts = "\n".join(lab.sides[INITIATOR].mounts())
    assert f"victim {elsewhere}/mnt tmpfs" in mounts
    assert "fuse.aoefs" not in mounts
