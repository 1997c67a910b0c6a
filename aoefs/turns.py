"""Fewer turns of the trio loop per FUSE request: a stand-in for the trio that pyfuse3 uses.

pyfuse3 takes one request per turn: a checkpoint for its lock, an epoll re-arm and an epoll wait.  It reaches trio
through its module attribute ``pyfuse3.trio`` (its asyncio mode replaces that too); :func:`install` puts a stand-in
there whose ``wait_readable`` first looks without waiting, and whose ``Lock`` has no checkpoint of its own.  It also
tells the engine which descriptor brings new requests, so that a handler may wait in place for an answer that is
microseconds away (:meth:`aoefs.engine.Engine.wait_in_place`) until there is other work.

What holds always: after ``MAX_STREAK`` requests taken without the loop, the loop gets its turn, so that no task
starves; everything else of trio is trio's own.

Rejected: reading the FUSE descriptor ourselves (pyfuse3 owns the protocol), and spinning (the target may need the
processor on which we would spin).
"""

from __future__ import annotations

import select
from collections import deque
from collections.abc import Callable
from typing import Any

import pyfuse3
import trio

MAX_STREAK = 16  # requests taken without asking the loop


class _Lock:
    """A lock that hands itself over in order, without the checkpoint of ``trio.Lock``."""

    def __init__(self) -> None:
        self._held = False
        self._waiting: deque[trio.lowlevel.Task] = deque()

    async def __aenter__(self) -> None:
        if not self._held:
            self._held = True
            return
        task = trio.lowlevel.current_task()
        self._waiting.append(task)

        def abort(_raise_cancel: object) -> trio.lowlevel.Abort:
            self._waiting.remove(task)
            return trio.lowlevel.Abort.SUCCEEDED

        await trio.lowlevel.wait_task_rescheduled(abort)

    async def __aexit__(self, *_error: object) -> None:
        if self._waiting:
            trio.lowlevel.reschedule(self._waiting.popleft())
        else:
            self._held = False


class _LowLevel:
    """``trio.lowlevel`` but for ``wait_readable``."""

    def __init__(self, found_descriptor: Callable[[int], object]) -> None:
        self._found_descriptor = found_descriptor
        self._poll: select.poll | None = None
        self._streak = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(trio.lowlevel, name)

    async def wait_readable(self, descriptor: int) -> None:
        if self._poll is None:
            self._poll = select.poll()
            self._poll.register(descriptor, select.POLLIN)
            self._found_descriptor(descriptor)
        if self._streak < MAX_STREAK and self._poll.poll(0):
            self._streak += 1
            return
        self._streak = 0
        await trio.lowlevel.wait_readable(descriptor)


class _Trio:
    """``trio`` but for ``Lock`` and ``lowlevel``."""

    Lock = _Lock

    def __init__(self, found_descriptor: Callable[[int], object]) -> None:
        self.lowlevel = _LowLevel(found_descriptor)

    def __getattr__(self, name: str) -> Any:
        return getattr(trio, name)


def install(found_descriptor: Callable[[int], object]) -> None:
    """Let pyfuse3 use the stand-in; ``found_descriptor(fd)`` is called once, with the descriptor of the requests."""
    pyfuse3.trio = _Trio(found_descriptor)  # type: ignore[attr-defined]
