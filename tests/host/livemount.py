"""A live mount of the stand-in file system, for tests of what people do with mounts."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from aoefs.host import mountpoint
from tests.lab import require, wait_until


def is_mounted(path: Path) -> bool:
    return mountpoint.find_mount(str(path)) is not None


@contextlib.contextmanager
def standin(path: Path, *words: str) -> Iterator[subprocess.Popen[bytes]]:
    """The process that serves a mount on ``path``; ``words`` say how it behaves (tests.host.standin)."""
    require("/dev/fuse")
    path.mkdir(exist_ok=True)
    environment = {**os.environ, "STANDIN": " ".join(words)}
    with subprocess.Popen([sys.executable, "-m", "tests.host.standin", path], env=environment) as process:
        try:
            wait_until(lambda: is_mounted(path), what="the stand-in is mounted")
            yield process
        finally:
            process.kill()
            process.wait()
            while is_mounted(path):
                mountpoint.unmount(str(path), lazy=True)
