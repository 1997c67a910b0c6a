"""The engine: one trio nursery in which frames become finished requests.

Owns the ports, the targets, the tags and the timer.  Tasks: a *receiver* per port (``aoefs.receiver``), the
*completion shards* (``aoefs.shard``), the *discovery* (``aoefs.discovery``), one *timer* for all targets, one *watch*
that looks for silent ones.  Everything that touches a target's machine is a sync call, hence atomic under trio.

The life of a read::

    read() ── Request ──► Initiator.submit ── pump ──► Port.send_run ~~~ wire ~~~ target
    read() ◄── on_end ── shard ◄── (run, first, count) ── receiver ◄── Port.receive ◄── answers

What holds always:

- ``pump`` is the only place that sends runs; it is called after every input that may have opened a window.
- A waiting call ends: with its data, with an error, or cancelled; then nothing of it is left in a queue.
- Only a finding of the discovery creates a target or a path, or ends a silence.  Another disk under the same address
  is refused while the first one lives elsewhere, and replaces it when it answers in its very place.

Rejected: a timer per target (hundreds of re-armed deadlines; here the common re-arming only moves later and is free),
and awaiting in ``pump`` (a full socket parks the target in the port's queue instead).
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

from aoefs.discovery import Discovery, Finding
from aoefs.disk import Disk, Waiting
from aoefs.errors import IdentityChanged, TargetLost
from aoefs.initiator import DEFAULT_DEADSECS, DEFAULT_MAXOUT, Initiator, State, TargetStatistics
from aoefs.inplace import InPlace
from aoefs.link import LinkStatistics
from aoefs.path import Path, Run
from aoefs.port import Port, SocketPort
from aoefs.receiver import Receiver
from aoefs.running import PERIOD, RunningTime
from aoefs.shard import Shards, ShardStatistics
from aoefs.strangers import REFUSED, Stranger, Strangers
from aoefs.tags import Exchange, TagTable
from aoefs.wire import (
    MAX_SECTORS,
    Address,
    ConfigArgument,
)

log = logging.getLogger("aoefs")

QUIET_AFTER_TARGET = 0.15  # seconds without a new target after which the first discovery is over
MAX_PATHS = 32  # of one target: anybody can answer as a disk that he has seen, from as many MACs as he likes
FIRST_DISCOVERY = 1.0  # seconds after the start at which it is over anyhow
WIDEN_AFTER = 10.0  # seconds until a path whose payload stepped down is measured again, then doubling
ROOM_PAUSE, MAX_ROOM_PAUSE = 0.0005, 0.008  # seconds until a full device queue is tried again, doubling
ROUNDING = 1e-6  # seconds: a deadline on trio's clock and one on ours differ by the error of a sum
LONG_SILENCE = 5.0  # seconds after which lone commands are sent again as soon as the target is back
FORGET_AFTER = 3600.0  # seconds after which a target that is down and that nobody has open is forgotten
SILENT_QUERIES = (1.0, 1.0, 1.0, 2.0, 2.0, 4.0, 4.0, 8.0, 15.0)  # seconds between queries for a silent target


class Change(Enum):
    """What happened to a target, as told to ``Settings.on_change``.

    REVALIDATED: somebody else may have changed its data.  The file system adds what it did itself: REWRITTEN, the
    whole disk was open for writing until now; REPARTITIONED, its partitions are others.
    """

    APPEARED = "appeared"
    RESIZED = "resized"
    RETURNED = "returned"
    REPLACED = "replaced"
    FORGOTTEN = "forgotten"
    DOWN = "down"
    REVALIDATED = "revalidated"
    REWRITTEN = "rewritten"
    REPARTITIONED = "repartitioned"


def _usable_cpus() -> int:
    return len(os.sched_getaffinity(0))


def _ignore_change(_disk: Disk, _change: Change) -> None:
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
    on_change: Callable[[Disk, Change], object] = _ignore_change


@dataclass(frozen=True, slots=True)
class EngineStatistics:
    """A frozen picture of everything."""

    targets: tuple[TargetStatistics, ...]
    shards: tuple[ShardStatistics, ...]
    links: tuple[LinkStatistics, ...]
    strangers: tuple[Stranger, ...]
    hints: int  # announcements and other config answers that nobody asked for
    hints_dropped: int  # of these, those that were not asked about
    candidates_dropped: int  # who answered when too many were under IDENTIFY already
    refused_identities: int
    stopped_seconds: float  # for which this process was not allowed to run


class Engine:
    """See the module; made by :func:`open_engine`."""

    def __init__(self, nursery: trio.Nursery, settings: Settings, tags: TagTable[Run | Exchange]) -> None:
        self.settings = settings
        self.tags = tags
        self.disks: dict[Address, Disk] = {}
        self.ports: dict[str, Port] = {}
        self.refused_identities = 0
        self.dirty_lost = False  # a disk went away whose acknowledged writes no good flush had followed
        self._nursery = nursery
        self._time = RunningTime(trio.lowlevel.current_clock().current_time)
        self.now = self._time.now
        self._strangers = Strangers()
        self._discovery = Discovery(
            self.tags,
            nursery,
            self._on_finding,
            self._on_stranger,
            self._trusted_payload,
            allow_mac=settings.allow_mac,
        )
        self._shards = Shards(settings.shards, nursery, self.pump)
        self._owners: dict[Path, Initiator] = {}
        self._receiver = Receiver(tags, self._owners, self._shards, self.pump, self._discovery.hint, self.now)
        self.waiting = Waiting()
        self.in_place = InPlace(self._receiver, self._shards, self.waiting, self.now)
        self.wait_in_place = self.in_place.wait
        self._blocked: dict[Port, dict[Initiator, None]] = {}  # targets that wait for room in a port's socket
        self._armed: dict[Initiator, float] = {}  # when the timer will look at a target
        self._timer_scope: trio.CancelScope | None = None
        self._last_new_target = 0.0
        self._found_one = trio.Event()
        self._started_at = self.now()
        nursery.start_soon(self._timer, name="timer")
        nursery.start_soon(self._watch, name="watch")

    # ── ports ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def open_port(self, interface: str) -> None:
        """Speak AoE on a local interface from now on.  OSError as ``aoefs.link.Link``."""
        self.add_port(SocketPort(interface, self.tags))

    def add_port(self, port: Port, *, discover: bool = True) -> None:
        """Receive on ``port`` from now on, and discover; it is closed with the engine."""
        self.ports[port.interface] = port
        self._settle_reservations()
        self._receiver.add_port(port)
        self.in_place.add_port(port)
        self._nursery.start_soon(self._receiver.run, port, name=f"receiver on {port.interface}")
        if discover:
            self._discovery.start(port)

    def port_changed(self, port: Port, *, up: bool) -> None:
        """The interface went up or down, or its MTU changed: measure and discover again."""
        port.refresh()
        port.up = up
        for disk in self.disks.values():
            for path in disk.target.paths:
                if path.link is port:
                    path.sectors = max(1, min(path.sectors, port.max_sectors))
            if not up:
                disk.target.leave_link(port)
                self.pump(disk.target)
        if up:
            self._discovery.start(port)
        else:
            self._discovery.stop(port)

    def drop_port(self, port: Port) -> None:
        """The interface is gone."""
        self._discovery.stop(port)
        del self.ports[port.interface]
        self._blocked.pop(port, None)
        for disk in self.disks.values():
            target = disk.target
            for path in [path for path in target.paths if path.link is port]:
                self._drop_path(target, path)
            self.pump(target)
        self.in_place.drop_port(port)
        self._receiver.drop_port(port)
        port.close()
        self._settle_reservations()

    def macs(self) -> tuple[bytes, ...]:
        """Ours, on all ports."""
        return tuple(port.mac for port in self.ports.values())

    def _settle_reservations(self) -> None:
        for disk in self.disks.values():
            if disk.reservation.is_due:
                self._nursery.start_soon(self._settle, disk)

    # ── sending ───────────────────────────────────────────────────────────────────────────────────────────────────

    def pump(self, target: Initiator) -> None:
        """Send all that the windows allow, and arm the timer."""
        now = self.now()
        while (run := target.next_run(now)) is not None:
            port: Port = run.path.link  # type: ignore[assignment]  # the core keeps the link opaque
            sent = port.send_run(run)
            if sent < run.count:
                target.unsent(run, sent)
                run.path.sectors = max(1, min(run.path.sectors, port.max_sectors))  # the MTU may be what refused it
                self._block(port, target)
                break
        self.arm(target, now)

    def _block(self, port: Port, target: Initiator) -> None:
        """The port has no room: pump this target again when there is some, in turn with the others."""
        waiting = self._blocked.get(port)
        if waiting is None:
            waiting = self._blocked[port] = {}
            self._nursery.start_soon(self._unblock, port, name=f"room on {port.interface}")
        waiting[target] = None

    async def _unblock(self, port: Port) -> None:
        pause = ROOM_PAUSE
        try:
            while waiting := self._blocked.get(port):
                await trio.sleep(pause)  # ENOBUFS comes from a full device queue, of which no descriptor tells
                if self._blocked.get(port) is not waiting:
                    return
                await port.wait_writable()
                self._blocked[port] = {}
                for target in waiting:
                    self.pump(target)
                pause = min(2 * pause, MAX_ROOM_PAUSE)
        except trio.ClosedResourceError:
            return
        self._blocked.pop(port, None)

    # ── time ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def arm(self, target: Initiator, now: float) -> None:
        """See that the timer looks at ``target`` when its machine wants it."""
        armed = self._armed.get(target)
        if armed is not None and target.may_wait_until(armed, now):
            return
        timeout = target.next_timeout()
        if timeout is None:
            return
        if armed is None or timeout < armed:
            self._armed[target] = timeout
            deadline = timeout + self._time.lost
            if self._timer_scope is not None and deadline < self._timer_scope.deadline:
                self._timer_scope.deadline = deadline

    async def _timer(self) -> None:
        """Look at each target when its time has come; a target that moved its time later is just armed again.

        Before one is given up, what its answers are waiting in is emptied: we may be late, not they.
        """
        while True:
            deadline = min(self._armed.values(), default=math.inf) + self._time.lost
            with trio.CancelScope(deadline=deadline) as self._timer_scope:
                await trio.sleep_forever()
            now = self.now() + ROUNDING
            received = False
            for target in [target for target, at in self._armed.items() if at <= now]:
                del self._armed[target]
                timeout = target.next_timeout()
                if timeout is not None and timeout <= now and not received:
                    received = True
                    for port in self.ports.values():
                        self._receiver.receive_batches(port)
                    timeout = target.next_timeout()
                if timeout is None:
                    continue
                if timeout <= now:
                    was, was_suspended = target.state, target.suspended
                    target.handle_timeout(now)
                    if target.suspended and not was_suspended:
                        self._verify(target)
                    if target.state is not was:
                        log.warning("%s is down: not one answer for %g s", target.name, target.deadsecs)
                        disk = self.disks[target.address]
                        disk.interrupt(TargetLost(f"{target.name} is down"))
                        self.settings.on_change(disk, Change.DOWN)
                    self.pump(target)
                else:
                    self.arm(target, now)

    async def _watch(self) -> None:
        """Ask for targets that are silent, at growing distances; what comes back is a finding like any other."""
        asked: dict[Initiator, tuple[float, int]] = {}
        narrow: dict[Path, tuple[float, float]] = {}  # paths below their payload: when to try again, and then
        while True:
            await trio.sleep(PERIOD)
            now = self.now()
            self._time.beat()
            for disk in list(self.disks.values()):
                target = disk.target
                if now - target.down_since > FORGET_AFTER and self.why_not_forget(disk) is None:
                    self.forget(disk)
                    continue
                if not target.is_silent:
                    asked.pop(target, None)
                    self._ask_again(target, now, narrow)
                    continue
                at, tries = asked.get(target, (now, 0))
                if at <= now:
                    self._ask_for(target)
                    asked[target] = (now + SILENT_QUERIES[min(tries, len(SILENT_QUERIES) - 1)], tries + 1)

    def _verify(self, target: Initiator) -> None:
        """It was just suspended: see on its paths whether it is still there and still the same."""
        for path in target.paths:
            port: Port = path.link  # type: ignore[assignment]
            if port.up:
                config = ConfigArgument(
                    string=target.config, buffer_count=target.bufcnt, sectors=min(path.full_sectors, MAX_SECTORS)
                )
                self._discovery.verify((port, path.mac, target.address), config)

    def _ask_for(self, target: Initiator) -> None:
        """Ask everywhere for a silent target: it may come back with another MAC."""
        for port in self.ports.values():
            if port.up:
                self._discovery.ask(port, address=target.address)

    def _ask_again(self, target: Initiator, now: float, narrow: dict[Path, tuple[float, float]]) -> None:
        """Ask on paths of which we know too little: they are measured with frames of full size.

        A scorned path comes back so; one that loses only large frames gets smaller ones, and larger ones when they
        pass again.
        """
        stuck = target.is_stuck(now)
        for path in target.paths:
            port: Port = path.link  # type: ignore[assignment]
            if not port.up:
                continue
            at, pause = narrow.get(path, (now + WIDEN_AFTER, WIDEN_AFTER))
            if path.sectors == path.full_sectors:
                narrow.pop(path, None)
            elif at <= now:
                narrow[path] = (now + 2 * pause, 2 * pause)
            else:
                narrow[path] = (at, pause)
            if stuck or not path.healthy or (path in narrow and at <= now):
                self._discovery.ask(port, path.mac, target.address)

    # ── findings ──────────────────────────────────────────────────────────────────────────────────────────────────

    def _on_stranger(self, stranger: Stranger) -> None:
        if not self._is_path(stranger):  # a path that falls silent is no stranger
            self._strangers.note(stranger, self.now())

    def _is_path(self, stranger: Stranger) -> bool:
        disk = self.disks.get(stranger.address)
        paths = disk.target.paths if disk is not None else ()
        return any(path.interface == stranger.interface and path.mac == stranger.mac for path in paths)

    def _refuse(self, finding: Finding, reason: str) -> None:
        address, interface, mac = finding.address, finding.port.interface, finding.mac
        self._strangers.note(Stranger(address, interface, mac, finding.config, REFUSED, reason), self.now())

    def _on_finding(self, finding: Finding) -> None:
        disk = self.disks.get(finding.address)
        if disk is None:
            if len(self.disks) >= self.settings.max_targets:
                self._refuse(finding, f"{self.settings.max_targets} targets are the most (--max-targets)")
                return
            self._admit(finding)
            return
        target = disk.target
        path = target.find_path(finding.port, finding.mac)
        if target.identity.same_disk(finding.identity):
            self._refresh(disk, finding)
        elif target.identity.same_unit(finding.identity) and path is not None:
            self._resize(disk, finding)
        elif target.state is State.UP and (path is None or len(target.paths) > 1):
            if path is not None:  # it lives on elsewhere, as far as we know
                self._drop_path(target, path)
                self.pump(target)
            self.refused_identities += 1
            serials = f"serial {finding.identity.serial}, not {target.identity.serial}"
            self._refuse(finding, f"it is another disk ({serials})")
        else:
            log.error("%s is another disk now (serial %s): open files fail", target.name, finding.identity.serial)
            self._remove(disk, Change.REPLACED, "is another disk now")
            self._admit(finding)

    def _drop_path(self, target: Initiator, path: Path) -> None:
        target.drop_path(path)
        del self._owners[path]
        path.link.forget(path)  # type: ignore[attr-defined]

    def _trusted_payload(self, port: Port, mac: bytes, address: Address) -> int:
        """Sectors per frame that are known to pass there and need no measuring; 0 when they do."""
        disk = self.disks.get(address)
        path = disk.target.find_path(port, mac) if disk is not None else None
        if disk is None or path is None or not path.healthy:
            return 0
        if disk.target.is_silent or disk.target.is_stuck(self.now()):
            return 0
        return path.sectors

    def _admit(self, finding: Finding) -> None:
        """A new target, with its first path."""
        settings = self.settings
        target = Initiator(
            finding.address, finding.identity, self.tags, deadsecs=settings.deadsecs, maxout=settings.maxout
        )
        disk = self.disks[finding.address] = Disk(target, self)
        self._last_new_target = self.now()
        self._found_one.set()
        self._refresh(disk, finding)
        log.info(
            "%s: %d bytes, %s, serial %s, on %s",
            target.name,
            finding.identity.size_bytes,
            finding.identity.model,
            finding.identity.serial,
            finding.port.interface,
        )
        settings.on_change(disk, Change.APPEARED)

    def _refresh(self, disk: Disk, finding: Finding) -> None:
        """The same disk, once more: its buffer count, its payload, its path; and up again if it was down."""
        target = disk.target
        target.set_bufcnt(finding.config.buffer_count)
        target.config = finding.config.string
        target.identify_block = finding.identity.block
        path = target.find_path(finding.port, finding.mac)
        is_new = path is None or target.is_silent
        if path is None:
            if len(target.paths) >= MAX_PATHS:
                oldest = min(target.paths, key=lambda path: path.last_answer_at)
                if oldest.healthy and not target.is_silent:
                    self._refuse(finding, f"{MAX_PATHS} paths are the most")
                    return
                self._drop_path(target, oldest)
            path = target.add_path(
                finding.port, finding.port.interface, (finding.port.mac, finding.mac), finding.sectors
            )
            self._owners[path] = target
        self._strangers.forget((path.interface, path.mac, target.address))
        if path.sectors != finding.sectors:
            log.info("%s: %d sectors per frame on %s", target.name, finding.sectors, path.interface)
        path.sectors, path.full_sectors = finding.sectors, finding.full_sectors
        path.healthy = True
        was_down = target.state is State.DOWN
        if was_down or target.suspended:
            if target.silence(self.now()) > LONG_SILENCE:  # else it may just be slow over what it was asked
                disk.interrupt()
            target.come_up(self.now())
            log.info("%s is back", target.name)
        if was_down:
            self.settings.on_change(disk, Change.RETURNED)
        if disk.reservation.is_due:
            if is_new:
                target.suspended = target.on_hold = True
            self._nursery.start_soon(self._settle, disk)
        self.pump(target)

    async def _settle(self, disk: Disk) -> None:
        """Renew its reservation, which a restarted target forgot and which does not name a new MAC of ours; then I/O
        goes on.
        """
        heard = await disk.reservation.settle()
        target = disk.target
        if target.on_hold:
            target.on_hold = False
            if heard and target.state is State.UP:
                target.come_up(self.now())
                self.pump(target)

    def _resize(self, disk: Disk, finding: Finding) -> None:
        target = disk.target
        old, target.identity = target.identity, finding.identity
        for path in target.paths:
            path.lba48 = finding.identity.lba48
        verb = "grew" if finding.identity.sectors > old.sectors else "shrank"
        log.warning("%s %s from %d to %d bytes", target.name, verb, old.size_bytes, finding.identity.size_bytes)
        self._refresh(disk, finding)
        self.settings.on_change(disk, Change.RESIZED)

    def forget(self, disk: Disk) -> None:
        """Let a target go to which :meth:`why_not_forget` does not object; a new one if it ever answers again."""
        if disk.target.dirty:
            log.warning("%s is forgotten, though its last writes were not flushed", disk.target.name)
        else:
            log.info("%s is forgotten", disk.target.name)
        self._remove(disk, Change.FORGOTTEN, "was forgotten")

    def why_not_forget(self, disk: Disk) -> str | None:
        """Why a target must be kept, as the end of a sentence; None when it is down and nobody has it open."""
        if disk.opened:
            return "is open"
        if disk.target.state is not State.DOWN:
            return "is not down"
        return None if disk.target.order.idle else "has writes under way of which a late copy may still travel"

    def revalidate(self, disk: Disk) -> None:
        """Ask a target again who it is, where it is known to be, or everywhere if it is silent; what is cached is old.

        Answers come as findings; returns at once.
        """
        target = disk.target
        if target.is_silent:
            self._ask_for(target)
        for path in () if target.is_silent else target.paths:
            port: Port = path.link  # type: ignore[assignment]
            if port.up:
                self._discovery.ask(port, path.mac, target.address)
        disk.generation += 1
        self.settings.on_change(disk, Change.REVALIDATED)

    def _remove(self, disk: Disk, change: Change, why: str) -> None:
        """A target goes for good: what waits fails, its paths are no longer answered to."""
        target = disk.target
        self.dirty_lost |= target.dirty
        error = IdentityChanged(f"{target.name} {why}")
        target.go_down(State.REPLACED, error)
        disk.interrupt(error)
        for path in target.paths:
            self._owners.pop(path, None)
            path.link.forget(path)  # type: ignore[attr-defined]
        del self.disks[target.address]
        self.settings.on_change(disk, change)

    def discover(self) -> None:
        """Ask on all ports, now and by the schedule."""
        for port in self.ports.values():
            self._discovery.start(port)

    async def first_discovery(self, patience: float = FIRST_DISCOVERY) -> None:
        """Wait until ``QUIET_AFTER_TARGET`` seconds went by without a new target, ``patience`` seconds at most.

        Who is still under IDENTIFY is waited for.
        """
        with trio.move_on_after(max(0.0, self._started_at + patience - self.now())):
            await self._found_one.wait()
            while (quiet := self._last_new_target + QUIET_AFTER_TARGET - self.now()) > 0:  # noqa: ASYNC110 (it moves)
                await trio.sleep(quiet)
            while self._discovery.candidates():  # noqa: ASYNC110 (a few times in the life of a process)
                await trio.sleep(0.01)

    def statistics(self) -> EngineStatistics:
        now = self.now()
        strangers = {stranger.key: stranger for stranger in self._strangers.present(now)}
        silent = {stranger.key: stranger for stranger in self._discovery.candidates() if not self._is_path(stranger)}
        return EngineStatistics(
            targets=tuple(disk.target.statistics() for _, disk in sorted(self.disks.items())),
            shards=self._shards.statistics(),
            links=tuple(port.statistics() for port in self.ports.values()),
            strangers=tuple((silent | strangers).values()),
            hints=self._discovery.hints,
            hints_dropped=self._discovery.hints_dropped,
            candidates_dropped=self._discovery.candidates_dropped,
            refused_identities=self.refused_identities,
            stopped_seconds=round(self._time.lost, 3),
        )

    def fail_all(self) -> None:
        """Fail everything that waits.  A target that is up can still be flushed."""
        for disk in self.disks.values():
            was_up = disk.target.state is State.UP
            self._put_down(disk)
            if was_up:
                disk.target.state = State.UP

    def _put_down(self, disk: Disk) -> None:
        error = TargetLost("the engine stopped")
        disk.target.go_down(State.DOWN, error)
        disk.interrupt(error)

    def stop(self) -> None:
        """Stopped: flush the queues of the shards, fail what waits and every later request."""
        self._shards.flush()
        self.in_place.close()
        for disk in self.disks.values():
            self._put_down(disk)


@asynccontextmanager
async def open_engine(
    interfaces: Iterable[str], settings: Settings | None = None, *, discover: bool = True
) -> AsyncIterator[Engine]:
    """An engine on these interfaces; leaving the block stops its tasks and fails what still waits.

    Without ``discover`` nothing asks who is there: for lone commands (``aoefs.exchange``).

    OSError as ``aoefs.link.Link`` for the first interface that cannot be used.  An exception of the block's own
    leaves it as it is, not wrapped in a group.
    """
    tags: TagTable[Run | Exchange] = TagTable(secrets.randbits(31))
    ports: list[Port] = []
    try:
        ports.extend(SocketPort(interface, tags) for interface in interfaces)
    except OSError:
        for port in ports:
            port.close()
        raise
    engine: Engine | None = None
    failure: BaseException | None = None
    try:
        async with trio.open_nursery() as nursery:
            engine = Engine(nursery, settings or Settings(), tags)
            for port in ports:
                engine.add_port(port, discover=discover)
            try:
                yield engine
            except trio.Cancelled:
                raise
            except BaseException as error:
                failure = error
            finally:
                engine.stop()
                nursery.cancel_scope.cancel()
    finally:
        for port in engine.ports.values() if engine is not None else ports:  # after the tasks that wait for them
            port.close()
    if failure is not None:
        raise failure
