"""A mount of aoefs in a lab, and its files."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.lab.process import Process

if TYPE_CHECKING:
    from tests.lab.lab import Lab


class Mount:
    """A live mount.  ``path`` is where programs of its side see it, ``here`` where this process does."""

    def __init__(self, lab: Lab, side: str, path: Path, process: Process | None, log: str) -> None:
        self.lab = lab
        self.side = side
        self.path = path
        self.process = process  # of a foreground mount
        self.log = log  # what the command of a background mount wrote
        self.here = lab.sides[side].root / path.relative_to("/")

    @property
    def mounted(self) -> bool:
        return any(line.split()[1] == str(self.path) for line in self.lab.sides[self.side].mounts())

    def file(self, name: str) -> Path:
        """A file of the mount, such as ``e0.0``, as programs of its side see it."""
        return self.path / name

    def status(self) -> dict[str, Any]:
        """What ``aoefs status --json`` prints, but without starting a program."""
        status: dict[str, Any] = json.loads((self.here / ".aoefs/status.json").read_text())
        return status

    def target(self, name: str = "e0.0") -> dict[str, Any]:
        """What the status says of one target."""
        found: dict[str, Any] = next(target for target in self.status()["targets"] if target["name"] == name)
        return found

    @property
    def pid(self) -> int:
        """The pid of the daemon."""
        return int(self.status()["pid"])

    def umount(self, *options: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """``aoefs umount``, which waits until the daemon is gone."""
        return self.lab.aoefs("umount", *options, self.path, side=self.side, check=check)


@contextlib.contextmanager
def opened(path: Path, flags: int = os.O_RDWR | os.O_DIRECT) -> Iterator[int]:
    """A descriptor, of which the close may fail: a test of failed flushes closes by itself.

    While it is open, start no program if its target is silent and has something to flush: the child closes its copy,
    which flushes and waits.
    """
    descriptor = os.open(path, flags)
    try:
        yield descriptor
    finally:
        with contextlib.suppress(OSError):
            os.close(descriptor)
