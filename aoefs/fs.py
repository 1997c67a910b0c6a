"""The file system: targets as files of a device directory, for pyfuse3.

Owns inode numbers and file handles; knows no frame, tag or path.  Handlers are called by pyfuse3's workers, one task
per request.

What holds always:

- An inode number stands for one disk (one Initiator) and is never used again: another disk under the same name gets
  a new number, and handles on the old one fail.
- Nothing but ``FUSEError`` leaves a handler (anything else would end the mount for everybody): ``_guarded`` wraps all
  of them, and ``_errno_of`` is the one table from exceptions to errno.
- A read is never short but at the end of the disk: the kernel would shrink the file.  mtime never moves: the kernel
  would drop its cache at every look.
- Truncation succeeds and changes nothing, as for a disk; getxattr stays unimplemented, or the kernel would ask for
  ``security.capability`` before every write.

Rejected: the kernel's writeback cache (with O_TRUNC it drops other processes' dirty pages), and relying on release
(the last one may never be delivered) or on syncfs (the kernel sends nothing).
"""

from __future__ import annotations

import errno
import functools
import json
import logging
import os
import stat
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, ParamSpec, TypeVar

import pyfuse3
import trio
from pyfuse3 import EntryAttributes, FileInfo, FUSEError

from aoefs.disk import Disk
from aoefs.engine import Change, Engine
from aoefs.errors import AtaError, IdentityChanged, RequestError, TargetError
from aoefs.initiator import Initiator
from aoefs.wire import SECTOR_BYTES, Address, ErrorCode

log = logging.getLogger("aoefs")

P = ParamSpec("P")
T = TypeVar("T")

BLOCK_BYTES = 1 << 20  # st_blksize: what cat and cp then ask for
CACHE_SECONDS = 3600.0  # how long the kernel may keep attributes, and names of ours; changes are pushed to it
ROOT = pyfuse3.ROOT_INODE
CONTROL, STATUS = ROOT + 1, ROOT + 2
_FIRST_DISK = 16
_CONTROL_NAME = b".aoefs"
_STATUS_NAME = b"status.json"

_TARGET_ERRNO = {ErrorCode.DEVICE_UNAVAILABLE: errno.ENXIO, ErrorCode.TARGET_RESERVED: errno.EBUSY}


def _errno_of(error: RequestError, *, ever_written: bool) -> int:
    """The one table (design, section 4).  A disk that aborts a write and never took one is read-only."""
    if isinstance(error, TargetError):
        return _TARGET_ERRNO.get(ErrorCode(error.code), errno.EIO) if error.code in set(ErrorCode) else errno.EIO
    if isinstance(error, AtaError) and error.write and error.is_abort and not ever_written:
        return errno.EROFS
    if isinstance(error, IdentityChanged):
        return errno.ESTALE
    return errno.EIO


@dataclass(slots=True)
class Node:
    """One disk as a file: its inode number, its name, how many handles are open."""

    inode: int
    name: bytes
    disk: Disk
    opened: int = 0

    @property
    def target(self) -> Initiator:
        return self.disk.target


@dataclass(slots=True)
class Handle:
    """An open file: of a disk, or a picture of the status taken at open.

    ``whole_writes``: the kernel makes EIO of a short count, as it does for O_DIRECT in cached mode.
    """

    node: Node | None
    writing: bool = False
    flush_each_write: bool = False
    whole_writes: bool = False
    picture: bytes = b""


def _guarded(handler: Callable[P, Coroutine[Any, Any, T]]) -> Callable[P, Coroutine[Any, Any, T]]:
    """Let only FUSEError out; anything unforeseen is logged with its trace and answered EIO."""

    @functools.wraps(handler)
    async def guarded(*arguments: P.args, **named: P.kwargs) -> T:
        try:
            return await handler(*arguments, **named)
        except (FUSEError, trio.Cancelled):
            raise
        except Exception:
            log.exception("%s failed unexpectedly", handler.__name__)
            raise FUSEError(errno.EIO) from None

    return guarded


