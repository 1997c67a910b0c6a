"""Waiting in place: for an answer, or for the next FUSE request, without a turn of the trio loop.

A turn of the loop takes longer than a disk in the same rack needs for 4 KiB: it arms and reads an epoll set of its
own, and looks at deadlines and at a batch of tasks.  While no other task has anything to do, the task that waits polls
by itself, on one epoll set that holds the FUSE descriptor and the sockets of all links.  :meth:`InPlace.wait` does so
for the answer to a request, :meth:`InPlace.next_request` between requests (``fuse.workerloop`` calls it).  While a
task does the latter, the receivers of the links sleep.

What always holds:

- It waits only while no other task is ready to go on, ``PATIENCE`` seconds at a time without any event, and ``AWAY``
  seconds in all since the last turn of the loop.  So no other task is late by more than the two together, and the time
  of polling.
- Frames of every link are taken, whatever is waited for.  Another FUSE request ends the waiting for an answer.
- Until :meth:`attend_to` names the descriptor of the requests it never waits: ``--plain-loop``, and the library.

Before it sleeps it polls without timeout for as long as ``engine.busypoll`` says: a sleep and a wake-up take as long as
an answer.  Not while several requests are under way: answers would come in smaller batches, and 1 MiB would take a
quarter more user time.

Rejected: a thread (the interpreter lock changes hands in 50 us).
"""

from __future__ import annotations

import math
import select
from collections.abc import Callable
from typing import Any, Final

from aoefs.core.link import Link
from aoefs.core.target import Target
from aoefs.engine.busypoll import MOST, BusyPoll, Crowd
from aoefs.engine.waits import Sleepers, Wait

PATIENCE: Final = 0.001  # seconds: the least that epoll can wait
AWAY: Final = 0.004  # seconds without a turn of the loop; below the least RTO
FEW_COMMANDS: Final = 8  # up to so many their answers are polled for: 4 KiB at an MTU of 1500 are four
_EVENTS: Final = 16
_MOST_LOOKS: Final = 400  # without sleeping, whatever the clock says: each takes half a microsecond at least
_MOST_WORKERS: Final = 8  # each one that finds nothing costs a change of tasks


class InPlace:
    """See the module.

    ``receive_batch(link, in_place=...)`` and ``attended(by_other)`` are the receiver's, ``sleepers`` counts the tasks
    that wait, ``now()`` is the engine's clock.  ``busy_poll`` is for how long to poll (seconds), None to adapt;
    ``delay()`` for how long this thread has waited for a processor in all.
    """

    def __init__(
        self,
        receive_batch: Callable[..., Any],
        attended: Callable[[bool], None],
        sleepers: Sleepers,
        now: Callable[[], float],
        busy_poll: float | None = None,
        delay: Callable[[], float] = float,
    ) -> None:
        self._receive_batch = receive_batch
        self.attended = attended
        self._sleepers = sleepers
        self._now = now
        self._poll = select.epoll()
        most, adapts = (MOST, True) if busy_poll is None else (busy_poll, False)
        self._for_answers = BusyPoll(most, adapts=adapts)
        self._for_requests = BusyPoll(most, adapts=adapts)
        self._crowd = Crowd()
        self._delay = delay if adapts else float
        self._links: dict[int, Link] = {}
        self._requests: int | None = None
        self._loop_turned_at = 0.0
        self.descriptor = self._poll.fileno()

    def attend_to(self, descriptor: int) -> None:
        """``descriptor`` is readable when there is a FUSE request; from now on waiting in place is possible."""
        self._requests = descriptor
        self._poll.register(descriptor, select.EPOLLIN)

    def add_link(self, link: Link) -> None:
        if link.descriptor >= 0:
            self._links[link.descriptor] = link
            self._poll.register(link.descriptor, select.EPOLLIN)

    def drop_link(self, link: Link) -> None:
        """To be called before its socket is closed."""
        if self._links.pop(link.descriptor, None) is not None:
            self._poll.unregister(link.descriptor)

    def close(self) -> None:
        self._requests = None
        self._poll.close()
        self.descriptor = -1  # the number may soon be another file's

    def loop_turned(self) -> None:
        """The loop had a turn."""
        self._loop_turned_at = self._now()

    def others_are_ready(self) -> bool:
        """There are tasks that want a turn of the loop, or the loop had none for long."""
        return bool(self._sleepers.ready) or self._now() >= self._loop_turned_at + AWAY

    def workers_wanted(self) -> int:
        """How many workers should look for requests in one turn of the loop, going by how many are busy."""
        return min(1 + self._sleepers.asleep // 2, _MOST_WORKERS)

    def wait(self, target: Target, wait: Wait) -> None:
        """Wait for ``wait`` to be woken, if the answer of ``target`` can be expected soon.

        With several requests under way it is better to sleep: answers and replies then go in batches.
        """
        if self._requests is None or self._sleepers.asleep or not target.answers_within(PATIENCE):
            return
        while not wait.woken and not self.others_are_ready():
            few = target.in_flight <= FEW_COMMANDS
            events = self._look(self._for_answers) if few else self._poll.poll(PATIENCE, _EVENTS)
            if not events or self._is_requested(events):
                return
            self._receive(events)

    def next_request(self) -> bool:
        """True when there is a FUSE request; False when nothing else came for ``PATIENCE``, or others are ready.

        These wait while requests that are there are taken, and not for one to come: each of them ends one request, and
        is followed by the next one more often than not.
        """
        while self._now() < self._loop_turned_at + AWAY:
            ready = self._sleepers.ready
            if ready:
                events = self._poll.poll(0, _EVENTS)
            elif self._sleepers.asleep > 1:
                events = self._poll.poll(PATIENCE, _EVENTS)
            else:
                events = self._look(self._for_requests)
            if not events:
                return False
            if self._is_requested(events):
                return True
            if ready:
                return False
            self._receive(events)
        return False

    def _look(self, busy: BusyPoll) -> list[tuple[int, int]]:
        """What is readable: polled for as long as ``busy`` says, then waited for asleep, for ``PATIENCE``."""
        if not busy.most:
            return self._poll.poll(PATIENCE, _EVENTS)
        began = now = self._now()
        if busy.seconds and not self._is_crowded(now):
            until = began + busy.seconds
            for _ in range(_MOST_LOOKS):
                events = self._poll.poll(0, _EVENTS)
                if events:
                    busy.came(now - began)
                    return events
                now = self._now()
                if now >= until:
                    break
        events = self._poll.poll(PATIENCE, _EVENTS)
        busy.came(self._now() - began if events else math.inf)
        return events

    def _is_crowded(self, now: float) -> bool:
        if now >= self._crowd.look_at:
            self._crowd.look(now, self._delay())
        return self._crowd.is_there(now)

    def _is_requested(self, events: list[tuple[int, int]]) -> bool:
        """There is a FUSE request; it goes before frames, so that these come in larger batches."""
        for descriptor, _ in events:  # noqa: SIM110 (for each request: a generator costs more than the loop)
            if descriptor == self._requests:
                return True
        return False

    def _receive(self, events: list[tuple[int, int]]) -> None:
        for descriptor, _ in events:
            self._receive_batch(self._links[descriptor], in_place=True)
