"""Mount points: what can be mounted on, what is mounted already, what keeps a mount busy, and unmounting.

Owns the reading of /proc/self/mountinfo and of the /proc directories of processes.  It looks at a mount from outside,
as any other program does, so all of it also works when the mount process is dead.

What always holds: nothing here touches a mount, since one that hangs must not hang aoefs.  Paths are compared as text,
as /proc shows them; only a child process with a time limit asks a mount (``host.mountreader``).  A dead aoefs mount
(its process was killed: ENOTCONN) is replaced without asking, since it cannot be in use.  Every other mount is left
alone.

Rejected: fuser(1) and lsof(8) (not installed everywhere, and they stat every mount), and the mount option auto_unmount
(its helper can unmount the wrong mount, and a backup job may take the empty directory for the data).
"""

from __future__ import annotations

import contextlib
import errno
import glob
import json
import os
import re
import shutil
import stat
import subprocess
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from aoefs.errors import UserError
from aoefs.host.mountreader import Liveness, MountReader, liveness
from aoefs.status.text import to_stderr

FILE_SYSTEM_TYPE = "fuse.aoefs"
STATUS_FILE = ".aoefs/status.json"
MOUNTINFO = "/proc/self/mountinfo"
FUSE_DEVICE = "/dev/fuse"
FUSE_CONFIGURATION = "/etc/fuse.conf"

_MNT_DETACH, _UMOUNT_NOFOLLOW = 2, 8
_MAX_LINKS = 40  # symbolic links in one path, as in the kernel


class Mount(NamedTuple):
    """One line of mountinfo: the absolute path, the type such as ``fuse.aoefs``, the source, ``major:minor``."""

    path: str
    type: str
    source: str
    device: str

    def liveness(self, on_silence: Callable[[], None] | None = None) -> Liveness:
        """Ask the mount process; mounts of other types count as live.

        ``on_silence``: as for ``MountReader.ask``, so the answer is waited for and never is ``SILENT``.
        """
        return liveness(self.path, on_silence) if self.type == FILE_SYSTEM_TYPE else Liveness.LIVE

    def pid_note(self) -> str:
        """`` (pid 5)`` of the mount process, or nothing if it cannot be known without asking the mount.

        Linux 6.18 tells the connection of an open /dev/fuse; it is the minor number of the mount's device.
        """
        wanted = f"fuse_connection:\t{self.device.partition(':')[2]}\n"
        for path in glob.iglob("/proc/[0-9]*/fd/*"):
            with contextlib.suppress(OSError):
                if os.readlink(path) == FUSE_DEVICE and wanted in Path(path.replace("/fd/", "/fdinfo/")).read_text():
                    return f" (pid {path.split('/')[2]})"
        return ""


class Holder(NamedTuple):
    """What keeps a mount busy: a process, or without ``pid`` something in the kernel such as ``/dev/loop0``."""

    pid: int | None
    name: str

    def __str__(self) -> str:
        return self.name if self.pid is None else f"{self.name} (pid {self.pid})"


# ── what is mounted ───────────────────────────────────────────────────────────────────────────────────────────────


def parse_mountinfo(text: str) -> list[Mount]:
    """The mounts of a mountinfo file (proc(5)); of several on one path the topmost is the last."""

    def unescape(field: str) -> str:
        return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), field)

    mounts = []
    for line in text.splitlines():
        head, separator, tail = line.partition(" - ")
        fields, kind = head.split(" "), tail.split(" ")
        if separator and len(fields) >= 6 and len(kind) >= 2:
            mounts.append(Mount(unescape(fields[4]), unescape(kind[0]), unescape(kind[1]), fields[2]))
    return mounts


def _mounts() -> list[Mount]:
    return parse_mountinfo(Path(MOUNTINFO).read_text(errors="surrogateescape"))


def own_mounts() -> list[Mount]:
    """Every aoefs mount that this process can see."""
    return [mount for mount in _mounts() if mount.type == FILE_SYSTEM_TYPE]


