"""How one path learns its speed and sees its losses: estimator, window, reordering.  Arithmetic with ``now``.

Owns three small machines that belong to one (target, path) each, never to a MAC: AoE's round trip holds the disk's
time too, so two targets behind one MAC have nothing in common but the wire.  All times are seconds of a monotonic
clock; all window sizes are commands (one command is one frame each way).

What always holds: a sample is never ambiguous, since every transmission has a tag of its own (Karn's problem does
not exist here); the window is at least 1; at most one reduction per round trip.

Rejected: the Linux driver's estimator (one per device, srtt/256, RTO start 16.5 s, no backoff); a floor of 200 ms as
TCP has (a LAN answers in 100 us, and one lost frame would cost a thousand requests).
"""

from __future__ import annotations

from typing import Final

INITIAL_RTO: Final = 0.2  # seconds, before the first sample: a spun-down disk is slower, and backoff finds it
MIN_RTO: Final = 0.01  # seconds: above the scheduling noise of both ends, below what a person notices
MAX_RTO: Final = 4.0  # seconds: an answer that takes longer is a disk that spins up
MAX_BACKOFF: Final = 0.2  # seconds to which a backoff leads, or eight times the RTO without it if that is more
REGROWTH: Final = 8  # round trips in which a window grows from nothing to its limit: AoE's windows are small
RESTART_WINDOW: Final = 4  # commands after silence: with one, a burst of lost frames would cost a timeout each
MIN_REORDER: Final = 0.0005  # seconds: answers of one batch are seen together, finer order is not observable
IDLE: Final = 10.0  # seconds without an answer after which an old RTO counts less
REORDER_DECAY: Final = 10.0  # seconds without a late answer until a widened reordering window halves


class RttEstimator:
    """SRTT, RTTVAR and RTO (RFC 6298), with exponential backoff.

    ``srtt`` and ``rttvar`` are seconds, ``srtt`` is 0 before the first sample.  ``longest`` is the longest delay of
    any answer, late ones included: the evidence of how long a frame may live on this path.  ``max_rto`` bounds the RTO.
    """

    def __init__(self, max_rto: float = MAX_RTO) -> None:
        self.srtt = 0.0
        self.rttvar = 0.0
        self.longest = 0.0
        self.backoff = 0
        self._max_rto = max_rto
        self._base_rto = INITIAL_RTO
        self.rto = INITIAL_RTO

    def sample(self, rtt: float) -> None:
        """Take the delay of an answered transmission; ends a backoff."""
        if self.srtt:
            error = rtt - self.srtt
            self.rttvar += (abs(error) - self.rttvar) / 4  # before SRTT, as RFC 6298 section 2.3 orders
            self.srtt += error / 8
        else:
            self.srtt, self.rttvar = rtt, rtt / 2
        if rtt > self.longest:
            self.longest = rtt
        self.backoff = 0
        self._base_rto = self.rto = min(max(self.srtt + 4 * self.rttvar, MIN_RTO), self._max_rto)

    def late(self, rtt: float) -> None:
        """An answer that came after its command was given up: it stretches the estimate, and ends a backoff."""
        self.sample(min(rtt, self._max_rto))
        self.longest = max(self.longest, rtt)

    def rest(self) -> None:
        """Nothing was measured for ``IDLE`` seconds: an RTO above the initial one comes down to it, by halves.

        It may come from a time in which this process or the target was frozen, and says nothing of the next answer.
        """
        if self._base_rto > INITIAL_RTO:
            self.srtt /= 2
            self.rttvar /= 2
            self._base_rto = max(self._base_rto / 2, INITIAL_RTO)
            self.rto = max(self._base_rto, self.rto / 2)

    def end_backoff(self) -> None:
        """The target is known to be there again: wait no longer than for any other answer."""
        self.backoff = 0
        self.rto = self._base_rto

    def on_timeout(self) -> None:
        """Nothing came within the RTO: double it (RFC 6298 section 5.5).

        It need not grow for ever: a target that stays silent is suspended (``core.target``) and only asked for.
        """
        self.backoff += 1
        self.rto = min(self.rto * 2, max(MAX_BACKOFF, min(8 * self._base_rto, self._max_rto)))


class CongestionWindow:
    """How many commands a path may have in flight: slow start, additive increase, halving.

    ``size`` is the window, between 1 and ``limit`` (what the target's buffer count and ``--maxout`` allow).
    """

    def __init__(self, limit: int) -> None:
        self.limit = max(1, limit)
        self.size = max(1, self.limit // 2)
        self.ssthresh = self.limit
        self.reductions = 0
        self._credit = 0
        self._reduced_at = float("-inf")
        self._undo = (self.size, self.ssthresh)

    def set_limit(self, limit: int) -> None:
        """The target advertises another buffer count; at least 1, whatever it says."""
        limit = max(1, limit)
        if limit == self.limit:
            return
        self.limit = limit
        self.ssthresh = max(self.ssthresh, limit)
        self.size = min(self.size, limit)

    def on_answered(self, count: int) -> None:
        """``count`` commands came back in time."""
        if self.size >= self.limit:
            return
        if self.size < self.ssthresh:
            self.size = min(self.size + count, self.limit)
            return
        self._credit += count
        if self._credit >= self.size:
            self._credit = 0
            self.size = min(self.size + max(1, self.limit // REGROWTH), self.limit)

    def on_loss(self, sent_at: float, now: float) -> bool:
        """A transmission of ``sent_at`` is lost: halve, once for all that was sent before the last reduction."""
        if sent_at <= self._reduced_at:
            return False
        self._undo = (self.size, self.ssthresh)
        self._reduced_at = now
        self.ssthresh = max(2, self.size // 2)
        self.size = min(self.size, self.ssthresh)
        self._credit = 0
        self.reductions += 1
        return True

    def collapse(self, now: float) -> None:
        """Silence for more than one RTO: begin again with a few commands."""
        self.on_loss(now, now)
        self.size = min(RESTART_WINDOW, self.size)

    def undo(self, sent_at: float) -> None:
        """What the last reduction took for lost was only late: take it back."""
        if sent_at <= self._reduced_at:
            size, ssthresh = self._undo
            self.size = min(max(self.size, size), self.limit)
            self.ssthresh = max(self.ssthresh, ssthresh)
            self._undo = (self.size, self.ssthresh)


class ReorderWindow:
    """How long an older transmission may lag behind a younger one's answer (RACK, RFC 8985 section 6.2).

    Starts at SRTT/4; each late answer to a suspect doubles it, up to the RTO; it halves after ten quiet seconds.
    """

    def __init__(self) -> None:
        self.factor = 0.25  # of SRTT
        self._changed_at = 0.0

    def rest(self, now: float) -> None:
        """Time has passed: halve after ten seconds without a late answer."""
        if self.factor > 0.25 and now - self._changed_at > REORDER_DECAY:
            self.factor = max(0.25, self.factor / 2)
            self._changed_at = now

    def duration(self, rtt: RttEstimator) -> float:
        """Seconds."""
        return min(max(self.factor * rtt.srtt, MIN_REORDER * self.factor * 4), rtt.rto)

    def widen(self, now: float) -> None:
        """A suspect was only late."""
        self.factor = min(self.factor * 2, 1024.0)
        self._changed_at = now
