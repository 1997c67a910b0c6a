"""One disk as its users see it: read, write and flush at any byte, of any size.

Turns byte ranges into Requests of whole sectors, holds the range of a write while it is carried out, and sleeps until
the target (``core.target``) says that a Request ended.

What always holds:

- Data or an exception.  A read is never short.  A write returns when the target acknowledged it, except for the writes
  of a stream (``engine.writebehind``), which flush waits for.
- Writes that overlap are carried out one after the other.  A partial sector is read, changed and written back with
  its range held, so neighbours that write into one sector at the same time lose nothing.
- Every call can be cancelled: nothing of it is sent any more, and the range of a write is given back only when no copy
  of it can travel.

Rejected: locks around partial sectors only (a whole-sector write would slip between the read and the write).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Container
from functools import partial
from typing import Final

import trio

from aoefs.core.overlap import Claim
from aoefs.core.request import Request
from aoefs.core.target import Target
from aoefs.engine.changes import Change, Changes
from aoefs.engine.commands import Commands
from aoefs.engine.driver import Driver
from aoefs.engine.reservation import Reservation
from aoefs.engine.waits import Wait, WaitGroup
from aoefs.engine.writebehind import WriteBehind
from aoefs.errors import AddressConflict, AtaError, RequestError, TargetLost
from aoefs.protocol.ata import flush_registers
from aoefs.protocol.wire import SECTOR_BYTES

log = logging.getLogger("aoefs")

MAX_REQUEST_SECTORS: Final = 2048  # 1 MiB: what one FUSE request holds; larger transfers are cut into such pieces
LIGHT_SECTORS: Final = 256  # a write of up to so many is light, see Disk.exempt_calls


class Disk:
    """See the module.  ``target`` is the machine behind it; its identity has size, serial and model.

    ``opened`` counts its open files, and is changed by their owner: a disk in use is never forgotten.  ``generation``
    moves when what was read before may no longer be what is there.
    """

    def __init__(self, target: Target, driver: Driver, changes: Changes) -> None:
        self.target = target
        self.opened = 0
        self.generation = 0
        self._waits = WaitGroup(driver.callers, target.life)
        self.write_behind = WriteBehind(self._waits)
        self.commands = Commands(driver, target, self._waits)
        self.reservation = Reservation(driver, target, self.commands, self.write_behind)
        self._driver = driver
        self._changes = changes

    @property
    def size_bytes(self) -> int:
        return self.target.identity.sectors * SECTOR_BYTES

    def exempt_calls(self) -> int:
        """How many of the calls under way should not count against the kernel's bound for all disks together
        (``fuse.tuning``): light ones, which are reads (their memory has a bound of its own) and small writes; and all
        of them if the target is silent.
        """
        requests = self.target.requests()
        if self.target.is_silent:
            return len(requests) + len(self._waits)
        return sum(not request.write or request.sectors <= LIGHT_SECTORS for request in requests)

    def interrupt(self, error: RequestError | None = None) -> None:
        """The target is gone (``error``), or it is back: what waits for something else than a Request looks again."""
        self.generation += 1
        self._waits.interrupt(error)

    def close(self, spared: Container[Request] = ()) -> None:
        """The mount ends: every call under way fails, and every later one."""
        self.target.close(spared)
        self.interrupt(TargetLost("the engine stopped"))

    async def read(self, offset: int, size: int) -> memoryview:
        """``size`` bytes from ``offset`` on (bytes, any alignment); both must lie within the target.

        RequestError if target or disk reports an error, or if there is no answer within ``deadsecs``.
        """
        first, end = offset // SECTOR_BYTES, -(-(offset + size) // SECTOR_BYTES)
        self._check_range(first, end)
        if self.write_behind.pending:
            await self.write_behind.wait_acknowledged(first, end)
        pieces: list[memoryview] = []
        for lba in range(first, end, MAX_REQUEST_SECTORS):
            wait = Wait(self._driver.callers)
            request = Request(lba, min(end - lba, MAX_REQUEST_SECTORS), None, write=False, on_end=wait.wake)
            self._driver.submit(self.target, request)
            try:
                await wait.wait()
            except BaseException:
                self._abandon(request)
                raise
            self._end(request)
            pieces.append(request.take_result())
        buffer = pieces[0] if len(pieces) == 1 else memoryview(b"".join(pieces))
        skip = offset - first * SECTOR_BYTES
        return buffer if size == len(buffer) else buffer[skip : skip + size]

    async def write(self, offset: int, data: bytes | memoryview, *, behind: bool = False) -> None:
        """Write ``data`` at ``offset`` (bytes, any alignment); returns when the target acknowledged all of it.

        ``behind``: whole sectors of up to 1 MiB may be acknowledged later, once all of their frames are sent; an error
        is then in ``write_behind``.  RequestError as for :meth:`read`, and AddressConflict; what was written before an
        error is not known.
        """
        first, end = offset // SECTOR_BYTES, -(-(offset + len(data)) // SECTOR_BYTES)
        self._check_range(first, end)
        if self.target.conflict:
            raise AddressConflict(self.target.conflict)
        claim = Claim(first, end)
        if not self.target.order.acquire(claim):
            try:
                await self._driver.callers.in_task(self._wait_for_claim, claim)
            except BaseException:
                self.target.order.release(claim)
                raise
        self.generation += 1
        requests: list[Request] = []
        left_behind = False
        try:
            buffer = memoryview(data)
            if offset % SECTOR_BYTES or len(data) % SECTOR_BYTES:
                buffer = await self._fill_edges(first, end, offset, data)
                behind = False
            for lba in range(first, end, MAX_REQUEST_SECTORS):
                start = (lba - first) * SECTOR_BYTES
                piece = buffer[start : start + MAX_REQUEST_SECTORS * SECTOR_BYTES]
                wait = Wait(self._driver.callers)
                request = Request(lba, len(piece) // SECTOR_BYTES, piece, write=True, on_end=wait.wake)
                requests.append(request)
                if behind and len(piece) == len(buffer):
                    request.on_sent = wait.wake
                self._driver.submit(self.target, request)
                while not (request.ended or (request.on_sent is not None and self.target.is_on_the_wire(request))):
                    wait.woken = False
                    await wait.wait()
                if not request.ended:
                    left_behind = True
                    self._leave_behind(claim, request)
                else:
                    self._end(request)
        finally:
            if not left_behind:
                self._end_write(claim, requests)

    def _leave_behind(self, claim: Claim, request: Request) -> None:
        """Answer a write of which all is sent; its acknowledgement ends the claim."""
        self.target.dirty = True
        self.generation += 1  # a read that began before this moment may have been faster than the write
        self.write_behind.add(request)
        request.on_end = partial(self._end_write_behind, claim)

    def _end_write_behind(self, claim: Claim, request: Request) -> None:
        self._end_write(claim, [request])
        self.write_behind.end(request)
        error = request.error
        if error is not None:
            log.error("%s: a write%s failed after it was answered: %s", self.target.name, error.at, error)
            self._changes.publish(self, Change.REVALIDATED)  # the kernel has pages that are not on the disk

    def _end_write(self, claim: Claim, requests: list[Request]) -> None:
        self.generation += 1
        for request in requests:
            if not request.ended:
                self._abandon(request)
        if not self.target.release(claim, requests):
            self._driver.timer.arm(self.target, self._driver.now())

    async def flush(self) -> None:
        """Make what was acknowledged durable, with the command that the target announces (none: nothing to do).

        RequestError if it fails or there is no answer; the target then stays dirty.  A target that does not know its
        own command (ABRT) has no cache that we could flush; that is remembered and shown.
        """
        await self.write_behind.wait_acknowledged()
        await self._flush_target()

    async def _flush_target(self) -> None:
        target = self.target
        opcode = target.identity.flush_opcode
        written = target.writes
        if opcode is not None and not target.flush_unknown:
            target.dirty = True  # in case it fails
            try:
                answer = await self.commands.flush(flush_registers(opcode))
                if answer.error is not None:
                    raise answer.error
            except RequestError as error:
                if not (isinstance(error, AtaError) and error.is_abort) or target.flushes:
                    target.errors += 1  # once it could flush, ABRT means that it failed to
                    raise
                target.flush_unknown = True
                log.warning("%s refuses its own flush command: what it caches cannot be made durable", target.name)
            else:
                target.flushes += 1
        if target.writes == written and not self.write_behind.pending:
            target.dirty = False

    # ── transfers ─────────────────────────────────────────────────────────────────────────────────────────────────

    def _check_range(self, first: int, end: int) -> None:
        if not 0 <= first < end <= self.target.identity.sectors:
            raise ValueError(f"sectors {first} to {end} are not within {self.target.name}")

    def _end(self, request: Request) -> None:
        """It has ended: its error is raised."""
        if request.error is not None:
            raise request.error

    def _abandon(self, request: Request) -> None:
        """Its call was cancelled: nothing more of it is sent.  Others may have waited for its memory."""
        self.target.abandon(request)
        self._driver.pump(self.target, self._driver.now())

    async def _wait_for_claim(self, claim: Claim) -> None:
        """Wait until ``claim`` is granted; RequestError when the target goes, or keeps it longer than deadsecs."""
        target = self.target
        until = self._driver.now() + (target.deadsecs or math.inf)
        wait = self._waits.begin()
        claim.granted = wait.wake
        try:
            while target.life.is_served and wait.error is None and not claim.is_granted:
                left = until - self._driver.now()
                if left <= 0:
                    break
                wait.woken = False
                with trio.move_on_after(left):
                    await wait.wait()
        finally:
            self._waits.end(wait)
        if not claim.is_granted:
            raise wait.error or TargetLost(f"{target.name}: an earlier write to the same sectors is not over")

    async def _fill_edges(self, first: int, end: int, offset: int, data: bytes | memoryview) -> memoryview:
        """``data`` widened to whole sectors, with what the disk holds around it; the range must be claimed."""
        whole = bytearray((end - first) * SECTOR_BYTES)
        view = memoryview(whole)
        head = offset - first * SECTOR_BYTES
        tail = head + len(data)
        edges = {0} if head else set()
        if tail % SECTOR_BYTES:
            edges.add(end - first - 1)
        for sector in sorted(edges):
            start = sector * SECTOR_BYTES
            if first + sector >= self.target.identity.sectors:
                raise TargetLost(f"{self.target.name} shrank while it was written")
            view[start : start + SECTOR_BYTES] = await Disk.read(self, first * SECTOR_BYTES + start, SECTOR_BYTES)
        view[head:tail] = data
        return view
