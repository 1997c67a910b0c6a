"""Sleeping until something happens, at the price of a list append: what a trio.Event costs is a fifth of a request.

Owns nothing but who sleeps.  A :class:`Wait` is one task that waits for one thing; all of an engine share one
:class:`Sleepers`, which tells ``engine.inplace`` whether anybody else has something to do.

What holds always: whoever is woken before he sleeps does not sleep; a cancelled one is counted out.
"""

from __future__ import annotations

import trio

from aoefs.errors import RequestError


class Sleepers:
    """What all :class:`Wait` of an engine have in common: how many tasks sleep, and how many of these are ready to
    go on and had no turn yet.
    """

    __slots__ = ("asleep", "ready")

    def __init__(self) -> None:
        self.asleep = 0
        self.ready = 0


class Wait:
    """One task that waits for one thing; ``wake`` may come before the waiting began.  ``error``: why it is in vain."""

    __slots__ = ("_task", "_waiting", "error", "woken")

    def __init__(self, waiting: Sleepers) -> None:
        self.woken = False
        self.error: RequestError | None = None
        self._task: trio.lowlevel.Task | None = None
        self._waiting = waiting

    def wake(self, _thing: object = None) -> None:
        self.woken = True
        if self._task is not None:
            task, self._task = self._task, None
            self._waiting.ready += 1
            trio.lowlevel.reschedule(task)

    async def wait(self) -> None:
        if self.woken:
            return
        self._task = trio.lowlevel.current_task()

        def abort(_raise_cancel: object) -> trio.lowlevel.Abort:
            self._task = None
            return trio.lowlevel.Abort.SUCCEEDED

        self._waiting.asleep += 1
        try:
            await trio.lowlevel.wait_task_rescheduled(abort)
            self._waiting.ready -= 1
        finally:
            self._waiting.asleep -= 1
