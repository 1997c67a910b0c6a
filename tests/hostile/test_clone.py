"""Point: paths.  A host that shows the identity of a disk becomes a path to it, which no initiator can prevent: but not
silently, not against ``--fixed-paths``, and not with another size.
"""

from __future__ import annotations

import os
import time

import pytest

from tests.faults.live import mount_until, read
from tests.hostile.attack import attacking
from tests.hostile.attacker import FORGED
from tests.lab import ATTACKER, TARGET, Lab, opened, wait_until

SIZE = 4 << 20
FIRST = 1.2  # seconds, in which a target may show more paths


def test_a_new_path_of_an_open_target_is_a_warning_that_names_its_mac(lab: Lab) -> None:
    lab.target(f"0.0={lab.image('disk', SIZE)}")
    mount = mount_until(lab, "e0.0")
    with opened(mount.here / "e0.0"), attacking(lab, "clone") as attack:
        attack.until("identified")
        wait_until(lambda: len(mount.target()["paths"]) == 2, what="the clone is a path")
        wait_until(
            lambda: any(
                event["level"] == "warning" and lab.mac(ATTACKER).hex(":") in event["text"] and "e0.0" in event["text"]
                for event in mount.status()["events"]
            ),
            10,
            "a warning names the MAC of the new path",
        )


def test_fixed_paths_admit_no_path_after_the_first_discovery(lab: Lab) -> None:
    disk = lab.image("disk", SIZE)
    contents = disk.read_bytes()
    lab.target(f"0.0={disk}")
    mount = mount_until(lab, "e0.0", fixed_paths=True)
    known_since = time.monotonic()
    wait_until(lambda: time.monotonic() - known_since > FIRST, what="its first discovery is over")
    with opened(mount.here / "e0.0", os.O_RDONLY | os.O_DIRECT) as file, attacking(lab, "clone") as attack:
        attack.until("lies", 20)
        for offset in range(0, 1 << 20, 16384):
            assert read(file, 16384, offset) == contents[offset : offset + 16384]
    assert [path["mac"] for path in mount.target()["paths"]] == [lab.mac(TARGET).hex(":")]


@pytest.mark.parametrize(("kind", "options"), [("clone", {"sectors": 1.0}), ("flip", {})])
def test_a_disk_keeps_its_size_while_one_path_disagrees_with_a_healthy_one(
    lab: Lab, kind: str, options: dict[str, float]
) -> None:
    """One path that always says "1 sector", and one that said the truth when it became a path."""
    disk = lab.image("disk", SIZE)
    contents = disk.read_bytes()
    lab.target(f"0.0={disk}")
    mount = mount_until(lab, "e0.0")
    path = mount.here / "e0.0"
    sizes = set()
    with attacking(lab, kind, **options) as attack:
        while attack["false"] < 5:
            sizes |= {path.stat().st_size, mount.target()["size"]}
            attack.goes_on(0.02)
    assert sizes == {SIZE}
    with opened(path, os.O_RDONLY | os.O_DIRECT) as file:
        assert read(file, 4096, SIZE - 4096) in (contents[-4096:], FORGED * 512), "by the path that shows its identity"
