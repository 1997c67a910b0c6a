"""Fewer turns of the trio loop per FUSE request: a stand-in for the trio that pyfuse3 uses.

pyfuse3 takes one request per turn: a checkpoint for its lock, an epoll re-arm and an epoll wait.  It reaches trio
through its module attribute ``pyfuse3.trio`` (its asyncio mode replaces that too); :func:`install` puts a stand-in
there.  With it a worker that comes for a request takes it at once if one is there, or waits in place
(``engine.inplace``); only when neither is possible does it wait in the loop: one *watches* the FUSE descriptor and the
links, by the one descriptor that stands for all of them, and the others sleep.

What holds always:

- How long the loop goes without a turn is bounded by ``engine.inplace``.
- While workers wait, one of them watches or is about to run; when none does, the receivers are told.
- From the moment in which a worker sees that there is a request until it has read it no other task runs: there is
  nothing to lock.
- Everything else of trio is trio's own.

Rejected: reading the FUSE descriptor ourselves (pyfuse3 owns the protocol), and one worker at a time in all of the
waiting, as with pyfuse3's lock (with 16 requests under way most workers then sleep twice for each one).
"""

from __future__ import annotations

from collections.abc import Awaitable, Iterator
from typing import Any, Protocol, cast

import pyfuse3
import trio


class Place(Protocol):
    """What is needed of :class:`engine.inplace.InPlace`."""

    @property
    def descriptor(self) -> int:
        """Readable when there is anything to do."""
        ...

    def attend_to(self, descriptor: int) -> None: ...

    def attended(self, somebody: bool) -> None:
        """Somebody waits for requests, or is about to; or nobody."""
        ...

    def next_request(self) -> bool:
        """See :meth:`engine.inplace.InPlace.next_request`."""
        ...

    def others_are_ready(self) -> bool: ...

    def workers_wanted(self) -> int: ...

    def loop_turned(self) -> None: ...


class _Done:
    """Awaiting it is over at once: a third of what a coroutine costs that has nothing to wait for."""

    def __await__(self) -> Iterator[Any]:
        return iter(())


_DONE = cast(Awaitable[None], _Done())


class _Free:
    """A lock that nobody ever holds."""

    def __aenter__(self) -> Awaitable[None]:
        return _DONE

    def __aexit__(self, *_error: object) -> Awaitable[None]:
        return _DONE


class _LowLevel:
    """``trio.lowlevel`` but for waiting for the descriptor of the requests.

    Whoever takes a request while nobody watches wakes as many sleepers as the place wants, as candidates: with several
    requests under way several have a go in one turn.  The first that finds nothing watches.

    Last come, first served: each worker has a buffer of 1 MiB, and those of few workers stay in the caches (and those
    of the others are never touched).
    """

    def __init__(self, place: Place) -> None:
        self._place = place
        self._attending = False
        self._closing = False
        self._watched = False
        self._asleep: list[trio.lowlevel.Task] = []
        self._candidates = 0  # woken, and had no turn yet

    def __getattr__(self, name: str) -> Any:
        return getattr(trio.lowlevel, name)

    def wait_readable(self, descriptor: int) -> Awaitable[None]:
        if not self._attending:
            self._place.attend_to(descriptor)
            self._attending = True
        if not self._place.next_request():
            return self._wait()
        self._leave()
        return _DONE

    async def _wait(self) -> None:
        place = self._place
        try:
            while True:
                if self._closing:
                    raise trio.ClosedResourceError
                if self._watched:
                    await self._sleep()
                else:
                    await self._watch()
                if place.next_request():
                    return
        finally:
            self._leave()

    async def _watch(self) -> None:
        """Give the loop a turn: until there may be something to do, or for the others who are ready."""
        place = self._place
        self._watched = True
        place.attended(True)
        try:
            if place.others_are_ready():
                await trio.lowlevel.checkpoint()
            else:
                await trio.lowlevel.wait_readable(place.descriptor)
        finally:
            self._watched = False
        place.loop_turned()

    async def _sleep(self) -> None:
        task = trio.lowlevel.current_task()
        self._asleep.append(task)

        def abort(_raise_cancel: object) -> trio.lowlevel.Abort:
            self._asleep.remove(task)
            return trio.lowlevel.Abort.SUCCEEDED

        await trio.lowlevel.wait_task_rescheduled(abort)
        self._candidates -= 1

    def _leave(self) -> None:
        """One waits no longer: see that somebody watches, as long as anybody waits."""
        if self._watched:
            return
        wanted = self._place.workers_wanted()
        while self._asleep and self._candidates < wanted:
            self._candidates += 1
            trio.lowlevel.reschedule(self._asleep.pop())
        if not self._candidates:
            self._place.attended(False)

    def notify_closing(self, descriptor: int) -> None:
        self._closing = True
        trio.lowlevel.notify_closing(descriptor)
        trio.lowlevel.notify_closing(self._place.descriptor)


class _Trio:
    """``trio`` but for ``Lock`` and ``lowlevel``."""

    def __init__(self, place: Place) -> None:
        self.lowlevel = _LowLevel(place)
        self.Lock = _Free

    def __getattr__(self, name: str) -> Any:
        return getattr(trio, name)


def install(place: Place) -> None:
    """Let pyfuse3 use the stand-in; ``place`` is told the descriptor of the requests at the first one."""
    pyfuse3.trio = _Trio(place)  # type: ignore[attr-defined]
