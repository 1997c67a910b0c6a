"""One timer for all targets: each says when it wants to be looked at, and :meth:`Timer.due` waits for the first.

Owns when each target is due.  The deadline of the waiting task moves only when a target is due earlier than all others:
the common case, a time that moves later with each answer, costs nothing until the old time has come.

Rejected: a timer per target (hundreds of deadlines that are set again with each request).
"""

from __future__ import annotations

import math
from typing import Final

import trio

from aoefs.core.target import Target
from aoefs.engine.clock import RunningClock

ROUNDING: Final = 1e-6  # seconds: a deadline on trio's clock and one on ours differ by the error of a sum


class Timer:
    def __init__(self, clock: RunningClock) -> None:
        self._clock = clock
        self._armed: dict[Target, float] = {}  # seconds of the engine's clock
        self._scope = trio.CancelScope()

    def arm(self, target: Target, now: float) -> None:
        """See that ``target`` is due when it has something to do (``Target.next_timeout``)."""
        armed = self._armed.get(target)
        if armed is not None and target.may_wait_until(armed, now):
            return
        timeout = target.next_timeout()
        if timeout is None:
            return
        if armed is None or timeout < armed:
            self._armed[target] = timeout
            deadline = timeout + self._clock.lost
            if deadline < self._scope.deadline:
                self._scope.deadline = deadline

    async def due(self) -> list[Target]:
        """Wait until targets are due; they are not armed any more."""
        deadline = min(self._armed.values(), default=math.inf) + self._clock.lost
        self._scope = trio.CancelScope(deadline=deadline)
        with self._scope:
            await trio.sleep_forever()
        now = self._clock.now() + ROUNDING
        due = [target for target, at in self._armed.items() if at <= now]
        for target in due:
            del self._armed[target]
        return due
