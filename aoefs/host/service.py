"""What a mount owes to whoever runs it as a service: word to systemd, and a file with its process id.

What holds always: without systemd nothing is said and nothing fails; the process id is in its file only while the
mount is live, and whoever finds the file finds it complete.

systemd's protocol (sd_notify(3)) is one datagram to the socket that a variable names.  Rejected: the library sdnotify
(these lines, last released in 2017) and the bindings of libsystemd (a C library and a compiler for one datagram).
"""

from __future__ import annotations

import contextlib
import os
import socket

from aoefs.errors import UserError

NOTIFY_VARIABLE = "NOTIFY_SOCKET"


def notify(*assignments: str) -> None:
    """Tell systemd, if it asked to be told: ``notify("READY=1", "STATUS=2 targets")``.  Never waits."""
    path = os.environ.get(NOTIFY_VARIABLE, "")
    if not path.startswith(("/", "@")):
        return
    with (
        contextlib.suppress(OSError),  # nobody is there any more: the mount goes on
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sock,
    ):
        sock.sendto("\n".join(assignments).encode(errors="replace"), "\0" + path[1:] if path[0] == "@" else path)


class PidFile:
    """The file of ``--pid-file``: :meth:`write` puts it in place, and it is gone after the ``with`` block.

    ``path`` is absolute.  UserError at once if it could not be written later.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._draft = f"{path}.{os.getpid()}"
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
            self._descriptor = os.open(self._draft, flags, 0o644)
        except OSError as error:
            raise UserError(f"--pid-file {path} cannot be written: {error.strerror}") from None

    def __enter__(self) -> PidFile:
        return self

    def write(self) -> None:
        """Put it in place, complete, over one that a killed process left."""
        os.write(self._descriptor, b"%d\n" % os.getpid())
        os.rename(self._draft, self._path)

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):  # it was never written, or another mount has put its own in the place
            if os.path.samestat(os.lstat(self._path), os.fstat(self._descriptor)):
                os.unlink(self._path)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._draft)
        os.close(self._descriptor)
