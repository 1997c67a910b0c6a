"""A place to try a mount: a lab with targets of one kind, and aoefs mounted over all of them.

A place is made once for a module (``conftest.py``), so its tests share the disks: each test writes what it reads later.
The image behind a disk decides what is right: a target's writes are in it at once, whatever the caches hold.
"""

from __future__ import annotations

import contextlib
import os
import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from tests.lab import INITIATOR, Argument, Lab, Mount, Process, wait_until

MIB = 1 << 20
OWN, VBLADE = "own", "vblade"
EVERY_PLACE = ((VBLADE, 1500), (VBLADE, 9000), (OWN, 1500), (OWN, 9000))
TWO_PLACES = ((VBLADE, 1500), (OWN, 9000))


def places(combinations: Sequence[tuple[str, int]]) -> pytest.MarkDecorator:
    """Run a module at each of these kinds of target and MTUs: ``pytestmark = places(TWO_PLACES)``."""
    names = [f"{kind}-{mtu}" for kind, mtu in combinations]
    return pytest.mark.parametrize("place", combinations, indirect=True, ids=names, scope="module")


@dataclass
class Place:
    """``images`` and ``targets`` (the processes that serve them), by the name of the target."""

    kind: str
    lab: Lab
    mount: Mount
    images: dict[str, Path]
    targets: dict[str, Process] = field(default_factory=dict)

    def file(self, name: str) -> Path:
        """A file of the mount, as programs that :meth:`run` starts see it."""
        return self.mount.file(name)

    def here(self, name: str) -> Path:
        """A file of the mount, as this process sees it."""
        return self.mount.here / name

    def run(self, *arguments: Argument, check: bool = True, timeout: float = 120) -> CompletedProcess[str]:
        """Run a program beside the mount."""
        return self.lab.run(INITIATOR, arguments, check=check, timeout=timeout)

    def counters(self, name: str, mount: Mount | None = None) -> Mapping[str, int]:
        """What the status of this mount (or another) says of a target."""
        return (mount or self.mount).target(name)

    @contextlib.contextmanager
    def opened(self, name: str, flags: int) -> Iterator[int]:
        """A descriptor of this process, of which the close must succeed."""
        descriptor = os.open(self.here(name), flags)
        try:
            yield descriptor
        finally:
            os.close(descriptor)


def serve(lab: Lab, kind: str, images: Mapping[str, Path], *options: Argument) -> dict[str, Process]:
    """Export images (by the name of the target, such as ``e0.1``) from the target's side."""
    if kind == OWN:
        process = lab.target(*options, *(f"{name[1:]}={path}" for name, path in images.items()))
        return dict.fromkeys(images, process)
    processes = {}
    for name, path in images.items():
        shelf, slot = map(int, name[1:].split("."))
        processes[name] = lab.vblade(shelf, slot, path, *options)
    return processes


@contextlib.contextmanager
def open_place(
    kind: str, mtu: int, sizes: Mapping[str, int], *, seed: int | None = 0, pairs: int = 1, foreground: bool = False
) -> Iterator[Place]:
    """A lab with a disk of each size (bytes, by name), all exported and mounted."""
    with Lab(mtu=mtu, pairs=pairs) as lab:
        images = {name: lab.image(f"{name}.image", size, seed=seed) for name, size in sizes.items()}
        targets = serve(lab, kind, images)
        yield Place(kind, lab, lab.mount(foreground=foreground), images, targets)


def random_bytes(size: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(size)


def fails_with(code: int, call: Callable[[], object]) -> None:
    """AssertionError unless the call fails with this errno."""
    with pytest.raises(OSError, match=re.escape(os.strerror(code))):
        call()


def reader(lab: Lab, mount: Mount) -> Process:
    """A program that has e0.0 open."""
    holder = lab.popen(INITIATOR, ["sh", "-c", f"exec 3<>{mount.file('e0.0')}; echo open; exec sleep 1000"])
    wait_until(lambda: "open" in holder.output, what="the file is open")
    return holder


def fails_as_dead(call: Callable[[], object]) -> None:
    """The errors of a file system whose daemon is gone."""
    with pytest.raises(OSError, match=r"endpoint is not connected|connection abort"):
        call()


def nothing_is_left(lab: Lab, mount: Mount) -> bool:
    return not mount.mounted and not lab.sides[INITIATOR].packet_sockets()
