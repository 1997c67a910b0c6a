"""The roster: which disks there are, on which paths, and what a sighting of the discovery makes of them.

Owns the disks by address, whose a path is, the discovery, and who was refused.  No task of its own but the renewal of
a reservation; the engine calls :meth:`Roster.look_after` once a second.

What holds always:

- Only a sighting creates a target or a path, or ends a silence.
- Another disk under an address is refused while the first one lives elsewhere, and replaces it when it answers in its
  very place: open files fail then, and nothing of theirs is sent to the new one.
- A target goes for good when another disk took its place, or when it is down and nobody has it open: by order, or
  after an hour.

Rejected: forgetting a target as soon as it is down (open files would have no way back), and trusting a MAC that was
good before (two disks may share an address, and one may be moved).
"""

from __future__ import annotations

import logging
from typing import Protocol

import trio

from aoefs.core.path import Path
from aoefs.core.request import Memory
from aoefs.core.target import State, Target
from aoefs.engine.discovery import Discovery, Sighting
from aoefs.engine.disk import Disk, Driver
from aoefs.engine.settings import Change, Settings
from aoefs.engine.strangers import REFUSED, Stranger, Strangers
from aoefs.errors import IdentityChanged
from aoefs.net.link import Link
from aoefs.protocol.wire import MAX_SECTORS, Address, ConfigArgument

log = logging.getLogger("aoefs")

MAX_PATHS = 32  # of one target: anybody can answer as a disk that he has seen, from as many MACs as he likes
WIDEN_AFTER = 10.0  # seconds until a path whose payload stepped down is measured again, then doubling
LONG_SILENCE = 5.0  # seconds after which lone commands are sent again as soon as the target is back
FORGET_AFTER = 3600.0  # seconds after which a target that is down and that nobody has open is forgotten
SILENT_QUERIES = (1.0, 1.0, 1.0, 2.0, 2.0, 4.0, 4.0, 8.0, 15.0)  # seconds between queries for a silent target
QUIET_AFTER_TARGET = 0.15  # seconds without a new target after which the first discovery is over
FIRST_DISCOVERY = 1.0  # seconds after the start at which it is over anyhow


class Host(Driver, Protocol):
    """What the roster needs of the engine."""

    links: dict[str, Link]


