"""The roster: which disks there are, on which paths, and what a sighting changes about that.

Owns the disks by address, and the strangers: what answers and is no disk of ours.  No task of its own but the renewal
of a reservation.

What always holds:

- Only a sighting (an endpoint that answered IDENTIFY) creates a disk or a path, or ends a silence.
- Where two disks answer for one address and it is not clear which is meant, nothing is written (``Target.conflict``).
- Another disk under an address, or another size on one path, is rejected while the first one lives elsewhere.  It
  replaces the first one when it answers from its only endpoint: then nothing more is sent there, and if the disk is
  open, only after some seconds in which the first one did not answer.  Open files fail then, and nothing of theirs is
  sent to the new disk.
- A new path is reported with its MAC: whatever shows the identity of a disk is a path of it.
- A disk goes for good when another one took its place, or when it is down and not open: by order, or after an hour
  (``engine.lookout``); or when the table is full and it is not used (:meth:`Roster._make_room`).

Rejected: forgetting a target as soon as it is down (open files would have no way back), and trusting a MAC that was
good before (two disks may share an address, and one may be moved).
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import trio

from aoefs.core.health import Health, Sign
from aoefs.core.life import SERVED, UNANSWERING, State
from aoefs.core.link import Endpoint, Link
from aoefs.core.memory import Memory
from aoefs.core.path import Path
from aoefs.core.target import Target
from aoefs.engine.candidates import Need
from aoefs.engine.changes import Change, Changes
from aoefs.engine.disk import Disk
from aoefs.engine.driver import Driver
from aoefs.engine.settings import Settings
from aoefs.engine.slowlog import TimedDisk
from aoefs.engine.strangers import REFUSED, Stranger, Strangers
from aoefs.engine.supervisor import Supervisor
from aoefs.errors import IdentityChanged
from aoefs.net.frames import make_buffer
from aoefs.protocol.ata import Identity
from aoefs.protocol.units import format_size
from aoefs.protocol.wire import Address, ConfigArgument, format_mac

log = logging.getLogger("aoefs")

FIRST_SECONDS = 1.0  # of a disk, in which another one at its address is no intruder: which came first was chance
ALONE = 3  # times in a row that an endpoint must be identified as one disk until it is believed to be one again
MAX_PATHS = 32  # of one target: any host can answer as a disk that it has seen, from as many MACs as it likes
MAX_KNOWN_PATHS = 256  # remembered of one target
MISSED_ROUND = 65.0  # seconds without a sighting: the discovery asks every 60
PERSISTENCE = 5.0  # seconds for which another disk must be seen in place of one that is open
LONG_SILENCE = 5.0  # seconds after which lone commands are sent again as soon as the target is back


@dataclass(frozen=True, slots=True)
class Sighting:
    """An endpoint that answered a config query and IDENTIFY.  ``sectors`` per frame pass on this path; target and link
    would take ``full_sectors``.
    """

    endpoint: Endpoint
    config: ConfigArgument
    identity: Identity
    sectors: int
    full_sectors: int


class Roster:
    """See the module."""

    def __init__(self, driver: Driver, changes: Changes, settings: Settings, supervisor: Supervisor) -> None:
        self.disks: dict[Address, Disk] = {}
        self.refused_identities = 0
        self.dirty_lost = False  # a disk went whose last acknowledged writes were never flushed
        self.last_appeared_at = 0.0
        self.first_appeared = trio.Event()
        self._driver = driver
        self._changes = changes
        self._settings = settings
        self._supervisor = supervisor
        self._memory = Memory(make_buffer, settings.read_sectors)
        self._strangers = Strangers()
        self._contested: dict[Address, str] = {}  # by two disks from the beginning: what to decide
        self._mixed: dict[Endpoint, tuple[int, str]] = {}  # where two answered: how often one was alone since, and why
        self._rivals: dict[Target, tuple[Identity, float]] = {}  # another one where a disk was, and since when
        self._appeared_at: dict[Target, float] = {}
        self._seen_at: dict[Target, float] = {}  # the last sighting
        self._known_paths: dict[Target, set[tuple[str, bytes]]] = {}  # interfaces and MACs of all that it ever had

    # ── sightings ─────────────────────────────────────────────────────────────────────────────────────────────────

    def find_path(self, endpoint: Endpoint) -> Path | None:
        disk = self.disks.get(endpoint.address)
        return None if disk is None else disk.target.find_path(endpoint.link, endpoint.mac)

    def need_of(self, endpoint: Endpoint) -> Need:
        """What an examination of it is good for."""
        disk = self.disks.get(endpoint.address)
        if disk is None:
            return Need.NEW
        if disk.target.find_path(endpoint.link, endpoint.mac) is not None:
            return Need.KNOWN
        return Need.MISSED if disk.target.is_silent else Need.NEW

    def trusted_payload(self, endpoint: Endpoint) -> int:
        """Sectors per frame that are known to pass there and need no measuring; 0 if they are not known."""
        path = self.find_path(endpoint)
        if path is None or path.health is not Health.GOOD or path.target is None:
            return 0
        return 0 if path.target.is_silent or path.target.is_stuck(self._driver.now()) else path.sectors

    def on_sighting(self, sighting: Sighting) -> None:
        link = sighting.endpoint.link
        if self._driver.links.get(link.interface) is not link:
            return  # it was dropped since the answer came
        disk = self.disks.get(sighting.endpoint.address)
        meant = self._settings.serials.get(sighting.endpoint.address, sighting.identity.serial)
        if sighting.identity.serial != meant and (disk is None or self.find_path(sighting.endpoint) is None):
            self._reject(sighting, f"it is another disk than is meant (serial {sighting.identity.serial}, not {meant})")
            return
        if disk is None:
            if len(self.disks) < self._settings.max_targets or self._make_room(sighting.endpoint.mac):
                self._admit(sighting)
            else:
                of_share = " of its worker" if self._settings.share.of > 1 else ""
                self._reject(sighting, f"{self._settings.max_targets} targets{of_share} are the most (--max-targets)")
            return
        target = disk.target
        path = self.find_path(sighting.endpoint)
        others = [other for other in target.paths if other is not path]
        if target.identity.same_disk(sighting.identity):
            self._refresh(disk, sighting)
        elif target.identity.same_unit(sighting.identity):
            if not others or (self._is_gone(target, others) and self._note_rival(target, sighting.identity)):
                self._resize(disk, sighting)
            elif self._is_gone(target, others):
                target.suspend(self._driver.now())  # so that it is asked again
            else:
                size, known = sighting.identity.size_bytes, target.identity.size_bytes
                self._refuse_intruder(disk, sighting, f"it has {size} bytes, and {known} on its other paths")
        elif target.life.state in SERVED and (path is None or others):
            is_new = self._driver.now() - self._appeared_at[target] < FIRST_SECONDS
            if is_new:
                self._contest(disk, sighting)
            serials = f"serial {sighting.identity.serial}, not {target.identity.serial}"
            self._refuse_intruder(disk, sighting, f"it is another disk ({serials})")
        elif (disk.opened or target.dirty) and not self._note_rival(target, sighting.identity):
            target.suspend(self._driver.now())
        else:
            log.error("%s is another disk now (serial %s): open files fail", target.name, sighting.identity.serial)
            self._remove(disk, Change.REPLACED, "is another disk now")
            self.on_sighting(sighting)

    def _is_gone(self, target: Target, paths: Sequence[Path]) -> bool:
        """None of these paths is good: they say nothing against what was identified elsewhere."""
        return target.is_silent or all(path.health is not Health.GOOD for path in paths)

    def _note_rival(self, target: Target, identity: Identity) -> bool:
        """This is not the identity of the target.  True if no other has been seen there for ``PERSISTENCE`` seconds."""
        now = self._driver.now()
        other, since = self._rivals.get(target, (identity, now))
        if target not in self._rivals or not other.same_disk(identity):
            self._rivals[target] = identity, now
            found, known = (f"serial {one.serial}, {one.size_bytes} bytes" for one in (identity, target.identity))
            log.warning("%s: another disk answers there: %s, not %s", target.name, found, known)
            return False
        return now - since >= PERSISTENCE

    def _refuse_intruder(self, disk: Disk, sighting: Sighting, reason: str) -> None:
        """The first disk lives on elsewhere, as far as we know."""
        path = self.find_path(sighting.endpoint)
        if path is not None:
            self.drop_path(path)
            self._driver.pump(disk.target, self._driver.now())
        self.refused_identities += 1
        self._reject(sighting, reason)

    # ── two disks at one address ──────────────────────────────────────────────────────────────────────────────────

    def on_two_disks(self, endpoint: Endpoint, identities: Sequence[Identity]) -> bool:
        """IDENTIFY was answered differently from one MAC; False if none of the answers is that of a disk of ours."""
        disk = self.disks.get(endpoint.address)
        if disk is None or self.find_path(endpoint) is None:
            return False
        other = next((one for one in identities if not disk.target.identity.same_disk(one)), None)
        if other is not None:
            where = f"{format_mac(endpoint.mac)} on {endpoint.link.interface}"
            names = _names(disk.target.identity, other)
            self._mixed[endpoint] = 0, f"two disks answer from {where}, {names[0]} and {names[1]}"
            self._judge_conflict(disk)
        return True

    def is_mixed(self, endpoint: Endpoint) -> bool:
        """Two disks answered from there: what is read may be of either."""
        return endpoint in self._mixed

    def _note_alone(self, disk: Disk, endpoint: Endpoint) -> None:
        """One disk answered from there."""
        times, conflict = self._mixed.pop(endpoint, (ALONE, ""))
        if times + 1 < ALONE:
            self._mixed[endpoint] = times + 1, conflict
        self._judge_conflict(disk)

    def _contest(self, disk: Disk, sighting: Sighting) -> None:
        """Which of two disks was seen first was chance: nothing is written before somebody decides."""
        target, (link, mac, _) = disk.target, sighting.endpoint
        first = ", ".join(f"{format_mac(path.mac)} on {path.interface}" for path in target.paths)
        names = _names(target.identity, sighting.identity)
        self._contested[target.address] = (
            f"two disks have this address, {names[0]} ({first}) and "
            f"{names[1]} ({format_mac(mac)} on {link.interface}); "
            f"decide with -i, --allow-mac or --disk {target.name}=SERIAL"
        )
        self._judge_conflict(disk)

    def _judge_conflict(self, disk: Disk) -> None:
        """Whether nothing is written, and why."""
        target = disk.target
        mixed = [conflict for endpoint, (_, conflict) in self._mixed.items() if endpoint.address == target.address]
        conflict = self._contested.get(target.address) or next(iter(mixed), "")
        if target.conflict == conflict:
            return
        target.conflict = conflict
        if conflict:
            log.warning("%s takes no writes: %s", target.name, conflict)
        else:
            log.info("%s takes writes again: one disk answers", target.name)
        self._changes.publish(disk, Change.CONFLICT)

    # ── strangers ─────────────────────────────────────────────────────────────────────────────────────────────────

    def set_bounds(self, deadsecs: float, maxout: int) -> None:
        """For the targets that are there, and for those that come."""
        self._settings = replace(self._settings, deadsecs=deadsecs, maxout=maxout)
        for disk in self.disks.values():
            disk.target.set_bounds(deadsecs, maxout)

    def on_stranger(self, stranger: Stranger) -> None:
        """A candidate that was not identified; a path that falls silent is no stranger."""
        if self.find_path(stranger.endpoint) is None:
            self._strangers.note(stranger, self._driver.now())

    def strangers(self, candidates: Sequence[Stranger]) -> tuple[Stranger, ...]:
        """What answers and is no disk of ours: rejected, silent to IDENTIFY, or still under it (``candidates``)."""
        found = {stranger.endpoint: stranger for stranger in candidates if self.find_path(stranger.endpoint) is None}
        found |= {stranger.endpoint: stranger for stranger in self._strangers.present(self._driver.now())}
        return tuple(sorted(found.values(), key=_place))

    def _reject(self, sighting: Sighting, reason: str) -> None:
        stranger = Stranger(sighting.endpoint, sighting.config, REFUSED, reason, sighting.identity.serial)
        self._strangers.note(stranger, self._driver.now())

    def _admit(self, sighting: Sighting) -> None:
        """A new target, with its first path."""
        settings, identity = self._settings, sighting.identity
        link, _, address = sighting.endpoint
        target = Target(
            address,
            identity,
            self._driver.tags,
            deadsecs=settings.deadsecs,
            maxout=settings.maxout,
            memory=self._memory,
        )
        target.conflict = self._contested.get(address, "")  # since the disk that was here before
        parts = target, self._driver, self._changes
        disk = self.disks[address] = Disk(*parts) if settings.slow is None else TimedDisk(*parts, settings.slow)
        self.last_appeared_at = self._appeared_at[target] = self._driver.now()
        self.first_appeared.set()
        self._refresh(disk, sighting)
        what = (target.name, format_size(identity.size_bytes), identity.model, identity.serial, link.interface)
        log.info("%s: %s, %s, serial %s, on %s", *what)
        self._changes.publish(disk, Change.APPEARED)

    def _refresh(self, disk: Disk, sighting: Sighting) -> None:
        """The same disk once more: its buffer count, its payload, its path; and up again if it was down."""
        target, (link, mac, _) = disk.target, sighting.endpoint
        if self._refuse_new_path(target, sighting):
            return
        self._note_alone(disk, sighting.endpoint)
        self._rivals.pop(target, None)
        self._seen_at[target] = self._driver.now()
        target.set_bufcnt(sighting.config.buffer_count)
        target.config = sighting.config.string
        target.identify_block = sighting.identity.block
        path = target.find_path(link, mac)
        state = target.life.state
        is_new = path is None or (target.is_silent and state is not State.HELD)
        if path is None:
            if len(target.paths) >= MAX_PATHS:
                oldest = min(target.paths, key=lambda path: path.last_answer_at)
                if not (oldest.health is not Health.GOOD or target.is_silent):
                    self._reject(sighting, f"{MAX_PATHS} paths are the most")
                    return
                self.drop_path(oldest)
            self._report_path(disk, sighting.endpoint)
            path = target.add_path(link, link.interface, (link.mac, mac), sighting.sectors)
        self._strangers.forget(sighting.endpoint)
        if path.sectors != sighting.sectors:
            log.info("%s: %d sectors per frame on %s", target.name, sighting.sectors, path.interface)
        path.sectors, path.full_sectors = sighting.sectors, sighting.full_sectors
        path.take(Sign.IDENTITY)
        if state is State.DOWN or state in UNANSWERING:
            if target.silence(self._driver.now()) > LONG_SILENCE:  # else it may just be slow over what it was asked
                disk.interrupt()
            target.come_up(self._driver.now())
        if state is State.DOWN:
            log.info("%s is back", target.name)
            self._changes.publish(disk, Change.RETURNED)
        if disk.reservation.is_due:
            if is_new:
                target.await_reservation()
                disk.interrupt()  # what was sent of a reservation before may have gone nowhere
            self._supervisor.start("renewal of a reservation", partial(self._renew_reservation, disk))
        self._driver.pump(target, self._driver.now())

    def _refuse_new_path(self, target: Target, sighting: Sighting) -> bool:
        """Reject a path that the target did not have in its first second, if none may be added; whether it was one."""
        link, mac, _ = sighting.endpoint
        known = self._known_paths.get(target)
        if known is None or not self._settings.fixed_paths or (link.interface, mac) in known:
            return False
        if self._driver.now() - self._appeared_at[target] < FIRST_SECONDS:
            return False
        self._reject(sighting, "it says that it is a path of this disk, and none is added (--fixed-paths)")
        return True

    def _report_path(self, disk: Disk, endpoint: Endpoint) -> None:
        """AoE knows no keys: what has the identity of a disk is a path of it."""
        target, (link, mac, _) = disk.target, endpoint
        known = self._known_paths.setdefault(target, set())
        if known and (link.interface, mac) not in known:
            level = logging.WARNING if disk.opened else logging.INFO
            log.log(level, "%s has another path: %s on %s", target.name, format_mac(mac), link.interface)
        if len(known) < MAX_KNOWN_PATHS:
            known.add((link.interface, mac))

    def _resize(self, disk: Disk, sighting: Sighting) -> None:
        target = disk.target
        old, target.identity = target.identity, sighting.identity
        for path in target.paths:
            path.lba48 = sighting.identity.lba48
        verb = "grew" if sighting.identity.sectors > old.sectors else "shrank"
        log.warning("%s %s from %d to %d bytes", target.name, verb, old.size_bytes, sighting.identity.size_bytes)
        self._refresh(disk, sighting)
        self._changes.publish(disk, Change.RESIZED)

    # ── reservations ──────────────────────────────────────────────────────────────────────────────────────────────

    async def _renew_reservation(self, disk: Disk) -> None:
        """A restarted target forgot its reservation, and one made before does not name a new MAC of ours."""
        answered = await disk.reservation.renew()
        now = self._driver.now()
        disk.target.reservation_was_renewed(now, answered=answered)
        self._driver.pump(disk.target, now)

    def renew_reservations(self) -> None:
        """Our MACs are others now: reservations name them all."""
        for disk in self.disks.values():
            if disk.reservation.is_due and not disk.target.is_silent:  # else when it is sighted again
                self._supervisor.start("renewal of a reservation", partial(self._renew_reservation, disk))

    # ── what goes ─────────────────────────────────────────────────────────────────────────────────────────────────

    def drop_link(self, link: Link) -> None:
        """All paths over this link go; what flew there goes out again elsewhere."""
        for disk in self.disks.values():
            for path in [path for path in disk.target.paths if path.link is link]:
                self.drop_path(path)
            self._driver.pump(disk.target, self._driver.now())

    def drop_path(self, path: Path) -> None:
        target = path.target
        if target is not None:
            target.drop_path(path)
            self._mixed.pop(Endpoint(path.link, path.mac, target.address), None)
            self._judge_conflict(self.disks[target.address])

    def _make_room(self, mac: bytes) -> bool:
        """The table is full: forget a target that nobody uses for a new one behind ``mac``.

        One that misses a round of queries, the longest one first; else the newest one of the MAC that has most, if that
        has more than ``mac`` even afterwards.
        """
        now = self._driver.now()
        unused = [disk for disk in self.disks.values() if not self._is_used(disk)]
        if not unused:
            return False
        oldest = min(unused, key=lambda disk: self._seen_at[disk.target])
        if now - self._seen_at[oldest.target] > MISSED_ROUND:
            self.forget(oldest)
            return True
        counts = Counter(path.mac for disk in self.disks.values() for path in disk.target.paths[:1])
        crowded = max(unused, key=lambda disk: (_count(counts, disk), self._appeared_at[disk.target]))
        if _count(counts, crowded) <= counts[mac] + 1:
            return False
        self.forget(crowded)
        return True

    def _is_used(self, disk: Disk) -> bool:
        target = disk.target
        return bool(disk.opened) or target.dirty or not target.order.idle or not target.is_idle

    def reason_to_keep(self, disk: Disk) -> str | None:
        """Why a target must not be forgotten, as the end of a sentence; None if it is down and not open."""
        if disk.opened:
            return "is open"
        if disk.target.life.state is not State.DOWN:
            return "is not down"
        return None if disk.target.order.idle else "has writes under way of which a late copy may still travel"

    def forget(self, disk: Disk) -> None:
        """Let a target go for which there is no :meth:`reason_to_keep`; it is a new one if it ever answers again."""
        if disk.target.dirty:
            log.warning("%s is forgotten, though its last writes were not flushed", disk.target.name)
        else:
            log.info("%s is forgotten", disk.target.name)
        self._remove(disk, Change.FORGOTTEN, "was forgotten")

    def _remove(self, disk: Disk, change: Change, why: str) -> None:
        """A target goes for good: what waits fails, and answers from its paths count for nothing."""
        target = disk.target
        self.dirty_lost |= target.dirty
        error = IdentityChanged(f"{target.name} {why}")
        target.go(error)
        disk.interrupt(error)
        del self.disks[target.address], self._appeared_at[target], self._seen_at[target]
        self._rivals.pop(target, None)
        self._known_paths.pop(target, None)
        for endpoint in [endpoint for endpoint in self._mixed if endpoint.address == target.address]:
            del self._mixed[endpoint]
        self._changes.publish(disk, change)


def _count(counts: Counter[bytes], disk: Disk) -> int:
    """How many targets the MAC of this one has."""
    return counts[disk.target.paths[0].mac] if disk.target.paths else 0


def _names(one: Identity, other: Identity) -> tuple[str, str]:
    """What tells two disks apart: their serials, and more if these are the same."""
    if one.serial != other.serial:
        return f"serial {one.serial}", f"serial {other.serial}"
    what = [f"serial {disk.serial} ({disk.model}, {disk.size_bytes} bytes)" for disk in (one, other)]
    return what[0], what[1]


def _place(stranger: Stranger) -> tuple[Address, str, bytes]:
    link, mac, address = stranger.endpoint
    return address, link.interface, mac