def _resolve(path: str, untouched: Collection[str]) -> str:
    """The absolute path without symbolic links, as mountinfo writes it.

    Nothing at or below the ``untouched`` paths is looked at; elsewhere only readlink(2) looks, which the kernel answers
    for the root of any mount.  os.path.realpath calls lstat(2), which may wait for the mount process.
    """
    found, links = "/", 0
    rest = (path if path.startswith("/") else f"{os.getcwd()}/{path}").split("/")[::-1]
    while rest:
        name = rest.pop()
        if name == "..":
            found = os.path.dirname(found)
        if name in ("", ".", ".."):
            continue
        found = os.path.join(found, name)
        if links == _MAX_LINKS or any(_is_inside(found, directory) for directory in untouched):
            continue
        with contextlib.suppress(OSError):  # no link, or nothing is there
            rest += os.readlink(found).split("/")[::-1]
            links += 1
            found = "/" if rest[-1] == "" else os.path.dirname(found)
    return found


def find_mount(path: str) -> Mount | None:
    """The topmost mount whose mount point is exactly this path."""
    mounts = _mounts()
    path = _resolve(path, {mount.path for mount in mounts if mount.type == FILE_SYSTEM_TYPE})
    return next((mount for mount in reversed(mounts) if mount.path == path), None)


def require_mount(path: str) -> Mount:
    """The aoefs mount at this path.  UserError says what is there instead."""
    mount = find_mount(path)
    if mount is None:
        raise UserError(f"{path} is not mounted")
    if mount.type != FILE_SYSTEM_TYPE:
        raise UserError(f"{path} is not an aoefs mount: {mount.type} is mounted there")
    return mount


def read_status(path: str, on_silence: Callable[[], None] | None = None) -> dict[str, Any]:
    """The status of the mount at this path, from its own status file.

    OSError when it cannot be read, TimeoutError when its process does not answer; ``on_silence``: as for
    ``MountReader.ask``.
    """
    with MountReader(path) as reader:
        status: dict[str, Any] = json.loads(reader.ask(STATUS_FILE, on_silence))
    return status


def say_silent(path: str) -> None:
    """What commands write that follow a mount, and go on when it answers again."""
    to_stderr(f"waiting for the daemon of {path}, which does not answer")


# ── what can be mounted on ────────────────────────────────────────────────────────────────────────────────────────


def clear_dead(path: str) -> tuple[Mount | None, Liveness]:
    """Unmount dead aoefs mounts at this path; the mount that is left there, and whether it lives."""
    while (mount := find_mount(path)) is not None:
        if (answer := mount.liveness()) is not Liveness.DEAD:
            return mount, answer
        unmount(mount.path, lazy=True)
    return None, Liveness.DEAD


def check(path: str) -> str:
    """The resolved path, if aoefs can be mounted there, else UserError.  A dead aoefs mount is unmounted first."""
    mount, answer = clear_dead(path)
    if mount is not None and mount.type == "autofs":
        return mount.path  # the automounter waits for this mount; listing the directory would wait for it too
    if mount is not None and answer is Liveness.SILENT:
        what = f"{path} is mounted already, and its daemon{mount.pid_note()} does not answer"
        raise UserError(f"{what}: 'aoefs umount --lazy {path}' first")
    if mount is not None:
        advice = f"'aoefs umount {path}' first" if mount.type == FILE_SYSTEM_TYPE else "choose another directory"
        raise UserError(f"{path} is mounted already ({mount.type}): {advice}")
    try:
        is_directory = stat.S_ISDIR(os.stat(path).st_mode)
        empty = is_directory and not os.listdir(path)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist: 'mkdir -p {path}' first") from None
    except OSError as error:
        raise UserError(f"{path} cannot be used as a mount point: {error.strerror}") from None
    if not is_directory:
        raise UserError(f"{path} is not a directory: name an empty directory")
    if not empty:
        raise UserError(f"{path} is not empty: name an empty directory")
    if os.geteuid() != 0 and not os.access(path, os.W_OK):
        raise UserError(f"{path} is not yours to mount on: you need write permission for it")
    return _resolve(path, ())


