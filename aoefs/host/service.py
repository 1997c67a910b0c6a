"""A mount as a service: notifications for systemd, and a file with the process id.

What always holds: without systemd nothing is sent and nothing fails.  The file exists only while the mount is live, is
complete at any time, and is in a directory in which nobody else may write.

The protocol of systemd (sd_notify(3)) is one datagram to the socket that an environment variable names.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat

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

    ``path`` is absolute.  UserError at once if the file cannot be written, or unless its directory, and a file that is
    there already, belongs to us alone: others could put a link there, or later another pid, which a script then kills
    as root.  The file goes into the directory that has this name now, whatever has it later.
    """

    def __init__(self, path: str) -> None:
        self._name = os.path.basename(path)
        self._draft = f"{self._name}.{os.getpid()}"
        try:
            self._directory = os.open(os.path.dirname(path), os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            with contextlib.ExitStack() as undo:
                undo.callback(os.close, self._directory)
                self._require_ours(path)
                self._unlink(self._draft)  # of a killed process that had our pid
                flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
                self._descriptor = os.open(self._draft, flags, 0o644, dir_fd=self._directory)
                undo.pop_all()
        except OSError as error:
            raise UserError(f"--pid-file {path} cannot be written: {error.strerror}") from None

    def _require_ours(self, path: str) -> None:
        status = os.fstat(self._directory)
        if status.st_uid not in (0, os.geteuid()) or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            where = os.path.dirname(path)
            raise UserError(f"--pid-file {path}: others may write in {where}: choose a directory such as /run")
        with contextlib.suppress(FileNotFoundError):
            status = os.stat(self._name, dir_fd=self._directory, follow_symlinks=False)
            if status.st_uid != os.geteuid():
                raise UserError(f"--pid-file {path} belongs to user {status.st_uid}: remove it, or name another file")
            if stat.S_ISDIR(status.st_mode):
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))

    def _unlink(self, name: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name, dir_fd=self._directory)

    def __enter__(self) -> PidFile:
        return self

    def write(self) -> None:
        """Put the complete file in place, over one that a killed process left."""
        os.write(self._descriptor, b"%d\n" % os.getpid())
        os.rename(self._draft, self._name, src_dir_fd=self._directory, dst_dir_fd=self._directory)

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):  # never written, or replaced by the file of another mount
            there = os.stat(self._name, dir_fd=self._directory, follow_symlinks=False)
            if os.path.samestat(there, os.fstat(self._descriptor)):
                self._unlink(self._name)
        self._unlink(self._draft)
        os.close(self._descriptor)
        os.close(self._directory)
