"""The worker loop: fewer turns of the trio loop per FUSE request, by a stand-in for the trio that pyfuse3 uses.

pyfuse3 takes one request per turn of the loop: a checkpoint for its lock, and an epoll set that is armed and read.  It
reaches trio through its module attribute ``pyfuse3.trio`` (its asyncio mode replaces that too); :func:`install` puts a
stand-in there.  With it, a worker that comes for a request takes it at once if there is one, or waits in place
(``engine.inplace``).  If neither is possible it waits in the loop: one worker *watches* the FUSE descriptor and the
links, by one descriptor that stands for all of them, and the others sleep.

What always holds:

- ``engine.inplace`` bounds how long the loop goes without a turn.
- While workers wait, one of them watches or is about to run.  When none does, the receivers are told.
- From the moment in which a worker sees that there is a request until it has read it, no other task runs: so there is
  nothing to lock.
- Everything else of trio is trio's own.

Rejected: reading the FUSE descriptor ourselves (pyfuse3 owns the protocol), and one waiting worker at a time, as with
pyfuse3's lock (with 16 requests under way most workers then sleep twice for each one).
"""

from __future__ import annotations

from collections.abc import Awaitable, Iterator
from typing import Any, cast

import pyfuse3
import trio

from aoefs.engine.inplace import InPlace


class _Done:
    """Awaiting it is over at once: a third of what a coroutine costs that has nothing to wait for."""

    def __await__(self) -> Iterator[Any]:
        return iter(())


_DONE = cast(Awaitable[None], _Done())


class _Free:
    """A lock that is never held."""

    def __aenter__(self) -> Awaitable[None]:
        return _DONE

    def __aexit__(self, *_error: object) -> Awaitable[None]:
        return _DONE


class LowLevel:
    """``trio.lowlevel`` but for waiting for the descriptor of the requests.

    A worker that takes a request while none watches wakes as many sleepers as ``in_place`` wants: they are candidates,
    and with several requests under way several of them look in one turn.  The first that finds nothing watches.

    The last sleeper is woken first: each worker has a buffer of 1 MiB, and those of few workers stay in the caches.
    """

    def __init__(self, in_place: InPlace) -> None:
        self._in_place = in_place
        self._attending = False
        self._closing = False
        self._watched = False
        self.asleep: list[trio.lowlevel.Task] = []
        self.candidates = 0  # woken, and had no turn yet

    def __getattr__(self, name: str) -> Any:
        return getattr(trio.lowlevel, name)

    def wait_readable(self, descriptor: int) -> Awaitable[None]:
        if not self._attending:
            self._in_place.attend_to(descriptor)
            self._attending = True
        if not self._in_place.next_request():
            return self._wait()
        self._leave()
        return _DONE

    async def _wait(self) -> None:
        in_place = self._in_place
        try:
            while True:
                if self._closing:
                    raise trio.ClosedResourceError
                if self._watched:
                    await self._sleep()
                else:
                    await self._watch()
                if in_place.next_request():
                    return
        finally:
            self._leave()

    async def _watch(self) -> None:
        """Give the loop a turn: until there may be something to do, or for tasks that are ready."""
        in_place = self._in_place
        self._watched = True
        in_place.attended(True)
        try:
            if in_place.others_are_ready():
                await trio.lowlevel.checkpoint()
            else:
                await trio.lowlevel.wait_readable(in_place.descriptor)
        finally:
            self._watched = False
        in_place.loop_turned()

    async def _sleep(self) -> None:
        task = trio.lowlevel.current_task()
        self.asleep.append(task)

        def abort(_raise_cancel: object) -> trio.lowlevel.Abort:
            self.asleep.remove(task)
            return trio.lowlevel.Abort.SUCCEEDED

        await trio.lowlevel.wait_task_rescheduled(abort)
        self.candidates -= 1

    def _leave(self) -> None:
        """A worker waits no longer: see that another one watches, as long as any waits."""
        if self._watched:
            return
        wanted = self._in_place.workers_wanted()
        while self.asleep and self.candidates < wanted:
            self.candidates += 1
            trio.lowlevel.reschedule(self.asleep.pop())
        if not self.candidates:
            self._in_place.attended(False)

    def notify_closing(self, descriptor: int) -> None:
        self._closing = True
        trio.lowlevel.notify_closing(descriptor)
        trio.lowlevel.notify_closing(self._in_place.descriptor)


class Trio:
    """``trio`` but for ``Lock`` and ``lowlevel``."""

    def __init__(self, in_place: InPlace) -> None:
        self.lowlevel = LowLevel(in_place)
        self.Lock = _Free

    def __getattr__(self, name: str) -> Any:
        return getattr(trio, name)


def install(in_place: InPlace) -> None:
    """Let pyfuse3 use the stand-in; ``in_place`` learns the descriptor of the requests at the first one."""
    pyfuse3.trio = Trio(in_place)  # type: ignore[attr-defined]
