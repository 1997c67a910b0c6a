"""The engine: one trio nursery in which frames become finished requests.

Owns the ports, the targets, the tags and the timer.  Tasks: a *receiver* per port, the *completion shards*
(``aoefs.shard``), the *discovery* (``aoefs.discovery``), one *timer* for all targets, one *watch* that looks for
silent ones.  Everything that touches a target's machine is a sync call, hence atomic under trio.

The life of a read::

    read() ── Request ──► Initiator.submit ── pump ──► Port.send_run ~~~ wire ~~~ target
    read() ◄── on_end ── shard ◄── (run, first, count) ── receiver ◄── Port.receive ◄── answers

What holds always:

- ``_pump`` is the only place that sends runs; it is called after every input that may have opened a window.
- The receiver does the least: match, RTT, window, send more, queue.  Completion is the shards' business.
- A waiting call ends: with its data, with an error, or cancelled; then nothing of it is left in a queue.
- Only a finding of the discovery creates a target or a path; another identity under the same address is refused
  while the first one lives, and replaces it when it is gone.

Rejected: a timer per target (hundreds of re-armed deadlines; here the common re-arming only moves later and is free),
and awaiting in ``_pump`` (a full socket parks the target in the port's queue instead).
"""

from __future__ import annotations

import logging
import math
import os
import secrets
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from enum import Enum

import trio

from aoefs.ata import check_result, flush_registers
from aoefs.discovery import Discovery, Finding
from aoefs.errors import AtaError, FrameError, RequestError, TargetError, TargetLost
from aoefs.initiator import DEFAULT_DEADSECS, DEFAULT_MAXOUT, Initiator, State, TargetStatistics
from aoefs.link import LINK_DOWN, LinkStatistics
from aoefs.overlap import Claim
from aoefs.path import Path, Run
from aoefs.port import Port, SocketPort
from aoefs.request import Request
from aoefs.shard import Answer, Shards, ShardStatistics
from aoefs.tags import Exchange, TagTable
from aoefs.wire import (
    ATA_BYTES,
    SECTOR_BYTES,
    VERSION,
    Address,
    AoeCommand,
    AtaArgument,
    Header,
    decode_ata_untrusted,
    decode_header_untrusted,
    encode_ata,
)

log = logging.getLogger("aoefs")

MAX_REQUEST_SECTORS = 2048  # 1 MiB: what one FUSE request holds; larger transfers are cut into such pieces
RECEIVE_BATCHES = 8  # batches of one port before the other tasks get a turn
FIRST_FLUSH_WAIT = 1.0  # seconds until a FLUSH is sent again, then doubling: a disk may take long over it
QUIET_AFTER_TARGET = 0.15  # seconds without a new target after which the first discovery is over
FIRST_DISCOVERY = 1.0  # seconds after which it is over anyhow
SILENT_QUERIES = (2.0, 4.0, 8.0, 15.0)  # seconds between the queries for a silent target; the last one repeats


class Change(Enum):
    """What happened to a target, as told to ``Settings.on_change``."""

    APPEARED = "appeared"
    RESIZED = "resized"
    RETURNED = "returned"
    REPLACED = "replaced"
    DOWN = "down"


def _usable_cpus() -> int:
    return len(os.sched_getaffinity(0))


def _ignore_change(_target: Initiator, _change: Change) -> None:
    """Nobody listens."""


@dataclass(frozen=True)
class Settings:
    """``shards`` completion queues, ``deadsecs`` seconds a request may wait (0: for ever), ``maxout`` commands in
    flight per target, ``allow_mac`` the only MACs to talk to (empty: all), ``max_targets`` at once.
    """

    shards: int = field(default_factory=_usable_cpus)
    deadsecs: float = DEFAULT_DEADSECS
    maxout: int = DEFAULT_MAXOUT
    allow_mac: frozenset[bytes] = frozenset()
    max_targets: int = 1024
    on_change: Callable[[Initiator, Change], object] = _ignore_change


