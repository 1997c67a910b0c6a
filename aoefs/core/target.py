"""One target as the initiator sees it: a machine that turns Requests into Runs, and answers into finished Requests.

Pure: no socket, no clock, no trio.  What drives it (``engine.driver``, or a test with a heap of frames) keeps this
contract:

1. ``submit(request, now)`` takes a Request.  If it is a write, ``order`` (an OverlapGuard) has granted its range.
2. ``next_run(now)`` gives what the windows allow to send now, one batch on one path, until it gives None.  What the
   socket did not take goes back by ``unsent(run, first)``.
3. An answer is first *received*: ``receive(run, first, count, now)`` updates round-trip time and window, so that more
   can be sent.  Then it is *completed*: by ``complete(run, first, count)`` if it is good, by
   ``fail_command(run, index, error)`` if not.  Between the two it may wait in the queue of a shard.
4. ``next_timeout()`` says when to call ``handle_timeout(now)``.

What always holds:

- A sector's bit in ``request.todo`` is cleared only by an answer to a transmission of exactly that sector.
- A request ends exactly once: when ``todo`` is 0, with an error, or by ``abandon``.
- The commands in flight on all paths together never exceed the target's buffer count (at least 1).
- A write of which a copy may still travel keeps its range claimed until each copy was answered, or until a frame's
  lifetime has passed since the last sending: a late copy would overwrite newer data.
- After ``SILENCE`` seconds without an answer while something waited, or ``SUSPEND_BACKOFF`` timeouts in a row, nothing
  more is sent until the target is identified again, since another disk may come back.  A FLUSH is no reason: a disk
  may take as long for it as it likes, and its answer is all that is missing.
- After ``deadsecs`` without an answer while something waited or the target was to be identified again, it is DOWN: what
  waits fails, and new requests fail at once.  ``deadsecs`` 0 means never.

Rejected: a task per command (the windows would be shared across awaits, with hundreds of timers), and round-trip times
per MAC as the Linux driver keeps them (the time of the disk is part of them).
"""

from __future__ import annotations

import math
from collections.abc import Container
from typing import Final

from aoefs.core.backlog import Backlog
from aoefs.core.health import Health, Sign
from aoefs.core.latency import BUCKETS, bucket_of
from aoefs.core.life import NOT_ANSWERING, SERVED, UNANSWERING, Input, Life, State
from aoefs.core.link import Endpoint, Link
from aoefs.core.lonecommand import LoneCommand
from aoefs.core.memory import Memory
from aoefs.core.overlap import Claim, OverlapGuard
from aoefs.core.path import Path
from aoefs.core.quarantine import Quarantine
from aoefs.core.recovery import MAX_RTO
from aoefs.core.request import NOTHING, Request, Run, bits
from aoefs.core.statistics import TargetStatistics, snapshot
from aoefs.core.tags import BLOCK_TAGS, TagTable
from aoefs.errors import IdentityChanged, RequestError, TargetError, TargetLost
from aoefs.protocol.ata import Identity
from aoefs.protocol.wire import SECTOR_BYTES, Address, ErrorCode

DEFAULT_DEADSECS: Final = 180.0  # as the Linux driver's aoe_deadsecs
DEFAULT_MAXOUT: Final = 64  # as the Linux driver's aoe_maxout
SILENCE: Final = 2.0  # seconds without an answer after which a target must be identified again before it gets more
SUSPEND_BACKOFF: Final = 5  # timeouts in a row that mean the same, sooner: 0.3 s on a LAN
LOSS_MEMORY: Final = 60.0  # seconds
STUCK: Final = 1.0  # seconds that a request may take before the payload of its paths is measured again


