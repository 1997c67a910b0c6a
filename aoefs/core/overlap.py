"""Which writes may be under way together: never two that touch one sector.

Owns, for one target, the sector ranges that are claimed: by a write in flight, by a read-modify-write from its read
to its last answer, or by an ended write of which a copy may still travel (``core.quarantine``).  A claim that must
wait is granted later, and its ``granted`` callback is called.  Pure.

What always holds: granted ranges are disjoint.  Claims that overlap are granted in the order in which they came; a
large write that waits is not passed by small ones that overlap it.

Rejected: a lock object per sector (a 1 MiB write would take 2048), and ordering in the FUSE layer (a retransmitted
write is known only here, and users of the library need the same protection).
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable


class Claim:
    """Sectors ``first`` to ``end`` (not included) of one target, wanted for a write."""

    __slots__ = ("end", "first", "granted", "is_granted")

    def __init__(self, first: int, end: int, granted: Callable[[], object] | None = None) -> None:
        self.first = first
        self.end = end
        self.granted = granted
        self.is_granted = False

    def overlaps(self, other: Claim) -> bool:
        return self.first < other.end and other.first < self.end


class OverlapGuard:
    """The claims of one target: granted ones, sorted and disjoint, and those that wait, in order of arrival."""

    def __init__(self) -> None:
        self._granted: list[Claim] = []
        self._firsts: list[int] = []  # of these: a search with a key would call it for each step
        self._waiting: list[Claim] = []

    def acquire(self, claim: Claim) -> bool:
        """True: granted now.  False: it waits, and ``claim.granted()`` will be called."""
        place = self._place(claim)
        if place >= 0 and not any(claim.overlaps(other) for other in self._waiting):
            self._grant(claim, place)
            return True
        self._waiting.append(claim)
        return False

    def release(self, claim: Claim) -> None:
        """Give a range back, or stop waiting for it; grants what waited for it, oldest first."""
        if not claim.is_granted:
            self._waiting.remove(claim)
        else:
            place = bisect_left(self._firsts, claim.first)
            assert self._granted[place] is claim  # noqa: S101 (only a defect of ours ends a claim twice)
            del self._granted[place], self._firsts[place]
            claim.is_granted = False
        if self._waiting:
            self._grant_waiting()

    def _place(self, claim: Claim) -> int:
        """Where it goes among the granted ones; negative while it overlaps one of them."""
        place = bisect_left(self._firsts, claim.end)
        return place if place == 0 or self._granted[place - 1].end <= claim.first else -1

    def _grant(self, claim: Claim, place: int) -> None:
        self._granted.insert(place, claim)
        self._firsts.insert(place, claim.first)
        claim.is_granted = True

    def _grant_waiting(self) -> None:
        still: list[Claim] = []
        ready: list[Claim] = []
        for claim in self._waiting:
            place = self._place(claim)
            if place >= 0 and not any(claim.overlaps(other) for other in still):
                self._grant(claim, place)
                ready.append(claim)
            else:
                still.append(claim)
        self._waiting = still
        for claim in ready:
            if claim.granted is not None:
                claim.granted()

    @property
    def granted(self) -> tuple[Claim, ...]:
        """What is claimed now, by place."""
        return tuple(self._granted)

    @property
    def idle(self) -> bool:
        """Nothing is claimed and nothing waits."""
        return not self._granted and not self._waiting
