"""One way to a target: a local link and the remote MAC that answers there.

A :class:`Path` owns the round-trip estimate, the congestion window, the order of sending, the losses and the health
(``core.health``) of this one (target, path).  Pure.

**How a loss is seen** (RACK, RFC 8985, in the unit of runs).  Runs are kept in the order of sending.  The youngest
transmission that was answered is the *witness*; every older one that is unanswered is suspect, and given up when the
reordering window has passed.  When nothing at all comes for an RTO since the last answer, everything in flight that
is older than a round trip is given up: the first time the window halves as for any loss (it was the tail of a burst),
then it collapses to one.

What always holds: ``in_flight`` equals the ``flying`` bits of all runs of the path; the first run of ``runs`` is the
oldest one that flies.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from aoefs.core.health import TRANSITIONS, Health, Sign
from aoefs.core.link import Link
from aoefs.core.recovery import IDLE, MAX_BACKOFF, MAX_RTO, CongestionWindow, ReorderWindow, RttEstimator
from aoefs.core.request import Run, bits
from aoefs.core.statistics import PathStatistics, snapshot
from aoefs.protocol.wire import Address, AoeCommand, Flag, Header, encode_header

if TYPE_CHECKING:
    from aoefs.core.target import Target

FRAME_LIFETIME: Final = 0.5  # seconds: for how long, at least, a copy of a frame may still arrive
DEGRADED_BACKOFF: Final = 2  # timeouts in a row after which another path is better


class Path:
    """See the module.  ``macs`` are ours and the target's; ``sectors`` is the payload that passes, at least 1;
    ``limit`` the largest window; ``max_rto`` the longest wait until a retransmission, in seconds; ``lba48`` says which
    READ and WRITE commands the disk takes.
    """

    def __init__(
        self,
        link: Link,
        interface: str,
        address: Address,
        macs: tuple[bytes, bytes],
        sectors: int,
        limit: int,
        max_rto: float = MAX_RTO,
    ) -> None:
        local, remote = macs
        self.link = link
        self.target: Target | None = None  # whose path it is, while it is one
        self.interface = interface
        self.mac = remote
        self.lba48 = True
        # The first 20 bytes, up to the tag, of every ATA command sent here and of every good answer to one.
        self.request_head = encode_header(Header(remote, local, address, AoeCommand.ATA, 0))[:20]
        self.answer_head = encode_header(Header(local, remote, address, AoeCommand.ATA, 0, Flag.RESPONSE))[:20]
        self.sectors = max(1, sectors)
        self.full_sectors = self.sectors  # what target and link would take, if it passed
        self.rtt = RttEstimator(max_rto)
        self.window = CongestionWindow(limit)
        self.reorder = ReorderWindow()
        self.runs: dict[Run, None] = {}
        self.in_flight = 0
        self.last_answer_at = self.rested_at = self.lost_at = float("-inf")  # seconds
        self.witness_order = -1
        self.witness_index = 0
        self.witness_rtt = 0.0
        self.health = Health.GOOD
        self.cuts = 0  # how often what was sent here was lost at once
        self.sent = 0
        self.answered = 0
        self.retransmits = 0
        self.late = 0

    def take(self, sign: Sign) -> None:
        """Follow the table of its health."""
        self.health = TRANSITIONS[sign].get(self.health, self.health)
        if sign is Sign.CUT:
            self.cuts += 1

    @property
    def room(self) -> int:
        """Commands that the window still allows."""
        return self.window.size - self.in_flight

    @property
    def is_failing(self) -> bool:
        """It timed out, and one more try would be one too many, or would take longer than a backoff."""
        return self.rtt.backoff >= DEGRADED_BACKOFF or (self.rtt.backoff > 0 and self.rtt.rto > MAX_BACKOFF)

    @property
    def losses(self) -> int:
        """Commands given up and, as far as is known, truly lost."""
        return self.retransmits - self.late

    def on_sent(self, run: Run) -> None:
        """``run`` goes out now on this path."""
        self.sent += run.count
        run.order = self.sent  # grows with every command, so it orders runs
        self.runs[run] = None
        self.in_flight += run.count

    def on_unsent(self, run: Run, first: int) -> None:
        """The socket took only the commands before ``first``; the others never left."""
        gone = run.flying & bits(first, run.count - first)
        run.flying ^= gone
        self.in_flight -= gone.bit_count()
        self.sent -= gone.bit_count()
        run.order = self.sent
        if not run.flying:
            self.runs.pop(run, None)

    def on_answered(self, run: Run, fresh: int, last: int, now: float) -> None:
        """The commands of the mask ``fresh``, the highest of them ``last``, were answered in time."""
        run.flying ^= fresh
        count = fresh.bit_count()
        self.in_flight -= count
        self.answered += count
        delay = now - run.sent_at
        self.rtt.sample(delay)
        self.window.on_answered(count)
        self.last_answer_at = now
        if self.health is not Health.GOOD:
            self.take(Sign.ANSWER)
        if run.order > self.witness_order:
            self.witness_order, self.witness_index, self.witness_rtt = run.order, last, delay
        elif run.order == self.witness_order and last > self.witness_index:
            self.witness_index, self.witness_rtt = last, delay
        if not run.flying:
            del self.runs[run]

    def on_late(self, run: Run, late: int, now: float) -> None:
        """Commands that were given up were answered after all: the loss is uncounted, the reordering window grows."""
        run.lost ^= late
        count = late.bit_count()
        self.late += count
        self.answered += count
        self.rtt.late(now - run.sent_at)
        self.reorder.widen(now)
        self.window.undo(run.sent_at)
        self.last_answer_at = now
        self.take(Sign.ANSWER)

    def suspects(self, run: Run) -> int:
        """The commands of ``run`` that are unanswered although a younger transmission was answered."""
        if run.order < self.witness_order:
            return run.flying
        if run.order == self.witness_order:
            return run.flying & bits(0, self.witness_index)
        return 0

    @property
    def has_suspects(self) -> bool:
        for run in self.runs:  # the oldest is the first to be suspect
            return self.suspects(run) != 0
        return False

    def next_timeout(self) -> float | None:
        """When :meth:`give_up` may have something to do; None with nothing in flight.  May be early, never late."""
        for run in self.runs:
            oldest = run
            break
        else:
            return None
        timeout = max(oldest.sent_at, self.last_answer_at) + self.rtt.rto
        if self.suspects(oldest):
            timeout = min(timeout, self._reordered_until(oldest))
        return timeout

    def _reordered_until(self, run: Run) -> float:
        return run.sent_at + self.witness_rtt + self.reorder.duration(self.rtt)

    def give_up(self, now: float) -> list[tuple[Run, int]]:
        """The losses that are certain enough by ``now``: (run, mask of commands); they fly no more."""
        lost: list[tuple[Run, int]] = []
        for run in self.runs:
            suspects = self.suspects(run)
            if not suspects:
                break
            if self._reordered_until(run) <= now:
                lost.append((run, suspects))
                self.window.on_loss(run.sent_at, now)
        if not lost:
            lost = self._timed_out(now)
        if lost:
            self.lost_at = now
            self._note_lost(lost)
        return lost

    def _timed_out(self, now: float) -> list[tuple[Run, int]]:
        """Nothing came for an RTO: all that flies but what was sent within the last round trip (RFC 8985, 6.3).

        With a timer of its own, each run would find the RTO doubled by the one before.
        """
        oldest = next(iter(self.runs), None)
        if oldest is None or max(oldest.sent_at, self.last_answer_at) + self.rtt.rto > now:
            return []
        rtt = self.rtt
        spared = rtt.srtt + self.reorder.duration(rtt) if rtt.srtt else rtt.rto
        lost = [(run, run.flying) for run in self.runs if run is oldest or run.sent_at + spared <= now]
        if rtt.backoff:
            self.window.collapse(now)
        else:
            self.window.on_loss(now, now)
        rtt.on_timeout()
        return lost

    def give_up_all(self) -> list[tuple[Run, int]]:
        """Its link is down, or it was dropped: everything that flies here is lost."""
        self.take(Sign.CUT)
        lost = [(run, run.flying) for run in self.runs]
        self._note_lost(lost)
        return lost

    def _note_lost(self, lost: list[tuple[Run, int]]) -> None:
        for run, mask in lost:
            run.flying ^= mask
            run.lost |= mask
            count = mask.bit_count()
            self.in_flight -= count
            self.retransmits += count
            if not run.flying:
                del self.runs[run]

    def rest(self, now: float) -> None:
        """Time has passed, a second or so since the last call: what was learned long ago counts less."""
        self.reorder.rest(now)
        if not self.runs and now - max(self.last_answer_at, self.rested_at) > IDLE:
            self.rested_at = now
            self.rtt.rest()

    def frame_lifetime(self) -> float:
        """Seconds after its sending for which a copy of a frame may still arrive (``core.quarantine``)."""
        return max(FRAME_LIFETIME, 4 * self.rtt.rto, self.rtt.longest)

    def statistics(self) -> PathStatistics:
        return snapshot(
            PathStatistics,
            self,
            window=self.window.size,
            rtt_us=round(self.rtt.srtt * 1e6, 1),
            rttvar_us=round(self.rtt.rttvar * 1e6, 1),
            rto_us=round(self.rtt.rto * 1e6, 1),
            reductions=self.window.reductions,
            healthy=self.health is Health.GOOD,
        )