class AoeOperations(pyfuse3.Operations):
    """See the module.

    ``status()`` gives the object of ``.aoefs/status.json``; ``umask`` is taken from 0666 (files) and 0777
    (directories); ``direct`` bypasses the kernel's page cache; ``reserve`` takes the reservation of what is opened for
    writing, and gives it back at the last close.
    """

    def __init_subclass__(cls) -> None:
        raise TypeError("not meant to be inherited from")

    def __init__(
        self,
        engine: Engine,
        status: Callable[[], dict[str, object]],
        *,
        uid: int,
        gid: int,
        umask: int,
        read_only: bool = False,
        direct: bool = False,
        reserve: bool = False,
    ) -> None:
        super().__init__()
        self._engine = engine
        self._status = status
        self._owner = (uid, gid)
        self._umask = umask
        self._read_only = read_only
        self._direct = direct
        self._reserve = reserve
        self._mounted_ns = time.time_ns()
        self._nodes: dict[int, Node] = {}  # by inode number
        self._by_disk: dict[Disk, Node] = {}
        self._handles: dict[int, Handle] = {}
        self._next_inode = _FIRST_DISK
        self._next_handle = 1

    # ── names ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def _node_of(self, disk: Disk) -> Node:
        node = self._by_disk.get(disk)
        if node is None:
            node = Node(self._next_inode, disk.target.name.encode(), disk)
            self._next_inode += 1
            self._by_disk[disk] = self._nodes[node.inode] = node
        return node

    def _find(self, name: bytes) -> Node:
        """The disk of this name now; ENOENT when there is none."""
        try:
            disk = self._engine.disks.get(Address.parse(os.fsdecode(name)))
        except ValueError:
            disk = None
        if disk is None or os.fsencode(disk.target.name) != name:
            raise FUSEError(errno.ENOENT)
        return self._node_of(disk)

    def _attributes(self, inode: int) -> EntryAttributes:
        entry = EntryAttributes()
        entry.st_ino = inode
        entry.st_uid, entry.st_gid = self._owner
        entry.st_atime_ns = entry.st_mtime_ns = entry.st_ctime_ns = self._mounted_ns
        entry.st_blksize = BLOCK_BYTES
        entry.entry_timeout = entry.attr_timeout = CACHE_SECONDS
        if inode in (ROOT, CONTROL):
            entry.st_mode = stat.S_IFDIR | 0o777 & ~self._umask & ~0o222
            if not self._read_only:
                entry.st_mode |= 0o200 & ~self._umask
            entry.st_nlink = 3 if inode == ROOT else 2
        elif inode == STATUS:
            entry.st_mode = stat.S_IFREG | 0o444 & ~self._umask
            entry.attr_timeout = 0
        else:
            node = self._nodes.get(inode)
            if node is None:
                raise FUSEError(errno.ESTALE)
            entry.st_mode = stat.S_IFREG | (0o444 if self._read_only else 0o666) & ~self._umask
            entry.entry_timeout = 0  # another disk may take the name, and whoever opens it must never get the old one
            entry.st_size = node.disk.size_bytes
            entry.st_blocks = node.target.identity.sectors
        return entry

    @_guarded
    async def lookup(self, parent_inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> EntryAttributes:
        if name == b".":
            return self._attributes(parent_inode)
        if name == b"..":
            return self._attributes(ROOT)
        if parent_inode == ROOT:
            return self._attributes(CONTROL if name == _CONTROL_NAME else self._find(name).inode)
        if parent_inode == CONTROL and name == _STATUS_NAME:
            return self._attributes(STATUS)
        raise FUSEError(errno.ENOENT)

    @_guarded
    async def getattr(self, inode: int, ctx: pyfuse3.RequestContext) -> EntryAttributes:
        return self._attributes(inode)

    @_guarded
    async def setattr(
        self,
        inode: int,
        attr: EntryAttributes,
        fields: pyfuse3.SetattrFields,
        fh: int | None,
        ctx: pyfuse3.RequestContext,
    ) -> EntryAttributes:
        """Sizes and times are taken and change nothing, as for a disk; owner and mode belong to the mount."""
        entry = self._attributes(inode)
        mode = fields.update_mode and stat.S_IMODE(attr.st_mode) != stat.S_IMODE(entry.st_mode)
        uid = fields.update_uid and attr.st_uid != entry.st_uid
        gid = fields.update_gid and attr.st_gid != entry.st_gid
        if mode or uid or gid:
            raise FUSEError(errno.EPERM)
        return entry

    @_guarded
    async def opendir(self, inode: int, ctx: pyfuse3.RequestContext) -> int:
        return inode

    @_guarded
    async def readdir(self, fh: int, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        """Entries have the inode number as their cookie: it only grows, so a target that comes meanwhile fits in."""
        if fh == ROOT:
            nodes = [self._node_of(disk) for disk in self._engine.disks.values()]
            entries = [(CONTROL, _CONTROL_NAME), *((node.inode, node.name) for node in nodes)]
        else:
            entries = [(STATUS, _STATUS_NAME)]
        for inode, name in sorted(entries):
            if inode > start_id and not pyfuse3.readdir_reply(token, name, self._attributes(inode), inode):
                break

    @_guarded
    async def statfs(self, ctx: pyfuse3.RequestContext) -> pyfuse3.StatvfsData:
        disks = self._engine.disks.values()
        data = pyfuse3.StatvfsData()
        data.f_bsize = data.f_frsize = SECTOR_BYTES
        data.f_blocks = sum(disk.target.identity.sectors for disk in disks)
        data.f_bfree = data.f_bavail = 0
        data.f_files = len(disks)
        data.f_ffree = data.f_favail = 0
        data.f_namemax = 255
        return data

    async def _refuse(self, *_arguments: object) -> Any:
        """Nothing is made or removed in a directory of devices."""
        raise FUSEError(errno.EROFS if self._read_only else errno.EPERM)

    _refused: Any = _refuse  # one handler of any signature
    create = mknod = mkdir = unlink = rmdir = rename = symlink = link = _refused

    # ── open files ────────────────────────────────────────────────────────────────────────────────────────────────

    def _add_handle(self, handle: Handle) -> int:
        number = self._next_handle
        self._next_handle += 1
        self._handles[number] = handle
        return number

    @_guarded
    async def open(self, inode: int, flags: int, ctx: pyfuse3.RequestContext) -> FileInfo:
        writing = flags & os.O_ACCMODE != os.O_RDONLY
        if inode == STATUS:
            if writing:
                raise FUSEError(errno.EACCES)
            picture = json.dumps(self._status(), indent=2).encode() + b"\n"
            return FileInfo(fh=self._add_handle(Handle(None, picture=picture)), direct_io=True)
        node = self._nodes.get(inode)
        if node is None:
            raise FUSEError(errno.ESTALE)
        if writing and self._read_only:
            raise FUSEError(errno.EROFS)
        if writing and self._reserve:
            await self._take_reservation(node)
        sync = self._direct and bool(flags & (os.O_SYNC | os.O_DSYNC))
        whole_writes = not self._direct and bool(flags & os.O_DIRECT)
        handle = Handle(node, writing=writing, flush_each_write=sync, whole_writes=whole_writes)
        number = self._add_handle(handle)
        keep_cache = node.opened > 0  # other hosts may have written meanwhile
        node.opened += 1
        return FileInfo(fh=number, direct_io=self._direct, keep_cache=keep_cache)

    @_guarded
    async def release(self, fh: int) -> None:
        handle = self._handles.pop(fh)
        node = handle.node
        if node is None:
            return
        node.opened -= 1
        if handle.writing and self._reserve:
            await self._give_back_reservation(node)

    async def _take_reservation(self, node: Node) -> None:
        try:
            await node.disk.reservation.take()
        except RequestError as error:
            failure = self._fail(node, "reservation", error)
            if isinstance(error, TargetError) and error.code == ErrorCode.UNRECOGNIZED_COMMAND:
                failure = FUSEError(errno.EOPNOTSUPP)  # it knows no reservations: not an I/O error
            raise failure from None

    async def _give_back_reservation(self, node: Node) -> None:
        try:
            await node.disk.reservation.give_back()
        except RequestError as error:
            self._fail(node, "giving back the reservation", error)

    def _fail(self, node: Node, what: str, error: RequestError) -> FUSEError:
        """One log line with target, place and cause; the errno for the caller."""
        lba = getattr(error, "lba", None)
        at = f" at LBA {lba}" if lba is not None else ""
        log.error("%s: %s%s failed: %s", node.target.name, what, at, error)
        return FUSEError(_errno_of(error, ever_written=node.target.ever_written))

    @_guarded
    async def read(self, fh: int, off: int, size: int) -> Any:  # bytes, says pyfuse3; it takes any buffer
        handle = self._handles[fh]
        node = handle.node
        if node is None:
            return handle.picture[off : off + size]
        size = min(size, node.disk.size_bytes - off)
        if size <= 0:
            return b""
        try:
            return await node.disk.read(off, size)
        except RequestError as error:
            raise self._fail(node, "read", error) from None

    @_guarded
    async def write(self, fh: int, off: int, buf: bytes) -> int:
        handle = self._handles[fh]
        node = handle.node
        if node is None:
            raise FUSEError(errno.EBADF)
        room = node.disk.size_bytes - off
        if room <= 0:
            raise FUSEError(errno.ENOSPC)
        data = buf if len(buf) <= room else memoryview(buf)[:room]
        try:
            if data:
                await node.disk.write(off, data)
            if handle.flush_each_write:
                await node.disk.flush()
        except RequestError as error:
            raise self._fail(node, "write", error) from None
        if len(data) < len(buf) and handle.whole_writes:
            raise FUSEError(errno.ENOSPC)  # all that fits is written, as dd expects of a disk
        return len(data)

    @_guarded
    async def fsync(self, fh: int, datasync: bool) -> None:
        """Always asks the target: what it acknowledged may be in a cache of its own."""
        node = self._handles[fh].node
        if node is not None:
            await self._flush(node)

    @_guarded
    async def flush(self, fh: int) -> None:
        """close(2), of every duplicate of a descriptor: ask only if a write was acknowledged since."""
        node = self._handles[fh].node
        if node is not None and node.target.dirty:
            await self._flush(node)

    async def _flush(self, node: Node) -> None:
        try:
            await node.disk.flush()
        except RequestError as error:
            raise self._fail(node, "flush", error) from None

    @_guarded
    async def fsyncdir(self, fh: int, datasync: bool) -> None:
        """Nothing in a directory of devices is ever pending."""

    # ── changes ───────────────────────────────────────────────────────────────────────────────────────────────────

    def invalidations(self, disk: Disk, change: Change) -> Sequence[Callable[[], object]]:
        """What the kernel must be told of a change; to be called in a thread, for they block while pages are dirty."""
        node = self._by_disk.get(disk)
        if node is None:
            return ()
        if change is Change.RESIZED:
            return (functools.partial(pyfuse3.invalidate_inode, node.inode, attr_only=True),)
        if change is Change.RETURNED:
            return (functools.partial(pyfuse3.invalidate_inode, node.inode, attr_only=False),)
        if change is Change.REPLACED:
            del self._by_disk[disk]
            return (  # the name first: the pages may be long in going
                functools.partial(pyfuse3.invalidate_entry, ROOT, node.name),
                functools.partial(pyfuse3.invalidate_inode, node.inode, attr_only=False),
            )
        return ()
