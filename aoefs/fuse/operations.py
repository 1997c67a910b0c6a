"""What pyfuse3 asks for: handlers for names, attributes, open files and flushes.

Owns opening and closing.  Reads and writes are ``fuse.transfers``'; which name is which inode is ``fuse.tree``'s; what
the control files mean is ``fuse.control``'s.  Handlers are called by pyfuse3's workers, which ``fuse.workerloop`` steps
by hand: what needs trio goes through ``Callers.in_task``.  In the background (``engine.supervisor``) the partition
table of a disk is read again after a change, and the kernel is told what to forget (``fuse.kernel``).

What always holds:

- Nothing but ``FUSEError`` leaves a handler; ``fuse.errnos`` has the one table from exceptions to errno.
- A read is short only at the end of the disk: otherwise the kernel would shrink the file.
- Truncation succeeds and changes nothing, as for a disk.  getxattr stays unimplemented, or the kernel would ask for
  ``security.capability`` before every write.

Rejected: the kernel's writeback cache (with O_TRUNC it drops other processes' dirty pages), and relying on release
(the last one may never be delivered) or on syncfs (the kernel sends nothing).
"""

from __future__ import annotations

import errno
import logging
import math
import os
import stat
from collections.abc import Callable, Coroutine, Sequence
from functools import partial, wraps
from typing import TYPE_CHECKING, Any, TypeVar

import pyfuse3
import trio
from pyfuse3 import EntryAttributes, FileInfo, FUSEError

from aoefs.engine.changes import Change
from aoefs.engine.disk import Disk
from aoefs.engine.engine import Engine
from aoefs.engine.writebehind import WriteStream
from aoefs.errors import AoeFsError, RequestError, TargetError
from aoefs.fuse.control import Control
from aoefs.fuse.errnos import errno_of
from aoefs.fuse.handles import ControlHandle, DiskHandle, Handle
from aoefs.fuse.kernel import Kernel, Notice
from aoefs.fuse.nodes import Node
from aoefs.fuse.options import MountOptions
from aoefs.fuse.readahead import MAX_CHUNKS, ReadAhead, ReadAheads
from aoefs.fuse.transfers import Transfers, failed, failed_unexpectedly
from aoefs.fuse.tree import CONTROL, ROOT, ControlNode, Tree
from aoefs.fuse.wholetree import WholeTree
from aoefs.protocol.wire import SECTOR_BYTES, ErrorCode

if TYPE_CHECKING:
    from aoefs.fuse.workers import Workers

log = logging.getLogger("aoefs")

T = TypeVar("T")

CONTROL_BYTES_PER_SECOND = 2.5e6  # of control files: a loop that reads a status of 1 MB must not take the disks' time
CONTROL_CREDIT = 1.0  # seconds: what that allows may be read at once
MAX_CONTROL_WAIT = 1.0  # seconds that an open of a control file waits
TABLE_SECONDS = 1.0  # for which a close waits until the partition table was read again

_NEW_TABLE = (Change.APPEARED, Change.RETURNED, Change.RESIZED, Change.REVALIDATED)


def guarded(handler: Callable[..., Coroutine[Any, Any, T]]) -> Callable[..., Coroutine[Any, Any, T]]:
    """Let only FUSEError out, since anything else would end the mount: the rest is logged and answered EIO."""

    @wraps(handler)
    async def guarded(self: AoeOperations, *arguments: Any, **named: Any) -> T:
        try:
            return await handler(self, *arguments, **named)
        except (FUSEError, trio.Cancelled):
            raise
        except Exception:
            raise failed_unexpectedly(handler.__name__) from None

    return guarded


