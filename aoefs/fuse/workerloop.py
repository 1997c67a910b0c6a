"""The worker loop: FUSE requests without a turn of the trio loop, by a stand-in for the trio that pyfuse3 uses.

pyfuse3 has a pool of workers, coroutines that take one request after the other, and reaches trio through its module
attribute ``pyfuse3.trio`` (its asyncio mode replaces that too).  :func:`install` puts a :class:`WorkerLoop` there.  It
steps the workers by hand, in one task: a worker runs until it waits for an answer (``engine.waits``) or for the next
request.  Then the loop waits for both in place (``engine.inplace``), and takes the frames of all links.

A handler that needs trio goes on in a task of its own (``Callers.in_task``).

What always holds:

- Between two steps, ``engine.inplace`` bounds how long trio's own loop goes without a turn.
- From the moment in which there is a request until a worker has read it, no other task runs: so there is nothing to
  lock.
- While every worker is busy, requests are not looked for.  pyfuse3 bounds how many workers there are.
- When the loop is cancelled, every worker is closed: what it waits for is abandoned (``engine.disk``).

Rejected: reading the FUSE descriptor ourselves (pyfuse3 owns the protocol), and a task for each worker (with turns of
trio's loop for each request, a read of 4 KiB at depth 16 took 27.9 us of processor time; it takes 16.9).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Generator, Iterator
from contextlib import ExitStack
from typing import Any, Final, cast

import pyfuse3
import trio

from aoefs.engine.inplace import InPlace
from aoefs.engine.waits import Stepped


class _Done:
    """Awaiting it is over at once: a third of what a coroutine costs that has nothing to wait for."""

    def __await__(self) -> Iterator[Any]:
        return _NOTHING


_NOTHING: Final = iter(())
_DONE: Final = cast(Awaitable[None], _Done())


class _Free:
    """A lock that is never held."""

    def __aenter__(self) -> Awaitable[None]:
        return _DONE

    def __aexit__(self, _kind: object, _error: object, _traceback: object) -> Awaitable[None]:
        return _DONE


class _ForRequest:
    """Awaiting it, a worker is idle until there is a request for it."""

    def __init__(self, loop: WorkerLoop) -> None:
        self._loop = loop

    def __await__(self) -> Generator[None, None, None]:
        self._loop.become_idle()
        yield


class _Named:
    name = "worker"


class LowLevel:
    """``trio.lowlevel`` but for waiting for the descriptor of the requests, and for the name of the task."""

    def __init__(self, loop: WorkerLoop) -> None:
        self._loop = loop

    def __getattr__(self, name: str) -> Any:
        return getattr(trio.lowlevel, name)

    def current_task(self) -> _Named:
        return _Named()

    def wait_readable(self, descriptor: int) -> Awaitable[None]:
        return self._loop.wait_for_request(descriptor)

    def notify_closing(self, _descriptor: int) -> None:
        self._loop.close()


class WorkerLoop:
    """``trio`` for pyfuse3, and a nursery for its workers.

    The last idle worker gets the next request: each has a buffer of 1 MiB, and those of few workers stay in the caches.
    """

    def __init__(self, in_place: InPlace) -> None:
        self.lowlevel = LowLevel(self)
        self.Lock = _Free
        self._in_place = in_place
        self._callers = in_place.callers
        self._idle: list[Stepped] = []
        self._workers: set[Stepped] = set()
        self._for_request = _ForRequest(self)
        self._attending = False
        self._closing = False
        self._away: trio.CancelScope | None = None  # while the loop waits in trio's

    def __getattr__(self, name: str) -> Any:
        return getattr(trio, name)

    # ── a nursery ─────────────────────────────────────────────────────────────────────────────────────────────────

    def open_nursery(self) -> WorkerLoop:
        return self

    async def __aenter__(self) -> WorkerLoop:
        return self

    async def __aexit__(self, *_error: object) -> None:
        """Step the workers until all have ended."""
        async with trio.open_nursery() as nursery:
            self._callers.start = nursery.start_soon
            self._callers.on_resume = self._come_back
            self._in_place.attended(True)
            try:
                await self._run()
            finally:
                self._in_place.attended(False)
                self._callers.on_resume = None
                with ExitStack() as closing:  # all of them, though one raises
                    for worker in self._workers:
                        closing.callback(worker.coroutine.close)

    def start_soon(self, function: Callable[..., Coroutine[Any, Any, object]], *arguments: Any, name: object) -> None:
        """A new worker."""
        worker = Stepped(function(*arguments))
        self._workers.add(worker)
        self._callers.resume(worker)

    # ── workers ───────────────────────────────────────────────────────────────────────────────────────────────────

    def wait_for_request(self, descriptor: int) -> Awaitable[None]:
        """For a worker: until there is a request for it.  ClosedResourceError when the mount ends."""
        if not self._attending:
            self._attending = True
            self._in_place.attend_to(descriptor)
        if self._closing:
            raise trio.ClosedResourceError
        return cast(Awaitable[None], self._for_request)

    def become_idle(self) -> None:
        worker = self._callers.stepping
        assert worker is not None  # noqa: S101 (for mypy)
        self._idle.append(worker)

    def close(self) -> None:
        """The mount ends: workers end when they are idle."""
        self._closing = True
        self._come_back()

    def _step(self, worker: Stepped, error: BaseException | None = None) -> None:
        """Let ``worker`` go on until it waits."""
        callers = self._callers
        callers.stepping = worker
        try:
            trap = worker.coroutine.send(None) if error is None else worker.coroutine.throw(error)
            while trap is not None:
                trap = worker.coroutine.throw(RuntimeError("a handler waits for trio outside of a task"))
        except StopIteration:
            self._workers.discard(worker)
        except BaseException:
            self._workers.discard(worker)
            raise
        finally:
            callers.stepping = None

    # ── the loop ──────────────────────────────────────────────────────────────────────────────────────────────────

    async def _run(self) -> None:
        in_place, resumed, idle = self._in_place, self._callers.resumed, self._idle
        while True:
            while resumed:
                self._step(resumed.popleft())
            if self._closing:
                while idle:
                    self._step(idle.pop(), trio.ClosedResourceError())
            if not self._workers:
                return
            if in_place.others_are_ready():
                await trio.lowlevel.checkpoint()
                in_place.loop_turned()
                continue
            in_place.heed_requests(bool(idle))
            found = in_place.look()
            if found:
                self._step(idle.pop())
            elif found is None and not resumed:
                await self._watch()

    async def _watch(self) -> None:
        """Wait in trio's loop until there may be something to do."""
        with trio.CancelScope() as self._away:
            await trio.lowlevel.wait_readable(self._in_place.descriptor)
        self._away = None
        self._in_place.loop_turned()

    def _come_back(self) -> None:
        """There is something to do."""
        if self._away is not None:
            self._away.cancel()


def install(in_place: InPlace) -> None:
    """Let pyfuse3 use the stand-in."""
    pyfuse3.trio = WorkerLoop(in_place)  # type: ignore[attr-defined]
