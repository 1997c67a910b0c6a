"""Asking a mount something, from a child process.

A process that looks at a FUSE mount sleeps in the kernel until the mount process answers.  If that is stopped or hangs,
only SIGKILL ends the sleep, and once the mount process has taken the request nothing does.  So a child asks, in a
session of its own.  When no answer comes in time it is killed; it may end later, and nothing waits for it.

What always holds: this process touches nothing of the mount, so it can always go on, be interrupted and end.

Rejected: asking in a thread (a process with a thread that sleeps so cannot end), and forking without a new program (not
safe beside threads).
"""

from __future__ import annotations

import enum
import errno
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable

PATIENCE = 2.0  # seconds without an answer; then the mount process counts as silent

MOST_BYTES = 64 << 20  # of a file: the status of 40 000 targets

_END_SECONDS = 0.5  # for a killed child to end

# Each line of input is a question: the name of a file to read, or nothing.  The answer is an errno, a length, the data.
# The mount may be of another user: a file of it may be a link, a device, or have no end.
_PROGRAM = """
import errno, os, stat, sys
def read(name, most):
    found = [os.open(sys.argv[1], os.O_PATH)]
    try:
        for part in name.split("/")[:-1]:
            found.append(os.open(part, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=found[-1]))
        last = os.open(os.path.basename(name), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=found[-1])
    finally:
        for descriptor in found:
            os.close(descriptor)
    with open(last, "rb") as file:
        if not stat.S_ISREG(os.fstat(last).st_mode):
            raise OSError(errno.EINVAL, "")
        data = file.read(most + 1)
    if len(data) > most:
        raise OSError(errno.EFBIG, "")
    return data
for line in sys.stdin:
    code, data, name = 0, b"", line.rstrip()
    try:
        if name:
            data = read(name, int(sys.argv[2]))
        else:
            os.statvfs(sys.argv[1])  # always asks the mount process; stat(2) may be answered from the kernel's cache
    except OSError as error:
        code = error.errno
    sys.stdout.buffer.write(b"%d %d\\n" % (code, len(data)) + data)
    sys.stdout.buffer.flush()
"""


class Liveness(enum.Enum):
    """Whether the process of a mount answers, is gone, or is there without answering (stopped, or it hangs)."""

    LIVE = enum.auto()
    DEAD = enum.auto()
    SILENT = enum.auto()


def liveness(path: str, on_silence: Callable[[], None] | None = None) -> Liveness:
    """Ask the process of the mount at ``path``; ``on_silence`` as for :meth:`MountReader.ask`."""
    try:
        with MountReader(path) as reader:
            reader.ask(on_silence=on_silence)
    except TimeoutError:
        return Liveness.SILENT
    except OSError as error:
        return Liveness.DEAD if error.errno in (errno.ENOTCONN, errno.ECONNABORTED) else Liveness.LIVE
    return Liveness.LIVE


class MountReader:
    """A child process that asks the mount at ``path``; it lives as long as the ``with`` block."""

    def __init__(self, path: str) -> None:
        self._socket, childs_end = socket.socketpair()
        self._answers = self._socket.makefile("rb")
        with childs_end:
            self._child = subprocess.Popen(  # noqa: S603 (a program of ours)
                [sys.executable, "-I", "-S", "-c", _PROGRAM, path, str(MOST_BYTES)],
                stdin=childs_end.fileno(),
                stdout=childs_end.fileno(),
                stderr=subprocess.DEVNULL,
                cwd="/",
                start_new_session=True,
            )

    def __enter__(self) -> MountReader:
        return self

    def __exit__(self, *_: object) -> None:
        self._child.kill()
        self._socket.shutdown(socket.SHUT_RDWR)  # ends the wait of another thread, which close() would wait for
        self._answers.close()
        self._socket.close()
        try:
            self._child.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            self._child.returncode = -signal.SIGKILL  # Popen must not warn that its exit code was not read

    def ask(self, name: str = "", on_silence: Callable[[], None] | None = None) -> bytes:
        """The content of a file of the mount; without a name nothing, but the mount process has answered.

        OSError as the mount raises it.  After ``PATIENCE`` seconds without an answer ``on_silence`` is called and the
        answer is waited for without limit; TimeoutError without ``on_silence``, and this reader can only be closed.
        """
        try:
            self._socket.sendall(f"{name}\n".encode())
            self._socket.settimeout(PATIENCE)
            try:
                self._socket.recv(1, socket.MSG_PEEK)
            except TimeoutError:
                if on_silence is None:
                    raise TimeoutError(errno.ETIMEDOUT, "its daemon does not answer") from None
                on_silence()
            self._socket.settimeout(None)
            code, size = map(int, self._answers.readline().split())
            data = self._answers.read(size)
        except (ConnectionError, ValueError):
            raise OSError(errno.EIO, "the process that asks it was killed") from None
        if code:
            raise OSError(code, os.strerror(code))
        return data