def require_fuse(*, allow_other: bool = False) -> None:
    """UserError unless this process can mount FUSE file systems (with ``allow_other`` if that is wanted)."""
    try:
        os.close(os.open(FUSE_DEVICE, os.O_RDWR | os.O_CLOEXEC))
    except FileNotFoundError:
        raise UserError(
            f"{FUSE_DEVICE} is missing: 'modprobe fuse', or in a container --device {FUSE_DEVICE}"
        ) from None
    except PermissionError:
        raise UserError(
            f"no permission for {FUSE_DEVICE}: run as root, or in a container --device {FUSE_DEVICE}"
        ) from None
    except OSError as error:
        raise UserError(f"{FUSE_DEVICE} does not work: {error.strerror}: is the fuse module loaded?") from None
    if os.geteuid() == 0:
        return  # root mounts without help
    if shutil.which("fusermount3") is None:
        raise UserError("fusermount3 is missing: install the package fuse3, or run as root")
    if allow_other and not user_allow_other():
        raise UserError(f"allow_other needs a line 'user_allow_other' in {FUSE_CONFIGURATION}, or root")


def user_allow_other() -> bool:
    """Whether users other than root may use the option allow_other."""
    with contextlib.suppress(OSError):
        return bool(re.search(r"^\s*user_allow_other\b", Path(FUSE_CONFIGURATION).read_text(), re.MULTILINE))
    return False


# ── what keeps it busy ────────────────────────────────────────────────────────────────────────────────────────────


def _is_inside(path: str, directory: str) -> bool:
    return path == directory or path.startswith(directory + "/")


def _process_uses(process: str, mount: Mount) -> bool:
    """Whether a process (its /proc directory) has anything open in the mount, as far as this process may see."""
    links = [f"{process}/cwd", f"{process}/root"]
    with contextlib.suppress(OSError):
        links += [entry.path for entry in os.scandir(f"{process}/fd")]
    for link in links:
        with contextlib.suppress(OSError):
            if _is_inside(os.readlink(link), mount.path):
                return True
    major, _, minor = mount.device.partition(":")
    device = f" {int(major):02x}:{int(minor):02x} "
    with contextlib.suppress(OSError), open(f"{process}/maps", errors="replace") as maps:
        return any(device in line for line in maps)
    return False


def _process_holders(mount: Mount) -> Iterator[Holder]:
    for name in os.listdir("/proc"):
        if not name.isdigit() or int(name) == os.getpid() or not _process_uses(f"/proc/{name}", mount):
            continue
        with contextlib.suppress(OSError):  # it may have ended just now
            yield Holder(int(name), Path(f"/proc/{name}/comm").read_text(errors="replace").strip())


def _kernel_holders(mount: Mount) -> Iterator[Holder]:
    mounts = _mounts()
    for loop in sorted(Path("/sys/block").glob("loop*")):
        with contextlib.suppress(OSError):
            backing = (loop / "loop" / "backing_file").read_text(errors="surrogateescape").rstrip("\n")
            if _is_inside(backing, mount.path):
                device = f"/dev/{loop.name}"
                where = [other.path for other in mounts if other.source == device]
                yield Holder(None, device + (f" (mounted on {where[0]})" if where else ""))
    for other in mounts:
        if other.path.startswith(mount.path + "/"):
            yield Holder(None, f"the mount on {other.path}")


def holders(mount: Mount) -> list[Holder]:
    """What keeps the mount busy, as far as this process may see."""
    return [*_process_holders(mount), *_kernel_holders(mount)]


# ── unmounting ────────────────────────────────────────────────────────────────────────────────────────────────────


def unmount(path: str, *, lazy: bool = False) -> None:
    """Unmount.  ``lazy`` removes the mount from the tree at once; open files go on working.

    OSError as umount(2) raises it, EBUSY while something is open.
    """
    if os.geteuid() == 0:
        import ctypes  # here: only an unmount needs it

        libc = ctypes.CDLL(None, use_errno=True)
        if libc.umount2(os.fsencode(path), _UMOUNT_NOFOLLOW | (_MNT_DETACH if lazy else 0)):
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code), path)
        return
    command = ["fusermount3", "-u", *(["-z"] if lazy else []), "--", path]
    try:
        result = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "LC_ALL": "C"})
    except FileNotFoundError:
        raise UserError("fusermount3 is missing: install the package fuse3, or run as root") from None
    if result.returncode:
        code = errno.EBUSY if os.strerror(errno.EBUSY).lower() in result.stderr.lower() else errno.EPERM
        raise OSError(code, result.stderr.strip().removeprefix("fusermount3: ") or os.strerror(code), path)
