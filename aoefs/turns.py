"""Fewer turns of the trio loop per FUSE request: a stand-in for the trio that pyfuse3 uses.

pyfuse3 takes one request per turn: a checkpoint for its lock, an epoll re-arm and an epoll wait.  It reaches trio
through its module attribute ``pyfuse3.trio`` (its asyncio mode replaces that too); :func:`install` puts a stand-in
there, with which a worker that answers a request without going to sleep takes the next one at once: its ``Lock`` has
no checkpoint and may be taken back by the one who just gave it up, and its ``wait_readable`` waits in place first.

What holds always: how long the loop goes without a turn is bounded by ``aoefs.inplace``; whenever the lock is free
and somebody waits for it, one of those is about to run; everything else of trio is trio's own.

Rejected: reading the FUSE descriptor ourselves (pyfuse3 owns the protocol).
"""

from __future__ import annotations

from collections import deque
from typing import Any, Protocol

import pyfuse3
import trio


class Place(Protocol):
    """What is needed of :class:`aoefs.inplace.InPlace`."""

    def attend_to(self, descriptor: int) -> None: ...

    def next_request(self) -> bool: ...

    def loop_turned(self) -> None: ...


class _Lock:
    """A lock without the checkpoint of ``trio.Lock``.

    Giving it up wakes the task that waited longest, as a candidate: until that one runs, anybody who comes by may
    take the lock, so that a worker that did not go to sleep over its request goes on without a change of tasks.
    """

    def __init__(self) -> None:
        self._held = False
        self._candidate: trio.lowlevel.Task | None = None
        self._waiting: deque[trio.lowlevel.Task] = deque()

    async def __aenter__(self) -> None:
        if self._held:
            await self._wait()
        self._held = True

    async def _wait(self) -> None:
        task = trio.lowlevel.current_task()
        self._waiting.append(task)

        def abort(_raise_cancel: object) -> trio.lowlevel.Abort:
            self._waiting.remove(task)
            return trio.lowlevel.Abort.SUCCEEDED

        while True:
            await trio.lowlevel.wait_task_rescheduled(abort)
            self._candidate = None
            if not self._held:
                return
            self._waiting.appendleft(task)  # it was taken back meanwhile

    async def __aexit__(self, *_error: object) -> None:
        self._held = False
        if self._waiting and self._candidate is None:
            self._candidate = self._waiting.popleft()
            trio.lowlevel.reschedule(self._candidate)


class _LowLevel:
    """``trio.lowlevel`` but for ``wait_readable``."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._attended = False

    def __getattr__(self, name: str) -> Any:
        return getattr(trio.lowlevel, name)

    async def wait_readable(self, descriptor: int) -> None:
        if not self._attended:
            self._place.attend_to(descriptor)
            self._attended = True
        if not self._place.next_request():
            await trio.lowlevel.wait_readable(descriptor)
            self._place.loop_turned()


class _Trio:
    """``trio`` but for ``Lock`` and ``lowlevel``."""

    Lock = _Lock

    def __init__(self, place: Place) -> None:
        self.lowlevel = _LowLevel(place)

    def __getattr__(self, name: str) -> Any:
        return getattr(trio, name)


def install(place: Place) -> None:
    """Let pyfuse3 use the stand-in; ``place`` is told the descriptor of the requests at the first one."""
    pyfuse3.trio = _Trio(place)  # type: ignore[attr-defined]
