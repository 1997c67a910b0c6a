"""Mount points: what can be mounted on, what is mounted already, what keeps a mount busy, and unmounting.

Owns the reading of /proc/self/mountinfo and of the /proc directories of processes.  It looks at a mount from outside,
as any other program does, so all of it also works when the mount process is dead.

What always holds: nothing here touches a mount, since one that hangs must not hang aoefs.  Paths are compared as text,
as /proc shows them; only a child process with a time limit asks a mount (``host.mountreader``).  A dead aoefs mount
(its process was killed: ENOTCONN) is replaced without asking, since it cannot be in use.  Every other mount is left
alone, and so is an aoefs mount of another user (:attr:`Mount.is_trusted`): it may be another program, and say anything.
What is unmounted is the very mount that was found, whatever its path leads to by then.

Rejected: fuser(1) and lsof(8) (not installed everywhere, and they stat every mount), and the mount option auto_unmount
(its helper can unmount the wrong mount, and a backup job may take the empty directory for the data).
"""

from __future__ import annotations

import contextlib
import errno
import glob
import json
import os
import pwd
import re
import shutil
import signal
import stat
import subprocess
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from aoefs.errors import UserError
from aoefs.host.mountreader import Liveness, MountReader, liveness
from aoefs.protocol.wire import Address
from aoefs.status.text import to_stderr

FILE_SYSTEM_TYPE = "fuse.aoefs"
WORKER_TYPE = "fuse.aoefs-worker"  # of the private mounts of workers, and of their files in a mount (``host.binds``)
STATUS_FILE = ".aoefs/status.json"
MOUNTINFO = "/proc/self/mountinfo"
FUSE_DEVICE = "/dev/fuse"
FUSE_CONFIGURATION = "/etc/fuse.conf"

_MNT_FORCE, _MNT_DETACH, _UMOUNT_NOFOLLOW = 1, 2, 8
_MAX_LINKS = 40  # symbolic links in one path, as in the kernel


class Mount(NamedTuple):
    """One line of mountinfo: the absolute path, the type such as ``fuse.aoefs``, the source, ``major:minor``, the
    number of the mount, and the user who made it (of FUSE only; the kernel vouches for it).
    """

    path: str
    type: str
    source: str
    device: str
    number: int
    owner: int | None = None

    @property
    def is_trusted(self) -> bool:
        """It is an aoefs mount of ours or of root: what it says is believed, and it is replaced when it is dead."""
        return self.type in (FILE_SYSTEM_TYPE, WORKER_TYPE) and self.owner in (0, os.geteuid())

    @property
    def user(self) -> str:
        """The name of the user who made it, or the number."""
        with contextlib.suppress(KeyError, TypeError, OverflowError):
            return pwd.getpwuid(self.owner).pw_name  # type: ignore[arg-type]  # None is the TypeError
        return f"user {self.owner}"

    def liveness(self, on_silence: Callable[[], None] | None = None) -> Liveness:
        """Ask the mount process; mounts that are not trusted are not asked, and count as live.

        ``on_silence``: as for ``MountReader.ask``, so the answer is waited for and never is ``SILENT``.
        """
        answer = liveness(self.path, on_silence) if self.is_trusted else Liveness.LIVE
        return Liveness.DEAD if answer is Liveness.SILENT and self._is_dying() else answer

    def _is_dying(self) -> bool:
        """The mount process was killed, and threads of it wait for the kernel, which waits for their end."""
        for process in glob.iglob("/proc/[0-9]*"):
            with contextlib.suppress(OSError):
                if "\nState:\tZ" in Path(process, "status").read_text():
                    connections = set().union(*map(_connections, glob.iglob(f"{process}/task/*")))
                    if not connections.isdisjoint({self._connection, ""}):
                        return True
        return False

    def pid_note(self) -> str:
        """`` (pid 5)`` of the mount process, or nothing if it cannot be known without asking the mount."""
        for process in glob.iglob("/proc/[0-9]*"):
            with contextlib.suppress(OSError):
                if self._connection in _connections(process):
                    return f" (pid {process.split('/')[2]})"
        return ""

    @property
    def _connection(self) -> str:
        """The number of the FUSE connection."""
        return self.device.partition(":")[2]

    def watch_process(self, pid: int) -> int:
        """A pidfd of the mount process.  OSError unless ``pid``, which the mount gave, is its pid (in a container it is
        another one).
        """
        stranger = OSError(errno.ESRCH, "the pid that it gives is of another process")
        try:
            process = os.pidfd_open(pid)
        except (OSError, OverflowError):
            raise stranger from None
        try:
            if f"\nUid:\t{self.owner}\t" not in Path(f"/proc/{pid}/status").read_text():
                raise stranger
            with contextlib.suppress(PermissionError):  # it has capabilities of its own: the user has to do
                if {self._connection, ""}.isdisjoint(_connections(f"/proc/{pid}")):
                    raise stranger
            with contextlib.suppress(PermissionError):
                signal.pidfd_send_signal(process, 0)  # or what was looked at may be the next process of this pid
        except OSError:
            os.close(process)
            raise stranger from None
        return process


