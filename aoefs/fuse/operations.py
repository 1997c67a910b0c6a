"""The file system: targets and their partitions as files of a device directory, for pyfuse3.

Owns inode numbers and file handles; knows no frame, tag or path.  Which files a disk has is ``fuse.nodes``', what
the control files mean ``fuse.control``'s.  Handlers are called by pyfuse3's workers, one task per request.

What holds always:

- An inode number stands for one disk (one Target), one partition at one place of it, or one control file, and is
  never used again: another disk under the same name gets a new number, and handles on the old one fail.
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
import logging
import os
import stat
import time
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ParamSpec, TypeVar

import pyfuse3
import trio
from pyfuse3 import EntryAttributes, FileInfo, FUSEError

from aoefs.engine.disk import Disk, make_buffer
from aoefs.engine.engine import Engine
from aoefs.engine.settings import Change
from aoefs.engine.writebehind import WriteStream
from aoefs.errors import (
    AoeFsError,
    AtaError,
    ControlError,
    IdentityChanged,
    RequestError,
    TargetBusy,
    TargetError,
)
from aoefs.fuse.control import Control, ControlFile
from aoefs.fuse.nodes import DiskNodes, Node
from aoefs.fuse.readahead import ReadAhead, ReadAheads
from aoefs.protocol.wire import SECTOR_BYTES, Address, ErrorCode

log = logging.getLogger("aoefs")

P = ParamSpec("P")
T = TypeVar("T")

BLOCK_BYTES = 1 << 20  # st_blksize: what cat and cp then ask for
CACHE_SECONDS = 3600.0  # how long the kernel may keep attributes, and names of ours; changes are pushed to it
ROOT = pyfuse3.ROOT_INODE
CONTROL = ROOT + 1
_MAX_FREE = 1  # buffers of reads that wait for their next use: a stream needs no more
_FIRST_DISK = 16  # below are the control files of the mount itself
_CONTROL_NAME = b".aoefs"
TABLE_SECONDS = 1.0  # for which a close waits until the partition table was read again

_TARGET_ERRNO = {ErrorCode.DEVICE_UNAVAILABLE: errno.ENXIO, ErrorCode.TARGET_RESERVED: errno.EBUSY}


def _errno_of(error: AoeFsError, *, ever_written: bool = True) -> int:
    """The one table (design, section 4).  A disk that aborts a write and never took one is read-only."""
    if isinstance(error, ControlError):
        return errno.EBUSY if isinstance(error, TargetBusy) else errno.EINVAL
    if isinstance(error, TargetError):
        return _TARGET_ERRNO.get(ErrorCode(error.code), errno.EIO) if error.code in set(ErrorCode) else errno.EIO
    if isinstance(error, AtaError) and error.write and error.is_abort and not ever_written:
        return errno.EROFS
    if isinstance(error, IdentityChanged):
        return errno.ESTALE
    return errno.EIO


@dataclass(slots=True)
class ControlNode:
    """A directory of control files by name, or one of them."""

    inode: int
    path: str
    file: ControlFile | None = None
    children: dict[bytes, ControlNode] = field(default_factory=dict)


@dataclass(slots=True)
class Handle:
    """An open file: of a disk, or a control file with a picture of it that was taken at open.

    ``whole_writes``: the kernel makes EIO of a short count, as it does for O_DIRECT in cached mode.
    """

    node: Node | None
    writing: bool = False
    flush_each_write: bool = False
    whole_writes: bool = False
    picture: bytes = b""
    control: ControlNode | None = None
    ahead: ReadAhead | None = None
    stream: WriteStream | None = None


class _Buffers:
    """The buffers of reads of ``BLOCK_BYTES``, used again: fresh memory costs a page fault for each 4 KiB of it.

    pyfuse3 replies before any other handler runs: what a handler returned can be taken back when the next one begins.
    """

    def __init__(self) -> None:
        self._free: list[memoryview] = []
        self._lent: memoryview | None = None

    def make(self, size_bytes: int) -> memoryview:
        return self._free.pop() if self._free and size_bytes == BLOCK_BYTES else make_buffer(size_bytes)

    def lend(self, buffer: memoryview) -> memoryview:
        """``buffer`` goes to pyfuse3 now."""
        self._lent = buffer if len(buffer) == BLOCK_BYTES else None
        return buffer

    def take_back(self) -> None:
        if self._lent is not None and len(self._free) < _MAX_FREE:
            self._free.append(self._lent)
        self._lent = None


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

    ``control`` is what ``.aoefs`` holds; ``umask`` is taken from 0666 (files) and 0777 (directories), and control
    files are never writable for others than their owner; ``direct`` bypasses the kernel's page cache; ``sync`` answers
    no write early (``engine.writebehind``); ``reserve`` takes the reservation of what is opened for writing, and gives
    it back at the last close.
    """

    def __init_subclass__(cls) -> None:
        raise TypeError("not meant to be inherited from")

    def __init__(
        self,
        engine: Engine,
        control: Control,
        *,
        uid: int,
        gid: int,
        umask: int,
        read_only: bool = False,
        direct: bool = False,
        sync: bool = False,
        reserve: bool = False,
    ) -> None:
        super().__init__()
        self._engine = engine
        self._control = control
        self._owner = (uid, gid)
        self._umask = umask
        self._read_only = read_only
        self._direct = direct
        self._sync = sync
        self._reserve = reserve
        self.read_aheads: ReadAheads | None = None  # for mounts whose read-ahead in the kernel stays small
        self._buffers = _Buffers()
        self._mounted_ns = time.time_ns()
        self._nodes: dict[int, Node] = {}  # by inode number
        self._control_nodes: dict[int, ControlNode] = {}
        self._views: dict[Disk, DiskNodes] = {}
        self._directories: dict[Disk, ControlNode] = {}
        self._handles: dict[int, Handle] = {}
        self._next_handle = 1
        self._next_inode = CONTROL
        self._control_root = self._make_directory(_CONTROL_NAME.decode(), control.files)
        self._next_inode = _FIRST_DISK

    # ── names ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def _new_inode(self) -> int:
        self._next_inode += 1
        return self._next_inode - 1

    def _make_directory(self, path: str, files: Mapping[str, ControlFile]) -> ControlNode:
        directory = ControlNode(self._new_inode(), path)
        for name, file in files.items():
            directory.children[name.encode()] = ControlNode(self._new_inode(), f"{path}/{name}", file)
        for node in (directory, *directory.children.values()):
            self._control_nodes[node.inode] = node
        return directory

    def _views_of(self, disk: Disk) -> DiskNodes:
        views = self._views.get(disk)
        if views is None:
            views = self._views[disk] = DiskNodes(disk, self._new_inode)
            self._nodes[views.whole.inode] = views.whole
            path = f"{self._control_root.path}/{disk.target.name}"
            self._directories[disk] = self._make_directory(path, self._control.files_of(disk))
        return views

    def _find_views(self, name: bytes) -> DiskNodes:
        """The files of the disk of this name now; ENOENT when there is none."""
        try:
            disk = self._engine.disks.get(Address.parse(os.fsdecode(name)))
        except ValueError:
            disk = None
        if disk is None or os.fsencode(disk.target.name) != name:
            raise FUSEError(errno.ENOENT)
        return self._views_of(disk)

    def _find(self, name: bytes) -> Node:
        """The disk or partition of this name now; ENOENT when there is none."""
        for node in self._find_views(name.partition(b"p")[0]):
            if node.name == name:
                return node
        raise FUSEError(errno.ENOENT)

    def _find_control(self, directory: ControlNode, name: bytes) -> ControlNode:
        child = directory.children.get(name)
        if child is not None:
            return child
        if directory is not self._control_root:
            raise FUSEError(errno.ENOENT)
        return self._directories[self._find_views(name).disk]

    def _attributes(self, inode: int) -> EntryAttributes:
        entry = EntryAttributes()
        entry.st_ino = inode
        entry.st_uid, entry.st_gid = self._owner
        entry.st_atime_ns = entry.st_mtime_ns = entry.st_ctime_ns = self._mounted_ns
        entry.st_blksize = BLOCK_BYTES
        entry.entry_timeout = entry.attr_timeout = CACHE_SECONDS
        control = self._control_nodes.get(inode)
        if control is not None and control.file is not None:
            mode = (0o444 if control.file.read else 0) | (0o200 if control.file.write and not self._read_only else 0)
            entry.st_mode = stat.S_IFREG | mode & ~self._umask
            entry.attr_timeout = 0
        elif inode == ROOT or control is not None:
            entry.st_mode = stat.S_IFDIR | 0o777 & ~self._umask & ~0o222
            if not self._read_only:
                entry.st_mode |= 0o200 & ~self._umask
            entry.st_nlink = {ROOT: 3, CONTROL: 2 + len(self._engine.disks)}.get(inode, 2)
            if inode >= _FIRST_DISK:
                entry.entry_timeout = 0
        else:
            node = self._nodes.get(inode)
            if node is None:
                raise FUSEError(errno.ESTALE)
            entry.st_mode = stat.S_IFREG | (0o444 if self._read_only else 0o666) & ~self._umask
            entry.entry_timeout = 0  # another disk may take the name, and whoever opens it must never get the old one
            entry.st_size = node.size_bytes
            entry.st_blocks = node.size_bytes // SECTOR_BYTES
        return entry

    @_guarded
    async def lookup(self, parent_inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> EntryAttributes:
        if name == b".":
            return self._attributes(parent_inode)
        if name == b"..":
            return self._attributes(CONTROL if parent_inode > CONTROL else ROOT)
        if parent_inode == ROOT:
            return self._attributes(CONTROL if name == _CONTROL_NAME else self._find(name).inode)
        directory = self._control_nodes.get(parent_inode)
        if directory is None:
            raise FUSEError(errno.ENOENT)
        return self._attributes(self._find_control(directory, name).inode)

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
        disks = self._engine.disks.values() if fh in (ROOT, CONTROL) else ()
        if fh == ROOT:
            nodes = [node for disk in disks for node in self._views_of(disk)]
            entries = [(CONTROL, _CONTROL_NAME), *((node.inode, node.name) for node in nodes)]
        else:
            directory = self._control_nodes.get(fh)
            entries = [(node.inode, name) for name, node in directory.children.items()] if directory else []
            whole = [self._views_of(disk).whole for disk in disks]
            entries += [(self._directories[node.disk].inode, node.name) for node in whole]
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
        control = self._control_nodes.get(inode)
        if control is not None:
            return self._open_control(control, flags & os.O_ACCMODE)
        node = self._nodes.get(inode)
        if node is None or node.gone:
            raise FUSEError(errno.ESTALE)
        if writing:
            await self._begin_writing(node)
        sync = bool(flags & (os.O_SYNC | os.O_DSYNC))
        whole_writes = not self._direct and bool(flags & os.O_DIRECT)
        cached = not (self._direct or whole_writes)
        handle = Handle(node, writing=writing, flush_each_write=self._direct and sync, whole_writes=whole_writes)
        handle.stream = WriteStream(node.disk.write_behind, early=cached and not sync and not self._sync)
        if self.read_aheads is not None and cached:
            handle.ahead = ReadAhead(node.disk, self.read_aheads)
        number = self._add_handle(handle)
        keep_cache = node.views.may_keep_pages(node)
        node.opened += 1
        node.disk.opened += 1
        return FileInfo(fh=number, direct_io=self._direct, keep_cache=keep_cache)

    @_guarded
    async def release(self, fh: int) -> None:
        handle = self._handles.pop(fh)
        node = handle.node
        if node is None:
            return
        if handle.ahead is not None:
            handle.ahead.drop()
        node.opened -= 1
        node.disk.opened -= 1
        if node.gone and not node.opened:
            self._nodes.pop(node.inode, None)
        if not handle.writing:
            return
        node.writing -= 1
        if node is node.views.whole:
            self._engine.settings.on_change(node.disk, Change.REWRITTEN)
        if self._reserve:
            await self._give_back_reservation(node)

    async def _begin_writing(self, node: Node) -> None:
        """Count a handle that may write, or say why there can be none: EROFS, EBUSY, or what the reservation says."""
        if self._read_only:
            raise FUSEError(errno.EROFS)
        if not node.views.may_write(node):
            log.info("%s cannot be opened for writing: a file that overlaps it is", node.name.decode())
            raise FUSEError(errno.EBUSY)
        node.writing += 1
        if self._reserve:
            try:
                await self._take_reservation(node)
            except BaseException:
                node.writing -= 1
                raise

    def _open_control(self, control: ControlNode, access: int) -> FileInfo:
        file = control.file
        if file is None:
            raise FUSEError(errno.EISDIR)
        if access != os.O_RDONLY and self._read_only:
            raise FUSEError(errno.EROFS)
        if (access != os.O_RDONLY and file.write is None) or (access != os.O_WRONLY and file.read is None):
            raise FUSEError(errno.EACCES)
        picture = file.read() if file.read is not None and access != os.O_WRONLY else b""
        return FileInfo(fh=self._add_handle(Handle(None, picture=picture, control=control)), direct_io=True)

    async def _write_control(self, control: ControlNode | None, order: bytes) -> int:
        if control is None or control.file is None or control.file.write is None:
            raise FUSEError(errno.EBADF)
        try:
            await control.file.write(order)
        except AoeFsError as error:
            log.info("%s: %s", control.path, error)
            raise FUSEError(_errno_of(error)) from None
        return len(order)

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
        log.error("%s: %s%s failed: %s", node.target.name, what, error.at, error)
        return FUSEError(_errno_of(error, ever_written=node.target.ever_written))

    @_guarded
    async def read(self, fh: int, off: int, size: int) -> Any:  # bytes, says pyfuse3; it takes any buffer
        handle = self._handles[fh]
        node = handle.node
        if node is None:
            return handle.picture[off : off + size]
        try:
            size = min(size, node.room(off))
            if size <= 0:
                return b""
            start = node.start + off
            if handle.ahead is not None:
                return await handle.ahead.read(start, size, start + node.room(off))
            if size < BLOCK_BYTES:
                return await node.disk.read(start, size)
            self._buffers.take_back()
            return self._buffers.lend(await node.disk.read(start, size, self._buffers.make))
        except RequestError as error:
            raise self._fail(node, "read", error) from None

    @_guarded
    async def write(self, fh: int, off: int, buf: bytes) -> int:
        handle = self._handles[fh]
        node, stream = handle.node, handle.stream
        if node is None or stream is None:
            return await self._write_control(handle.control, buf)
        try:
            room = node.room(off)
            if room <= 0:
                raise FUSEError(errno.ENOSPC)
            data = buf if len(buf) <= room else memoryview(buf)[:room]
            if data:
                stream.tell_writer()
                await node.disk.write(node.start + off, data, behind=stream.goes_on(off, len(data)))
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
        handle = self._handles[fh]
        if handle.node is not None:
            await self._flush(handle, handle.node, once=True)

    @_guarded
    async def flush(self, fh: int) -> None:
        """close(2), of every duplicate of a descriptor: ask only if a write was acknowledged since.

        One who could not write has nothing to wait for.

        After a close of the whole disk its partitions are as its table then says, unless it is slow.
        """
        handle = self._handles[fh]
        node = handle.node
        if node is None or not handle.writing:
            return
        await self._flush(handle, node, once=False, asking=node.target.dirty)
        if node is node.views.whole and not node.target.is_silent:
            with trio.move_on_after(TABLE_SECONDS):
                await self.read_table(node.disk)

    async def _flush(self, handle: Handle, node: Node, *, once: bool, asking: bool = True) -> None:
        """Flush the disk if ``asking``, and tell of lost writes; of both by one answer if both failed."""
        failure: FUSEError | None = None
        try:
            if asking:
                await node.disk.flush()
        except RequestError as error:
            failure = self._fail(node, "flush", error)
        try:
            if handle.stream is not None:
                handle.stream.tell(once=once)
        except RequestError as error:
            failure = self._fail(node, "an earlier write", error)
        if failure is not None:
            raise failure from None

    @_guarded
    async def fsyncdir(self, fh: int, datasync: bool) -> None:
        """Nothing in a directory of devices is ever pending."""

    # ── changes ───────────────────────────────────────────────────────────────────────────────────────────────────

    async def read_table(self, disk: Disk, *, again: bool = True) -> None:
        """See which partitions a disk has now; ``again``: also if that is known.  Waits for the disk."""
        if self._engine.disks.get(disk.target.address) is not disk:
            return
        views = self._views_of(disk)
        if await views.read_table(again=again):
            self._engine.settings.on_change(disk, Change.REPARTITIONED)
        for node in views.partitions:
            self._nodes[node.inode] = node

    def invalidations(self, disk: Disk, change: Change) -> Sequence[Callable[[], object]]:
        """What the kernel must be told of a change; to be called in a thread, for they block while pages are dirty."""
        views = self._views.get(disk)
        if views is None:
            return ()
        if change is Change.RESIZED:
            return (functools.partial(pyfuse3.invalidate_inode, views.whole.inode, attr_only=True),)
        if change in (Change.RETURNED, Change.REVALIDATED):
            return [functools.partial(pyfuse3.invalidate_inode, node.inode, attr_only=False) for node in views]
        if change in (Change.REPLACED, Change.FORGOTTEN):
            del self._views[disk]
            directory = self._directories.pop(disk)
            for control in (directory, *directory.children.values()):
                del self._control_nodes[control.inode]
            views.gone += views
            name = functools.partial(pyfuse3.invalidate_entry, CONTROL, views.whole.name)
            return [*self._invalidations_of_gone(views.gone), name]
        if change is Change.REPARTITIONED:
            gone, views.gone = views.gone, []
            return self._invalidations_of_gone(gone)
        return ()

    def _invalidations_of_gone(self, gone: Iterable[Node]) -> Sequence[Callable[[], object]]:
        """Files went for good: their names first, since the pages may be long in going."""
        gone = tuple(gone)
        for node in gone:
            node.gone = True
            if not node.opened:
                self._nodes.pop(node.inode, None)
        names = [functools.partial(pyfuse3.invalidate_entry, ROOT, node.name) for node in gone]
        return [*names, *(functools.partial(pyfuse3.invalidate_inode, node.inode, attr_only=False) for node in gone)]