class AoeOperations(pyfuse3.Operations):
    """See the module.

    ``control`` has the files of ``.aoefs``; ``kernel`` is told what to forget.  Of the options, ``direct`` bypasses the
    kernel's page cache; ``sync`` answers no write early (``engine.writebehind``); ``reserve`` takes the reservation of
    a disk that is opened for writing, and gives it back at the last close.
    """

    def __init_subclass__(cls) -> None:
        raise TypeError("not meant to be inherited from")

    def __init__(
        self,
        engine: Engine,
        control: Control,
        kernel: Kernel,
        options: MountOptions,
        workers: Workers | None = None,
        process: int = 0,
        read_ahead_chunks: int = MAX_CHUNKS,
    ) -> None:
        super().__init__()
        self.tree = (Tree if workers is None else WholeTree)(engine.disks, control, options, process)
        self._workers = workers
        self._is_worker = process != 0
        self.read_aheads = ReadAheads(engine.supervisor, read_ahead_chunks)
        self._engine = engine
        self._kernel = kernel
        self._options = options
        self.callers = engine.driver.callers
        transfers = Transfers(self.callers, self._write_control)
        self._handles = transfers.handles
        self.read = transfers.read  # type: ignore[method-assign]
        self.write = transfers.write  # type: ignore[method-assign]
        self._next_handle = 1
        self._control_due = -math.inf  # when the next control file may be read
        engine.changes.subscribe(self._on_change)

    # ── names ─────────────────────────────────────────────────────────────────────────────────────────────────────

    @guarded
    async def lookup(self, parent_inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> EntryAttributes:
        thread = 0
        if isinstance(self.tree, WholeTree):
            thread = ctx.pid
            binding = self.tree.binding_of(parent_inode, name, thread)
            if binding is not None:
                await self.callers.in_task(self.tree.wait_for_bind, binding)
        return self.tree.attributes(self.tree.find(parent_inode, name, thread))

    @guarded
    async def getattr(self, inode: int, ctx: pyfuse3.RequestContext) -> EntryAttributes:
        return self.tree.attributes(inode)

    @guarded
    async def readlink(self, inode: int, ctx: pyfuse3.RequestContext) -> bytes:
        return self.tree.leads_to(inode)

    @guarded
    async def setattr(
        self,
        inode: int,
        attr: EntryAttributes,
        fields: pyfuse3.SetattrFields,
        fh: int | None,
        ctx: pyfuse3.RequestContext,
    ) -> EntryAttributes:
        """Sizes and times are taken and change nothing, as for a disk; owner and mode belong to the mount."""
        entry = self.tree.attributes(inode)
        mode = fields.update_mode and stat.S_IMODE(attr.st_mode) != stat.S_IMODE(entry.st_mode)
        uid = fields.update_uid and attr.st_uid != entry.st_uid
        gid = fields.update_gid and attr.st_gid != entry.st_gid
        if mode or uid or gid:
            raise FUSEError(errno.EPERM)
        return entry

    @guarded
    async def opendir(self, inode: int, ctx: pyfuse3.RequestContext) -> int:
        return inode

    @guarded
    async def readdir(self, fh: int, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        """Entries have the inode number as their cookie: it only grows, so a target that comes meanwhile fits in."""
        for inode, name in self.tree.entries(fh):
            if inode > start_id and not pyfuse3.readdir_reply(token, name, self.tree.attributes(inode), inode):
                break

    @guarded
    async def statfs(self, ctx: pyfuse3.RequestContext) -> pyfuse3.StatvfsData:
        disks = self._engine.disks.values()
        data = pyfuse3.StatvfsData()
        data.f_bsize = data.f_frsize = SECTOR_BYTES
        data.f_blocks = sum(disk.target.identity.sectors for disk in disks)  # none of them free
        data.f_files = len(disks)
        if self._workers is not None:
            sectors, files = await self.callers.in_task(self._workers.room)
            data.f_blocks += sectors
            data.f_files += files
        data.f_namemax = 255
        return data

    async def _not_permitted(self, *_arguments: object) -> Any:
        """Nothing is made or removed in a directory of devices."""
        raise FUSEError(errno.EROFS if self._options.read_only else errno.EPERM)

    _never: Any = _not_permitted  # one handler of any signature
    create = mknod = mkdir = unlink = rmdir = rename = symlink = link = _never

    # ── open files ────────────────────────────────────────────────────────────────────────────────────────────────

    def _add_handle(self, handle: Handle) -> int:
        number = self._next_handle
        self._next_handle += 1
        self._handles[number] = handle
        return number

    @guarded
    async def open(self, inode: int, flags: int, ctx: pyfuse3.RequestContext) -> FileInfo:
        writing = flags & os.O_ACCMODE != os.O_RDONLY
        control = self.tree.control_nodes.get(inode)
        if control is not None:
            return await self.callers.in_task(self._open_control, control, flags & os.O_ACCMODE, ctx)
        node = self.tree.nodes.get(inode)
        if node is None or node.gone:
            is_placeholder = isinstance(self.tree, WholeTree) and self.tree.is_placeholder(inode)
            raise FUSEError(errno.ENXIO if is_placeholder else errno.ESTALE)
        if writing:
            await self._begin_writing(node)
        sync = bool(flags & (os.O_SYNC | os.O_DSYNC))
        whole_writes = not self._options.direct and bool(flags & os.O_DIRECT)
        cached = not (self._options.direct or whole_writes)
        handle = DiskHandle(
            node,
            WriteStream(node.disk.write_behind, early=cached and not sync and not self._options.sync),
            ahead=ReadAhead(node.disk, self.read_aheads) if self.read_aheads.wanted and cached else None,
            writing=writing,
            flush_each_write=self._options.direct and sync,
            whole_writes=whole_writes,
        )
        number = self._add_handle(handle)
        keep_cache = node.siblings.may_keep_pages(node)
        node.opened += 1
        node.disk.opened += 1
        if node.gone:  # since its reservation was asked for
            await self.release(number)
            raise FUSEError(errno.ESTALE)
        return FileInfo(fh=number, direct_io=self._options.direct, keep_cache=keep_cache)

    @guarded
    async def release(self, fh: int) -> None:
        handle = self._handles.pop(fh)
        if isinstance(handle, ControlHandle):
            return
        node = handle.node
        if handle.ahead is not None:
            handle.ahead.close()
        node.opened -= 1
        node.disk.opened -= 1
        self.tree.let_go(node)
        if not handle.writing:
            return
        node.writing -= 1
        if node is node.siblings.whole:
            self._read_table_later(node.disk)
        if self._options.reserve:
            try:
                await self.callers.in_task(node.disk.reservation.give_back)
            except RequestError as error:
                failed(node, "giving back the reservation", error)

    async def _begin_writing(self, node: Node) -> None:
        """Count a handle that may write, or say why there can be none: EROFS, EBUSY, or what the reservation says."""
        if self._options.read_only or node.target.conflict:
            raise FUSEError(errno.EROFS)
        if not node.siblings.may_write(node):
            log.info("%s cannot be opened for writing: a file that overlaps it is", node.name.decode())
            raise FUSEError(errno.EBUSY)
        node.writing += 1
        if self._options.reserve:
            try:
                await self._take_reservation(node)
            except BaseException:
                node.writing -= 1
                raise

    async def _open_control(self, control: ControlNode, access: int, ctx: pyfuse3.RequestContext) -> FileInfo:
        file = control.file
        if file is None:
            raise FUSEError(errno.EISDIR)
        if file.as_root is not None and ctx.uid == 0:
            file = file.as_root
        if access != os.O_RDONLY and self._options.read_only:
            raise FUSEError(errno.EROFS)
        if (access != os.O_RDONLY and file.write is None) or (access != os.O_WRONLY and not file.is_readable):
            raise FUSEError(errno.EACCES)
        content = b""
        if file.is_readable and access != os.O_WRONLY:
            wait = min(self._control_due - trio.current_time(), MAX_CONTROL_WAIT)
            if wait > 0:
                await trio.sleep(wait)
            content = file.read() if file.read is not None else await file.read_later()  # type: ignore[misc]  # one is
            due = max(self._control_due, trio.current_time() - CONTROL_CREDIT)
            self._control_due = due + len(content) / CONTROL_BYTES_PER_SECOND
        return FileInfo(fh=self._add_handle(ControlHandle(control.path, file, content)), direct_io=True)

    async def _write_control(self, handle: ControlHandle, order: bytes) -> int:
        if handle.file.write is None:
            raise FUSEError(errno.EBADF)
        try:
            await handle.file.write(order)
        except AoeFsError as error:
            log.info("%s: %s", handle.path, error)
            raise FUSEError(errno_of(error)) from None
        return len(order)

    async def _take_reservation(self, node: Node) -> None:
        try:
            await self.callers.in_task(node.disk.reservation.take)
        except RequestError as error:
            failure = failed(node, "reservation", error)
            if isinstance(error, TargetError) and error.code == ErrorCode.UNRECOGNIZED_COMMAND:
                failure = FUSEError(errno.EOPNOTSUPP)  # it knows no reservations: not an I/O error
            raise failure from None

    @guarded
    async def fsync(self, fh: int, datasync: bool) -> None:
        """Always asks the target: what it acknowledged may be in a cache of its own."""
        handle = self._handles[fh]
        if isinstance(handle, DiskHandle):
            await self._flush(handle, once=True)

    @guarded
    async def flush(self, fh: int) -> None:
        """close(2), of every duplicate of a descriptor: asks only if a write was acknowledged since the last flush.

        After a close of the whole disk its partitions are as its table then says, unless the disk is slow.
        """
        handle = self._handles[fh]
        if isinstance(handle, ControlHandle) or not handle.writing:
            return
        node = handle.node
        await self._flush(handle, once=False, asking=node.target.dirty)
        if node is node.siblings.whole and not node.target.is_silent:
            await self.callers.in_task(self._read_table_in_time, node.disk)

    async def _read_table_in_time(self, disk: Disk) -> None:
        with trio.move_on_after(TABLE_SECONDS):
            await self.read_table(disk)

    async def _flush(self, handle: DiskHandle, *, once: bool, asking: bool = True) -> None:
        """Flush the disk if ``asking``, and report lost writes; one error if both failed."""
        node = handle.node
        failure: FUSEError | None = None
        try:
            if asking:
                await self.callers.in_task(node.disk.flush)
        except RequestError as error:
            failure = failed(node, "flush", error)
        try:
            handle.stream.report(once=once)
        except RequestError as error:
            failure = failed(node, "an earlier write", error)
        if failure is not None:
            raise failure from None

    @guarded
    async def fsyncdir(self, fh: int, datasync: bool) -> None:
        """Nothing in a directory of devices is ever pending."""

    # ── changes ───────────────────────────────────────────────────────────────────────────────────────────────────

    async def read_table(self, disk: Disk, *, again: bool = True) -> None:
        """See which partitions a disk has now; ``again``: also if that is known.  Waits for the disk."""
        if not self.tree.is_present(disk):
            return
        nodes = self.tree.nodes_of(disk)
        went = await nodes.read_table(again=again)
        if not self.tree.is_present(disk):  # any more
            return
        if went:
            self._kernel.notify(disk, _notices_of_gone(self.tree.mark_gone(nodes.take_gone())))
        for node in nodes.partitions:
            self.tree.nodes[node.inode] = node

    def _read_table_later(self, disk: Disk, *, again: bool = True) -> None:
        self._engine.supervisor.start("partition table", partial(self.read_table, disk, again=again))

    def _on_change(self, disk: Disk, change: Change) -> None:
        if change is Change.APPEARED and not self._is_worker:  # else the main process does, which knows all disks
            self.tree.report_rivals(disk.target.identity.serial)
        nodes = self.tree.known_nodes_of(disk)
        if nodes is None:
            pass
        elif change in (Change.RESIZED, Change.CONFLICT):
            self._kernel.notify(disk, [Notice(node.inode, pages=False) for node in nodes])
        elif change in (Change.RETURNED, Change.REVALIDATED):
            self._kernel.notify(disk, [Notice(node.inode) for node in nodes])
        elif change in (Change.REPLACED, Change.FORGOTTEN):
            gone = self.tree.remove(disk)
            self._kernel.notify(disk, [*_notices_of_gone(gone), Notice(CONTROL, nodes.whole.name)])
        if change in _NEW_TABLE:
            self._read_table_later(disk, again=change is not Change.APPEARED)


def _notices_of_gone(gone: Sequence[Node]) -> list[Notice]:
    """Their names first, since their pages may take long."""
    return [*(Notice(ROOT, node.name) for node in gone), *(Notice(node.inode) for node in gone)]
