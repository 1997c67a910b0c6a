"""Writing behind: in a stream of writes, each one counts as written once all of its frames are on the wire.

The kernel gives FUSE the buffered writes of a program one at a time, so ``dd bs=4k`` waits for the target 256 times a
MiB.  Owns the writes that were answered before the target acknowledged them: of a disk what is pending and what was
lost (:class:`WriteBehind`), of an open file whether its writes are a stream and which losses it was told of
(:class:`WriteStream`).

What holds always:

- Only a write of whole sectors and at most ``MAX_BYTES`` that goes on where the last one through the same open file
  ended, after ``IN_ORDER`` such, is answered early; never one of somebody who asked for more (O_DIRECT, O_SYNC,
  O_DSYNC, ``--direct``, ``-o sync``).
- It is answered when all of its frames were sent and nothing of its target waits to be sent again.  So what is
  pending fits into the window of the target, and whoever kills this process loses nothing but what the network loses
  at that very moment.
- It keeps its range until it is acknowledged: no write that overlaps is sent, no read of it begins.
- Flush waits for what was pending when it came, and then asks the target: so do fsync, close and unmount.
- A write that fails after all is logged, the kernel drops its pages of the disk, and whoever has the disk open is
  told: once at his next write, and once at his next fsync, or by each close until then (it may be the one of a child).
  A write does not do for fsync: a loop device or qemu writes for many through one open file, and the next write need
  not be by him who lost the last one.

Rejected: the kernel's writeback cache (see ``fuse.operations``), gathering small writes into large ones (faster still,
but a killed process would take acknowledged data with it), answering every write early (errors come at once, to whoever
does not write a stream), and large ones too (no gain was measured, and more memory is held).
"""

from __future__ import annotations

import sys
from typing import Final

from aoefs.core.request import Request
from aoefs.engine.waits import Sleepers, Wait
from aoefs.errors import RequestError

MAX_BYTES: Final = 1 << 17
IN_ORDER: Final = 8  # writes in order, one after another, from which they are a stream


class WriteBehind:
    """The writes of one disk that were answered and not acknowledged: those ``pending``, and how many were ``lost``.

    ``error`` is why the last one was, ``told`` how many of them somebody was told of.
    """

    __slots__ = ("_waiting", "_waits", "error", "lost", "pending", "told")

    def __init__(self, waiting: Sleepers) -> None:
        self.pending: dict[Request, None] = {}
        self.lost = 0
        self.told = 0
        self.error: RequestError | None = None
        self._waiting = waiting
        self._waits: set[Wait] = set()

    def add(self, request: Request) -> None:
        """``request`` is answered now; :meth:`end` is called when it has ended."""
        self.pending[request] = None

    def end(self, request: Request) -> None:
        del self.pending[request]
        if request.error is not None:
            self.lost += 1
            self.error = request.error
        for wait in self._waits:
            wait.wake()

    async def settle(self, first: int = 0, end: int = sys.maxsize) -> None:
        """Wait until what is pending now in the sectors from ``first`` to ``end`` (not included) has ended."""
        mine = [request for request in self.pending if request.lba < end and first < request.lba + request.sectors]
        if not mine:
            return
        wait = Wait(self._waiting)
        self._waits.add(wait)
        try:
            for request in mine:
                while not request.ended:
                    wait.woken = False
                    await wait.wait()
        finally:
            self._waits.discard(wait)


class WriteStream:
    """The writes through one open file.  Without ``early`` none is answered early."""

    __slots__ = ("_behind", "_early", "_in_order", "_known", "_known_to_writer", "_next")

    def __init__(self, behind: WriteBehind, *, early: bool) -> None:
        self._behind = behind
        self._early = early
        self._next = -1  # where a write in order goes on (bytes)
        self._in_order = 0
        self._known = behind.lost
        self._known_to_writer = behind.lost

    def goes_on(self, offset: int, size: int) -> bool:
        """The next write is of ``size`` bytes at ``offset``: whether it may be answered early."""
        self._in_order = self._in_order + 1 if offset == self._next else 0
        self._next = offset + size
        return self._early and self._in_order >= IN_ORDER and size <= MAX_BYTES

    def tell_writer(self) -> None:
        """Raise why writes of this disk were lost since the file was opened, or since anybody was told through it.

        Whoever is told may not be who lost them, so fsync fails all the same.  The next write begins a new stream.
        """
        if self._behind.lost != self._known_to_writer:
            self._known_to_writer = self._behind.lost
            self._next = -1
            self._raise()

    def tell(self, *, once: bool = True) -> None:
        """As :meth:`tell_writer`, but since this was told ``once``, whatever writers were told."""
        if self._behind.lost != self._known:
            if once:
                self._known = self._known_to_writer = self._behind.lost
            self._raise()

    def _raise(self) -> None:
        behind = self._behind
        assert behind.error is not None
        behind.told = behind.lost
        raise behind.error.with_traceback(None)
