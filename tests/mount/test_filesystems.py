"""File systems on a disk of a mount: made, mounted through a loop device, filled, unmounted, checked."""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab import INITIATOR, require
from tests.mount.place import MIB, TWO_PLACES, Place, places, random_bytes

# Sparse: the file systems need more room than these tests write.
SIZES = {"e0.0": 48 * MIB, "e0.1": 320 * MIB, "e0.2": 128 * MIB}
SEED = None
pytestmark = places(TWO_PLACES)


@contextlib.contextmanager
def loop_mounted(place: Place, name: str, *options: str) -> Iterator[Path]:
    """``mount -o loop`` of a disk beside the mount; the mount point as programs there see it."""
    point = place.lab.directory / f"{name}.mounted"
    point.mkdir(exist_ok=True)
    place.run("mount", "-o", ",".join(("loop", *options)), place.file(name), point)
    try:
        yield point
    finally:
        place.run("umount", point)


def fill(place: Place, point: Path) -> str:
    """A tree of small and large files; the checksum of all of it."""
    here = place.lab.sides[INITIATOR].root / point.relative_to("/")
    for number in range(40):
        directory = here / f"directory{number % 7}"
        directory.mkdir(exist_ok=True)
        (directory / f"file{number}").write_bytes(random_bytes(number * 997, number))
    (here / "large").write_bytes(random_bytes(6 * MIB))
    for number in range(0, 40, 3):
        (here / f"directory{number % 7}" / f"file{number}").unlink()
    return checksum(place, point)


def checksum(place: Place, point: Path) -> str:
    here = place.lab.sides[INITIATOR].root / point.relative_to("/")
    digest = hashlib.sha256()
    for path in sorted(here.rglob("*")):
        if path.is_file():
            digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()


CHECKS = {
    "ext4": ("e0.0", ["mkfs.ext4", "-q", "-F"], ["fsck.ext4", "-f", "-n"]),
    "xfs": ("e0.1", ["mkfs.xfs", "-q", "-f"], ["xfs_repair", "-n", "-f"]),
    "btrfs": ("e0.2", ["mkfs.btrfs", "-q", "-f"], ["btrfs", "check", "--readonly"]),
}


@pytest.mark.parametrize("kind", CHECKS)
def test_a_file_system_is_made_filled_unmounted_and_clean(place: Place, kind: str) -> None:
    name, make, check = CHECKS[kind]
    require("losetup", make[0], check[0])
    place.run(*make, place.file(name))
    with loop_mounted(place, name) as point:
        before = fill(place, point)
    place.run(*check, place.file(name))
    if kind == "ext4":
        place.run(*check, place.images[name])  # the image of the target is clean, too
    with loop_mounted(place, name, "ro") as point:
        assert checksum(place, point) == before
    assert place.counters(name)["errors"] == 0
    assert place.counters(name)["flushes"] > 0


def test_a_file_that_was_synced_in_the_file_system_is_in_the_image(place: Place) -> None:
    place.run("mkfs.ext4", "-q", "-F", place.file("e0.0"))
    with loop_mounted(place, "e0.0") as point:
        here = place.lab.sides[INITIATOR].root / point.relative_to("/")
        (here / "file").write_bytes(b"synced" * 1000)
        place.run("sync", point / "file")
        found = place.run("debugfs", "-R", "cat /file", place.images["e0.0"]).stdout
        # The journal may still hold the entry; the data blocks are in place in any case (data=ordered).
        assert found == "synced" * 1000 or b"synced" * 600 in place.images["e0.0"].read_bytes()


def test_the_mount_is_busy_while_a_file_system_on_it_is_mounted(place: Place) -> None:
    place.run("mkfs.ext4", "-q", "-F", place.file("e0.0"))
    with loop_mounted(place, "e0.0") as point:
        answer = place.mount.umount(check=False)
        assert answer.returncode == 1
        assert len(answer.stderr.splitlines()) == 1
        assert "is busy: used by" in answer.stderr
        assert re.search(rf"/dev/loop\d+ \(mounted on {point}\)", answer.stderr), answer.stderr
        assert place.mount.mounted