def _connections(process: str) -> set[str]:
    """The numbers of the FUSE connections that a process (its /proc directory) serves; before Linux 6.18 one that is
    empty.
    """
    numbers: set[str] = set()
    for entry in os.scandir(f"{process}/fd"):
        with contextlib.suppress(OSError):
            if os.readlink(entry.path) == FUSE_DEVICE:
                found = re.search(r"^fuse_connection:\t(\d+)$", Path(process, "fdinfo", entry.name).read_text(), re.M)
                numbers.add(found[1] if found else "")
    return numbers


# ── what is mounted ───────────────────────────────────────────────────────────────────────────────────────────────


def parse_mountinfo(text: str) -> list[Mount]:
    """The mounts of a mountinfo file (proc(5)); of several on one path the topmost is the last."""

    def unescape(field: str) -> str:
        return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), field)

    mounts = []
    for line in text.splitlines():
        head, separator, tail = line.partition(" - ")
        fields, kind = head.split(" "), tail.split(" ")
        if separator and len(fields) >= 6 and len(kind) >= 2 and fields[0].isdecimal():
            owner = re.search(r"(?:^|,)user_id=([0-9]+)(?:,|$)", kind[2]) if len(kind) > 2 else None
            path, mounted, source = map(unescape, (fields[4], kind[0], kind[1]))
            mounts.append(Mount(path, mounted, source, fields[2], int(fields[0]), int(owner[1]) if owner else None))
    return mounts


def _mounts() -> list[Mount]:
    return parse_mountinfo(Path(MOUNTINFO).read_text(errors="surrogateescape"))


def mounts_inside(mount: Mount) -> list[Mount]:
    """Everything that is mounted on files of this mount."""
    return [other for other in _mounts() if other.path.startswith(mount.path + "/")]


def aoefs_mounts() -> list[Mount]:
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


def require_mount(path: str | None) -> Mount:
    """The aoefs mount at this path, or for None the only one.  UserError says what is there instead."""
    if path is None:
        mounts = aoefs_mounts()
        if len(mounts) == 1:
            return mounts[0]
        names = ", ".join(mount.path for mount in mounts)
        raise UserError(f"name one of the mounts: {names}" if mounts else "aoefs has nothing mounted here")
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
        return parse_status(reader.ask(STATUS_FILE, on_silence))


def parse_status(text: bytes) -> dict[str, Any]:
    """The object of a status file.  OSError if it is none, or has a target of which the name is no address."""
    try:
        status: dict[str, Any] = json.loads(text)
        names = [target["name"] for target in status["targets"]]
        if type(status["pid"]) is int and names == [str(Address.parse(name)) for name in names]:
            return status
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        pass
    raise OSError(errno.EIO, "what it gives is no status")


