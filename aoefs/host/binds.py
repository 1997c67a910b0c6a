"""Bind mounts of the workers' files in the mount point, and the private directories in which the workers mount.

A worker is a process that serves a share of the targets of a mount (``fuse.workers``).  Its own FUSE mount is in a
directory in :func:`place` that only root may enter; each of its files is bound over a placeholder in the mount point.

What always holds: an unmount that fails changes nothing.  The owner of a private directory has a lock on it, so that
the next process which needs one can remove those of processes that were killed.

Rejected: ``umount -R`` (it stops at the first busy file, and leaves the others unmounted), and a mount namespace for
each worker (it would keep all mounts of this host busy).
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import glob
import os
import tempfile

from aoefs.host import mountpoint
from aoefs.host.mountpoint import WORKER_TYPE, Mount
from aoefs.host.mountreader import Liveness

_PREFIX = "aoefs-"

_AT_FDCWD = -100
_MS_BIND = 4096
_SYS_OPEN_TREE, _SYS_MOVE_MOUNT = 428, 429  # the same number on all processors that Linux has had since 5.2
_OPEN_TREE_CLONE, _MOVE_MOUNT_F_EMPTY_PATH = 1, 4
_libc = ctypes.CDLL(None, use_errno=True)


def _done(result: int, path: str) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), path)
    return result


def thread_id() -> int:
    """Of this thread, as FUSE gives it with a request."""
    return int(_libc.gettid())


def bind(source: str, target: str) -> None:
    """Mount the file ``source`` over the file ``target``; OSError as mount(2)."""
    _done(_libc.mount(os.fsencode(source), os.fsencode(target), None, _MS_BIND, None), target)


def bound(mount: Mount) -> list[str]:
    """The paths of the binds in this mount."""
    return [each.path for each in mountpoint.mounts_inside(mount) if each.type == WORKER_TYPE]


def unmount(mount: Mount, *, lazy: bool = False) -> None:
    """As ``mountpoint.unmount``, with the binds in it; if that fails they are as before."""
    taken: list[tuple[int, str]] = []  # copies that are mounted nowhere, and where to
    try:
        for path in [] if lazy else bound(mount):
            copy = _done(_libc.syscall(_SYS_OPEN_TREE, _AT_FDCWD, os.fsencode(path), _OPEN_TREE_CLONE), path)
            try:
                mountpoint.umount2(path)
            except OSError:
                os.close(copy)
                raise
            taken.append((copy, path))
        mountpoint.unmount(mount, lazy=lazy)
    except BaseException:
        for copy, path in taken:
            _libc.syscall(_SYS_MOVE_MOUNT, copy, b"", _AT_FDCWD, os.fsencode(path), _MOVE_MOUNT_F_EMPTY_PATH)
        raise
    finally:
        for copy, _ in taken:
            os.close(copy)


def leave_dead(path: str) -> None:
    """Take the binds away if the mount at this path is dead, but leave it: nobody may take the empty directory for the
    disks.  What cannot be taken away goes with the mount.
    """
    mount = mountpoint.find_mount(path)
    if mount is not None and mount.is_trusted and mount.liveness() is Liveness.DEAD:
        for each in bound(mount):
            with contextlib.suppress(OSError):
                mountpoint.umount2(each, lazy=True)


# ── private directories ───────────────────────────────────────────────────────────────────────────────────────────


def place() -> str | None:
    """``/run``, or for root of a user namespace what the user has; None if there is neither."""
    places = ("/run", os.environ.get("XDG_RUNTIME_DIR", ""))
    return next((path for path in places if path.startswith("/") and os.access(path, os.W_OK | os.X_OK)), None)


class PrivateDirectory:
    """A directory for the mounts of the workers of this process; removed by :meth:`close`.  OSError as mkdir(2)."""

    def __init__(self) -> None:
        where = place()
        for path in glob.iglob(f"{where}/{_PREFIX}*/"):
            with contextlib.suppress(OSError):
                _remove_if_left(path.rstrip("/"))
        self.path = tempfile.mkdtemp(prefix=_PREFIX, dir=where)
        self._lock = _locked(self.path)

    def room(self, name: str) -> str:
        """An empty directory in it that nothing is mounted on."""
        with contextlib.suppress(FileExistsError):
            os.mkdir(self.path, 0o700)  # else the last worker that ended has removed it
            os.close(self._lock)
            self._lock = _locked(self.path)
        path = f"{self.path}/{name}"
        empty(path)
        os.mkdir(path, 0o700)
        return path

    def close(self) -> None:
        os.close(self._lock)
        remove(self.path)


def _locked(path: str) -> int:
    """A descriptor of a directory that holds a lock on it."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    return descriptor


def empty(path: str) -> None:
    """Take away a directory that a worker mounts on, and the mount if it is still there."""
    with contextlib.suppress(OSError):
        mountpoint.umount2(path, lazy=True)
    with contextlib.suppress(OSError):
        os.rmdir(path)


def remove(path: str) -> None:
    """Take away a private directory with all in it."""
    with contextlib.suppress(OSError):  # another process does, too
        for name in os.listdir(path):
            empty(f"{path}/{name}")
        os.rmdir(path)


def _remove_if_left(path: str) -> None:
    with mountpoint.opened(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW) as directory:
        if os.fstat(directory).st_uid == os.geteuid():
            fcntl.flock(directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
            remove(path)
