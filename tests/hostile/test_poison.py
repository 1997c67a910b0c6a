"""Point: queries.  Config answers in the target's name that the target did not give change nothing of it."""

from __future__ import annotations

import os

import pytest

from tests.faults.live import mount_until, pattern, read, write
from tests.hostile.attack import attacking, discover
from tests.lab import INITIATOR, TARGET, Lab, opened, wait_until

SIZE = 4 << 20
EXPORTS = 1024
SOON = 20.0  # seconds: far less than the 60 until the next query; 5 on a machine with nothing else to do


@pytest.mark.parametrize("broadcast", [False, True])
def test_forged_config_answers_change_neither_window_nor_payload_nor_config_string(lab: Lab, broadcast: bool) -> None:
    """``broadcast``: with the tags of broadcast queries, which everyone hears, and though only one MAC is allowed."""
    lab.target(f"0.0={lab.image('disk', SIZE)}")
    options = {"allow_mac": lab.mac(TARGET).hex(":")} if broadcast else {}
    mount = mount_until(lab, "e0.0", timeout=30.0, **options)
    before = mount.target()
    assert before["paths"][0]["sectors"] == 17
    with (
        opened(mount.here / "e0.0") as file,
        attacking(lab, "poison", broadcast=broadcast) as attack,
    ):
        for step in range(6):
            if broadcast:
                discover(mount)
            attack.until("poison", 6 * (step + 1))
            write(file, pattern(step), step * 4096)
            assert read(file, 4096, step * 4096) == pattern(step)
            after = mount.target()
            assert after["config"] == before["config"]
            for field in ("bufcnt", "sectors", "mac", "healthy"):
                assert [path[field] for path in after["paths"]] == [path[field] for path in before["paths"]], field
    assert mount.target()["errors"] == 0


def test_a_thousand_honest_targets_behind_one_mac_are_found_at_once(lab: Lab) -> None:
    image = lab.image("disk", SIZE)
    lab.target("--read-only", *(f"{number // 250}.{number % 250}={image}" for number in range(EXPORTS)))
    mount = lab.mount(foreground=True)
    wait_until(lambda: len(os.listdir(mount.here)) == EXPORTS + 2, SOON, f"{EXPORTS} targets")
    assert lab.mac(INITIATOR).hex(":") == mount.status()["links"][0]["mac"]