def say_silent(path: str) -> None:
    """What commands write that follow a mount, and go on when it answers again."""
    to_stderr(f"waiting for the daemon of {path}, which does not answer")


# ── what can be mounted on ────────────────────────────────────────────────────────────────────────────────────────


def clear_dead(path: str) -> tuple[Mount | None, Liveness]:
    """Unmount dead aoefs mounts that are trusted at this path; the mount that is left there, and whether it lives."""
    while (mount := find_mount(path)) is not None:
        if (answer := mount.liveness()) is not Liveness.DEAD:
            return mount, answer
        unmount(mount, lazy=True, dead=True)
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
        advice = f"'aoefs umount {path}' first" if mount.is_trusted else "choose another directory"
        whose = "" if mount.owner is None or mount.is_trusted else f", by user {mount.owner}"
        raise UserError(f"{path} is mounted already ({mount.type}{whose}): {advice}")
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


def _process_uses(process: str, mount: Mount, devices: Collection[str]) -> bool:
    """Whether a process (its /proc directory) has anything open in the mount, as far as this process may see, or has
    mapped a file of the ``devices``, which are as in /proc/PID/maps.
    """
    links = [f"{process}/cwd", f"{process}/root"]
    with contextlib.suppress(OSError):
        links += [entry.path for entry in os.scandir(f"{process}/fd")]
    for link in links:
        with contextlib.suppress(OSError):
            if _is_inside(os.readlink(link), mount.path):
                return True
    with contextlib.suppress(OSError), open(f"{process}/maps", errors="replace") as maps:
        return any(device in line for line in maps for device in devices)
    return False


def _process_holders(mount: Mount) -> Iterator[str]:
    devices = []
    for each in (mount, *(other for other in mounts_inside(mount) if other.type == WORKER_TYPE)):
        major, _, minor = each.device.partition(":")
        devices.append(f" {int(major):02x}:{int(minor):02x} ")
    for name in os.listdir("/proc"):
        if not name.isdigit() or int(name) == os.getpid() or not _process_uses(f"/proc/{name}", mount, devices):
            continue
        with contextlib.suppress(OSError):  # it may have ended just now
            yield f"{Path(f'/proc/{name}/comm').read_text(errors='replace').strip()} (pid {name})"


def _kernel_holders(mount: Mount) -> Iterator[str]:
    mounts = _mounts()
    for loop in sorted(Path("/sys/block").glob("loop*")):
        with contextlib.suppress(OSError):
            backing = (loop / "loop" / "backing_file").read_text(errors="surrogateescape").rstrip("\n")
            if _is_inside(backing, mount.path):
                device = f"/dev/{loop.name}"
                where = [other.path for other in mounts if other.source == device]
                yield device + (f" (mounted on {where[0]})" if where else "")
    for other in mounts_inside(mount):
        if other.type != WORKER_TYPE:
            yield f"the mount on {other.path}"


def holders(mount: Mount) -> list[str]:
    """What keeps the mount busy, as far as this process may see: processes, and what the kernel has such as loops."""
    return [*_process_holders(mount), *_kernel_holders(mount)]


def is_private(mount: Mount) -> bool:
    """Whether the first process of this host does not see the mount: it is in another mount namespace."""
    with contextlib.suppress(OSError):
        return f" {mount.device} / " not in Path("/proc/1/mountinfo").read_text(errors="replace")
    return False


def copies(mount: Mount) -> list[str]:
    """A process of each other mount namespace that has a copy of the mount: there it lives on after an unmount here.

    Its device number may be another mount's by then, so source and name must be the same, too.
    """
    found: dict[object, str] = {}
    this = (mount.device, mount.type, mount.source, os.path.basename(mount.path))
    for process in glob.iglob("/proc/[0-9]*"):
        with contextlib.suppress(OSError):  # it may have ended just now
            text = Path(process, "mountinfo").read_text(errors="surrogateescape")
            if f" {mount.device} / " not in text or not any(
                (each.device, each.type, each.source, os.path.basename(each.path)) == this
                for each in parse_mountinfo(text)
            ):
                continue
            place: object = process
            with contextlib.suppress(PermissionError):
                place = os.readlink(f"{process}/ns/mnt")
            command = Path(process, "comm").read_text(errors="replace").strip()
            found.setdefault(place, f"{command} (pid {process.split('/')[2]})")
    with contextlib.suppress(OSError):
        found.pop(os.readlink("/proc/self/ns/mnt"), None)
    return list(found.values())


