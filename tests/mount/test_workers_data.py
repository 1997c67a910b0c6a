"""A mount with two workers, of which one is killed: data that were acknowledged, reservations, and other namespaces."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab import INITIATOR, Lab, Mount, opened, wait_until
from tests.mount.place import MIB, nothing_is_left, random_bytes

TARGETS = 2  # e0.1 is the worker's


@pytest.fixture
def images(lab: Lab) -> list[Path]:
    found = [lab.image(f"image{slot}", MIB, seed=slot) for slot in range(TARGETS)]
    lab.target(*(f"0.{slot}={image}" for slot, image in enumerate(found)))
    return found


@pytest.fixture
def mount(lab: Lab, images: list[Path]) -> Iterator[Mount]:
    made = lab.mount(workers=2)
    yield made
    made.umount("--lazy")


def kill_worker(mount: Mount) -> None:
    """And wait until another one has its files."""
    before = mount.status()["workers"][1]
    os.kill(before["pid"], signal.SIGKILL)

    def is_back() -> bool:
        with contextlib.suppress(OSError):
            now = mount.status()["workers"][1]
            return now["pid"] not in (None, before["pid"]) and bool((mount.here / "e0.1").read_bytes())
        return False

    wait_until(is_back, what="its files are back", timeout=30)


def test_what_was_flushed_is_there_when_a_worker_was_killed_and_nothing_else_is_silently_lost(
    mount: Mount, images: list[Path]
) -> None:
    data = random_bytes(MIB)
    with opened(mount.here / "e0.1", os.O_RDWR) as file:
        for start in range(0, MIB // 2, 4096):
            os.pwrite(file, data[start : start + 4096], start)
        os.fsync(file)
        for start in range(MIB // 2, MIB, 4096):
            os.pwrite(file, data[start : start + 4096], start)
        kill_worker(mount)
        for call in (lambda: os.fsync(file), lambda: os.pwrite(file, b"x", 0), lambda: os.pread(file, 1, 0)):
            with pytest.raises(OSError, match=r"not connected|connection abort"):
                call()
    there = (mount.here / "e0.1").read_bytes()
    assert there == images[1].read_bytes()
    assert there[: MIB // 2] == data[: MIB // 2]


def holders(lab: Lab) -> list[str]:
    """Of e0.1."""
    answer = lab.aoefs("reserve", "-i", "aoe0", "e0.1").stdout
    return [word for word in answer.split() if word.count(":") == 5]


def test_a_reservation_of_a_worker_that_was_killed_is_given_back(lab: Lab, images: list[Path]) -> None:
    mount = lab.mount(workers=2, reserve=True)
    with opened(mount.here / "e0.1", os.O_RDWR):
        assert holders(lab) == [lab.mac(INITIATOR).hex(":")]
        kill_worker(mount)
    wait_until(lambda: not holders(lab), what="it is given back")
    with opened(mount.here / "e0.1", os.O_RDWR) as file:
        assert holders(lab) == [lab.mac(INITIATOR).hex(":")]
        os.pwrite(file, b"new", 0)
    assert holders(lab) == []
    file = os.open(mount.here / "e0.1", os.O_RDWR)
    os.kill(mount.pid, signal.SIGTERM)
    wait_until(lambda: not mount.mounted, what="it is unmounted")
    os.close(file)
    wait_until(lambda: nothing_is_left(lab, mount), what="all processes end", timeout=30)
    assert holders(lab) == []
