"""A target on two cables: both carry I/O, and one that fails during a copy causes no error."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.lab import INITIATOR, TARGET, Lab, make_image, wait_until
from tests.mount.place import MIB, TWO_PLACES, VBLADE, Place, places

pytestmark = places(TWO_PLACES)


@pytest.fixture(scope="module")
def place(request: pytest.FixtureRequest) -> Iterator[Place]:
    kind, mtu = request.param
    with Lab(mtu=mtu, pairs=2) as lab:
        image = lab.image("image", 32 * MIB)
        if kind == VBLADE:
            targets = {interface: lab.vblade(0, 0, image, interface=interface) for interface in ("aoe0", "aoe1")}
        else:
            targets = {"": lab.target(f"0.0={image}", interfaces=("aoe0", "aoe1"))}
        place = Place(kind, lab, lab.mount(), {"e0.0": image}, targets)
        wait_until(lambda: len(paths(place)) == 2, what="both paths are found")
        yield place


def paths(place: Place) -> dict[str, dict[str, int]]:
    """The counters of each path, by interface."""
    found = place.counters("e0.0")["paths"]
    assert isinstance(found, list)
    return {path["interface"]: path for path in found}


def written(place: Place) -> int:
    return place.counters("e0.0")["write_bytes"]


def test_both_paths_carry_reads_and_writes(place: Place) -> None:
    before = paths(place)
    place.run("cmp", place.images["e0.0"], place.file("e0.0"))
    new = make_image(place.lab.directory / "new", 8 * MIB, seed=4)
    place.run("dd", f"if={new}", f"of={place.file('e0.0')}", "bs=1M", "conv=fsync", "status=none")
    assert place.images["e0.0"].read_bytes()[: 8 * MIB] == new.read_bytes()
    used = [path["answered"] - before[name]["answered"] for name, path in paths(place).items()]
    assert min(used) > sum(used) / 5, used


@pytest.mark.parametrize("side", [INITIATOR, TARGET])
def test_a_link_that_fails_during_a_copy_causes_no_error(place: Place, side: str) -> None:
    new = make_image(place.lab.directory / "new", 32 * MIB, seed=5)
    start = written(place)
    copy = ["dd", f"if={new}", f"of={place.file('e0.0')}", "bs=1M", "oflag=direct", "status=none"]
    with place.lab.repeating(INITIATOR, copy):
        wait_until(lambda: written(place) > start + 2 * MIB, what="the copy has begun")
        place.lab.ip(side, "link", "set", "aoe0", "down")
        down_at = written(place)
        wait_until(lambda: written(place) > down_at + 2 * MIB, 60, "the copy goes on")
    assert place.images["e0.0"].read_bytes() == new.read_bytes()
    assert place.counters("e0.0")["errors"] == 0
    place.lab.ip(side, "link", "set", "aoe0", "up")
    if place.kind == VBLADE and place.targets["aoe0"].poll() is not None:  # vblade ends when its network is down
        place.targets["aoe0"] = place.lab.vblade(0, 0, place.images["e0.0"])
    before = paths(place)["aoe0"]["answered"]

    def is_used_again() -> bool:
        place.run("dd", f"if={place.file('e0.0')}", "of=/dev/null", "bs=1M", "count=1", "iflag=direct", "status=none")
        return paths(place)["aoe0"]["answered"] > before + 10

    wait_until(is_used_again, timeout=60, what="the link that is up again carries I/O")
    place.run("cmp", new, place.file("e0.0"))
