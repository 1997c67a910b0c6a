"""What the kernel must forget of the mount: names, attributes and cached pages.

Owns the calls that say so.  The kernel lets such a call wait, uninterruptibly, while pages of the file are read or
written; so each takes a thread, in the background, and they have a limit of their own: no other thread of the mount
waits for one of them.

What always holds: there is one task and one thread per disk at most; what comes meanwhile waits for it.

While such a call waits, the file of the mount cannot be closed, and the kernel then never fails what it still has for
us: a process that ends meanwhile stays as a zombie, with all that use the mount, until the connection is aborted, as
``aoefs umount --lazy`` and the next mount do (``host.mountpoint``).  So a mount goes on answering requests until
:meth:`Kernel.end` returns.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Hashable, Sequence
from functools import partial
from typing import NamedTuple

import pyfuse3
import trio

from aoefs.engine.supervisor import Supervisor

log = logging.getLogger("aoefs")

MAX_THREADS = 64


class Notice(NamedTuple):
    """Forget ``name`` in the directory ``inode``; without a name the attributes of ``inode``, and its ``pages`` too."""

    inode: int
    name: bytes = b""
    pages: bool = True


class Kernel:
    """The kernel of a mount that pyfuse3 has initialised."""

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor
        self._limiter = trio.CapacityLimiter(MAX_THREADS)
        self._pending: dict[Hashable, deque[Notice]] = {}  # by disk, while it has a task
        self._closed = False
        self._idle = trio.Event()  # set when it is closed and has no task

    def notify(self, disk: Hashable, notices: Sequence[Notice]) -> None:
        """Give these notices about a disk, one after the other; returns at once.  After :meth:`close`: does nothing."""
        if self._closed:
            return
        pending = self._pending.get(disk)
        if pending is not None:
            pending.extend(notice for notice in notices if notice not in pending)
        elif notices:
            self._pending[disk] = deque(notices)
            self._supervisor.start("invalidation", partial(self._give, disk))

    def close(self) -> None:
        """Give no more notices."""
        self._closed = True
        for pending in self._pending.values():
            pending.clear()

    async def end(self, seconds: float) -> None:
        """Close, and wait until the kernel let go of all calls, ``seconds`` at most.

        It does so only while requests are answered, so they should fail at once by now.
        """
        self.close()
        if self._pending:
            with trio.move_on_after(seconds) as scope:
                await self._idle.wait()
            if scope.cancelled_caught:
                log.warning("the kernel still holds %d calls that invalidate pages", len(self._pending))

    async def _give(self, disk: Hashable) -> None:
        pending = self._pending[disk]
        try:
            while pending:
                notice = pending.popleft()
                try:
                    await trio.to_thread.run_sync(_give, notice, abandon_on_cancel=True, limiter=self._limiter)
                except OSError as error:  # most often ENOENT: it knows nothing of it
                    log.debug("invalidation of inode %d: %s", notice.inode, error)
        finally:
            del self._pending[disk]
            if self._closed and not self._pending:
                self._idle.set()


def _give(notice: Notice) -> None:
    if notice.name:
        pyfuse3.invalidate_entry(notice.inode, notice.name)
    else:
        pyfuse3.invalidate_inode(notice.inode, attr_only=not notice.pages)
