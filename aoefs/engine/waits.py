"""Sleeping until something happens, for the price of a list append: a trio.Event would cost a fifth of a request.

A :class:`Wait` is one task that waits for one thing.  All waits of an engine count in one :class:`Sleepers`, which
tells ``engine.inplace`` whether another task has something to do.  All waits for one disk that are not for a Request
are in its :class:`WaitGroup`, so that they end together when the disk is gone, and none begins when the mount ends.

What always holds: a wait that was woken before it sleeps does not sleep; a cancelled one is no longer counted.
"""

from __future__ import annotations

import trio

from aoefs.core.life import Life
from aoefs.errors import RequestError, TargetLost


class Sleepers:
    """How many tasks sleep in a :class:`Wait`, and how many of these were woken and had no turn yet."""

    def __init__(self) -> None:
        self.asleep = 0
        self.ready = 0


class Wait:
    """One task that waits for one thing.  ``error`` says why it will not happen."""

    __slots__ = ("_sleepers", "_task", "error", "woken")

    def __init__(self, sleepers: Sleepers) -> None:
        self.woken = False
        self.error: RequestError | None = None
        self._task: trio.lowlevel.Task | None = None
        self._sleepers = sleepers

    def wake(self, _thing: object = None) -> None:
        self.woken = True
        if self._task is not None:
            task, self._task = self._task, None
            self._sleepers.ready += 1
            trio.lowlevel.reschedule(task)

    async def wait(self) -> None:
        if self.woken:
            return
        self._task = trio.lowlevel.current_task()

        def abort(_raise_cancel: object) -> trio.lowlevel.Abort:
            self._task = None
            return trio.lowlevel.Abort.SUCCEEDED

        self._sleepers.asleep += 1
        try:
            await trio.lowlevel.wait_task_rescheduled(abort)
            self._sleepers.ready -= 1
        finally:
            self._sleepers.asleep -= 1


class WaitGroup:
    """The waits for one disk that are not for a Request: for a claim, an acknowledgement, the answer to a command.

    ``life`` is that of its target.
    """

    def __init__(self, sleepers: Sleepers, life: Life) -> None:
        self._sleepers = sleepers
        self._life = life
        self._waits: set[Wait] = set()

    def __len__(self) -> int:
        return len(self._waits)

    def begin(self) -> Wait:
        """A new wait; to be given to :meth:`end` whatever happens.  TargetLost when the mount ends."""
        if self._life.is_closed:
            raise TargetLost("the engine stopped")
        wait = Wait(self._sleepers)
        self._waits.add(wait)
        return wait

    def end(self, wait: Wait) -> None:
        self._waits.discard(wait)

    def interrupt(self, error: RequestError | None) -> None:
        """All of them look again; with an error, what they wait for will not happen."""
        for wait in self._waits:
            wait.error = wait.error or error
            wait.wake()
