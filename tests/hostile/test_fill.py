"""Point: the table.  Disks that one host invents keep no real one out, at least not once they are gone."""

from __future__ import annotations

import os

import pytest

from tests.faults.live import mount_until, read
from tests.hostile.attack import attacking, discover
from tests.lab import Lab, opened, wait_until

SIZE = 4 << 20
TABLE = 48  # targets that the mount shows at most
SOON = 30.0


@pytest.mark.parametrize("alive", [True, False])
def test_no_new_target_is_refused_while_the_table_is_full_of_fakes_that_nobody_opened(lab: Lab, alive: bool) -> None:
    """The fakes are ``alive``: one host gives all of them; or dead, and no longer answer."""
    disk = lab.image("disk", SIZE)
    lab.target(f"0.0={disk}")
    mount = mount_until(lab, "e0.0", max_targets=TABLE)
    with opened(mount.here / "e0.0") as file:
        with attacking(lab, "fill", count=2 * TABLE):
            wait_until(lambda: len(os.listdir(mount.here)) == TABLE + 2, SOON, "the table is full")
            if alive:
                lab.target(f"0.1={lab.image('new', SIZE, seed=1)}")
                wait_until((mount.here / "e0.1").exists, SOON, "the new target appears")
        if not alive:
            discover(mount)
            lab.target(f"0.1={lab.image('new', SIZE, seed=1)}")
            wait_until((mount.here / "e0.1").exists, SOON, "the new target appears")
        assert read(file, 4096) == disk.read_bytes()[:4096], "what is open stays"
    assert len(os.listdir(mount.here)) <= TABLE + 2
