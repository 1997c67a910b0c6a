"""A live mount of the stand-in file system, for tests of what people do with mounts."""

from __future__ import annotations

import contextlib
import ctypes
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from aoefs.host import mountpoint
from tests.lab import require, wait_until


def is_mounted(path: Path) -> bool:
    return mountpoint.find_mount(str(path)) is not None


NOBODY = 65534


@contextlib.contextmanager
def strangers_standin(path: Path, *words: str, owner: int = NOBODY) -> Iterator[subprocess.Popen[bytes]]:
    """As :func:`standin`, for a mount that another user made for all to use (as fusermount3 does with allow_other).

    Its device is mounted here: nobody may use /dev/fuse on each host.
    """
    require("/dev/fuse")
    path.mkdir(exist_ok=True, parents=True)
    device = os.open("/dev/fuse", os.O_RDWR)
    try:
        words_of_mount = f"fd={device},rootmode=40000,user_id={owner},group_id={owner},allow_other"
        libc = ctypes.CDLL(None, use_errno=True)
        arguments = (b"standin", os.fsencode(path), b"fuse.aoefs", 0, words_of_mount.encode())
        assert libc.mount(*arguments) == 0, os.strerror(ctypes.get_errno())
        [made] = [mount for mount in mountpoint.aoefs_mounts() if mount.path == str(path)]
        environment = {**os.environ, "STANDIN": " ".join([*words, f"as={owner}"])}
        command = [sys.executable, "-m", "tests.host.standin", f"/dev/fd/{device}"]
        process = subprocess.Popen(command, env=environment, pass_fds=(device,))
    finally:
        os.close(device)
    with process:
        try:
            status = Path(f"/proc/{process.pid}/status")
            wait_until(lambda: f"\nUid:\t{owner}\t" in status.read_text(), what="it is that user")
            yield process
        finally:
            process.kill()
            process.wait()
            with contextlib.suppress(OSError):  # unmounted by the test
                mountpoint.unmount(made, lazy=True)


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
                mount = mountpoint.find_mount(str(path))
                assert mount is not None
                mountpoint.unmount(mount, lazy=True)
