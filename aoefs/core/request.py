"""A Request is a range of sectors to read or write; a Run is a batch of its ATA commands.

Three nouns nest.  A :class:`Request` is carried by Runs.  A :class:`Run` is one batch of commands, sent together on
one path under the tags of one block.  A *transmission* is one tag of a run.  A command that is retransmitted belongs
to a new Run, so an answer is never ambiguous, and a late one is still understood.

State is a bit, never an object, in Python integers: to take the answers to sixteen commands is a handful of integer
operations, and what is missing can be cut into commands of another size for a path with another payload.

Rejected: a list of Command objects (each costs more than sending its frame), and a bit per command (the size of a
command belongs to the path that carries it).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from aoefs.core.memory import Memory
from aoefs.core.tags import LATE, TagOwner
from aoefs.errors import RequestError
from aoefs.protocol.wire import SECTOR_BYTES

if TYPE_CHECKING:
    from aoefs.core.path import Path

NOTHING: Final = memoryview(bytearray())  # the buffer of an ended request


def bits(first: int, count: int) -> int:
    """``count`` one bits, the lowest at position ``first``."""
    return ((1 << count) - 1) << first


class Request:
    """``sectors`` sectors from ``lba``, to read into or to write from ``buffer``, which begins with sector ``lba``.

    ``todo`` has a bit for each sector that was not answered yet.  The request has ended when it is 0 or ``error`` is
    set; then ``on_end(request)`` was called, and ``buffer`` is dropped: no late answer can touch it, and tags that may
    still be answered keep no memory.  A read without a buffer gets one of ``core.memory`` when its first command goes
    out (a request in the queue of a target needs none); :meth:`take_result` gives what was read into it.
    ``on_sent(request)``, if set, is called when the last command goes out.
    """

    __slots__ = (
        "_result",
        "borrows",
        "buffer",
        "copies",
        "cursor",
        "error",
        "first_sent_at",
        "lba",
        "on_end",
        "on_sent",
        "path",
        "sectors",
        "submitted_at",
        "todo",
        "write",
    )

    def __init__(
        self,
        lba: int,
        sectors: int,
        buffer: memoryview | None,
        *,
        write: bool,
        on_end: Callable[[Request], object],
    ) -> None:
        self.lba = lba
        self.sectors = sectors
        self.borrows = buffer is None  # memory that all reads share
        self.buffer = NOTHING if buffer is None else buffer
        self._result = NOTHING
        self.write = write
        self.on_end = on_end
        self.on_sent: Callable[[Request], object] | None = None
        self.todo = bits(0, sectors)
        self.cursor = 0  # sectors from here on were never sent
        self.error: RequestError | None = None
        self.submitted_at = 0.0
        self.first_sent_at: float | None = None
        self.path: Path | None = None  # the last one that carried a part of it
        self.copies: list[Run] = []  # runs of which a command was given up and sent again

    @property
    def ended(self) -> bool:
        return not self.todo or self.error is not None

    def borrow(self, memory: Memory) -> None:
        """The first command goes out."""
        if self.borrows:
            self.buffer = memory.lend(self.sectors)

    def let_go(self, memory: Memory) -> None:
        """It ended: nothing may touch the buffer any more; what was read into a borrowed one waits to be taken."""
        if self.borrows and self.cursor:
            self.borrows = False
            memory.end(self.sectors)
            if self.error is None:
                self._result = self.buffer
        self.buffer = NOTHING

    def take_result(self) -> memoryview:
        """What was read into a borrowed buffer, once."""
        result, self._result = self._result, NOTHING
        return result

    def land(self, start: int, data: bytes | memoryview) -> None:
        """Take the data of an answer that begins with sector ``start`` (counted from the request's).

        All of it, whatever came before: its sectors may have been asked for in other pieces meanwhile, and only some
        of them be done.  Every answer to a read that still waits is right.
        """
        if not self.ended:
            self.buffer[start * SECTOR_BYTES : start * SECTOR_BYTES + len(data)] = data


class Run(TagOwner):
    """``count`` commands of ``step`` sectors (the last one may be shorter); command ``index`` has ``tag ^ index``.

    ``flying`` and ``lost`` have a bit per command: unanswered and still counted in the windows; unanswered and given
    up (their sectors go out again in another run).
    """

    __slots__ = ("count", "flying", "lost", "order", "path", "request", "sector", "sectors", "sent_at", "step")

    def __init__(self, request: Request, path: Path, sector: int, sectors: int, step: int, now: float) -> None:
        super().__init__()
        self.request = request
        self.path = path
        self.sector = sector  # first sector, counted from the request's
        self.sectors = sectors
        self.step = step
        self.count = -(-sectors // step)
        self.flying = bits(0, self.count)
        self.lost = 0
        self.sent_at = now
        self.order = 0  # place in the path's order of sending

    @property
    def gone_at(self) -> float:
        """When a copy of a command can no longer arrive anywhere (seconds)."""
        return self.sent_at + self.path.frame_lifetime()

    @property
    def recognised_until(self) -> float:
        """Until when a late answer is known as such, and not taken for that of a second disk (seconds)."""
        return max(self.gone_at, self.sent_at + LATE)

    def facts(self) -> tuple[bytes, bytes, bool, Request, memoryview, bool, int, int, int, int, int, int]:
        """(header of a command and of its answers, lba48, request, its buffer, write, lba, tag, count, step, sector,
        sectors): for ``net.frames``, to which five attributes cost as much as this call.
        """
        path, request = self.path, self.request
        return (
            path.request_head,
            path.answer_head,
            path.lba48,
            request,
            request.buffer,
            request.write,
            request.lba + self.sector,
            self.tag,
            self.count,
            self.step,
            self.sector,
            self.sectors,
        )

    def sectors_of(self, first: int, count: int) -> tuple[int, int]:
        """The sectors (first, how many; counted from the request's) of ``count`` commands from the ``first``."""
        start = first * self.step
        return self.sector + start, min(count * self.step, self.sectors - start)
