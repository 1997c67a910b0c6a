"""The engine: one trio nursery in which frames become finished requests.

Builds everything below, in the order in which it is needed, and owns which links are open.  Tasks: a *receiver* per
link (``engine.receiver``), the *completion shards* (``engine.shards``), the *discovery* (``engine.discovery``), one
task that waits for the *timer* of all targets (``engine.timer``), and one that beats the clock and lets the *lookout*
(``engine.lookout``) look, once a second.  Everything that touches a target is a sync call, hence atomic under trio.

The life of a read::

    Disk.read ── Request ──► Driver.submit ── Target.next_run ──► Link.send_run ~~~ wire ~~~ target
    Disk.read ◄── on_end ── Shard ◄── (run, first, count) ── Receiver ◄── Link.receive ◄── answers

What always holds: a call that waits ends with its data, with an error, or cancelled, and then nothing of it is left in
a queue.
"""

from __future__ import annotations

import logging
import os
import secrets
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import trio

from aoefs.core.life import State
from aoefs.core.link import Endpoint, Link, LinkStatistics
from aoefs.core.lonecommand import LoneCommand
from aoefs.core.request import Run
from aoefs.core.statistics import TargetStatistics
from aoefs.core.tags import TagTable
from aoefs.core.target import Target
from aoefs.engine.changes import Change, Changes
from aoefs.engine.clock import PERIOD, RunningClock
from aoefs.engine.discovery import Discovery
from aoefs.engine.driver import Driver
from aoefs.engine.inplace import InPlace
from aoefs.engine.lookout import Lookout
from aoefs.engine.receiver import Receiver
from aoefs.engine.roster import Roster
from aoefs.engine.rundelay import RunDelay
from aoefs.engine.settings import Settings
from aoefs.engine.shards import Shards, ShardStatistics
from aoefs.engine.strangers import Stranger
from aoefs.engine.supervisor import Supervisor
from aoefs.engine.timer import ROUNDING
from aoefs.errors import TargetLost
from aoefs.net.link import EthernetLink

log = logging.getLogger("aoefs")


@dataclass(frozen=True, slots=True)
class EngineStatistics:
    """A frozen snapshot of everything."""

    targets: tuple[TargetStatistics, ...]
    shards: tuple[ShardStatistics, ...]
    links: tuple[LinkStatistics, ...]
    strangers: tuple[Stranger, ...]
    hints: int  # announcements, answers to broadcast queries, and surplus or late answers from paths of ours
    hints_dropped: int  # of these, those that caused no query
    candidates_dropped: int  # that answered while too many were under IDENTIFY already
    refused_identities: int
    stopped_seconds: float  # for which this process was not allowed to run