# ── unmounting ────────────────────────────────────────────────────────────────────────────────────────────────────


@contextlib.contextmanager
def opened(path: str, flags: int, directory: int | None = None) -> Iterator[int]:
    """A descriptor as open(2) makes it, until the end of the block; ``path`` may be relative to a ``directory``."""
    descriptor = os.open(path, flags | os.O_CLOEXEC, dir_fd=directory)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _opened_parent(mount: Mount) -> Iterator[int]:
    """The directory of the mount point, if the mount is on it; OSError otherwise.  Its process is not asked."""
    directory, name = os.path.split(mount.path)
    with opened(directory, os.O_PATH | os.O_DIRECTORY) as parent:
        with opened(name, os.O_PATH | os.O_NOFOLLOW, parent) as root:  # open, it keeps the mount busy
            if f"\nmnt_id:\t{mount.number}\n" not in Path(f"/proc/self/fdinfo/{root}").read_text():
                raise OSError(errno.ESTALE, "something else is there by now", mount.path)
        yield parent


@contextlib.contextmanager
def opened_root(mount: Mount) -> Iterator[int]:
    """The root of the mount, which this keeps busy.  OSError if something else is there."""
    with contextlib.ExitStack() as stack:
        with _opened_parent(mount) as parent:
            name = os.path.basename(mount.path)
            root = stack.enter_context(opened(name, os.O_PATH | os.O_NOFOLLOW, parent))
        yield root


def unmount(mount: Mount, *, lazy: bool = False, dead: bool = False) -> None:
    """Unmount.  ``lazy`` removes the mount from the tree at once; open files go on working.  The kernel aborts the
    connection of a ``dead`` one: what still waits for it fails.

    OSError as umount(2) raises it, EBUSY while something is open; EINVAL when it is not mounted any more.  Its parent
    may have been moved, and another one put in its place: the mount is looked for again, and the directory is open when
    it is compared.
    """
    now = next((other for other in _mounts() if other._replace(path=mount.path) == mount), None)
    if now is None:
        raise OSError(errno.EINVAL, "it is not mounted any more", mount.path)
    with _opened_parent(now) as parent:
        if os.geteuid() == 0:
            umount2(f"/proc/self/fd/{parent}/{os.path.basename(now.path)}", lazy=lazy, force=dead)
        else:
            _fusermount(now.path, lazy)


def umount2(path: str, *, lazy: bool = False, force: bool = False) -> None:
    """The system call, which follows no symbolic link; OSError as it: EINVAL if nothing is mounted there."""
    import ctypes  # here: only an unmount needs it

    libc = ctypes.CDLL(None, use_errno=True)
    flags = _UMOUNT_NOFOLLOW | (_MNT_DETACH if lazy else 0) | (_MNT_FORCE if force else 0)
    if libc.umount2(os.fsencode(path), flags):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), path)


def _fusermount(path: str, lazy: bool) -> None:
    command = ["fusermount3", "-u", *(["-z"] if lazy else []), "--", path]
    try:
        environment = {**os.environ, "LC_ALL": "C"}
        result = subprocess.run(command, capture_output=True, text=True, env=environment)  # noqa: S603 (no shell)
    except FileNotFoundError:
        raise UserError("fusermount3 is missing: install the package fuse3, or run as root") from None
    if result.returncode:
        code = errno.EBUSY if os.strerror(errno.EBUSY).lower() in result.stderr.lower() else errno.EPERM
        raise OSError(code, result.stderr.strip().removeprefix("fusermount3: ") or os.strerror(code), path)
