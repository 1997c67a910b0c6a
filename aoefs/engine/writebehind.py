"""Write-behind: in a stream of small writes, each one is answered once all of its frames are on the wire.

The kernel gives FUSE the buffered writes of a program one at a time, so ``dd bs=4k`` would wait for the target 256
times a MiB.  Owns the writes that were answered before the target acknowledged them: for a disk, which are pending and
how many were lost (:class:`WriteBehind`); for an open file, whether its writes are a stream and which losses were
reported through it (:class:`WriteStream`).

What always holds:

- A write is answered early only if it has whole sectors and at most ``MAX_BYTES``, goes on where the last write through
  the same open file ended, after ``IN_ORDER`` such writes, and if its file was not opened for more safety (O_DIRECT,
  O_SYNC, O_DSYNC, ``--direct``, ``-o sync``).
- It is answered when all of its frames were sent and nothing of its target waits to be retransmitted.  So what is
  pending fits into the window of the target, and a killed process loses only what the network loses at that moment.
- It keeps its range until it is acknowledged: no write that overlaps is sent, and no read of it begins.
- Flush waits for what was pending when it began, and then asks the target.  So do fsync, close and unmount.
- A write that fails after all is logged, the kernel drops its pages of the disk, and the failure is reported through
  each open file of the disk: once by the next write, and once by the next fsync, or by each close until then.  A write
  does not replace the fsync: a loop device or qemu writes for many users through one open file, and the next write
  need not come from the user whose write was lost.

Rejected: the kernel's writeback cache (see ``fuse.operations``); gathering small writes into large ones (faster still,
but a killed process would take acknowledged data with it); answering large writes early (no gain was measured, and
more memory is held).
"""

from __future__ import annotations

import sys
from typing import Final

from aoefs.core.request import Request
from aoefs.engine.waits import Wait, WaitGroup
from aoefs.errors import RequestError

MAX_BYTES: Final = 1 << 17
IN_ORDER: Final = 8  # writes in order, one after another, from which they are a stream


class WriteBehind:
    """The writes of one disk that were answered and not acknowledged: those ``pending``, and how many were ``lost``.

    ``error`` is why the last one was lost; ``reported`` is how many losses were reported to a user.
    """

    def __init__(self, waits: WaitGroup) -> None:
        self.pending: dict[Request, None] = {}
        self.lost = 0
        self.reported = 0
        self.error: RequestError | None = None
        self._waits = waits
        self._waiting: set[Wait] = set()  # those of them that wait here

    def add(self, request: Request) -> None:
        """``request`` is answered now; :meth:`end` is called when it has ended."""
        self.pending[request] = None

    def end(self, request: Request) -> None:
        del self.pending[request]
        if request.error is not None:
            self.lost += 1
            self.error = request.error
        for wait in self._waiting:
            wait.wake()

    async def wait_acknowledged(self, first: int = 0, end: int = sys.maxsize) -> None:
        """Wait until what is pending now in the sectors from ``first`` to ``end`` (not included) has ended.

        RequestError when the target goes meanwhile.
        """
        mine = [request for request in self.pending if request.lba < end and first < request.lba + request.sectors]
        if not mine:
            return
        wait = self._waits.begin()
        self._waiting.add(wait)
        try:
            for request in mine:
                while not request.ended:
                    if wait.error is not None:
                        raise wait.error
                    wait.woken = False
                    await wait.wait()
        finally:
            self._waiting.discard(wait)
            self._waits.end(wait)


class WriteStream:
    """The writes through one open file.  Without ``early`` none is answered early."""

    def __init__(self, write_behind: WriteBehind, *, early: bool) -> None:
        self._write_behind = write_behind
        self._early = early
        self._next = -1  # where a write in order goes on (bytes)
        self._in_order = 0
        self._seen = write_behind.lost  # losses before the open, or reported by fsync
        self._seen_by_writer = write_behind.lost  # the same, or reported by a write

    def goes_on(self, offset: int, size: int) -> bool:
        """The next write has ``size`` bytes at ``offset``: whether it may be answered early."""
        self._in_order = self._in_order + 1 if offset == self._next else 0
        self._next = offset + size
        return self._early and self._in_order >= IN_ORDER and size <= MAX_BYTES

    def report_to_writer(self) -> None:
        """Raise why writes of this disk were lost, if any were since the last report through this file.

        fsync reports the same losses again: this writer may not be the one whose data were lost.  The next write begins
        a new stream.
        """
        if self._write_behind.lost != self._seen_by_writer:
            self._seen_by_writer = self._write_behind.lost
            self._next = -1
            self._raise()

    def report(self, *, once: bool = True) -> None:
        """The same, whatever was reported to writers; ``once``: not again after this."""
        if self._write_behind.lost != self._seen:
            if once:
                self._seen = self._seen_by_writer = self._write_behind.lost
            self._raise()

    def _raise(self) -> None:
        write_behind = self._write_behind
        assert write_behind.error is not None  # noqa: S101 (for mypy: what was lost has an error)
        write_behind.reported = write_behind.lost
        raise write_behind.error.with_traceback(None)