class Engine:
    """See the module; made by :func:`open_engine`."""

    def __init__(
        self,
        nursery: trio.Nursery,
        settings: Settings,
        tags: TagTable[Run | LoneCommand],
        clock: Callable[[], float],
    ) -> None:
        self._nursery = nursery
        self._clock = RunningClock(clock, trio.current_time() - clock())
        self.changes = Changes()
        self.supervisor = Supervisor(nursery)
        self.driver = Driver(nursery, self._clock, tags)
        shards = settings.shards or len(os.sched_getaffinity(0))
        self._shards = Shards(shards, nursery, self.driver.pump, self.driver.now, settings.share.of)
        self.receiver = Receiver(self.driver, self._shards, self._on_hint)
        self._run_delay = RunDelay()
        self.in_place = InPlace(
            self.receiver.receive_batch,
            self.receiver.attended,
            self.driver.callers,
            self.driver.in_flight,
            self.driver.now,
            settings.busy_poll,
            self._run_delay.seconds,
        )
        self.roster = Roster(self.driver, self.changes, settings, self.supervisor)
        self._share = settings.share
        self.discovery = Discovery(
            self.driver, self.roster, self.supervisor, allow_mac=settings.allow_mac, share=settings.share
        )
        self.lookout = Lookout(self.driver, self.roster, self.discovery, self.changes)
        self.disks = self.roster.disks
        self.links = self.driver.links
        self.now = self.driver.now
        self.first_discovery = self.lookout.first_discovery
        nursery.start_soon(self._follow_timer, name="timer")
        nursery.start_soon(self._beat, name="watch")

    def _on_hint(self, endpoint: Endpoint, announced: bool) -> None:
        if announced or self.roster.find_path(endpoint) is not None:
            self.discovery.hint(endpoint)

    # ── links ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def open_link(self, interface: str) -> None:
        """Speak AoE on a local interface from now on.  OSError as ``net.packetsocket.PacketSocket``."""
        self.add_link(EthernetLink(interface, self.driver.tags, self._share))

    def add_link(self, link: Link, *, discover: bool = True) -> None:
        """Receive on ``link`` from now on, and discover; it is closed with the engine."""
        self.links[link.interface] = link
        self.roster.renew_reservations()
        self.receiver.add_link(link)
        self.in_place.add_link(link)
        self._nursery.start_soon(self.receiver.run, link, name=f"receiver on {link.interface}")
        self._nursery.start_soon(self.receiver.hear_hints, link, name=f"hints on {link.interface}")
        if discover:
            self.discovery.start(link)

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
                self.driver.pump(disk.target, self.now())
        if up:
            self.discovery.start(link)
        else:
            self.discovery.stop(link)

    def drop_link(self, link: Link) -> None:
        """The interface is gone."""
        self.discovery.stop(link)
        self.driver.drop_link(link)
        self.roster.drop_link(link)
        self.in_place.drop_link(link)
        self.receiver.drop_link(link)
        link.close()
        self.roster.renew_reservations()

    # ── time ──────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _follow_timer(self) -> None:
        """Look at each target when it is due.

        Before one of them gives something up, its links are read empty: we may be late, not the answers.
        """
        while True:
            due = await self.driver.timer.due()
            now = self.now() + ROUNDING
            received = False
            for target in due:
                timeout = target.next_timeout()
                if timeout is not None and timeout <= now and not received:
                    received = True
                    for link in self.links.values():
                        self.receiver.receive_batches(link)
                    timeout = target.next_timeout()
                if timeout is None:
                    continue
                if timeout <= now:
                    self._time_out(target, now)
                else:
                    self.driver.timer.arm(target, now)

    def _time_out(self, target: Target, now: float) -> None:
        before = target.life.state
        target.handle_timeout(now)
        if target.life.state is before:
            pass
        elif target.life.state in (State.SUSPENDED, State.STALLED) and before in (State.UP, State.HELD):
            self.lookout.identify_again(target)
        elif target.life.state is State.DOWN:
            log.warning("%s is down: not one answer for %g s", target.name, target.deadsecs)
            disk = self.disks[target.address]
            disk.interrupt(TargetLost(f"{target.name} is down"))
            self.changes.publish(disk, Change.DOWN)
        self.driver.pump(target, now)

    async def _beat(self) -> None:
        while True:
            await trio.sleep(PERIOD)
            now = self.now()
            self._clock.beat()
            self.lookout.look(now)
            self.receiver.look(now)
            self.driver.tags.forget_old(now)

    # ── the whole ─────────────────────────────────────────────────────────────────────────────────────────────────

    def statistics(self) -> EngineStatistics:
        return EngineStatistics(
            targets=tuple(disk.target.statistics() for _, disk in sorted(self.disks.items())),
            shards=self._shards.statistics(),
            links=tuple(link.statistics() for link in self.links.values()),
            strangers=self.roster.strangers(self.discovery.candidates()),
            hints=self.discovery.hints,
            hints_dropped=self.discovery.hints_dropped,
            candidates_dropped=self.discovery.queue.dropped,
            refused_identities=self.roster.refused_identities,
            stopped_seconds=round(self._clock.lost, 3),
        )

    def exempt_calls(self) -> int:
        """Of all disks, see :meth:`engine.disk.Disk.exempt_calls`."""
        return sum(disk.exempt_calls() for disk in self.disks.values())

    def close(self) -> None:
        """The mount ends: fail everything that waits, and everything new.  Writes that were answered early may still be
        acknowledged, and a target that is up can still be flushed (``engine.lastflush``).
        """
        for disk in self.disks.values():
            disk.close(spared=disk.write_behind.pending)

    def stop(self) -> None:
        """Flush the queues of the shards, fail what waits and every later request."""
        self._shards.flush()
        self.in_place.close()
        self._run_delay.close()
        for disk in self.disks.values():
            disk.close()


@asynccontextmanager
async def open_engine(
    interfaces: Iterable[str],
    settings: Settings | None = None,
    *,
    discover: bool = True,
    clock: Callable[[], float] = trio.current_time,
) -> AsyncIterator[Engine]:
    """An engine on these interfaces; leaving the block stops its tasks and fails what still waits.

    Without ``discover`` no queries are sent: for lone commands (``engine.conversation``).  ``clock`` goes as fast as
    trio's, from any moment on: to ask that one takes four times as long as to ask ``time.perf_counter``.

    OSError as ``net.packetsocket.PacketSocket`` for the first interface that cannot be used.  An exception of the
    block's own leaves it as it is, not wrapped in a group.
    """
    tags: TagTable[Run | LoneCommand] = TagTable(secrets.token_bytes)
    links: list[Link] = []
    settings = settings or Settings()
    engine: Engine | None = None
    failure: BaseException | None = None
    try:
        links.extend(EthernetLink(interface, tags, settings.share) for interface in interfaces)
        async with trio.open_nursery() as nursery:
            engine = Engine(nursery, settings, tags, clock)
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
