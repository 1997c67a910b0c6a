"""Reading ahead in the daemon, for mounts whose read-ahead in the kernel cannot be raised (that takes root).

The kernel then asks for 128 KiB at a time, two at most, which keeps a target idle half of the time.  A
:class:`ReadAhead` belongs to one open handle: when that reads in order, the next ``CHUNK_BYTES`` are asked for before
they are wanted, ``DEPTH`` of them at most; :class:`ReadAheads` bounds what all handles together hold.

What always holds:

- A chunk is used only if nothing of this mount wrote to its disk since before it was asked for (``Disk.generation``),
  and the target was not away: no program reads what was there before its own write.
- An error of a read ahead is dropped: the read that wants the bytes asks for them again.
- At most ``most`` chunks are held, all of them by registered handles; beyond that the handle that was read longest ago
  loses its own.

Rejected: doing so always (two read-aheads of which the kernel's is the better one), and a cache (that is the
kernel's).
"""

from __future__ import annotations

import contextlib
from collections import OrderedDict, deque
from dataclasses import dataclass, field
from functools import partial

import trio

from aoefs.engine.disk import Disk
from aoefs.engine.supervisor import Supervisor
from aoefs.errors import RequestError, TargetLost

CHUNK_BYTES = 1 << 20
DEPTH = 4  # chunks ahead of one handle
MAX_CHUNKS = 64  # of all handles
IN_ORDER = 2  # reads in order, one after another, from which the next one is foreseen
SLACK_BYTES = CHUNK_BYTES // 4  # requests of one reader overtake each other by so much


@dataclass(slots=True, eq=False)
class _Chunk:
    """The bytes from ``offset`` of a disk to ``end``; ``data`` is there when ``done``, unless it failed."""

    offset: int
    end: int
    generation: int
    data: memoryview | None = None
    done: trio.Event = field(default_factory=trio.Event)
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)


class ReadAheads:
    """What all open handles together read ahead: ``most`` chunks.  ``wanted`` is set when the kernel's own read-ahead
    stays small.
    """

    def __init__(self, supervisor: Supervisor, most: int = MAX_CHUNKS) -> None:
        self.wanted = False
        self._most = most
        self.supervisor = supervisor
        self._handles: OrderedDict[ReadAhead, None] = OrderedDict()  # those that read, the last one last

    @property
    def chunks(self) -> int:
        return sum(len(handle.chunks) for handle in self._handles)

    def note_use(self, handle: ReadAhead) -> None:
        self._handles[handle] = None
        self._handles.move_to_end(handle)

    def make_room(self, handle: ReadAhead) -> bool:
        """Room for one more chunk of ``handle``; False if it holds all there is."""
        while self.chunks >= self._most:
            oldest = next((other for other in self._handles if other.chunks and other is not handle), None)
            if oldest is None:
                return False
            oldest.drop()
        return True

    def forget(self, handle: ReadAhead) -> None:
        self._handles.pop(handle, None)


class ReadAhead:
    """The reading of one open handle on ``disk``.  ``chunks`` are what it holds or waits for, one after another."""

    def __init__(self, disk: Disk, all_handles: ReadAheads) -> None:
        self.chunks: deque[_Chunk] = deque()
        self._disk = disk
        self._all = all_handles
        self._closed = False
        self._next = 0  # where a read in order goes on (bytes)
        self._in_order = 0

    async def read(self, offset: int, size: int, end: int) -> memoryview:
        """As ``Disk.read``; what is read ahead stays below ``end`` (bytes)."""
        if abs(offset - self._next) <= SLACK_BYTES:
            self._in_order += 1
        else:
            self._in_order = 0
            self.drop()
        self._next = max(self._next, offset + size) if self._in_order else offset + size
        self._let_go_before(offset - SLACK_BYTES)
        found = self._find(offset, size)
        if self._in_order >= IN_ORDER and not self._closed:
            self._all.note_use(self)
            self._ask_ahead(end)
        if found is not None:
            await found.done.wait()
            if found.data is not None and found.generation == self._disk.generation:
                return found.data[offset - found.offset : offset - found.offset + size]
        if offset + size > self._disk.size_bytes:
            raise TargetLost(f"{self._disk.target.name} shrank while it was read")
        return await self._disk.read(offset, size)

    def drop(self) -> None:
        """Give up what was read ahead."""
        for chunk in self.chunks:
            chunk.scope.cancel()
        self.chunks.clear()

    def close(self) -> None:
        """The handle is closed; what still reads through it reads nothing ahead."""
        self._closed = True
        self.drop()
        self._all.forget(self)

    def _let_go_before(self, offset: int) -> None:
        if self.chunks and self.chunks[-1].generation != self._disk.generation:
            self.drop()
        while self.chunks and self.chunks[0].end <= offset:
            self.chunks.popleft()

    def _find(self, offset: int, size: int) -> _Chunk | None:
        chunks = (chunk for chunk in self.chunks if chunk.offset <= offset and offset + size <= chunk.end)
        return next(chunks, None)

    def _ask_ahead(self, end: int) -> None:
        while len(self.chunks) < DEPTH:
            offset = self.chunks[-1].end if self.chunks else self._next
            if offset >= end or not self._all.make_room(self):
                return
            chunk = _Chunk(offset, min(offset + CHUNK_BYTES, end), self._disk.generation)
            self.chunks.append(chunk)
            self._all.supervisor.start("read-ahead", partial(self._fill, chunk))

    async def _fill(self, chunk: _Chunk) -> None:
        try:
            if chunk.end <= self._disk.size_bytes:  # it may have shrunk since it was asked for
                with chunk.scope, contextlib.suppress(RequestError):
                    chunk.data = await self._disk.read(chunk.offset, chunk.end - chunk.offset)
        finally:
            chunk.done.set()
