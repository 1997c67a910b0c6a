"""A mount of aoefs in a lab."""

from __future__ import annotations

import json
import subprocess
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
        """What ``aoefs status --json`` prints."""
        answer: dict[str, Any] = json.loads(self.lab.aoefs("status", "--json", self.path, side=self.side).stdout)
        return answer

    def umount(self, *options: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """``aoefs umount``, which waits until the daemon is gone."""
        return self.lab.aoefs("umount", *options, self.path, side=self.side, check=check)
