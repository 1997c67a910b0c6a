"""Ended writes of which a copy may still travel: their sectors stay claimed, or the copy would overwrite newer data.

The network may deliver a retransmitted write long after it was answered.  So the range of a write that was sent more
than once is given back only when each copy was answered, or when a frame's lifetime (``core.path``) has passed since
the last sending.  Pure; costs nothing while there is no such write.
"""

from __future__ import annotations

from dataclasses import dataclass

from aoefs.core.overlap import Claim, OverlapGuard
from aoefs.core.request import Request, Run


@dataclass(slots=True)
class _Held:
    """A claim that is kept while ``copies`` may still travel."""

    claim: Claim
    copies: list[Run]

    @property
    def until(self) -> float:
        """At most (seconds); it moves while the path turns out to be slower, or is well again."""
        return max(run.gone_at for run in self.copies)


class Quarantine:
    """The quarantined claims of one target, whose claims are all in ``order``."""

    def __init__(self, order: OverlapGuard) -> None:
        self.held: list[_Held] = []
        self._order = order

    def release(self, claim: Claim, requests: list[Request]) -> bool:
        """Give back the range of a write, made of ``requests``, that ended: now (True), or when no copy can travel."""
        copies = [run for request in requests for run in request.copies if run.flying or run.lost]
        if not copies:
            self._order.release(claim)
            return True
        self.held.append(_Held(claim, copies))
        return False

    def end(self, now: float) -> None:
        """Give back what need not be held any longer."""
        kept: list[_Held] = []
        freed: list[Claim] = []
        for held in self.held:
            held.copies = [run for run in held.copies if run.flying or run.lost]
            if held.copies and held.until > now:
                kept.append(held)
            else:
                freed.append(held.claim)
        self.held = kept
        for claim in freed:
            self._order.release(claim)

    def timeouts(self) -> list[float]:
        """When :meth:`end` has something to do, for each of them."""
        return [held.until for held in self.held]
