"""The calls of a disk, by name, and how to cancel one."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import trio
import trio.testing

from aoefs.engine.disk import Disk


async def cancel_after(seconds: float, call: Callable[[], Awaitable[object]]) -> bool:
    """Run ``call``, cancelled after some virtual time; whether it was cut short."""
    with trio.move_on_after(seconds) as scope:
        await call()
    return scope.cancelled_caught


CALLS: dict[str, Callable[[Disk], Awaitable[object]]] = {
    "a read": lambda disk: disk.read(0, 100 * 512),
    "a lone read": lambda disk: disk.read(3, 5),
    "a long read": lambda disk: disk.read(0, 700 * 512),
    "a write": lambda disk: disk.write(0, bytes(100 * 512)),
    "a write of partial sectors": lambda disk: disk.write(7, bytes(2000)),
    "a flush": lambda disk: disk.flush(),
}
