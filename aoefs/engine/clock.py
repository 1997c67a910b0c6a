"""The engine's clock: it stands still while this process was not allowed to run.

A process that was stopped (SIGSTOP, a frozen cgroup, a machine without memory) wakes up with every deadline behind
it, although it gave no target a chance to answer.  So all times of the engine are of this clock.  A task beats it once
a ``PERIOD``; if a beat is late by more than ``LATE``, the process was held up, and that much time does not count.

What always holds: it never goes back; it does not depend on the time of day, which may be set; at most ``PERIOD +
LATE`` of a stop are counted.

Rejected: a longer deadsecs after a stop (round-trip times and frame lifetimes would still be those of the stop).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

PERIOD: Final = 1.0  # seconds between two beats
LATE: Final = 0.5  # seconds by which a beat may be late on a busy machine


class RunningClock:
    """``clock`` is monotonic, in seconds, and ``offset`` is added; ``lost`` are the seconds that were not counted."""

    def __init__(self, clock: Callable[[], float], offset: float = 0.0) -> None:
        self.lost = 0.0
        self._clock = clock
        self._offset = offset
        self._due = clock() + offset + PERIOD + LATE

    def now(self) -> float:
        """Seconds."""
        now = self._clock() + self._offset
        if now > self._due:
            self.lost += now - self._due
            self._due = now + PERIOD + LATE
        return now - self.lost

    def beat(self) -> None:
        """The process runs; to be called every ``PERIOD``, after :meth:`now`, which sees that it did not."""
        self._due = self._clock() + self._offset + PERIOD + LATE
