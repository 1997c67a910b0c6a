"""Keeps the process of one worker running, as the table of ``host.workerlife`` says: one task, one process at a time.

What processes are is not known here: the simulation has some that are none, on a virtual clock.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable

import trio

from aoefs.host.workerlife import RUNNING, Input, State, WorkerLife

log = logging.getLogger("aoefs")


class Signal:
    """Wakes all tasks that wait until something holds."""

    def __init__(self) -> None:
        self._event = trio.Event()

    def wake(self) -> None:
        self._event.set()
        self._event = trio.Event()

    async def until(self, holds: Callable[[], bool]) -> None:
        while not holds():
            await self._event.wait()


class Keeper:
    """``changed`` is woken by each change of the state.  ``run()`` runs a process from its start to its end and returns
    its exit code; ``kill()`` ends it; ``on_death(how, pause)``: it ended by itself, and starts again in ``pause`` s.
    """

    def __init__(
        self,
        changed: Signal,
        run: Callable[[], Awaitable[int]],
        kill: Callable[[], object],
        on_death: Callable[[str, float], object],
    ) -> None:
        self.code = 0  # of the last process
        self._life = WorkerLife()
        self._changed = changed
        self._run = run
        self._kill = kill
        self._on_death = on_death

    @property
    def state(self) -> State:
        return self._life.state

    @property
    def is_running(self) -> bool:
        return self._life.state in RUNNING

    @property
    def starts(self) -> int:
        return self._life.starts

    @property
    def restarts(self) -> int:
        return self._life.restarts

    def take(self, happened: Input) -> bool:
        """True if that changed the state."""
        changed = self._life.take(happened, trio.current_time())
        self._changed.wake()
        return changed

    async def keep(self) -> None:
        """All processes, one after the other, from ``Input.WANTED`` to the end after ``Input.STOP``."""
        life = self._life
        while life.state is not State.ENDED:
            if life.state is State.WAITING:
                with trio.move_on_at(life.due):
                    await self._changed.until(lambda: life.state is not State.WAITING)
                    continue
                self.take(Input.DUE)
            self.code = 1
            try:
                self.code = await self._run()
            except Exception:  # the main process goes on, whatever happens to a worker
                log.exception("a worker fails unexpectedly")
                self._kill()
            how = f"was killed by signal {-self.code}" if self.code < 0 else f"ended with code {self.code}"
            self.take(Input.DIED)
            if self.state is State.WAITING:
                self._on_death(how, life.due - trio.current_time())

    async def become_ready(self, is_ready: Callable[[], Awaitable[object]]) -> bool:
        """For ``run``: wait until ``is_ready`` returns something true; False if it does not, or not in time, and then
        the process is killed.
        """
        with trio.move_on_at(self._life.due):
            if await is_ready():
                self.take(Input.READY)
        if self.state is State.STARTING and trio.current_time() >= self._life.due and self.take(Input.DUE):
            log.error("a worker does not become ready: it is killed")
            self._kill()
        return self.state is State.READY
