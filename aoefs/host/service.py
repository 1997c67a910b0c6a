"""A mount as a service: notifications for systemd, and a file with the process id.

What always holds: without systemd nothing is sent and nothing fails.  The file exists only while the mount is live, and
is complete at any time.

The protocol of systemd (sd_notify(3)) is one datagram to the socket that an environment variable names.
"""

from __future__ import annotations

import contextlib
import os
import socket

from aoefs.errors import UserError

NOTIFY_VARIABLE = "NOTIFY_SOCKET"


def notify(*assignments: str) -> None:
    """Notify systemd, if it started us: ``notify("READY=1", "STATUS=2 targets")``.  Never waits."""
    path = os.environ.get(NOTIFY_VARIABLE, "")
    if not path.startswith(("/", "@")):
        return
    with (
        contextlib.suppress(OSError),  # systemd does not receive: the mount goes on
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sock,
    ):
        sock.sendto("\n".join(assignments).encode(errors="replace"), "\0" + path[1:] if path[0] == "@" else path)


class PidFile:
    """The file of ``--pid-file``: :meth:`write` puts it in place, and the end of the ``with`` block removes it.

    ``path`` is absolute.  UserError at once if the file cannot be written.
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
        """Put the complete file in place, over one that a killed process left."""
        os.write(self._descriptor, b"%d\n" % os.getpid())
        os.rename(self._draft, self._path)

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):  # never written, or replaced by the file of another mount
            if os.path.samestat(os.lstat(self._path), os.fstat(self._descriptor)):
                os.unlink(self._path)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._draft)
        os.close(self._descriptor)