class Target:
    """See the module.  ``bufcnt`` is the target's buffer count, ``maxout`` our own bound on commands in flight;
    ``memory`` is what all targets share for the buffers of reads.
    """

    def __init__(
        self,
        address: Address,
        identity: Identity,
        tags: TagTable[Run | LoneCommand],
        *,
        deadsecs: float = DEFAULT_DEADSECS,
        maxout: int = DEFAULT_MAXOUT,
        memory: Memory | None = None,
    ) -> None:
        self.address = address
        self.name = str(address)
        self.identity = identity
        self.config = b""
        self.identify_block = identity.block  # the last one that was received
        self.life = Life()
        self.down_since = math.inf  # when it fell silent for too long
        self.paths: list[Path] = []
        self.order = OverlapGuard()
        self.bufcnt = 1
        self.in_flight = 0
        self.flush_unknown = False  # the target answered ABRT to its own flush command
        self.conflict = ""  # why nothing is written: another disk answers for this address, too
        self.dirty = False  # a write was acknowledged since the last good flush
        self.ever_written = False
        self.reads = self.writes = self.read_bytes = self.write_bytes = self.flushes = self.errors = 0
        self.busy_seconds = 0.0  # in which something was in flight, up to the last answer or timeout
        self._read_latency = [0] * BUCKETS
        self._write_latency = [0] * BUCKETS
        self._tags = tags
        self._memory = Memory() if memory is None else memory
        self._limit = 1
        self._max_rto = min(MAX_RTO, deadsecs / 4 or MAX_RTO)  # so a command is retransmitted before it fails
        self._backlog = Backlog()
        self._waiting: dict[Request, None] = {}  # sent at least once and not ended, oldest first
        self._quarantine = Quarantine(self.order)
        self._silent_since = 0.0  # the last answer, or when the first of what waits began to
        self._answer_due_since = 0.0  # when something else than a FLUSH began to wait
        self._busy_since = 0.0  # what is not in ``busy_seconds`` yet
        self._next_path = 0
        self._lone_commands = 0
        self._flushes = 0
        self.set_bounds(deadsecs, maxout)

    def set_bounds(self, deadsecs: float, maxout: int) -> None:
        """From now on, also for what waits already."""
        self.deadsecs = deadsecs
        self._patience = min(SILENCE, deadsecs / 2) if deadsecs else SILENCE  # it must be asked before it is down
        self._maxout = maxout
        self.set_bufcnt(self.bufcnt)

    # ── paths ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def add_path(self, link: Link, interface: str, macs: tuple[bytes, bytes], sectors: int) -> Path:
        """A path whose IDENTIFY matched: ``macs`` are ours and the target's, ``sectors`` is its payload."""
        path = Path(link, interface, self.address, macs, sectors, self._limit, self._max_rto)
        path.lba48 = self.identity.lba48
        path.target = self
        self.paths.append(path)
        return path

    def set_bufcnt(self, bufcnt: int) -> None:
        """Bounds what is in flight over all paths together, at least 1."""
        self.bufcnt = bufcnt
        self._limit = max(1, min(bufcnt, self._maxout))
        for path in self.paths:
            path.window.set_limit(self._limit)

    def usable_paths(self) -> list[Path]:
        """The good ones; if there is none, those that may answer; all, if there is none of these either."""
        good = [path for path in self.paths if path.health is Health.GOOD]
        return good or [path for path in self.paths if path.health is not Health.CUT] or self.paths

    def find_path(self, link: Link, mac: bytes) -> Path | None:
        for path in self.paths:
            if path.mac == mac and path.link is link:
                return path
        return None

    def answers_from(self, endpoint: Endpoint) -> bool:
        """Whether this endpoint is one of its verified paths."""
        return endpoint.address == self.address and self.find_path(endpoint.link, endpoint.mac) is not None

    def leave_link(self, link: Link) -> None:
        """The link is down: what flew on its paths goes out again elsewhere, if there is another one."""
        for path in self.paths:
            if path.link is link:
                self._leave(path)

    def _leave(self, path: Path) -> None:
        for run, mask in path.give_up_all():
            self.in_flight -= mask.bit_count()
            self._queue_retransmit(run, mask)

    def drop_path(self, path: Path) -> None:
        """A path is gone: what flew there goes out again elsewhere."""
        self._leave(path)
        self.paths.remove(path)
        path.target = None

    # ── requests ──────────────────────────────────────────────────────────────────────────────────────────────────

    def submit(self, request: Request, now: float) -> None:
        """Queue a request; it ends at once if the target is down, replaced or closing."""
        if not self.life.is_served:
            request.error = self._why_not_served()
            request.buffer = NOTHING
            request.on_end(request)
            return
        self._begin_waiting(now)
        request.submitted_at = now
        self._backlog.fresh.append(request)

    def _why_not_served(self) -> RequestError:
        if self.life.state is State.REPLACED:
            return IdentityChanged(f"{self.name} is replaced")
        return TargetLost(f"{self.name} is down" if self.life.state is State.DOWN else "the engine stopped")

    @property
    def _answer_is_due(self) -> bool:
        """Something waits for an answer that should come soon."""
        return bool(self._waiting or self._backlog.fresh or self._lone_commands)

    @property
    def waiting(self) -> int:
        """How many requests and lone commands have not ended."""
        return len(self._waiting.keys() | self._backlog.fresh) + self._lone_commands + self._flushes

    def _begin_waiting(self, now: float) -> None:
        if not self._answer_is_due:
            self._answer_due_since = now
            if not self._flushes:
                self._silent_since = now

    def begin_lone_command(self, now: float) -> None:
        """A command outside of runs waits from now on: it counts for silence."""
        self._begin_waiting(now)
        self._lone_commands += 1

    def end_lone_command(self) -> None:
        self._lone_commands -= 1

    def begin_flush(self, now: float) -> None:
        """A FLUSH waits from now on: it counts for deadsecs only."""
        if not (self._flushes or self._answer_is_due):
            self._silent_since = now
        self._flushes += 1

    def doubt(self, now: float) -> None:
        """Its FLUSH is to be sent once more: not before it is identified, if all is silent."""
        if now >= self._silent_since + self._patience:
            self._fall_silent(Input.SILENT_IN_FLUSH)

    def end_flush(self) -> None:
        self._flushes -= 1
        if not self._flushes:
            self.life.take(Input.FLUSHED)

    def abandon(self, request: Request) -> None:
        """Its caller was cancelled: send nothing more of it; ``on_end`` is not called."""
        if not request.ended:
            request.error = TargetLost("abandoned")
            self._forget(request)
        request.take_result()

    def next_run(self, now: float) -> Run | None:
        """The next batch that the windows allow; it counts as sent at ``now``."""
        backlog = self._backlog
        if backlog.is_empty or not self.life.is_up:
            return None
        room = self._limit - self.in_flight
        if room <= 0:
            return None
        path = self._choose_path()
        if path is None:
            return None
        work = backlog.next(fresh_first=path.rtt.backoff > 0)
        if work is None:
            return None
        request, sector, sectors = work
        if not request.cursor and request.borrows and self._waiting and self._memory.is_short_for(request.sectors):
            return None  # when a request ends, the driver asks again
        room = min(room, path.room)
        if path.in_flight and room * path.sectors < sectors and 2 * room < path.window.size:
            if sector != request.cursor:
                backlog.retransmit.appendleft(work)
            return None  # half a window in one batch costs hardly more than one command, and its answers come together
        taken = min(sectors, min(room, BLOCK_TAGS) * path.sectors)
        if sector == request.cursor:
            if not sector:
                request.borrow(self._memory)
            request.cursor += taken
            if request.cursor == request.sectors:
                backlog.fresh.popleft()
                if request.on_sent is not None:
                    request.on_sent(request)
            resent = False
        else:
            if taken < sectors:
                backlog.retransmit.appendleft((request, sector + taken, sectors - taken))
            resent = True
        run = Run(request, path, sector, taken, path.sectors, now)
        request.path = path
        if resent and request.write:
            request.copies.append(run)
        self._tags.open(run)
        path.on_sent(run)
        if not self.in_flight:
            self._busy_since = now
        self.in_flight += run.count
        if request.first_sent_at is None:
            request.first_sent_at = now
            self._waiting[request] = None
        return run

    def _choose_path(self) -> Path | None:
        """Round robin over the usable ones that have room."""
        paths = self.paths
        if len(paths) == 1:
            return paths[0] if paths[0].room > 0 else None
        usable = self.usable_paths()
        for _ in usable:
            path = usable[self._next_path % len(usable)]
            self._next_path += 1
            if path.room > 0:
                return path
        return None

    def unsent(self, run: Run, first: int) -> None:
        """The socket took only the commands before ``first`` of a run just given out: the rest goes back in front."""
        gone = run.flying & bits(first, run.count - first)
        run.path.on_unsent(run, first)
        self.in_flight -= gone.bit_count()
        start, sectors = run.sectors_of(first, run.count - first)
        if sectors > 0:
            self._backlog.retransmit.appendleft((run.request, start, sectors))
        self._retire_tags(run)

    def _retire_tags(self, run: Run) -> None:
        """Nothing of the run flies any more: forget its tags, or keep them for late answers only."""
        if not run.flying:
            if run.lost:
                self._tags.remember(run, run.recognised_until)
            else:
                self._tags.close(run)

    # ── answers ───────────────────────────────────────────────────────────────────────────────────────────────────

    def receive(self, run: Run, first: int, count: int, now: float) -> bool:
        """Answers to ``count`` commands came: RTT and window.  False when all of them had been answered before."""
        mask = bits(first, count)
        fresh = run.flying & mask
        late = run.lost & mask
        if fresh:
            self._count_busy(now)
            self.in_flight -= fresh.bit_count()
            run.path.on_answered(run, fresh, first + count - 1, now)
        if late:
            run.path.on_late(run, late, now)
        self._retire_tags(run)
        if self._quarantine.held:
            self._quarantine.end(now)
        self._silent_since = now
        return bool(fresh or late)

    def _count_busy(self, now: float) -> None:
        self.busy_seconds += now - self._busy_since
        self._busy_since = now

    def complete(self, run: Run, first: int, count: int) -> bool:
        """These answers are good and their data are in place; True when that ended the request."""
        request = run.request
        if request.ended:
            return False
        start, sectors = run.sectors_of(first, count)
        request.todo &= ~bits(start, sectors)
        if request.todo:
            return False
        size = request.sectors * SECTOR_BYTES
        bucket = bucket_of(int((self._silent_since - request.submitted_at) * 1e6))
        if request.write:
            self.writes += 1
            self.write_bytes += size
            self._write_latency[bucket] += 1
            self.dirty = self.ever_written = True
        else:
            self.reads += 1
            self.read_bytes += size
            self._read_latency[bucket] += 1
        self._waiting.pop(request, None)
        request.let_go(self._memory)
        request.on_end(request)
        return True

    def fail_command(self, run: Run, index: int, error: RequestError) -> None:
        """The answer to one command is an error: the request fails with it at once.

        AoE error 2 to several sectors is answered by sending commands of half the size, down to one sector.
        """
        request = run.request
        start, sectors = run.sectors_of(index, 1)
        if not request.todo & bits(start, sectors):  # another copy was carried out well
            return
        if isinstance(error, TargetError) and error.code == ErrorCode.BAD_ARGUMENT and sectors > 1:
            run.path.sectors = min(run.path.sectors, sectors // 2)
            self._queue_retransmit(run, 1 << index)
            return
        self.fail(request, error)

    def fail(self, request: Request, error: RequestError) -> None:
        """End a request with an error (nothing happens when it has ended)."""
        if request.ended:
            return
        self.errors += 1
        request.error = error
        self._forget(request)
        request.on_end(request)

    def _forget(self, request: Request) -> None:
        """An ended request leaves the queues; what of it flies is a copy from now on."""
        self._waiting.pop(request, None)
        request.let_go(self._memory)
        if request.cursor < request.sectors and request in self._backlog.fresh:
            self._backlog.fresh.remove(request)
        for path in self.paths:
            for run in path.runs:
                if run.request is request and run not in request.copies:
                    request.copies.append(run)
        request.copies = [run for run in request.copies if run.flying or run.lost]

    def _queue_retransmit(self, run: Run, mask: int) -> None:
        """Queue the sectors of the commands in ``mask`` once more; remember that copies of them travel."""
        request = run.request
        if run.lost and run not in request.copies:
            request.copies.append(run)
        self._retire_tags(run)
        if not request.ended:
            self._backlog.add_lost(run, mask)

    def release(self, claim: Claim, requests: list[Request]) -> bool:
        """Give back the range of a write, made of ``requests``, that ended; False if that must wait for copies of it
        (``core.quarantine``).
        """
        return self._quarantine.release(claim, requests)

    # ── time ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def may_wait_until(self, at: float, now: float) -> bool:
        """A cheap check whether a timer that was set for ``at`` (seconds) is still early enough.

        Timeouts move earlier only by what begins now (an RTO or the patience from now on), by suspects and by copies:
        if one of those may come before ``at``, the answer is no.
        """
        if self._quarantine.held or at > now + self._patience:
            return False
        for path in self.paths:  # noqa: SIM110 (per request: a generator costs as much as all of this)
            if at > now + path.rtt.rto or (path.runs and path.has_suspects):
                return False
        return True

    @property
    def has_backlog(self) -> bool:
        """Something waits to be sent."""
        return not self._backlog.is_empty

    @property
    def is_idle(self) -> bool:
        """Nothing is in flight and nothing waits to be sent."""
        return not self.in_flight and self._backlog.is_empty

    def requests(self) -> set[Request]:
        """Those that have not ended."""
        return {*self._waiting, *self._backlog.fresh}

    def is_on_the_wire(self, request: Request) -> bool:
        """All of it was sent and fits into the windows with all that is unanswered: nothing of this target waits to be
        retransmitted, no path had a timeout since its last answer, and a path is good.
        """
        if request.cursor < request.sectors or self._backlog.retransmit or any(path.rtt.backoff for path in self.paths):
            return False
        return any(path.health is Health.GOOD for path in self.paths)

    def answers_within(self, seconds: float) -> bool:
        """Its answers usually come that soon."""
        for path in self.paths:  # noqa: SIM110 (see above)
            if 0 < path.rtt.srtt < seconds:
                return True
        return False

    def next_timeout(self) -> float | None:
        """When :meth:`handle_timeout` has something to do (seconds, may be early); None: never."""
        timeouts = [timeout for path in self.paths if (timeout := path.next_timeout()) is not None]
        timeouts += self._quarantine.timeouts()
        if self._answer_is_due and self.life.state in (State.UP, State.SUSPENDED, State.HELD):
            timeouts.append(self._silent_from())
        if self.deadsecs and self._may_go_down:
            oldest = next(iter(self._waiting), None)
            if oldest is not None and oldest.first_sent_at is not None:
                timeouts.append(oldest.first_sent_at + self.deadsecs)
            timeouts.append(self._silent_since + self.deadsecs)
        return min(timeouts, default=None)

    def handle_timeout(self, now: float) -> None:
        """Give up what is lost, expire requests, end quarantines; the driver sends afterwards."""
        if self.in_flight:
            self._count_busy(now)
        for path in self.paths:
            for run, mask in path.give_up(now):
                self.in_flight -= mask.bit_count()
                self._queue_retransmit(run, mask)
                if path.is_failing and len(self.paths) > 1:
                    path.take(Sign.TIMEOUTS)
        if self._quarantine.held:
            self._quarantine.end(now)
        if self._answer_is_due:
            timeouts = min((path.rtt.backoff for path in self.paths if path.health is Health.GOOD), default=0)
            silent = now >= self._silent_from()
            if silent or timeouts >= SUSPEND_BACKOFF:
                happened = Input.SILENT if silent else Input.TIMEOUTS
                self._fall_silent(Input.SILENT_IN_FLUSH if self._flushes else happened)
        if self.deadsecs and self._may_go_down:
            self._expire(now)

    @property
    def _may_go_down(self) -> bool:
        """Silence counts: something waits, or the target is asked until it is identified."""
        state = self.life.state
        return state in UNANSWERING or (state in SERVED and bool(self._flushes or self._answer_is_due))

    def _silent_from(self) -> float:
        """When what waits will have waited for too long."""
        return max(self._silent_since, self._answer_due_since) + self._patience

    def _expire(self, now: float) -> None:
        if now >= self._silent_since + self.deadsecs:
            self.down_since = now
            self.give_up(TargetLost(f"{self.name} has not answered for {self.deadsecs:g} s"))
            return
        for request in [*self._waiting]:
            if request.first_sent_at is None or now < request.first_sent_at + self.deadsecs:
                break
            self.fail(request, TargetLost(f"{self.name}: no answer for {self.deadsecs:g} s"))

    def rest(self, now: float) -> None:
        """To be called about once a second."""
        for path in self.paths:
            path.rest(now)

    def heard(self, now: float) -> None:
        """The target answered something else than data."""
        self._silent_since = now

    @property
    def is_silent(self) -> bool:
        """Down, or not answering, or no path left: to be asked for by config queries."""
        return self.life.state in NOT_ANSWERING or not self.paths

    def silence(self, now: float) -> float:
        """Seconds since the last answer, or since something began to wait for one."""
        return now - self._silent_since

    def has_losses(self, now: float) -> bool:
        """A command that was sent to it was lost within the last ``LOSS_MEMORY`` seconds."""
        return any(path.lost_at + LOSS_MEMORY > now and path.losses for path in self.paths)

    def is_stuck(self, now: float) -> bool:
        """The oldest request waits for long although others are answered: large frames may no longer pass."""
        oldest = next(iter(self._waiting), None)
        return oldest is not None and oldest.first_sent_at is not None and now - oldest.first_sent_at > STUCK

    # ── life ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def _fall_silent(self, happened: Input) -> None:
        """The target does not answer: each of its paths must be identified again before it is good."""
        if self.life.take(happened):
            for path in self.paths:
                path.take(Sign.SILENCE)

    def suspend(self, now: float) -> None:
        """Another disk was identified where this one is known to be: nothing is sent until it is identified again."""
        if not self._may_go_down:
            self._silent_since = now
        self._fall_silent(Input.OTHER_DISK)

    def give_up(self, error: RequestError) -> None:
        """It was silent for deadsecs: all that waits fails, until it is identified again."""
        self._fall_silent(Input.UNANSWERED)
        self._fail_all(error)

    def go(self, error: RequestError) -> None:
        """Another disk took its place, or it was forgotten: all fails, and answers from its paths count for nothing."""
        self.life.take(Input.GONE)
        for path in self.paths:
            path.target = None
        self._fail_all(error)

    def close(self, spared: Container[Request] = ()) -> None:
        """The mount ends: all that waits fails but for the ``spared``, and so does every later request."""
        self.life.close()
        self._fail_all(self._why_not_served(), spared)

    def _fail_all(self, error: RequestError, spared: Container[Request] = ()) -> None:
        """In the order in which they came."""
        for request in [*self._waiting, *self._backlog.fresh]:
            if request not in spared:
                self.fail(request, error)
        self._backlog.forget_ended()

    def await_reservation(self) -> None:
        """Nothing is sent until its reservation is renewed."""
        self.life.take(Input.UNRESERVED)

    def reservation_was_renewed(self, now: float, *, answered: bool) -> None:
        """The end of :meth:`await_reservation`; if the target did not answer, it stays suspended."""
        if not answered:
            self._fall_silent(Input.NOT_RENEWED)
        elif self.life.take(Input.RENEWED):
            self._begin_again(now)

    def come_up(self, now: float) -> None:
        """Identified again as the same disk: what waits is sent at once."""
        self.life.take(Input.IDENTIFIED)
        self._begin_again(now)

    def _begin_again(self, now: float) -> None:
        self._silent_since = now
        for path in self.paths:
            path.rtt.end_backoff()

    # ── what others may know ──────────────────────────────────────────────────────────────────────────────────────

    def statistics(self) -> TargetStatistics:
        rtts = [path.rtt.srtt for path in self.paths if path.rtt.srtt]
        return snapshot(
            TargetStatistics,
            self,
            state="up" if self.life.state in (State.SUSPENDED, State.HELD) else self.life.state.value,
            queued=len(self._backlog),
            waiting=len(self._waiting),
            quarantined=len(self._quarantine.held),
            busy_seconds=round(self.busy_seconds, 6),
            retransmits=sum(path.retransmits for path in self.paths),
            rtt_us=round(min(rtts, default=0.0) * 1e6, 1),
            flush_supported=self.identity.flush_opcode is not None and not self.flush_unknown,
            read_latency=tuple(self._read_latency),
            write_latency=tuple(self._write_latency),
            paths=tuple(path.statistics() for path in self.paths),
        )