class Roster:
    """See the module."""

    def __init__(self, host: Host, settings: Settings, nursery: trio.Nursery) -> None:
        self.disks: dict[Address, Disk] = {}
        self.owners: dict[Path, Target] = {}
        self.refused_identities = 0
        self.dirty_lost = False  # a disk went away whose acknowledged writes no good flush had followed
        self.discovery = Discovery(
            host.tags,
            nursery,
            self._on_sighting,
            self._on_stranger,
            self._trusted_payload,
            allow_mac=settings.allow_mac,
        )
        self._host = host
        self._settings = settings
        self._nursery = nursery
        self._memory = Memory()
        self._strangers = Strangers()
        self._asked: dict[Target, tuple[float, int]] = {}  # silent ones: when to ask next, and how often we did
        self._narrow: dict[Path, tuple[float, float]] = {}  # paths below their payload: when to try again, and then
        self._last_new_target = 0.0
        self._found_one = trio.Event()
        self._started_at = host.now()

    # ── looking after ─────────────────────────────────────────────────────────────────────────────────────────────

    def look_after(self, now: float) -> None:
        """Ask for targets that are silent, at growing distances; what comes back is a sighting like any other."""
        for disk in list(self.disks.values()):
            target = disk.target
            if now - target.down_since > FORGET_AFTER and self.reason_to_keep(disk) is None:
                self.forget(disk)
                continue
            if not target.is_silent:
                self._asked.pop(target, None)
                self._ask_again(target, now)
                continue
            at, tries = self._asked.get(target, (now, 0))
            if at <= now:
                self._ask_for(target)
                self._asked[target] = (now + SILENT_QUERIES[min(tries, len(SILENT_QUERIES) - 1)], tries + 1)

    def verify(self, target: Target) -> None:
        """It was just suspended: see on its paths whether it is still there and still the same."""
        for path in target.paths:
            link: Link = path.link  # type: ignore[assignment]
            if link.up:
                config = ConfigArgument(
                    string=target.config, buffer_count=target.bufcnt, sectors=min(path.full_sectors, MAX_SECTORS)
                )
                self.discovery.verify((link, path.mac, target.address), config)

    def _ask_for(self, target: Target) -> None:
        """Ask everywhere for a silent target: it may come back with another MAC."""
        for link in self._host.links.values():
            if link.up:
                self.discovery.ask(link, address=target.address)

    def _ask_again(self, target: Target, now: float) -> None:
        """Ask on paths of which we know too little: they are measured with frames of full size.

        A scorned path comes back so; one that loses only large frames gets smaller ones, and larger ones when they
        pass again.
        """
        narrow = self._narrow
        stuck = target.is_stuck(now)
        for path in target.paths:
            link: Link = path.link  # type: ignore[assignment]
            if not link.up:
                continue
            at, pause = narrow.get(path, (now + WIDEN_AFTER, WIDEN_AFTER))
            if path.sectors == path.full_sectors:
                narrow.pop(path, None)
            elif at <= now:
                narrow[path] = (now + 2 * pause, 2 * pause)
            else:
                narrow[path] = (at, pause)
            if stuck or not path.healthy or (path in narrow and at <= now):
                self.discovery.ask(link, path.mac, target.address)

    # ── sightings ──────────────────────────────────────────────────────────────────────────────────────────────────

    def _on_stranger(self, stranger: Stranger) -> None:
        if not self._is_path(stranger):  # a path that falls silent is no stranger
            self._strangers.note(stranger, self._host.now())

    def _is_path(self, stranger: Stranger) -> bool:
        disk = self.disks.get(stranger.address)
        paths = disk.target.paths if disk is not None else ()
        return any(path.interface == stranger.interface and path.mac == stranger.mac for path in paths)

    def _refuse(self, sighting: Sighting, reason: str) -> None:
        address, interface, mac = sighting.address, sighting.link.interface, sighting.mac
        self._strangers.note(Stranger(address, interface, mac, sighting.config, REFUSED, reason), self._host.now())

    def _on_sighting(self, sighting: Sighting) -> None:
        disk = self.disks.get(sighting.address)
        if disk is None:
            if len(self.disks) >= self._settings.max_targets:
                self._refuse(sighting, f"{self._settings.max_targets} targets are the most (--max-targets)")
                return
            self._admit(sighting)
            return
        target = disk.target
        path = target.find_path(sighting.link, sighting.mac)
        if target.identity.same_disk(sighting.identity):
            self._refresh(disk, sighting)
        elif target.identity.same_unit(sighting.identity) and path is not None:
            self._resize(disk, sighting)
        elif target.state is State.UP and (path is None or len(target.paths) > 1):
            if path is not None:  # it lives on elsewhere, as far as we know
                self.drop_path(target, path)
                self._host.pump(target)
            self.refused_identities += 1
            serials = f"serial {sighting.identity.serial}, not {target.identity.serial}"
            self._refuse(sighting, f"it is another disk ({serials})")
        else:
            log.error("%s is another disk now (serial %s): open files fail", target.name, sighting.identity.serial)
            self._remove(disk, Change.REPLACED, "is another disk now")
            self._admit(sighting)

    def drop_path(self, target: Target, path: Path) -> None:
        target.drop_path(path)
        del self.owners[path]
        path.link.forget(path)  # type: ignore[attr-defined]

    def _trusted_payload(self, link: Link, mac: bytes, address: Address) -> int:
        """Sectors per frame that are known to pass there and need no measuring; 0 when they do."""
        disk = self.disks.get(address)
        path = disk.target.find_path(link, mac) if disk is not None else None
        if disk is None or path is None or not path.healthy:
            return 0
        if disk.target.is_silent or disk.target.is_stuck(self._host.now()):
            return 0
        return path.sectors

    def _admit(self, sighting: Sighting) -> None:
        """A new target, with its first path."""
        settings = self._settings
        target = Target(
            sighting.address,
            sighting.identity,
            self._host.tags,
            deadsecs=settings.deadsecs,
            maxout=settings.maxout,
            memory=self._memory,
        )
        disk = self.disks[sighting.address] = Disk(target, self._host)
        self._last_new_target = self._host.now()
        self._found_one.set()
        self._refresh(disk, sighting)
        log.info(
            "%s: %d bytes, %s, serial %s, on %s",
            target.name,
            sighting.identity.size_bytes,
            sighting.identity.model,
            sighting.identity.serial,
            sighting.link.interface,
        )
        settings.on_change(disk, Change.APPEARED)

    def _refresh(self, disk: Disk, sighting: Sighting) -> None:
        """The same disk, once more: its buffer count, its payload, its path; and up again if it was down."""
        target = disk.target
        target.set_bufcnt(sighting.config.buffer_count)
        target.config = sighting.config.string
        target.identify_block = sighting.identity.block
        path = target.find_path(sighting.link, sighting.mac)
        is_new = path is None or (target.is_silent and not target.awaiting_reservation)
        if path is None:
            if len(target.paths) >= MAX_PATHS:
                oldest = min(target.paths, key=lambda path: path.last_answer_at)
                if oldest.healthy and not target.is_silent:
                    self._refuse(sighting, f"{MAX_PATHS} paths are the most")
                    return
                self.drop_path(target, oldest)
            path = target.add_path(
                sighting.link, sighting.link.interface, (sighting.link.mac, sighting.mac), sighting.sectors
            )
            self.owners[path] = target
        self._strangers.forget((path.interface, path.mac, target.address))
        if path.sectors != sighting.sectors:
            log.info("%s: %d sectors per frame on %s", target.name, sighting.sectors, path.interface)
        path.sectors, path.full_sectors = sighting.sectors, sighting.full_sectors
        path.healthy = True
        was_down = target.state is State.DOWN
        if was_down or (target.suspended and not target.awaiting_reservation):
            if target.silence(self._host.now()) > LONG_SILENCE:  # else it may just be slow over what it was asked
                disk.interrupt()
            target.come_up(self._host.now())
            log.info("%s is back", target.name)
        if was_down:
            self._settings.on_change(disk, Change.RETURNED)
        if disk.reservation.is_due:
            if is_new:
                target.suspended = target.awaiting_reservation = True
                disk.interrupt()  # what was sent of a reservation before may have gone nowhere
            self._nursery.start_soon(self._settle, disk)
        self._host.pump(target)

    async def _settle(self, disk: Disk) -> None:
        """Renew its reservation, which a restarted target forgot and which does not name a new MAC of ours; then I/O
        goes on.
        """
        heard = await disk.reservation.settle()
        target = disk.target
        if target.awaiting_reservation:
            target.awaiting_reservation = False
            if heard and target.state is State.UP:
                target.come_up(self._host.now())
                self._host.pump(target)

    def _resize(self, disk: Disk, sighting: Sighting) -> None:
        target = disk.target
        old, target.identity = target.identity, sighting.identity
        for path in target.paths:
            path.lba48 = sighting.identity.lba48
        verb = "grew" if sighting.identity.sectors > old.sectors else "shrank"
        log.warning("%s %s from %d to %d bytes", target.name, verb, old.size_bytes, sighting.identity.size_bytes)
        self._refresh(disk, sighting)
        self._settings.on_change(disk, Change.RESIZED)

    def forget(self, disk: Disk) -> None:
        """Let a target go to which :meth:`reason_to_keep` does not object; a new one if it ever answers again."""
        if disk.target.dirty:
            log.warning("%s is forgotten, though its last writes were not flushed", disk.target.name)
        else:
            log.info("%s is forgotten", disk.target.name)
        self._remove(disk, Change.FORGOTTEN, "was forgotten")

    def reason_to_keep(self, disk: Disk) -> str | None:
        """Why a target must be kept, as the end of a sentence; None when it is down and nobody has it open."""
        if disk.opened:
            return "is open"
        if disk.target.state is not State.DOWN:
            return "is not down"
        return None if disk.target.order.idle else "has writes under way of which a late copy may still travel"

    def revalidate(self, disk: Disk) -> None:
        """Ask a target again who it is, where it is known to be, or everywhere if it is silent; what is cached is old.

        Answers come as sightings; returns at once.
        """
        target = disk.target
        if target.is_silent:
            self._ask_for(target)
        for path in () if target.is_silent else target.paths:
            link: Link = path.link  # type: ignore[assignment]
            if link.up:
                self.discovery.ask(link, path.mac, target.address)
        disk.generation += 1
        self._settings.on_change(disk, Change.REVALIDATED)

    def _remove(self, disk: Disk, change: Change, why: str) -> None:
        """A target goes for good: what waits fails, its paths are no longer answered to."""
        target = disk.target
        self.dirty_lost |= target.dirty
        error = IdentityChanged(f"{target.name} {why}")
        target.go_down(State.REPLACED, error)
        disk.interrupt(error)
        for path in target.paths:
            self.owners.pop(path, None)
            path.link.forget(path)  # type: ignore[attr-defined]
        del self.disks[target.address]
        self._settings.on_change(disk, change)

    def settle_reservations(self) -> None:
        """Our MACs are others now: reservations name them all."""
        for disk in self.disks.values():
            if disk.reservation.is_due and not disk.target.is_silent:  # else when it is found again
                self._nursery.start_soon(self._settle, disk)

    def discover(self) -> None:
        """Ask on all links, now and by the schedule."""
        for link in self._host.links.values():
            self.discovery.start(link)

    async def first_discovery(self, patience: float = FIRST_DISCOVERY) -> None:
        """Wait until ``QUIET_AFTER_TARGET`` seconds went by without a new target, ``patience`` seconds at most.

        Who is still under IDENTIFY is waited for.
        """
        with trio.move_on_after(max(0.0, self._started_at + patience - self._host.now())):
            await self._found_one.wait()
            while (quiet := self._last_new_target + QUIET_AFTER_TARGET - self._host.now()) > 0:  # noqa: ASYNC110 (it moves)
                await trio.sleep(quiet)
            while self.discovery.candidates():  # noqa: ASYNC110 (a few times in the life of a process)
                await trio.sleep(0.01)

    def strangers(self) -> tuple[Stranger, ...]:
        """Who answers and is no disk of ours: refused, silent to IDENTIFY, or still under it."""
        noted = {stranger.key: stranger for stranger in self._strangers.present(self._host.now())}
        silent = {stranger.key: stranger for stranger in self.discovery.candidates() if not self._is_path(stranger)}
        return tuple((silent | noted).values())
