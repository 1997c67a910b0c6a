"""The log of slow requests (``--slow``): a disk that times each call, and logs one line for each that takes too long.

Owns, for each task inside of a call, where that call has waited so far: *queue*, until the first frame of a request
goes out; *wire*, from there to its last answer; *flush*, for the target to carry out a FLUSH; *claim*, all the rest,
which is for earlier writes: to the same sectors, or for a flush all that were answered early (``engine.writebehind``).
A write that was answered early has a line of its own when its acknowledgement is slow.

Without ``--slow`` there is none of this: the roster makes a plain ``Disk``.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator

from aoefs.core.overlap import Claim
from aoefs.core.path import Path
from aoefs.core.request import Request
from aoefs.core.target import Target
from aoefs.engine.changes import Changes
from aoefs.engine.disk import Disk
from aoefs.engine.driver import Driver
from aoefs.protocol.wire import SECTOR_BYTES, format_mac

log = logging.getLogger("aoefs")


class Trace:
    """Where a call that began at ``began`` has waited (seconds), and the last ``path`` that carried a part of it."""

    __slots__ = ("began", "flush", "path", "queue", "wire")

    def __init__(self, began: float) -> None:
        self.began = began
        self.queue = self.wire = self.flush = 0.0
        self.path: Path | None = None

    def add(self, request: Request, now: float) -> None:
        sent_at = now if request.first_sent_at is None else request.first_sent_at
        self.queue += sent_at - request.submitted_at
        self.wire += now - sent_at
        self.path = request.path or self.path


class TimedDisk(Disk):
    """A call of more than ``slow`` seconds is logged."""

    def __init__(self, target: Target, driver: Driver, changes: Changes, slow: float) -> None:
        super().__init__(target, driver, changes)
        self._slow = slow
        self._traces: dict[object, Trace] = {}

    async def read(self, offset: int, size: int) -> memoryview:
        with self._timed(f"read{_place(offset, size)}"):
            return await Disk.read(self, offset, size)

    async def write(self, offset: int, data: bytes | memoryview, *, behind: bool = False) -> None:
        with self._timed(f"write{_place(offset, len(data))}"):
            await Disk.write(self, offset, data, behind=behind)

    async def flush(self) -> None:
        with self._timed("flush"):
            await Disk.flush(self)

    @contextlib.contextmanager
    def _timed(self, what: str) -> Iterator[None]:
        """The block is a call; it is logged at its end if it was slow."""
        task = self._driver.callers.current()
        trace = self._traces[task] = Trace(self._driver.now())
        try:
            yield
        finally:
            del self._traces[task]
            self._report(trace, what)

    def _report(self, trace: Trace, what: str) -> None:
        total = self._driver.now() - trace.began
        if total <= self._slow:
            return
        path = trace.path
        log.warning(
            "%s: slow %s%s: %.3f s (claim %.3f, queue %.3f, wire %.3f, flush %.3f)",
            self.target.name,
            what,
            "" if path is None else f" by {path.interface} to {format_mac(path.mac)}",
            total,
            max(0.0, total - trace.queue - trace.wire - trace.flush),
            trace.queue,
            trace.wire,
            trace.flush,
        )

    # ── the steps of a call ───────────────────────────────────────────────────────────────────────────────────────

    def _end(self, request: Request) -> None:
        self._traces[self._driver.callers.current()].add(request, self._driver.now())
        Disk._end(self, request)

    def _leave_behind(self, claim: Claim, request: Request) -> None:
        self._traces[self._driver.callers.current()].add(request, self._driver.now())
        Disk._leave_behind(self, claim, request)

    async def _flush_target(self) -> None:
        began = self._driver.now()
        try:
            await Disk._flush_target(self)
        finally:
            self._traces[self._driver.callers.current()].flush += self._driver.now() - began

    def _end_write_behind(self, claim: Claim, request: Request) -> None:
        Disk._end_write_behind(self, claim, request)
        trace = Trace(request.submitted_at)
        trace.add(request, self._driver.now())
        place = _place(request.lba * SECTOR_BYTES, request.sectors * SECTOR_BYTES)
        self._report(trace, f"acknowledgement of a write{place}")


def _place(offset: int, size: int) -> str:
    return f" of {size} bytes at LBA {offset // SECTOR_BYTES}"
