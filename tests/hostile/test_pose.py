"""Point: replacement.  A host that takes the target's MAC for a moment, as another disk, ends no open file."""

from __future__ import annotations

import socket

import pytest

from tests.faults.live import errno_of, log_of, mount_until, pattern, read, write
from tests.hostile.attack import attacking
from tests.hostile.attacker import FORGED
from tests.lab import TARGET, Lab, opened, wait_until

SIZE = 4 << 20
POSING = 0.8  # seconds


@pytest.mark.parametrize("lab", [False], indirect=True)
def test_open_files_survive_that_another_host_poses_as_the_target_for_a_moment(lab: Lab) -> None:
    disk = lab.image("disk", SIZE)
    contents = disk.read_bytes()
    lab.target(f"0.0={disk}")
    mount = mount_until(lab, "e0.0")
    with opened(mount.here / "e0.0") as file:
        assert read(file, 4096) == contents[:4096]
        with attacking(lab, "pose", seconds=POSING) as attack:
            attack.until("over")
        with lab.inside(TARGET), socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as wire:
            wire.bind(("aoe0", 0x88B5))  # an ethertype for experiments
            wire.send(b"\xff" * 6 + lab.mac(TARGET) + b"\x88\xb5" + bytes(46))  # the switch knows where it is again
        assert errno_of(lambda: read(file, 4096, 8192)) is None
        wait_until(lambda: mount.target()["state"] == "up")
        assert read(file, 4096, 8192) == contents[8192 : 8192 + 4096]
        write(file, pattern(3), 4096)
        assert read(file, 4096, 4096) == pattern(3)
        assert FORGED not in read(file, 65536, 0)
    assert "another disk now" not in log_of(mount)
    assert disk.read_bytes()[4096:8192] == pattern(3)
