"""Background work: tasks that nothing waits for, such as telling the kernel what changed, or reading ahead.

What always holds: an exception of such a task is logged and ends that task only; none of them delays the end of the
engine, and :meth:`Supervisor.cancel` ends them all at once.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable

import trio

log = logging.getLogger("aoefs")


class Supervisor:
    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery
        self._scopes: set[trio.CancelScope] = set()

    def start(self, name: str, work: Callable[[], Awaitable[object]]) -> None:
        """Run ``await work()`` in a task of this name."""
        self._nursery.start_soon(self._run, name, work, name=name)

    async def _run(self, name: str, work: Callable[[], Awaitable[object]]) -> None:
        with trio.CancelScope() as scope:
            self._scopes.add(scope)
            try:
                await work()
            except Exception:
                log.exception("%s failed unexpectedly", name)
            finally:
                self._scopes.discard(scope)

    def cancel(self) -> None:
        for scope in self._scopes:
            scope.cancel()
