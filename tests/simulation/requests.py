"""The queue of FUSE requests, and the workers of a mount that wait for requests and answers in place.

``fuse.workerloop`` and ``engine.inplace`` are the real ones.  What they ask the kernel for is simulated: an epoll set
that holds the queue and the links, and waiting for such a set in the loop.  To wait in place makes time pass in the
world, and no task runs meanwhile.
"""

from __future__ import annotations

import select
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any
from unittest import mock

import outcome
import trio

from aoefs.engine.inplace import InPlace
from aoefs.fuse.workerloop import WorkerLoop
from tests.simulation.world import Link, World

WORKERS = 400  # more than there are calls at any time
QUEUE = 3  # the descriptor of the queue
EPOLL = 4  # that of the epoll set


class Requests:
    """The queue.  Without :meth:`serve`, a request is carried out by its user's task."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._queue: deque[tuple[Callable[[], Awaitable[Any]], list[outcome.Outcome[Any]], trio.Event]] = deque()
        self._served = False
        self._links: Callable[[], list[Link]] = list
        self._loop: WorkerLoop | None = None
        self._heeded = False
        self._changed = trio.lowlevel.ParkingLot()

    async def carry_out(self, handler: Callable[[], Awaitable[Any]]) -> Any:
        """What a handler returns or raises; a buffer is read before another handler runs."""
        if not self._served:
            return _copy(await handler())
        result: list[outcome.Outcome[Any]] = []
        ended = trio.Event()
        self._queue.append((handler, result, ended))
        self.wake()
        await ended.wait()
        return result[0].unwrap()

    def wake(self) -> None:
        """There is a request or a frame."""
        self._changed.unpark_all()

    def serve(self, nursery: trio.Nursery, in_place: InPlace, links: Callable[[], list[Link]]) -> None:
        """From now on workers take the requests, as in a mount."""
        self._served = True
        self._links = links
        self._loop = WorkerLoop(in_place)
        nursery.start_soon(self._run_workers, self._loop, name="worker loop")

    async def _run_workers(self, loop: WorkerLoop) -> None:
        async with loop.open_nursery() as workers:
            for number in range(WORKERS):
                workers.start_soon(self._work, loop, name=f"worker {number}")

    def end(self) -> None:
        """No request is taken any more."""
        if self._loop is not None:
            self._loop.close()

    async def _work(self, loop: WorkerLoop) -> None:
        while True:
            try:
                await loop.lowlevel.wait_readable(QUEUE)
            except trio.ClosedResourceError:
                return
            if self._queue:
                handler, result, ended = self._queue.popleft()
                result.append(await outcome.acapture(_copied, handler))
                ended.set()

    # ── what the kernel does ──────────────────────────────────────────────────────────────────────────────────────

    def is_epoll(self) -> Any:
        """While this lasts, an epoll set that is made is this one: the engine's, but not that of the loop."""
        return mock.patch.object(select, "epoll", return_value=self)

    def fileno(self) -> int:
        return EPOLL

    def register(self, descriptor: int, _events: int) -> None:
        self._heeded |= descriptor == QUEUE

    def unregister(self, descriptor: int) -> None:
        self._heeded &= descriptor != QUEUE

    def close(self) -> None:
        pass

    def poll(self, timeout: float, most: int) -> list[tuple[int, int]]:
        if not self._ready and timeout > 0:
            self._world.wait_in_place(timeout)
        return [(descriptor, select.EPOLLIN) for descriptor in self._ready[:most]]

    @property
    def _ready(self) -> list[int]:
        links = [link.descriptor for link in self._links() if link.inbox]
        return [QUEUE, *links] if self._queue and self._heeded else links

    async def wait_readable(self, descriptor: int) -> None:
        """What ``trio.lowlevel.wait_readable`` does with the epoll set."""
        await trio.lowlevel.checkpoint()
        assert descriptor == EPOLL
        while not self._ready:
            await self._changed.park()


def _copy(result: Any) -> Any:
    return bytes(result) if isinstance(result, memoryview) else result


async def _copied(handler: Callable[[], Awaitable[Any]]) -> Any:
    return _copy(await handler())
