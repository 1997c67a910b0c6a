"""Fewer turns of the trio loop per FUSE request: a stand-in for the trio that pyfuse3 uses.

pyfuse3 takes one request per turn: a checkpoint for its lock, an epoll re-arm and an epoll wait.  It reaches trio
through its module attribute ``pyfuse3.trio`` (its asyncio mode replaces that too); :func:`install` puts a stand-in
there.  With it a worker that answered a request without going to sleep takes the next one at once; and whichever
worker waits for a request attends to the ports as well (``aoefs.inplace``), so that one descriptor in the loop stands
for all of them.

What holds always: how long the loop goes without a turn is bounded by ``aoefs.inplace``; whenever the lock is free
and somebody waits for it, one of those is about to run; when nobody holds it or is about to, the receivers are told;
everything else of trio is trio's own.

Rejected: reading the FUSE descriptor ourselves (pyfuse3 owns the protocol).
"""

from __future__ import annotations

from collections.abc import Awaitable, Iterator
from functools import partial
from typing import Any, Protocol, cast

import pyfuse3
import trio


class Place(Protocol):
    """What is needed of :class:`aoefs.inplace.InPlace`."""

    @property
    def descriptor(self) -> int:
        """Readable when there is anything to do."""
        ...

    def attend_to(self, descriptor: int) -> None: ...

    def attended(self, somebody: bool) -> None:
        """Somebody waits for requests, or is about to; or nobody."""
        ...

    def next_request(self) -> bool:
        """See :meth:`aoefs.inplace.InPlace.next_request`."""
        ...

    def others_are_ready(self) -> bool: ...

    def workers_wanted(self) -> int: ...

    def loop_turned(self) -> None: ...


class _Done:
    """Awaiting it is over at once: a third of what a coroutine costs that has nothing to wait for."""

    def __await__(self) -> Iterator[Any]:
        return iter(())


_DONE = cast(Awaitable[None], _Done())


class _Lock:
    """A lock without the checkpoint of ``trio.Lock``.

    Giving it up wakes those who came last, as candidates, as many as the place wants: until one of them runs, anybody
    who comes by may take the lock, so that a worker that did not go to sleep over its request goes on without a change
    of tasks; and when several requests are under way, several workers have a go in one turn of the loop.

    Last come, first served: each worker has a buffer of 1 MiB, and those of few workers stay in the caches (and those
    of the others are never touched).
    """

    def __init__(self, place: Place) -> None:
        self._place = place
        self._held = False
        self._candidates = 0  # woken, and had no turn yet
        self._waiting: list[trio.lowlevel.Task] = []

    def __aenter__(self) -> Awaitable[None]:
        if self._held:
            return self._wait()
        self._held = True
        self._place.attended(True)
        return _DONE

    async def _wait(self) -> None:
        task = trio.lowlevel.current_task()
        self._waiting.append(task)

        def abort(_raise_cancel: object) -> trio.lowlevel.Abort:
            self._waiting.remove(task)
            return trio.lowlevel.Abort.SUCCEEDED

        while True:
            await trio.lowlevel.wait_task_rescheduled(abort)
            self._candidates -= 1
            if not self._held:
                self._held = True
                self._place.attended(True)
                return
            self._waiting.append(task)  # somebody was faster

    def __aexit__(self, *_error: object) -> Awaitable[None]:
        self._held = False
        wanted = self._place.workers_wanted()
        while self._waiting and self._candidates < wanted:
            self._candidates += 1
            trio.lowlevel.reschedule(self._waiting.pop())
        if not self._candidates:
            self._place.attended(False)
        return _DONE


class _LowLevel:
    """``trio.lowlevel`` but for waiting for the descriptor of the requests."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._attending = False
        self._closing = False

    def __getattr__(self, name: str) -> Any:
        return getattr(trio.lowlevel, name)

    def wait_readable(self, descriptor: int) -> Awaitable[None]:
        if not self._attending:
            self._place.attend_to(descriptor)
            self._attending = True
        return _DONE if self._place.next_request() else self._wait()

    async def _wait(self) -> None:
        place = self._place
        while True:
            if self._closing:
                raise trio.ClosedResourceError
            if place.others_are_ready():
                await trio.lowlevel.checkpoint()
            else:
                await trio.lowlevel.wait_readable(place.descriptor)
            place.loop_turned()
            if place.next_request():
                return

    def notify_closing(self, descriptor: int) -> None:
        self._closing = True
        trio.lowlevel.notify_closing(descriptor)
        trio.lowlevel.notify_closing(self._place.descriptor)


class _Trio:
    """``trio`` but for ``Lock`` and ``lowlevel``."""

    def __init__(self, place: Place) -> None:
        self.lowlevel = _LowLevel(place)
        self.Lock = partial(_Lock, place)

    def __getattr__(self, name: str) -> Any:
        return getattr(trio, name)


def install(place: Place) -> None:
    """Let pyfuse3 use the stand-in; ``place`` is told the descriptor of the requests at the first one."""
    pyfuse3.trio = _Trio(place)  # type: ignore[attr-defined]
