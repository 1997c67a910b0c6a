"""What other users of this host can do with a mount, and to those who use one: nothing that they were not given."""

from __future__ import annotations

import subprocess

from tests.lab import INITIATOR, TARGET, Lab, Mount, require

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
