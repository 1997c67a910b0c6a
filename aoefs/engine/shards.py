"""Completion shards: where answers become finished requests, a bounded batch at a time.

From the Linux driver's change "perform I/O completions in parallel" (its ``ktcomplete`` and ``ktio``), in trio terms.
A target's shard is ``(shelf + slot) % shards``; in one of N processes that share the targets (``protocol.wire.Share``)
``(shelf + slot) // N % shards``, since all of its targets leave the same rest.  Shard 0 starts with the engine; an
answer for a shard that does not run goes to shard 0's queue, and shard 0, after completing it, starts the task it
belongs to.  A shard completes at most ``MAX_COMPLETIONS`` commands before it yields, so a flood from one target cannot
starve the others.

On one interpreter the shards bring isolation, order and batches, not parallel processors: 4 KiB reads of 36 targets at
once, the case of that change, are as many with one shard as with two or 36.  While the worker loop waits in place
(``engine.inplace``), it completes for the shards by the same function, and its work is counted there.

What always holds: an entry is a run of answers, never a frame; entries of one shard are completed in the order in
which they came; at exit, what is still queued fails, so nothing waits for ever.

Rejected: channels (a deque and a parked task cost a fifth), and stopping idle shards (a parked task costs nothing).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import trio

from aoefs.core.request import Run
from aoefs.core.statistics import snapshot
from aoefs.core.target import Target
from aoefs.errors import RequestError, TargetLost
from aoefs.protocol.wire import Address

MAX_COMPLETIONS: Final = 1024  # commands before a checkpoint; the driver's MAXIOC (8192) is for a kernel thread


class Completion:
    """Answers to ``commands`` commands of ``run`` from ``first`` on: good, or one that failed with ``error``."""

    __slots__ = ("commands", "error", "first", "run", "target")

    def __init__(self, target: Target, run: Run, first: int, commands: int, error: RequestError | None) -> None:
        self.target = target
        self.run = run
        self.first = first
        self.commands = commands
        self.error = error


@dataclass(frozen=True, slots=True)
class ShardStatistics:
    """A frozen snapshot of one shard; ``started_at`` is in seconds of the engine's clock, None while it never ran."""

    id: int
    active: bool
    completed: int
    batches: int
    queued: int
    longest_queue: int
    started_at: float | None


class Shard:
    """One queue of answers and the task that completes them."""

    def __init__(self, number: int, pump: Callable[[Target, float], object], now: Callable[[], float]) -> None:
        self.number = number
        self._pump = pump
        self._now = now
        self.active = False
        self.queue: deque[Completion] = deque()
        self.completed = 0
        self.batches = 0
        self.longest_queue = 0
        self.started_at: float | None = None
        self._parked: trio.lowlevel.Task | None = None

    def put(self, answer: Completion) -> None:
        queue = self.queue
        queue.append(answer)
        if len(queue) > self.longest_queue:
            self.longest_queue = len(queue)

    def wake(self) -> None:
        """Let the task complete what is queued."""
        if self._parked is not None:
            task, self._parked = self._parked, None
            trio.lowlevel.reschedule(task)

    def complete_batch(self) -> list[Address]:
        """Complete up to ``MAX_COMPLETIONS`` commands; the addresses of the targets they belonged to."""
        queue = self.queue
        until = self.completed + MAX_COMPLETIONS
        now = self._now()
        seen = []
        while queue and self.completed < until:
            answer = queue.popleft()
            self.complete(answer, now)
            seen.append(answer.target.address)
        self.batches += 1
        return seen

    def complete(self, answer: Completion, now: float) -> None:
        target = answer.target
        self.completed += answer.commands
        if answer.error is not None:
            target.fail_command(answer.run, answer.first, answer.error)
        elif not target.complete(answer.run, answer.first, answer.commands):
            return
        if target.has_backlog:  # the end of a request may have made room for a read that had no memory
            self._pump(target, now)

    async def wait(self) -> None:
        """Until there is something to complete; a turn of the loop if there is already."""
        if self.queue:
            await trio.lowlevel.checkpoint()
        else:
            self._parked = trio.lowlevel.current_task()
            await trio.lowlevel.wait_task_rescheduled(self._unpark)

    def _unpark(self, _raise_cancel: object) -> trio.lowlevel.Abort:
        self._parked = None
        return trio.lowlevel.Abort.SUCCEEDED

    def flush(self) -> None:
        """At exit: fail what waits here."""
        while self.queue:
            answer = self.queue.popleft()
            answer.target.fail(answer.run.request, TargetLost("the engine stopped"))

    def statistics(self) -> ShardStatistics:
        return snapshot(ShardStatistics, self, id=self.number, queued=len(self.queue))


class Shards:
    """All shards of an engine.  ``nursery`` hosts their tasks; ``pump(target, now)`` sends what an answer freed, and
    ``now()`` is the engine's clock (seconds).  ``processes`` share the targets.
    """

    def __init__(
        self,
        count: int,
        nursery: trio.Nursery,
        pump: Callable[[Target, float], object],
        now: Callable[[], float],
        processes: int = 1,
    ) -> None:
        self._processes = processes
        self._shards = [Shard(number, pump, now) for number in range(max(1, count))]
        self._nursery = nursery
        self._start(self._shards[0])

    def put(self, answer: Completion) -> None:
        """To the shard of the answer's target; to shard 0 while that one does not run."""
        shard = self._shard_of(answer.target.address)
        if not shard.active:
            shard = self._shards[0]
        shard.put(answer)
        shard.wake()

    def complete(self, answer: Completion, now: float) -> None:
        """The same for a caller in the worker loop: it is completed at once, unless others are queued before it."""
        own = shard = self._shard_of(answer.target.address)
        if not own.active:
            shard = self._shards[0]
        if shard.queue:
            shard.put(answer)
            shard.wake()
            return
        shard.complete(answer, now)
        shard.batches += 1
        if not own.active:
            self._start(own)

    def _shard_of(self, address: Address) -> Shard:
        return self._shards[(address.shelf + address.slot) // self._processes % len(self._shards)]

    def _start(self, shard: Shard) -> None:
        shard.active = True
        shard.started_at = trio.current_time()
        self._nursery.start_soon(self._run, shard, name=f"shard {shard.number}")

    async def _run(self, shard: Shard) -> None:
        """The task of a shard.  That of shard 0 starts the shards to which the targets of its answers belong."""
        while True:
            for address in shard.complete_batch() if shard.queue else ():
                own = self._shard_of(address)
                if not own.active:
                    self._start(own)
            await shard.wait()

    def flush(self) -> None:
        for shard in self._shards:
            shard.flush()

    def statistics(self) -> tuple[ShardStatistics, ...]:
        return tuple(shard.statistics() for shard in self._shards)
