"""The lookout: asks again for targets that are silent, and on paths of which too little is known.

Owns when each of them was asked, and how often.  No task of its own: the engine calls :meth:`Lookout.look` once a
second.  What answers is a sighting like any other (``engine.roster``).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence

import trio

from aoefs.core.health import Health
from aoefs.core.life import State
from aoefs.core.link import Endpoint
from aoefs.core.path import Path
from aoefs.core.target import Target
from aoefs.engine.changes import Change, Changes
from aoefs.engine.discovery import Discovery
from aoefs.engine.disk import Disk
from aoefs.engine.driver import Driver
from aoefs.engine.roster import Roster

log = logging.getLogger("aoefs")

SILENT_QUERIES = (1.0, 1.0, 1.0, 2.0, 2.0, 4.0, 4.0, 8.0, 15.0)  # seconds between queries for a silent target
FLUSHING_QUERIES = (4.0, 8.0, 16.0, 32.0)  # the same for one that flushes: it will answer all of them
STALL_REPORTS = 10.0  # seconds until a stall is reported again, then whenever it has doubled
WIDEN_AFTER = 10.0  # seconds until a path whose payload stepped down is measured again, then doubling
FORGET_AFTER = 3600.0  # seconds after which a target that is down and not open is forgotten
QUIET_AFTER_TARGET = 0.15  # seconds without a new target after which the first discovery is over
FIRST_DISCOVERY = 1.0  # seconds after the start at which it is over in any case


class Lookout:
    def __init__(self, driver: Driver, roster: Roster, discovery: Discovery, changes: Changes) -> None:
        self._driver = driver
        self._roster = roster
        self._discovery = discovery
        self._changes = changes
        self._asked: dict[Target | Path, tuple[float, int]] = {}  # silent ones: when we asked last, and how often
        self._told: dict[Target, tuple[float, float]] = {}  # stalled ones: since when, and when to say so again
        self._narrow: dict[Path, tuple[float, float]] = {}  # paths below their payload: when to measure, and the pause
        self._started_at = driver.now()

    def look(self, now: float) -> None:
        """Ask for targets that are silent, at growing distances; forget those that were down for long."""
        for disk in list(self._roster.disks.values()):
            target = disk.target
            target.rest(now)
            if now - target.down_since > FORGET_AFTER and self._roster.reason_to_keep(disk) is None:
                self._roster.forget(disk)
                continue
            if not target.is_silent:
                self._asked.pop(target, None)
                self._end_report(target, now)
                self._look_at_paths(target, now)
                continue
            self._report_stall(target, now)
            pauses = FLUSHING_QUERIES if target.life.state is State.FLUSHING else SILENT_QUERIES
            if self._take_turn(target, pauses, now):
                self._ask_everywhere(target)
        self._forget_what_is_gone()

    def _take_turn(self, silent: Target | Path, pauses: Sequence[float], now: float) -> bool:
        """Count one more query for it, if it is time for one."""
        asked_at, tries = self._asked.get(silent, (-math.inf, 0))
        if asked_at + pauses[min(tries, len(pauses)) - 1] > now:
            return False
        self._asked[silent] = (now, tries + 1)
        return True

    def _report_stall(self, target: Target, now: float) -> None:
        """A target that does not answer, while something waits for it: say so once, and then rarely."""
        since, again_at = self._told.get(target, (now - target.silence(now), now))
        left = since + (target.deadsecs or math.inf) - now
        if target.life.state not in (State.STALLED, State.FLUSHING) or again_at > now or not target.waiting or left < 1:
            return
        self._told[target] = (since, now + max(STALL_REPORTS, now - since))
        flushing = target.life.state is State.FLUSHING
        level, what = (logging.INFO, "is flushing") if flushing else (logging.WARNING, "does not answer")
        waiting = f"{target.waiting} request{'s wait' if target.waiting != 1 else ' waits'}"
        until = f", down in {left:.0f} s" if target.deadsecs else ""
        log.log(level, "%s %s: %s%s", target.name, what, waiting, until)

    def _end_report(self, target: Target, now: float) -> None:
        told = self._told.pop(target, None)
        if told is not None:
            log.info("%s answers again after %.0f s", target.name, now - told[0])

    def _forget_what_is_gone(self) -> None:
        gone = State.DOWN, State.REPLACED
        self._asked = {silent: last for silent, last in self._asked.items() if not _is_gone(silent)}
        self._told = {target: last for target, last in self._told.items() if target.life.state not in gone}
        self._narrow = {path: last for path, last in self._narrow.items() if path.target is not None}

    def identify_again(self, target: Target) -> None:
        """See on its paths whether it is still there and still the same disk."""
        for path in target.paths:
            self._ask_on(path, target)

    def revalidate(self, disk: Disk) -> None:
        """Identify a target again, where it is known to be, or everywhere if it is silent; returns at once.

        What is cached counts as old.
        """
        target = disk.target
        if target.is_silent:
            self._ask_everywhere(target)
        else:
            self.identify_again(target)
        disk.generation += 1
        self._changes.publish(disk, Change.REVALIDATED)

    def discover(self) -> None:
        """Ask on all links, now and by the schedule."""
        for link in self._driver.links.values():
            self._discovery.start(link)

    async def first_discovery(self) -> None:
        """Wait until ``QUIET_AFTER_TARGET`` seconds went by without a new target, ``FIRST_DISCOVERY`` seconds at most.

        Endpoints that are still under IDENTIFY are waited for.
        """
        now, roster = self._driver.now, self._roster
        with trio.move_on_after(max(0.0, self._started_at + FIRST_DISCOVERY - now())):
            await roster.first_appeared.wait()
            while True:
                quiet = roster.last_appeared_at + QUIET_AFTER_TARGET - now()
                if quiet <= 0 and not self._discovery.is_busy:
                    break
                await trio.sleep(max(quiet, 0.01))

    def _ask_everywhere(self, target: Target) -> None:
        """On its paths, and by broadcast: it may come back with another MAC."""
        self.identify_again(target)
        for link in self._driver.links.values():
            if link.up:
                self._discovery.ask(link, target.address)

    def _ask_on(self, path: Path, target: Target) -> None:
        if path.link.up:
            self._discovery.examine(Endpoint(path.link, path.mac, target.address))

    def _look_at_paths(self, target: Target, now: float) -> None:
        """Ask on paths of which we know too little: they are measured with frames of full size.

        So a degraded path comes back, one that loses only large frames gets smaller ones, and larger ones again when
        they pass.
        """
        narrow = self._narrow
        stuck = target.is_stuck(now)
        for path in target.paths:
            if not path.link.up:
                continue
            at, pause = narrow.get(path, (now + WIDEN_AFTER, WIDEN_AFTER))
            if path.sectors == path.full_sectors:
                narrow.pop(path, None)
            elif at <= now:
                narrow[path] = (now + 2 * pause, 2 * pause)
            else:
                narrow[path] = (at, pause)
            mixed = self._roster.is_mixed(Endpoint(path.link, path.mac, target.address))
            if path.health is Health.GOOD:
                self._asked.pop(path, None)
                degraded = False
            else:
                degraded = self._take_turn(path, SILENT_QUERIES, now)
            if stuck or degraded or (path in narrow and at <= now) or mixed:
                self._ask_on(path, target)


def _is_gone(what: Target | Path) -> bool:
    return what.target is None if isinstance(what, Path) else what.life.state is State.REPLACED