@dataclass(frozen=True, slots=True)
class EngineStatistics:
    """A frozen picture of everything."""

    targets: tuple[TargetStatistics, ...]
    shards: tuple[ShardStatistics, ...]
    links: tuple[LinkStatistics, ...]
    hints: int
    refused_identities: int


class _Wait:
    """One task that waits for one thing; ``wake`` may come before the waiting began."""

    __slots__ = ("_task", "woken")

    def __init__(self) -> None:
        self.woken = False
        self._task: trio.lowlevel.Task | None = None

    def wake(self, _thing: object = None) -> None:
        self.woken = True
        if self._task is not None:
            task, self._task = self._task, None
            trio.lowlevel.reschedule(task)

    async def wait(self) -> None:
        if self.woken:
            return
        self._task = trio.lowlevel.current_task()

        def abort(_raise_cancel: object) -> trio.lowlevel.Abort:
            self._task = None
            return trio.lowlevel.Abort.SUCCEEDED

        await trio.lowlevel.wait_task_rescheduled(abort)


class Engine:
    """See the module; made by :func:`open_engine`."""

    def __init__(self, nursery: trio.Nursery, settings: Settings) -> None:
        self.settings = settings
        self.targets: dict[Address, Initiator] = {}
        self.ports: dict[str, Port] = {}
        self.refused_identities = 0
        self._nursery = nursery
        self._now = trio.lowlevel.current_clock().current_time
        self._tags: TagTable[Run | Exchange] = TagTable(secrets.randbits(31))
        self._discovery = Discovery(self._tags, nursery, self._on_finding, settings.allow_mac)
        self._shards = Shards(settings.shards, nursery, self._pump)
        self._owners: dict[Path, Initiator] = {}
        self._blocked: dict[Port, dict[Initiator, None]] = {}  # targets that wait for room in a port's socket
        self._armed: dict[Initiator, float] = {}  # when the timer will look at a target
        self._timer_scope: trio.CancelScope | None = None
        self._last_new_target: float | None = None
        self._started_at = self._now()
        nursery.start_soon(self._timer, name="timer")
        nursery.start_soon(self._watch, name="watch")

    # ── ports ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def open_port(self, interface: str) -> Port:
        """Speak AoE on a local interface from now on.  OSError as ``aoefs.link.Link``."""
        port = SocketPort(interface, self._tags)
        self.add_port(port)
        return port

    def add_port(self, port: Port) -> None:
        """Take a port that somebody made (tests), receive on it and discover."""
        self.ports[port.interface] = port
        self._nursery.start_soon(self._receive, port, name=f"receiver on {port.interface}")
        self._discovery.start(port)

    def port_changed(self, port: Port, *, up: bool) -> None:
        """The interface went up or down, or its MTU changed: measure and discover again."""
        port.refresh()
        port.up = up
        if up:
            self._discovery.start(port)
        else:
            self._discovery.stop(port)

    def drop_port(self, port: Port) -> None:
        """The interface is gone."""
        self._discovery.stop(port)
        del self.ports[port.interface]
        self._blocked.pop(port, None)
        now = self._now()
        for target in self.targets.values():
            for path in [path for path in target.paths if path.link is port]:
                del self._owners[path]
            target.drop_link(port, now)
            self._pump(target)
        port.close()

    async def _receive(self, port: Port) -> None:
        """The receiver of one port."""
        while self.ports.get(port.interface) is port:
            try:
                await port.wait_readable()
                for _ in range(RECEIVE_BATCHES):
                    if not self._receive_batch(port):
                        break
            except trio.ClosedResourceError:
                return
            except OSError as error:
                if error.errno not in LINK_DOWN:
                    raise
                port.up = False

    def _receive_batch(self, port: Port) -> bool:
        """Take one batch of frames; False when there was nothing more."""
        received, entries, odd = port.receive()
        if not received:
            return False
        now = self._now()
        touched: dict[Initiator, None] = {}
        for run, first, count in entries:
            target = self._owners.get(run.path)
            if target is not None and target.receive(run, first, count, now):
                touched[target] = None
                self._shards.put(Answer(target, run, first, count, None))
            else:
                port.rx_unknown += 1
        for frame in odd:
            owner = self._judge(port, frame, now)
            if owner is not None:
                touched[owner] = None
        for target in touched:
            self._pump(target)
        return received > 1

    # ── frames that want judging ──────────────────────────────────────────────────────────────────────────────────

    def _judge(self, port: Port, frame: bytes, now: float) -> Initiator | None:
        """Handle one frame that is not simply a good answer; the target whose command it answered."""
        try:
            header = decode_header_untrusted(frame)
            owner = self._tags.find(header.tag)
            if isinstance(owner, Exchange):
                owner.on_answer(port, frame)
                return None
            if isinstance(owner, Run):
                return self._judge_answer(port, frame, header, owner, now)
        except FrameError:
            port.rx_unknown += 1
            return None
        if header.command == AoeCommand.CONFIG and header.is_response:
            self._discovery.hint(port, header)
        else:
            port.rx_unknown += 1
        return None

    def _judge_answer(self, port: Port, frame: bytes, header: Header, run: Run, now: float) -> Initiator | None:
        """An answer with the tag of a data command: an error, or good but from another verified path."""
        index = header.tag - run.tag
        target = self._owners.get(run.path)
        if target is None or index >= run.count or not self._is_from(target, port, header):
            raise FrameError("nobody whom this command was sent to")
        start, sectors = run.sectors_of(index, 1)
        request = run.request
        lba = request.lba + start
        error: RequestError | None = None
        if header.is_error:
            error = TargetError(header.error, lba)
        else:
            try:
                check_result(decode_ata_untrusted(frame), lba=lba, write=request.write)
            except AtaError as failure:
                error = failure
            else:
                if not request.write:
                    data = memoryview(frame)[ATA_BYTES : ATA_BYTES + sectors * SECTOR_BYTES]
                    if len(data) < sectors * SECTOR_BYTES:
                        raise FrameError("an answer with too few data is no answer")
                    if not request.ended and request.todo >> start & 1:
                        request.buffer[start * SECTOR_BYTES : (start + sectors) * SECTOR_BYTES] = data
        if not target.receive(run, index, 1, now):
            raise FrameError("answered before")
        self._shards.put(Answer(target, run, index, 1, error))
        return target

    @staticmethod
    def _is_from(target: Initiator, port: Port, header: Header) -> bool:
        """From a verified path of the target, about the target, as an answer of this version to an ATA command."""
        return (
            header.is_response
            and header.version == VERSION
            and header.command == AoeCommand.ATA
            and header.address == target.address
            and target.find_path(port, header.source) is not None
        )

    # ── sending ───────────────────────────────────────────────────────────────────────────────────────────────────

    def _pump(self, target: Initiator) -> None:
        """Send all that the windows allow, and arm the timer."""
        now = self._now()
        while (run := target.next_run(now)) is not None:
            port: Port = run.path.link  # type: ignore[assignment]  # the core keeps the link opaque
            sent = port.send_run(run)
            if sent < run.count:
                target.unsent(run, sent)
                self._block(port, target)
                break
        self._arm(target, now)

    def _block(self, port: Port, target: Initiator) -> None:
        """The port's socket is full: pump this target again when there is room, in turn with the others."""
        waiting = self._blocked.setdefault(port, {})
        if not waiting:
            self._nursery.start_soon(self._unblock, port, name=f"room on {port.interface}")
        waiting[target] = None

    async def _unblock(self, port: Port) -> None:
        try:
            await trio.sleep(0.0005)  # ENOBUFS comes from a full device queue, of which no descriptor tells
            await port.wait_writable()
        except trio.ClosedResourceError:
            return
        for target in self._blocked.pop(port, {}):
            self._pump(target)

    # ── time ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def _arm(self, target: Initiator, now: float) -> None:
        timeout = target.next_timeout()
        if timeout is None:
            return
        armed = self._armed.get(target)
        if armed is None or timeout < armed:
            self._armed[target] = timeout
            if self._timer_scope is not None and timeout < self._timer_scope.deadline:
                self._timer_scope.deadline = timeout

    async def _timer(self) -> None:
        """Look at each target when its time has come; a target that moved its time later is just armed again."""
        while True:
            with trio.CancelScope(deadline=min(self._armed.values(), default=math.inf)) as self._timer_scope:
                await trio.sleep_forever()
            now = self._now()
            for target in [target for target, at in self._armed.items() if at <= now]:
                del self._armed[target]
                timeout = target.next_timeout()
                if timeout is None:
                    continue
                if timeout <= now:
                    was = target.state
                    target.handle_timeout(now)
                    if target.state is not was:
                        log.warning("%s is down: not one answer for %g s", target.name, target.deadsecs)
                        self.settings.on_change(target, Change.DOWN)
                    self._pump(target)
                else:
                    self._arm(target, now)

    async def _watch(self) -> None:
        """Ask for targets that are silent, at growing distances; what comes back is a finding like any other."""
        asked: dict[Initiator, tuple[float, int]] = {}
        while True:
            await trio.sleep(1.0)
            now = self._now()
            for target in list(self.targets.values()):
                if not target.is_silent(now):
                    asked.pop(target, None)
                    continue
                at, tries = asked.get(target, (now, 0))
                if at <= now:
                    for port in self.ports.values():
                        self._discovery.ask(port, address=target.address)
                    asked[target] = (now + SILENT_QUERIES[min(tries, len(SILENT_QUERIES) - 1)], tries + 1)

    # ── findings ──────────────────────────────────────────────────────────────────────────────────────────────────

    def _on_finding(self, finding: Finding) -> None:
        target = self.targets.get(finding.address)
        if target is None:
            if len(self.targets) >= self.settings.max_targets:
                log.warning("%s is ignored: %d targets are the most", finding.address, self.settings.max_targets)
                return
            self._admit(finding)
        elif target.identity.same_disk(finding.identity):
            self._refresh(target, finding)
        elif target.identity.same_unit(finding.identity) and self._is_known(target, finding):
            self._resize(target, finding)
        elif target.state is State.UP:
            self.refused_identities += 1
            log.warning(
                "%s: %s on %s is another disk (serial %s, not %s) and is refused",
                finding.address,
                finding.mac.hex(":"),
                finding.port.interface,
                finding.identity.serial,
                target.identity.serial,
            )
        else:
            log.warning("%s is another disk now (serial %s)", finding.address, finding.identity.serial)
            self._remove(target)
            self._admit(finding)

    @staticmethod
    def _is_known(target: Initiator, finding: Finding) -> bool:
        return target.find_path(finding.port, finding.mac) is not None

    def _admit(self, finding: Finding) -> None:
        """A new target, with its first path."""
        settings = self.settings
        target = Initiator(
            finding.address, finding.identity, self._tags, deadsecs=settings.deadsecs, maxout=settings.maxout
        )
        self.targets[finding.address] = target
        self._last_new_target = self._now()
        self._refresh(target, finding)
        log.info(
            "%s: %d bytes, %s, serial %s, on %s",
            target.name,
            finding.identity.size_bytes,
            finding.identity.model,
            finding.identity.serial,
            finding.port.interface,
        )
        settings.on_change(target, Change.APPEARED)

    def _refresh(self, target: Initiator, finding: Finding) -> None:
        """The same disk, once more: its buffer count, its payload, its path; and up again if it was down."""
        target.set_bufcnt(finding.config.buffer_count)
        target.config = finding.config.string
        path = target.find_path(finding.port, finding.mac)
        if path is None:
            path = target.add_path(
                finding.port, finding.port.interface, (finding.port.mac, finding.mac), finding.sectors
            )
            self._owners[path] = target
        path.sectors = finding.sectors
        path.healthy = True
        if target.state is State.DOWN:
            target.come_up()
            log.info("%s is back", target.name)
            self.settings.on_change(target, Change.RETURNED)
        self._pump(target)

    def _resize(self, target: Initiator, finding: Finding) -> None:
        old, target.identity = target.identity, finding.identity
        verb = "grew" if finding.identity.sectors > old.sectors else "shrank"
        log.warning("%s %s from %d to %d bytes", target.name, verb, old.size_bytes, finding.identity.size_bytes)
        self._refresh(target, finding)
        self.settings.on_change(target, Change.RESIZED)

    def _remove(self, target: Initiator) -> None:
        """Forget a target: what waits fails, its paths are no longer answered to."""
        target.go_down(State.REPLACED, TargetLost(f"{target.name} is another disk now"))
        for path in target.paths:
            self._owners.pop(path, None)
            path.link.forget(path)  # type: ignore[attr-defined]
        self._armed.pop(target, None)
        if self.targets.get(target.address) is target:
            del self.targets[target.address]
        self.settings.on_change(target, Change.REPLACED)

    def discover(self) -> None:
        """Ask on all ports, now and by the schedule."""
        for port in self.ports.values():
            self._discovery.start(port)

    async def first_discovery(self) -> None:
        """Wait until the first discovery is over: quiet after the last new target, or out of patience."""
        while True:
            until = self._started_at + FIRST_DISCOVERY
            if self._last_new_target is not None:
                until = min(until, self._last_new_target + QUIET_AFTER_TARGET)
            if self._now() >= until:
                return
            await trio.sleep_until(until)

    # ── what users call ───────────────────────────────────────────────────────────────────────────────────────────

    async def read(self, target: Initiator, offset: int, size: int) -> memoryview:
        """``size`` bytes from ``offset`` on (bytes, any alignment); both must lie within the target.

        RequestError when a target or disk says no, or nobody answers within ``deadsecs``.
        """
        first, end = offset // SECTOR_BYTES, -(-(offset + size) // SECTOR_BYTES)
        self._check_range(target, first, end)
        buffer = memoryview(bytearray((end - first) * SECTOR_BYTES))
        await self._transfer(target, first, buffer, write=False)
        skip = offset - first * SECTOR_BYTES
        return buffer if size == len(buffer) else buffer[skip : skip + size]

    async def write(self, target: Initiator, offset: int, data: bytes | memoryview) -> None:
        """Write ``data`` at ``offset`` (bytes, any alignment); returns when the target acknowledged all of it.

        Writes that overlap are carried out one after the other; a partial sector is read, changed and written back
        with its range held.  RequestError as for :meth:`read`; what was written before an error is not known.
        """
        first, end = offset // SECTOR_BYTES, -(-(offset + len(data)) // SECTOR_BYTES)
        self._check_range(target, first, end)
        claim = Claim(first, end)
        requests: list[Request] = []
        if not target.order.acquire(claim):
            await self._wait_for_claim(target, claim)
        try:
            buffer = memoryview(data)
            if offset % SECTOR_BYTES or len(data) % SECTOR_BYTES:
                buffer = await self._fill_edges(target, first, end, offset, data)
            await self._transfer(target, first, buffer, write=True, requests=requests)
        finally:
            target.release(claim, requests)
            self._arm(target, self._now())

    async def flush(self, target: Initiator) -> None:
        """Make what was acknowledged durable, with the command that the target announces (none: nothing to do).

        RequestError when it fails or nobody answers; the target then stays dirty.  A target that does not know its
        own command (ABRT) has no cache that we could flush; that is remembered and shown.
        """
        opcode = target.identity.flush_opcode
        written = target.writes
        if opcode is not None and not target.flush_refused:
            frame = await self.converse(target, flush_registers(opcode))
            try:
                check_result(decode_ata_untrusted(frame))
            except AtaError as error:
                if not error.is_abort:
                    target.errors += 1
                    raise
                target.flush_refused = True
                log.warning("%s refuses its own flush command: what it caches cannot be made durable", target.name)
            target.flushes += 1
        if target.writes == written:
            target.dirty = False

    async def converse(self, target: Initiator, registers: AtaArgument, data: bytes = b"") -> bytes:
        """Send one lone ATA command until it is answered; the whole answering frame, not an AoE error.

        It is sent again after max(1 s, RTO), doubling, by turns on all paths.  TargetError, TargetLost.
        """
        answers: list[tuple[Header, bytes]] = []
        wait = _Wait()

        def on_answer(port: Port, frame: bytes) -> None:
            header = decode_header_untrusted(frame)
            if not self._is_from(target, port, header):
                raise FrameError("nobody whom this command was sent to")
            decode_ata_untrusted(frame)
            answers.append((header, frame))
            wait.wake()

        exchange = Exchange(on_answer)
        self._tags.open(exchange)
        limit = target.deadsecs or math.inf
        try:
            with trio.move_on_after(limit):
                pause = FIRST_FLUSH_WAIT
                while target.state is State.UP and not answers:
                    path = target.paths[exchange.sendings % len(target.paths)] if target.paths else None
                    if path is not None:
                        port: Port = path.link  # type: ignore[assignment]
                        header = Header(path.mac, port.mac, target.address, AoeCommand.ATA, exchange.next_tag())
                        port.send_frame(encode_ata(header, registers, data))
                        pause = max(pause, path.rtt.rto)
                    with trio.move_on_after(pause):
                        await wait.wait()
                    pause *= 2
        finally:
            self._tags.close(exchange)
        if not answers:
            raise TargetLost(f"{target.name} did not answer command 0x{registers.command:02x}")
        target.heard(self._now())
        header, frame = answers[0]
        if header.is_error:
            raise TargetError(header.error)
        return frame

    def statistics(self) -> EngineStatistics:
        return EngineStatistics(
            targets=tuple(target.statistics() for _, target in sorted(self.targets.items())),
            shards=self._shards.statistics(),
            links=tuple(port.statistics() for port in self.ports.values()),
            hints=self._discovery.hints,
            refused_identities=self.refused_identities,
        )

    # ── transfers ─────────────────────────────────────────────────────────────────────────────────────────────────

    @staticmethod
    def _check_range(target: Initiator, first: int, end: int) -> None:
        if not 0 <= first < end <= target.identity.sectors:
            raise ValueError(f"sectors {first} to {end} are not within {target.name}")

    async def _transfer(
        self,
        target: Initiator,
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
            wait = _Wait()
            request = Request(
                lba + start // SECTOR_BYTES, len(piece) // SECTOR_BYTES, piece, write=write, on_end=wait.wake
            )
            if requests is not None:
                requests.append(request)
            target.submit(request, self._now())
            self._pump(target)
            try:
                await wait.wait()
            except trio.Cancelled:
                target.abandon(request)
                raise
            if request.error is not None:
                raise request.error

    async def _wait_for_claim(self, target: Initiator, claim: Claim) -> None:
        """Wait until ``claim`` is granted; TargetLost when that takes longer than a request may wait."""
        wait = _Wait()
        claim.granted = wait.wake
        granted = False
        try:
            with trio.move_on_after(target.deadsecs or math.inf):
                await wait.wait()
                granted = True
        finally:
            if not granted:
                target.order.release(claim)
        if not granted:
            raise TargetLost(f"{target.name}: an earlier write to the same sectors is not over")

    async def _fill_edges(
        self, target: Initiator, first: int, end: int, offset: int, data: bytes | memoryview
    ) -> memoryview:
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
            await self._transfer(target, first + sector, view[start : start + SECTOR_BYTES], write=False)
        view[head:tail] = data
        return view

    def stop(self) -> None:
        """Fail everything that waits; called when the nursery's tasks have stopped."""
        self._shards.flush()
        for target in self.targets.values():
            target.go_down(State.DOWN, TargetLost("the engine stopped"))
        for port in self.ports.values():
            port.close()


@asynccontextmanager
async def open_engine(interfaces: Iterable[str], settings: Settings | None = None) -> AsyncIterator[Engine]:
    """An engine on these interfaces; leaving the block stops its tasks and fails what still waits.

    OSError as ``aoefs.link.Link`` for the first interface that cannot be used.
    """
    async with trio.open_nursery(strict_exception_groups=False) as nursery:
        engine = Engine(nursery, settings or Settings())
        try:
            for interface in interfaces:
                engine.open_port(interface)
            yield engine
        finally:
            engine.stop()
            nursery.cancel_scope.cancel()
