"""What makes status.json and metrics cheap: targets that did not change, and snapshots that came too often.

Pure, but for the clock that :class:`Sparing` is given.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Generic, TypeVar

from aoefs.core.statistics import TargetStatistics

T = TypeVar("T")

SHARE = 0.05  # of the time that may be spent
CREDIT = 1.0  # seconds: what SHARE of them allows may be spent at once


class PerTarget(Generic[T]):
    """What ``make`` made of each target's statistics; it is made again only when these have changed.

    Of a thousand targets most are idle, and comparing takes a tenth of the time of making text.
    """

    def __init__(self, make: Callable[[TargetStatistics], T]) -> None:
        self._make = make
        self._made: dict[str, tuple[TargetStatistics, T]] = {}

    def of(self, targets: Sequence[TargetStatistics]) -> Iterator[T]:
        """One after another, so that the caller may pause.  Targets that are missing are forgotten at the end."""
        made = {}
        for target in targets:
            entry = self._made.get(target.name)
            if entry is None or entry[0] != target:
                entry = target, self._make(target)
            made[target.name] = entry
            yield entry[1]
        self._made = made


class Sparing(Generic[T]):
    """Calls ``make``, or returns what it made last if calls took more than ``SHARE`` of the time.

    So a program that changes something and then looks sees it, and one that looks in a loop costs the others
    ``SHARE`` of their time.  ``clock`` is in seconds.  What is returned was made at most ``CREDIT`` ago, or at most
    1/``SHARE`` times as long ago as making it took.
    """

    def __init__(self, make: Callable[[], T], clock: Callable[[], float]) -> None:
        self._make = make
        self._clock = clock
        self._paid_at = float("-inf")  # when all that was spent will be within SHARE
        self._last: T | None = None

    def __call__(self) -> T:
        now = self._clock()
        if self._last is None or self._paid_at - now <= CREDIT:
            self._last = self._make()
            self._paid_at = max(now, self._paid_at) + (self._clock() - now) / SHARE
        return self._last
