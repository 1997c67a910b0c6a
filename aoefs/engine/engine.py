"""The engine: one trio nursery in which frames become finished requests.

Owns the ports, the tags and the timer.  Tasks: a *receiver* per port (``engine.receiver``), the
*completion shards* (``engine.shards``), the *discovery* (``engine.discovery``), one *timer* for all targets, one
*watch* that lets the roster (``engine.roster``: which disks there are) look after them.  Everything that touches a target's
machine is a sync call, hence atomic under trio.

The life of a read::

    read() ── Request ──► Initiator.submit ── pump ──► Port.send_run ~~~ wire ~~~ target
    read() ◄── on_end ── shard ◄── (run, first, count) ── receiver ◄── Port.receive ◄── answers

What holds always:

- ``pump`` is the only place that sends runs; it is called after every input that may have opened a window.
- A waiting call ends: with its data, with an error, or cancelled; then nothing of it is left in a queue.

Rejected: a timer per target (hundreds of re-armed deadlines; here the common re-arming only moves later and is free),
and awaiting in ``pump`` (a full socket parks the target in the port's queue instead).
"""

from __future__ import annotations

import logging
import math
import secrets
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import trio

from aoefs.core.path import Run
from aoefs.core.tags import Exchange, TagTable
from aoefs.core.target import Initiator, State, TargetStatistics
from aoefs.engine.clock import PERIOD, RunningTime
from aoefs.engine.disk import Disk
from aoefs.engine.inplace import InPlace
from aoefs.engine.receiver import Receiver
from aoefs.engine.roster import Roster
from aoefs.engine.settings import Change, Settings
from aoefs.engine.shards import Shards, ShardStatistics
from aoefs.engine.strangers import Stranger
from aoefs.engine.waits import Waiting
from aoefs.errors import RequestError, TargetLost
from aoefs.net.link import Port, SocketPort
from aoefs.net.packetsocket import LinkStatistics

log = logging.getLogger("aoefs")

ROOM_PAUSE, MAX_ROOM_PAUSE = 0.0005, 0.008  # seconds until a full device queue is tried again, doubling
ROUNDING = 1e-6  # seconds: a deadline on trio's clock and one on ours differ by the error of a sum


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
        self.ports: dict[str, Port] = {}
        self.waiting = Waiting()
        self._nursery = nursery
        self._time = RunningTime(trio.lowlevel.current_clock().current_time)
        self.now = self._time.now
        self.roster = Roster(self, settings, nursery)
        self.disks = self.roster.disks
        self.first_discovery = self.roster.first_discovery
        self._discovery = self.roster.discovery
        self._shards = Shards(settings.shards, nursery, self.pump)
        self._receiver = Receiver(tags, self.roster.owners, self._shards, self.pump, self._discovery.hint, self.now)
        self.in_place = InPlace(self._receiver, self._shards, self.waiting, self.now)
        self.wait_in_place = self.in_place.wait
        self._blocked: dict[Port, dict[Initiator, None]] = {}  # targets that wait for room in a port's socket
        self._armed: dict[Initiator, float] = {}  # when the timer will look at a target
        self._timer_scope: trio.CancelScope | None = None
        nursery.start_soon(self._timer, name="timer")
        nursery.start_soon(self._watch, name="watch")

    # ── ports ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def open_port(self, interface: str) -> None:
        """Speak AoE on a local interface from now on.  OSError as ``net.packetsocket.Link``."""
        self.add_port(SocketPort(interface, self.tags))

    def add_port(self, port: Port, *, discover: bool = True) -> None:
        """Receive on ``port`` from now on, and discover; it is closed with the engine."""
        self.ports[port.interface] = port
        self.roster.settle_reservations()
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
                self.roster.drop_path(target, path)
            self.pump(target)
        self.in_place.drop_port(port)
        self._receiver.drop_port(port)
        port.close()
        self.roster.settle_reservations()

    def macs(self) -> tuple[bytes, ...]:
        """Ours, on all ports."""
        return tuple(port.mac for port in self.ports.values())

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

    def write_was_lost(self, disk: Disk, error: RequestError) -> None:
        """A write failed that had been answered: the kernel must not go on showing its data as those of the disk."""
        log.error("%s: a write%s failed after it was answered: %s", disk.target.name, error.at, error)
        self.settings.on_change(disk, Change.REVALIDATED)

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
                        self.roster.verify(target)
                    if target.state is not was:
                        log.warning("%s is down: not one answer for %g s", target.name, target.deadsecs)
                        disk = self.disks[target.address]
                        disk.interrupt(TargetLost(f"{target.name} is down"))
                        self.settings.on_change(disk, Change.DOWN)
                    self.pump(target)
                else:
                    self.arm(target, now)

    async def _watch(self) -> None:
        while True:
            await trio.sleep(PERIOD)
            now = self.now()
            self._time.beat()
            self.roster.look_after(now)

    # ── the whole ─────────────────────────────────────────────────────────────────────────────────────────────────

    def statistics(self) -> EngineStatistics:
        return EngineStatistics(
            targets=tuple(disk.target.statistics() for _, disk in sorted(self.disks.items())),
            shards=self._shards.statistics(),
            links=tuple(port.statistics() for port in self.ports.values()),
            strangers=self.roster.strangers(),
            hints=self._discovery.hints,
            hints_dropped=self._discovery.hints_dropped,
            candidates_dropped=self._discovery.candidates_dropped,
            refused_identities=self.roster.refused_identities,
            stopped_seconds=round(self._time.lost, 3),
        )

    def uncounted(self) -> int:
        """Of all disks, see :meth:`engine.disk.Disk.uncounted`."""
        return sum(disk.uncounted() for disk in self.disks.values())

    def fail_all(self) -> None:
        """Fail everything that somebody waits for.  What was answered already and not acknowledged still can be, and a
        target that is up can still be flushed.
        """
        for disk in self.disks.values():
            error = TargetLost("the engine stopped")
            disk.target.fail_all(error, disk.behind.pending)
            disk.interrupt(error)

    def stop(self) -> None:
        """Stopped: flush the queues of the shards, fail what waits and every later request."""
        self._shards.flush()
        self.in_place.close()
        for disk in self.disks.values():
            error = TargetLost("the engine stopped")
            disk.target.go_down(State.DOWN, error)
            disk.interrupt(error)


@asynccontextmanager
async def open_engine(
    interfaces: Iterable[str], settings: Settings | None = None, *, discover: bool = True
) -> AsyncIterator[Engine]:
    """An engine on these interfaces; leaving the block stops its tasks and fails what still waits.

    Without ``discover`` nothing asks who is there: for lone commands (``engine.conversation``).

    OSError as ``net.packetsocket.Link`` for the first interface that cannot be used.  An exception of the block's own
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
