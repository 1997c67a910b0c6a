"""36 targets in one mount: all are there, all are right when used at once, over all shards, in little memory."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab import Lab, make_image
from tests.mount.place import MIB, TWO_PLACES, Place, places, serve

NAMES = [f"e{number // 6}.{number % 6}" for number in range(36)]
MEMORY_LIMIT = 150_000_000  # bytes: each of the 36 requests of 1 MiB under way needs 2 MiB
pytestmark = places(TWO_PLACES)


@pytest.fixture(scope="module")
def place(request: pytest.FixtureRequest) -> Iterator[Place]:
    kind, mtu = request.param
    with Lab(mtu=mtu) as lab:
        images = {name: lab.image(name, MIB + 512 * seed, seed=seed) for seed, name in enumerate(NAMES)}
        targets = serve(lab, kind, images)
        yield Place(kind, lab, lab.mount(shards=2), images, targets)


def for_all(place: Place, command: str) -> None:
    """Run a shell command for all targets at once; ``$1`` is the disk, ``$2`` its image."""
    script = f'failed=0; pids=; while [ $# -gt 0 ]; do ({command}) & pids="$pids $!"; shift 2; done; '
    script += "for pid in $pids; do wait $pid || failed=1; done; exit $failed"
    pairs = [str(path) for name in NAMES for path in (place.file(name), place.images[name])]
    place.run("sh", "-c", script, "sh", *pairs)


def memory(place: Place) -> int:
    """The most that the daemon ever had in memory, in bytes."""
    text = Path(f"/proc/{place.mount.status()['pid']}/status").read_text()
    found = re.search(r"VmHWM:\s+(\d+) kB", text)
    assert found is not None
    return int(found[1]) * 1024


def test_all_are_listed_when_the_command_returns(place: Place) -> None:
    assert sorted(os.listdir(place.mount.here)) == sorted([".aoefs", "by-serial", *NAMES])
    for seed, name in enumerate(NAMES):
        assert os.stat(place.here(name)).st_size == MIB + 512 * seed


def test_all_are_read_and_compared_at_once(place: Place) -> None:
    for_all(place, 'cmp "$1" "$2"')
    status = place.mount.status()
    assert all(target["read_bytes"] >= MIB and target["errors"] == 0 for target in status["targets"])
    if place.lab.workers == 1:
        first, second = (shard["completed"] for shard in status["shards"])
        assert 0.5 < first / second < 2, "the load is spread evenly over both shards"


def test_all_are_written_at_once(place: Place) -> None:
    new = make_image(place.lab.directory / "new", MIB, seed=99)
    for_all(place, f'dd if={new} of="$1" bs=128k conv=fsync status=none')
    for image in place.images.values():
        assert image.read_bytes()[:MIB] == new.read_bytes()
    assert not any(target["dirty"] for target in place.mount.status()["targets"])


def test_the_memory_of_a_busy_mount_is_bounded(place: Place) -> None:
    for_all(place, 'dd if="$1" of=/dev/null bs=1M iflag=direct status=none; dd if="$2" of="$1" bs=1M status=none')
    for_all(place, 'cmp "$1" "$2"')
    assert memory(place) < MEMORY_LIMIT
