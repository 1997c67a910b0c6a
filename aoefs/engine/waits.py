"""Sleeping until something happens, for the price of a list append: a trio.Event would cost a fifth of a request.

A :class:`Wait` is one *caller* that waits for one thing.  A caller is a trio task, or a coroutine that
``fuse.workerloop`` steps by hand, which takes no turn of the trio loop.  All callers of an engine are counted in one
:class:`Callers`.  All waits for one disk that are not for a Request are in its :class:`WaitGroup`, so that they end
together when the disk is gone, and none begins when the mount ends.

What always holds: a wait that was woken before it sleeps does not sleep; one that was cancelled is no longer counted; a
coroutine that is stepped by hand uses nothing of trio but by :meth:`Callers.in_task`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Generator
from typing import Any, Final, TypeVar

import trio

from aoefs.core.life import Life
from aoefs.errors import RequestError, TargetLost

T = TypeVar("T")


class _Park:
    """Awaiting it gives the processor back to whoever steps the coroutine, once."""

    def __await__(self) -> Generator[None, None, None]:
        yield


_PARK: Final = _Park()


class Stepped:
    """A coroutine that is stepped by hand."""

    __slots__ = ("coroutine",)

    def __init__(self, coroutine: Coroutine[Any, Any, object]) -> None:
        self.coroutine = coroutine


class Callers:
    """Who waits.

    ``asleep`` callers sleep in a :class:`Wait`; of these, ``ready`` tasks were woken and had no turn yet.  ``stepping``
    is the coroutine that is being stepped, ``resumed`` are those that can go on.  Who steps them sets ``on_resume``,
    which is called when there is one more, and ``start``, which starts a task.
    """

    def __init__(self) -> None:
        self.asleep = 0
        self.ready = 0
        self.stepping: Stepped | None = None
        self.resumed: deque[Stepped] = deque()
        self.on_resume: Callable[[], object] | None = None
        self.start: Callable[[Callable[[], Awaitable[None]]], object] | None = None

    def current(self) -> object:
        """What is the same as long as one caller runs, and another for each."""
        return self.stepping or trio.lowlevel.current_task()

    def resume(self, stepped: Stepped) -> None:
        self.resumed.append(stepped)
        if self.on_resume is not None:
            self.on_resume()

    async def in_task(self, function: Callable[..., Awaitable[T]], *arguments: object) -> T:
        """Await ``function(*arguments)``, which needs trio: in a task of its own if the caller is none."""
        stepped = self.stepping
        if stepped is None:
            return await function(*arguments)
        assert self.start is not None  # noqa: S101 (for mypy: it is set by whoever steps)
        visit = _Visit(self, stepped, function, arguments)
        self.ready += 1
        self.start(visit.run)
        try:
            await _PARK
        except BaseException:
            visit.scope.cancel()
            raise
        if visit.error is not None:
            raise visit.error
        result: T = visit.result
        return result


class _Visit:
    """A coroutine in a task, for a caller that is none."""

    def __init__(
        self, callers: Callers, stepped: Stepped, function: Callable[..., Awaitable[Any]], arguments: tuple[object, ...]
    ) -> None:
        self._callers = callers
        self._stepped = stepped
        self._function = function
        self._arguments = arguments
        self.scope = trio.CancelScope()
        self.result: Any = None
        self.error: Exception | None = None

    async def run(self) -> None:
        self._callers.ready -= 1
        with self.scope:
            try:
                self.result = await self._function(*self._arguments)
            except Exception as error:  # it is the caller's
                self.error = error
            if not self.scope.cancel_called:  # else the caller was closed
                self._callers.resume(self._stepped)


class Wait:
    """One caller that waits for one thing.  ``error`` says why it will not happen."""

    __slots__ = ("_callers", "_stepped", "_task", "error", "woken")

    def __init__(self, callers: Callers) -> None:
        self.woken = False
        self.error: RequestError | None = None
        self._task: trio.lowlevel.Task | None = None
        self._stepped: Stepped | None = None
        self._callers = callers

    def wake(self, _thing: object = None) -> None:
        self.woken = True
        if self._stepped is not None:
            stepped, self._stepped = self._stepped, None
            self._callers.resume(stepped)
        elif self._task is not None:
            task, self._task = self._task, None
            self._callers.ready += 1
            trio.lowlevel.reschedule(task)

    async def wait(self) -> None:
        if self.woken:
            return
        callers = self._callers
        callers.asleep += 1
        try:
            if callers.stepping is not None:
                self._stepped = callers.stepping
                await _PARK
            else:
                self._task = trio.lowlevel.current_task()
                await trio.lowlevel.wait_task_rescheduled(self._abort)
                callers.ready -= 1
        finally:
            self._stepped = None
            callers.asleep -= 1

    def _abort(self, _raise_cancel: object) -> trio.lowlevel.Abort:
        self._task = None
        return trio.lowlevel.Abort.SUCCEEDED


class WaitGroup:
    """The waits for one disk that are not for a Request: for a claim, an acknowledgement, the answer to a command.

    ``life`` is that of its target.
    """

    def __init__(self, callers: Callers, life: Life) -> None:
        self._callers = callers
        self._life = life
        self._waits: set[Wait] = set()

    def __len__(self) -> int:
        return len(self._waits)

    def begin(self) -> Wait:
        """A new wait; to be given to :meth:`end` whatever happens.  TargetLost when the mount ends."""
        if self._life.is_closed:
            raise TargetLost("the engine stopped")
        wait = Wait(self._callers)
        self._waits.add(wait)
        return wait

    def end(self, wait: Wait) -> None:
        self._waits.discard(wait)

    def interrupt(self, error: RequestError | None) -> None:
        """All of them look again; with an error, what they wait for will not happen."""
        for wait in self._waits:
            wait.error = wait.error or error
            wait.wake()
