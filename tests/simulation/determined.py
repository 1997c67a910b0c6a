"""What else a run depends on comes from its seed: random numbers, the order of ready tasks, threads, the log.

Owns what is replaced in trio, pyfuse3 and aoefs for the time of a run.
"""

from __future__ import annotations

import logging
import random
import secrets
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from random import Random
from typing import Any
from unittest import mock

import pyfuse3
import trio

from aoefs.engine.rundelay import RunDelay
from aoefs.fuse import readahead
from aoefs.fuse.kernel import Notice
from tests.simulation.requests import Requests
from tests.simulation.users import Users
from tests.simulation.world import World

CHUNK_BYTES = 16 << 10  # of the read-ahead: the disks here are small


class Threads:
    """What ``trio.to_thread.run_sync`` is in a run: one that drops the pages of a file waits until no call uses it."""

    def __init__(self, world: World) -> None:
        self.users: Users | None = None
        self.nursery: trio.Nursery | None = None
        self._world = world

    async def run_sync(
        self,
        function: Callable[..., Any],
        *arguments: Any,
        abandon_on_cancel: bool = False,
        limiter: trio.CapacityLimiter | None = None,
    ) -> Any:
        ended = trio.Event()
        results: list[Any] = []

        async def thread() -> None:
            try:
                await trio.sleep(0.0001)
                notice = arguments[0] if arguments else None
                if isinstance(notice, Notice) and notice.pages and not notice.name and self.users is not None:
                    await self.users.is_quiet(notice.inode)
                results.append(function(*arguments))
            finally:
                ended.set()
                if limiter is not None:
                    limiter.release_on_behalf_of(ended)

        if limiter is not None:
            await limiter.acquire_on_behalf_of(ended)
        assert self.nursery is not None
        self.nursery.start_soon(thread)
        with trio.CancelScope(shield=not abandon_on_cancel):
            await ended.wait()
        return results[0]


class _Log(logging.Handler):
    """The log of aoefs is part of that of the run; an exception that nothing expected ends the run."""

    def __init__(self, world: World) -> None:
        super().__init__(logging.DEBUG)
        self._world = world

    def emit(self, record: logging.LogRecord) -> None:
        self._world.log(f"{record.levelname}: {record.getMessage()}")
        if record.exc_info and record.exc_info[0] is not None:
            self._world.complain("".join(traceback.format_exception(*record.exc_info)))


class _Waiting:
    """For how long other processes had the processor: a little more at each look."""

    def __init__(self, seed: int) -> None:
        self._dice = Random(seed)
        self._waited = 0.0

    def seconds(self) -> float:
        self._waited += self._dice.choice((0.0, 0.0, 0.001))
        return self._waited


@contextmanager
def determined(seed: int, world: World, threads: Threads, requests: Requests) -> Iterator[None]:
    """Random numbers, threads and the order of ready tasks are the run's; large things are small; the log is ours."""
    log = logging.getLogger("aoefs")
    handler = _Log(world)
    dice = Random(seed)
    order = trio._core._run._r
    with ExitStack() as stack:
        for thing, name, value in (
            (trio._core._run, "_ALLOW_DETERMINISTIC_SCHEDULING", True),
            (secrets, "randbits", dice.getrandbits),
            (secrets, "randbelow", dice.randrange),
            (secrets, "token_bytes", dice.randbytes),
            (trio.to_thread, "run_sync", threads.run_sync),
            (trio.lowlevel, "wait_readable", requests.wait_readable),
            (pyfuse3, "readdir_reply", lambda *_: True),
            (pyfuse3, "invalidate_entry", lambda inode, name: world.log(f"it forgets {name.decode()}")),
            (
                pyfuse3,
                "invalidate_inode",
                lambda inode, attr_only: world.log(f"the kernel forgets {inode} {attr_only}"),
            ),
            (RunDelay, "seconds", _Waiting(seed).seconds),
            (readahead, "CHUNK_BYTES", CHUNK_BYTES),
            (readahead, "SLACK_BYTES", CHUNK_BYTES // 4),
            (log, "handlers", [handler]),
            (log, "propagate", False),
            (log, "level", logging.DEBUG),
        ):
            stack.enter_context(mock.patch.object(thing, name, value))
        log.manager._clear_cache()  # type: ignore[attr-defined]
        stack.callback(log.manager._clear_cache)  # type: ignore[attr-defined]
        state = order.getstate()
        stack.callback(order.setstate, state)
        order.seed(seed)
        global_state = random.getstate()
        stack.callback(random.setstate, global_state)
        random.seed(seed)
        yield
