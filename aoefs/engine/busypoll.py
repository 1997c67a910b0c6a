"""How long to poll before sleeping: time of the processor against the time that a sleep and a wake-up take.

Pure: ``engine.inplace``, which polls, passes the time.  :class:`BusyPoll` follows one thing that is waited for, as the
halt polling of KVM: the duration doubles each time when it comes within ``MOST`` seconds, polled for or slept for, and
halves each time when it does not.  :class:`Crowd` sees that others want the processor: Linux counts for how long a
thread was ready and had none, and while that is more than ``CROWDED`` of the time, nothing is polled.

What always holds: at most ``MOST`` seconds at a time, none while nothing comes, and none for ``FIRST_PAUSE`` seconds
or more after others wanted the processor.
"""

from __future__ import annotations

import math
from typing import Final

MOST: Final = 200e-6  # seconds
LEAST: Final = 10e-6  # seconds: the first duration, and below it there is none
PERIOD: Final = 0.05  # seconds from one look at the delay to the next
CROWDED: Final = 0.3  # of the time
FIRST_PAUSE: Final = 0.1  # seconds without polling after others wanted the processor, doubling ...
MAX_PAUSE: Final = 1.6  # ... up to this


class BusyPoll:
    """``seconds`` is how long to poll now, at most ``most``; with ``adapts`` it begins with nothing."""

    __slots__ = ("_adapts", "most", "seconds")

    def __init__(self, most: float = MOST, *, adapts: bool = True) -> None:
        self.most = most
        self.seconds = 0.0 if adapts else most
        self._adapts = adapts

    def came(self, waited: float) -> None:
        """What was waited for came after so many seconds, or had not come when they were over."""
        if not self._adapts:
            return
        if waited <= self.most:
            self.seconds = min(max(2 * self.seconds, LEAST), self.most)
        else:
            self.seconds = self.seconds / 2 if self.seconds >= 2 * LEAST else 0.0


class Crowd:
    """Whether others want the processor.  ``look_at`` is when :meth:`look` has something new to see."""

    __slots__ = ("_delay", "_looked_at", "_pause", "_until", "look_at")

    def __init__(self) -> None:
        self.look_at = self._until = -math.inf
        self._looked_at = self._delay = 0.0
        self._pause = FIRST_PAUSE

    def look(self, now: float, delay: float) -> None:
        """By ``now`` this thread has waited for a processor for ``delay`` seconds in all."""
        if delay - self._delay > CROWDED * (now - self._looked_at):
            if now >= self._until:  # else the same crowd is still there
                again = now < self._until + MAX_PAUSE
                self._pause = min(2 * self._pause, MAX_PAUSE) if again else FIRST_PAUSE
            self._until = now + self._pause
        self._delay, self._looked_at, self.look_at = delay, now, now + PERIOD

    def is_there(self, now: float) -> bool:
        return now < self._until
