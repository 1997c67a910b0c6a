"""The engine: one trio nursery in which frames become finished requests.

Owns the links, the tags and the timer.  Tasks: a *receiver* per link (``engine.receiver``), the
*completion shards* (``engine.shards``), the *discovery* (``engine.discovery``), one *timer* for all targets, one
*watch* that lets the roster (``engine.roster``: which disks there are) look after them.  Everything that touches a
target's machine is a sync call, hence atomic under trio.

The life of a read::

    read() ── Request ──► Target.submit ── pump ──► Link.send_run ~~~ wire ~~~ target
    read() ◄── on_end ── shard ◄── (run, first, count) ── receiver ◄── Link.receive ◄── answers

What holds always:

- ``pump`` is the only place that sends runs; it is called after every input that may have opened a window.
- A waiting call ends: with its data, with an error, or cancelled; then nothing of it is left in a queue.

Rejected: a timer per target (hundreds of re-armed deadlines; here the common re-arming only moves later and is free),
and awaiting in ``pump`` (a full socket parks the target in the link's queue instead).
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
from aoefs.core.target import State, Target, TargetStatistics
from aoefs.engine.clock import PERIOD, RunningClock
from aoefs.engine.disk import Disk
from aoefs.engine.inplace import InPlace
from aoefs.engine.receiver import Receiver
from aoefs.engine.roster import Roster
from aoefs.engine.settings import Change, Settings
from aoefs.engine.shards import Shards, ShardStatistics
from aoefs.engine.strangers import Stranger
from aoefs.engine.waits import Sleepers
from aoefs.errors import RequestError, TargetLost
from aoefs.net.link import EthernetLink, Link
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
        self.links: dict[str, Link] = {}
        self.waiting = Sleepers()
        self._nursery = nursery
        self._time = RunningClock(trio.lowlevel.current_clock().current_time)
        self.now = self._time.now
        self.roster = Roster(self, settings, nursery)
        self.disks = self.roster.disks
        self.first_discovery = self.roster.first_discovery
        self._discovery = self.roster.discovery
        self._shards = Shards(settings.shards, nursery, self.pump)
        self._receiver = Receiver(tags, self.roster.owners, self._shards, self.pump, self._discovery.hint, self.now)
        self.in_place = InPlace(self._receiver, self._shards, self.waiting, self.now)
        self.wait_in_place = self.in_place.wait
        self._blocked: dict[Link, dict[Target, None]] = {}  # targets that wait for room in a link's socket
        self._armed: dict[Target, float] = {}  # when the timer will look at a target
        self._timer_scope: trio.CancelScope | None = None
        nursery.start_soon(self._timer, name="timer")
        nursery.start_soon(self._watch, name="watch")

    # ── links ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def open_link(self, interface: str) -> None:
        """Speak AoE on a local interface from now on.  OSError as ``net.packetsocket.PacketSocket``."""
        self.add_link(EthernetLink(interface, self.tags))

    def add_link(self, link: Link, *, discover: bool = True) -> None:
        """Receive on ``link`` from now on, and discover; it is closed with the engine."""
        self.links[link.interface] = link
        self.roster.settle_reservations()
        self._receiver.add_link(link)
        self.in_place.add_link(link)
        self._nursery.start_soon(self._receiver.run, link, name=f"receiver on {link.interface}")
        if discover:
            self._discovery.start(link)

    def link_changed(self, link: Link, *, up: bool) -> None:
        """The interface went up or down, or its MTU changed: measure and discover again."""
        link.refresh()
        link.up = up
        for disk in self.disks.values():
            for path in disk.target.paths:
                if path.link is link:
                    path.sectors = max(1, min(path.sectors, link.max_sectors))
            if not up:
                disk.target.leave_link(link)
                self.pump(disk.target)
        if up:
            self._discovery.start(link)
        else:
            self._discovery.stop(link)

    def drop_link(self, link: Link) -> None:
        """The interface is gone."""
        self._discovery.stop(link)
        del self.links[link.interface]
        self._blocked.pop(link, None)
        for disk in self.disks.values():
            target = disk.target
            for path in [path for path in target.paths if path.link is link]:
                self.roster.drop_path(target, path)
            self.pump(target)
        self.in_place.drop_link(link)
        self._receiver.drop_link(link)
        link.close()
        self.roster.settle_reservations()

    def macs(self) -> tuple[bytes, ...]:
        """Ours, on all links."""
        return tuple(link.mac for link in self.links.values())

    # ── sending ───────────────────────────────────────────────────────────────────────────────────────────────────

    def pump(self, target: Target) -> None:
        """Send all that the windows allow, and arm the timer."""
        now = self.now()
        while (run := target.next_run(now)) is not None:
            link: Link = run.path.link  # type: ignore[assignment]  # the core keeps the link opaque
            sent = link.send_run(run)
            if sent < run.count:
                target.unsent(run, sent)
                run.path.sectors = max(1, min(run.path.sectors, link.max_sectors))  # the MTU may be what refused it
                self._block(link, target)
                break
        self.arm(target, now)

    def _block(self, link: Link, target: Target) -> None:
        """The link has no room: pump this target again when there is some, in turn with the others."""
        waiting = self._blocked.get(link)
        if waiting is None:
            waiting = self._blocked[link] = {}
            self._nursery.start_soon(self._unblock, link, name=f"room on {link.interface}")
        waiting[target] = None

    async def _unblock(self, link: Link) -> None:
        pause = ROOM_PAUSE
        try:
            while waiting := self._blocked.get(link):
                await trio.sleep(pause)  # ENOBUFS comes from a full device queue, of which no descriptor tells
                if self._blocked.get(link) is not waiting:
                    return
                await link.wait_writable()
                self._blocked[link] = {}
                for target in waiting:
                    self.pump(target)
                pause = min(2 * pause, MAX_ROOM_PAUSE)
        except trio.ClosedResourceError:
            return
        self._blocked.pop(link, None)

    def write_was_lost(self, disk: Disk, error: RequestError) -> None:
        """A write failed that had been answered: the kernel must not go on showing its data as those of the disk."""
        log.error("%s: a write%s failed after it was answered: %s", disk.target.name, error.at, error)
        self.settings.on_change(disk, Change.REVALIDATED)

    # ── time ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def arm(self, target: Target, now: float) -> None:
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
                    for link in self.links.values():
                        self._receiver.receive_batches(link)
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
            links=tuple(link.statistics() for link in self.links.values()),
            strangers=self.roster.strangers(),
            hints=self._discovery.hints,
            hints_dropped=self._discovery.hints_dropped,
            candidates_dropped=self._discovery.candidates_dropped,
            refused_identities=self.roster.refused_identities,
            stopped_seconds=round(self._time.lost, 3),
        )

    def exempt_calls(self) -> int:
        """Of all disks, see :meth:`engine.disk.Disk.exempt_calls`."""
        return sum(disk.exempt_calls() for disk in self.disks.values())

    def fail_all(self) -> None:
        """Fail everything that somebody waits for.  What was answered already and not acknowledged still can be, and a
        target that is up can still be flushed.
        """
        for disk in self.disks.values():
            error = TargetLost("the engine stopped")
            disk.target.fail_all(error, disk.write_behind.pending)
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

    OSError as ``net.packetsocket.PacketSocket`` for the first interface that cannot be used.  An exception of the
    block's own leaves it as it is, not wrapped in a group.
    """
    tags: TagTable[Run | Exchange] = TagTable(secrets.randbits(31))
    links: list[Link] = []
    try:
        links.extend(EthernetLink(interface, tags) for interface in interfaces)
    except OSError:
        for link in links:
            link.close()
        raise
    engine: Engine | None = None
    failure: BaseException | None = None
    try:
        async with trio.open_nursery() as nursery:
            engine = Engine(nursery, settings or Settings(), tags)
            for link in links:
                engine.add_link(link, discover=discover)
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
        for link in engine.links.values() if engine is not None else links:  # after the tasks that wait for them
            link.close()
    if failure is not None:
        raise failure
