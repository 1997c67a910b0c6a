"""One disk as its users see it: read, write and flush at any byte, whatever the size.

Owns nothing but the waiting: a :class:`Disk` turns byte ranges into Requests of whole sectors, holds the range of a
write while it is carried out, and sleeps until the machine (``core.target``) says that a Request ended.

What holds always:

- Data or an exception: never a short read, never an acknowledged write that the target did not acknowledge, but for
  the writes of a stream (``engine.writebehind``), which flush waits for.
- Writes that overlap are carried out one after the other.  A partial sector is read, changed and written back with
  its range held, so neighbours that write into one sector at the same time lose nothing.
- Cancelling any call is safe: nothing of it is sent any more, and a write's range is given back only when no copy of
  it can travel.

Rejected: locks around partial sectors only (a whole-sector write would slip between the read and the write).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from functools import partial
from typing import Final, Protocol

import numpy as np
import trio

from aoefs.core.overlap import Claim
from aoefs.core.path import Run
from aoefs.core.request import Request
from aoefs.core.tags import Exchange, TagTable
from aoefs.core.target import State, Target
from aoefs.engine.reservation import Reservation
from aoefs.engine.waits import Sleepers, Wait
from aoefs.engine.writebehind import WriteBehind
from aoefs.errors import AtaError, FrameError, RequestError, TargetError, TargetLost
from aoefs.net.link import Link
from aoefs.protocol.ata import check_result, flush_registers
from aoefs.protocol.wire import (
    SECTOR_BYTES,
    AoeCommand,
    AtaArgument,
    ConfigArgument,
    ConfigCommand,
    Header,
    MaskArgument,
    MaskDirective,
    ReserveArgument,
    decode_ata_untrusted,
    decode_config_untrusted,
    decode_header_untrusted,
    decode_mask_untrusted,
    decode_reserve_untrusted,
    encode_ata,
    encode_config,
    encode_mask,
    encode_reserve,
)

log = logging.getLogger("aoefs")

MAX_REQUEST_SECTORS: Final = 2048  # 1 MiB: what one FUSE request holds; larger transfers are cut into such pieces
LIGHT_SECTORS: Final = 256  # up to so many a write is light, see Disk.exempt_calls
FIRST_WAIT: Final = 1.0  # seconds until a lone command is sent again, then doubling: a disk may take long over a FLUSH
SMALL_BYTES: Final = 1 << 15  # up to so many, zeroing them is cheaper than an array
MAX_WAIT: Final = 8.0  # seconds

_DECODERS: dict[AoeCommand, Callable[[bytes], object]] = {
    AoeCommand.ATA: decode_ata_untrusted,
    AoeCommand.CONFIG: decode_config_untrusted,
    AoeCommand.MASK: decode_mask_untrusted,
    AoeCommand.RESERVE: decode_reserve_untrusted,
}


class Driver(Protocol):
    """What a disk needs of the engine."""

    tags: TagTable[Run | Exchange]
    waiting: Sleepers

    def now(self) -> float: ...

    def macs(self) -> tuple[bytes, ...]: ...

    def pump(self, target: Target) -> None: ...

    def arm(self, target: Target, now: float) -> None: ...

    def wait_in_place(self, target: Target, wait: Wait) -> None: ...

    def write_was_lost(self, disk: Disk, error: RequestError) -> None:
        """A write failed that had been answered already."""
        ...


def make_buffer(size_bytes: int) -> memoryview:
    """For a read, not zeroed first: every byte of it comes from the disk, or nobody gets to see it."""
    return np.empty(size_bytes, np.uint8).data if size_bytes > SMALL_BYTES else memoryview(bytearray(size_bytes))


class Disk:
    """See the module.  ``target`` is the machine behind it; its identity tells size, serial and model.

    ``opened`` is for its users to count themselves in: a disk that somebody has open is never forgotten.
    """

    def __init__(self, target: Target, driver: Driver) -> None:
        self.target = target
        self.opened = 0
        self.reservation = Reservation(self)
        self._driver = driver
        self._waiting = driver.waiting
        self.write_behind = WriteBehind(driver.waiting)
        self.generation = 0  # moves when what was read before may no longer be what is there
        self._waits: set[Wait] = set()  # for a claim, or for the answer to a lone command

    @property
    def size_bytes(self) -> int:
        return self.target.identity.size_bytes

    def exempt_calls(self) -> int:
        """How many calls wait that should not count against those for other disks: the light ones, which are reads
        (their memory has a bound of its own) and small writes, and all if the target is silent.
        """
        requests = self.target.requests()
        if self.target.is_silent:
            return len(requests) + len(self._waits)
        return sum(not request.write or request.sectors <= LIGHT_SECTORS for request in requests)

    def interrupt(self, error: RequestError | None = None) -> None:
        """The target went (``error``) or came back: whoever waits for something else than a Request looks again."""
        self.generation += 1
        for wait in self._waits:
            wait.error = error
            wait.wake()

    async def read(self, offset: int, size: int, make_buffer: Callable[[int], memoryview] = make_buffer) -> memoryview:
        """``size`` bytes from ``offset`` on (bytes, any alignment); both must lie within the target.

        ``make_buffer`` gives the memory for so many bytes, a multiple of 512: of up to 1 MiB only when it is needed,
        and not for small reads (``SMALL_BYTES``), which are not worth its bound.
        RequestError when a target or disk says no, or nobody answers within ``deadsecs``.
        """
        first, end = offset // SECTOR_BYTES, -(-(offset + size) // SECTOR_BYTES)
        self._check_range(first, end)
        if self.write_behind.pending:
            await self.write_behind.settle(first, end)
        size_bytes = (end - first) * SECTOR_BYTES
        if size_bytes <= SMALL_BYTES:
            buffer = memoryview(bytearray(size_bytes))
            await self._carry_out(first, end - first, buffer, write=False)
        elif end - first <= MAX_REQUEST_SECTORS:
            request = await self._carry_out(first, end - first, partial(make_buffer, size_bytes), write=False)
            buffer = request.take_result()
        else:
            buffer = make_buffer(size_bytes)
            await self._transfer(first, buffer, write=False)
        skip = offset - first * SECTOR_BYTES
        return buffer if size == len(buffer) else buffer[skip : skip + size]

    async def write(self, offset: int, data: bytes | memoryview, *, behind: bool = False) -> None:
        """Write ``data`` at ``offset`` (bytes, any alignment); returns when the target acknowledged all of it.

        ``behind``: whole sectors of up to 1 MiB may be acknowledged later, once all of their frames are sent, and an
        error is then in ``self.write_behind``.  Writes that overlap are carried out one after the other; a partial
        sector is read, changed and written back with its range held.  RequestError as for :meth:`read`; what was
        written before an error is not known.
        """
        first, end = offset // SECTOR_BYTES, -(-(offset + len(data)) // SECTOR_BYTES)
        self._check_range(first, end)
        claim = Claim(first, end)
        requests: list[Request] = []
        if not self.target.order.acquire(claim):
            await self._wait_for_claim(claim)
        self.generation += 1
        left_behind = False
        try:
            buffer = memoryview(data)
            if offset % SECTOR_BYTES or len(data) % SECTOR_BYTES:
                buffer = await self._fill_edges(first, end, offset, data)
            elif behind and end - first <= MAX_REQUEST_SECTORS:
                left_behind = await self._write_behind(claim, buffer, requests)
                return
            await self._transfer(first, buffer, write=True, requests=requests)
        finally:
            if not left_behind:
                self._end_write(claim, requests)

    async def _write_behind(self, claim: Claim, buffer: memoryview, requests: list[Request]) -> bool:
        """Send whole sectors; True when they are still to be acknowledged, by which the claim then ends."""
        first, sectors = claim.first, claim.end - claim.first
        request = await self._carry_out(first, sectors, buffer, write=True, requests=requests, behind=True)
        if request.ended:
            return False
        self.target.dirty = True
        self.generation += 1  # who began to read before this moment may have been faster than the write
        self.write_behind.add(request)
        request.on_end = partial(self._end_write_behind, claim)
        return True

    def _end_write_behind(self, claim: Claim, request: Request) -> None:
        self._end_write(claim, [request])
        self.write_behind.end(request)
        if request.error is not None:
            self._driver.write_was_lost(self, request.error)

    def _end_write(self, claim: Claim, requests: list[Request]) -> None:
        self.generation += 1
        self.target.release(claim, requests)
        self._driver.arm(self.target, self._driver.now())

    async def flush(self) -> None:
        """Make what was acknowledged durable, with the command that the target announces (none: nothing to do).

        RequestError when it fails or nobody answers; the target then stays dirty.  A target that does not know its
        own command (ABRT) has no cache that we could flush; that is remembered and shown.
        """
        target = self.target
        await self.write_behind.settle()
        opcode = target.identity.flush_opcode
        written = target.writes
        if opcode is not None and not target.flush_refused:
            target.dirty = True  # should it fail
            try:
                check_result(decode_ata_untrusted(await self.command(flush_registers(opcode))))
            except RequestError as error:
                if not (isinstance(error, AtaError) and error.is_abort) or target.flushes:
                    target.errors += 1  # once it could flush, ABRT means that it failed to
                    raise
                target.flush_refused = True
                log.warning("%s refuses its own flush command: what it caches cannot be made durable", target.name)
            else:
                target.flushes += 1
        if target.writes == written and not self.write_behind.pending:
            target.dirty = False

    def our_macs(self) -> tuple[bytes, ...]:
        """Of all interfaces that we speak on."""
        return self._driver.macs()

    async def reserve(self, argument: ReserveArgument) -> tuple[bytes, ...]:
        """Ask for or change the list of initiators that alone may use this disk (AoEr11 section 3.4); the list then.

        TargetError 6 when somebody else holds it, 1 when the target knows no reservations.
        """
        frame = await self._converse(AoeCommand.RESERVE, lambda header: encode_reserve(header, argument))
        return decode_reserve_untrusted(frame).macs

    async def holders(self) -> tuple[bytes, ...]:
        """The MACs that hold its reservation; none: nobody does."""
        return await self.reserve(ReserveArgument())

    async def mask(self) -> tuple[bytes, ...]:
        """The only MACs that the target listens to; none: to all (AoEr11 section 3.3)."""
        frame = await self._converse(AoeCommand.MASK, lambda header: encode_mask(header, MaskArgument()))
        return tuple(mac for kind, mac in decode_mask_untrusted(frame).directives if kind != MaskDirective.DELETE)

    async def set_config(self, string: bytes) -> None:
        """Store the config string (0 to 1024 bytes), whatever was there.  TargetError, TargetLost."""
        argument = ConfigArgument(ConfigCommand.FORCE_SET, string)
        frame = await self._converse(AoeCommand.CONFIG, lambda header: encode_config(header, argument))
        self.target.config = decode_config_untrusted(frame).string

    async def command(self, registers: AtaArgument, data: bytes = b"") -> bytes:
        """Carry out one lone ATA command; the whole answering frame.  TargetError, TargetLost."""
        return await self._converse(AoeCommand.ATA, lambda header: encode_ata(header, registers, data))

    async def _converse(self, command: AoeCommand, encode: Callable[[Header], bytes]) -> bytes:
        """Send one lone command until it is answered; the whole answering frame, not an AoE error.

        It is sent again after max(1 s, RTO), doubling, by turns on all paths.
        """
        target = self.target
        answers: list[tuple[Header, bytes]] = []
        wait = Wait(self._waiting)

        def on_answer(link: Link, frame: bytes) -> None:
            header = decode_header_untrusted(frame)
            if not target.is_from(link, header, command):
                raise FrameError("nobody whom this command was sent to")
            if not header.is_error:  # an error may come without anything
                _DECODERS[command](frame)
            answers.append((header, frame))
            wait.wake()

        exchange = Exchange(on_answer)
        self._driver.tags.open(exchange)
        self._waits.add(wait)
        target.begin_lone_command(self._driver.now())
        self._driver.arm(target, self._driver.now())
        until = self._driver.now() + (target.deadsecs or math.inf)
        pause = FIRST_WAIT
        try:
            while target.state is State.UP and wait.error is None and not answers:
                left = until - self._driver.now()
                if left <= 0:
                    break
                wait.woken = False
                paths = [path for path in target.paths if path.healthy] or target.paths
                path = paths[exchange.sendings % len(paths)] if paths else None
                renewing = target.awaiting_reservation and command is AoeCommand.RESERVE
                if path is not None and (renewing or not target.suspended):
                    link: Link = path.link  # type: ignore[assignment]  # the core keeps the link opaque
                    link.send_frame(encode(Header(path.mac, link.mac, target.address, command, exchange.next_tag())))
                    pause = max(pause, path.rtt.rto)
                with trio.move_on_after(min(pause, left)):
                    await wait.wait()
                pause = min(pause * 2, MAX_WAIT)
        finally:
            target.end_lone_command()
            self._waits.discard(wait)
            self._driver.tags.close(exchange)
        if not answers:
            raise wait.error or TargetLost(f"{target.name} did not answer {command.name}")
        target.heard(self._driver.now())
        header, frame = answers[0]
        if header.is_error:
            raise TargetError(header.error)
        return frame

    # ── transfers ─────────────────────────────────────────────────────────────────────────────────────────────────

    def _check_range(self, first: int, end: int) -> None:
        if not 0 <= first < end <= self.target.identity.sectors:
            raise ValueError(f"sectors {first} to {end} are not within {self.target.name}")

    async def _transfer(
        self,
        lba: int,
        buffer: memoryview,
        *,
        write: bool,
        requests: list[Request] | None = None,
    ) -> None:
        """Read or write whole sectors, in pieces of at most ``MAX_REQUEST_SECTORS``, one after the other."""
        step = MAX_REQUEST_SECTORS * SECTOR_BYTES
        for start in range(0, len(buffer), step):
            piece = buffer[start : start + step]
            await self._carry_out(
                lba + start // SECTOR_BYTES, len(piece) // SECTOR_BYTES, piece, write=write, requests=requests
            )

    async def _carry_out(
        self,
        lba: int,
        sectors: int,
        buffer: memoryview | Callable[[], memoryview],
        *,
        write: bool,
        requests: list[Request] | None = None,
        behind: bool = False,
    ) -> Request:
        """One Request from its beginning to its end, or ``behind``: to its last sending."""
        wait = Wait(self._waiting)
        request = Request(lba, sectors, buffer, write=write, on_end=wait.wake)
        if behind:
            request.on_sent = wait.wake
        if requests is not None:
            requests.append(request)
        self.target.submit(request, self._driver.now())
        self._driver.pump(self.target)
        if not wait.woken:
            self._driver.wait_in_place(self.target, wait)
        try:
            await wait.wait()
            while behind and not (request.ended or self.target.is_on_the_wire(request)):
                wait.woken = False
                await wait.wait()
        except trio.Cancelled:
            self.target.abandon(request)
            self._driver.pump(self.target)  # others may have waited for its memory
            raise
        if request.error is not None:
            raise request.error
        return request

    async def _wait_for_claim(self, claim: Claim) -> None:
        """Wait until ``claim`` is granted; RequestError when the target goes, or keeps it longer than deadsecs."""
        target = self.target
        wait = Wait(self._waiting)
        claim.granted = wait.wake
        self._waits.add(wait)
        until = self._driver.now() + (target.deadsecs or math.inf)
        try:
            while target.state is State.UP and wait.error is None and not claim.is_granted:
                left = until - self._driver.now()
                if left <= 0:
                    break
                wait.woken = False
                with trio.move_on_after(left):
                    await wait.wait()
        except trio.Cancelled:
            target.order.release(claim)
            raise
        finally:
            self._waits.discard(wait)
        if not claim.is_granted:
            target.order.release(claim)
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
            await self._transfer(first + sector, view[start : start + SECTOR_BYTES], write=False)
        view[head:tail] = data
        return view
