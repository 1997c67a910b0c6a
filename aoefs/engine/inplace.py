"""Waiting in place: for answers and for FUSE requests, without a turn of the trio loop.

A turn of the loop takes longer than a disk in the same rack needs for 4 KiB: it arms and reads an epoll set of its
own, and looks at deadlines and at a batch of tasks.  While no other task has anything to do, ``fuse.workerloop`` waits
here instead, on one epoll set that holds the FUSE descriptor and the sockets of all links.  Meanwhile the receivers of
the links sleep.

What always holds:

- It waits only while no other task is ready to go on, ``PATIENCE`` seconds at a time, and ``AWAY`` seconds in all since
  the last turn of the loop.  So no other task is late by more than the two together, and the time of polling.
- Frames of every link are taken, whatever is waited for.
- Until :meth:`attend_to` names the descriptor of the requests it never waits: ``--plain-loop``, and the library.

Before it sleeps it polls without timeout for as long as ``engine.busypoll`` says: a sleep and a wake-up take as long as
an answer.  Not for many answers: they would come in smaller batches, and 1 MiB would take a quarter more user time.

Rejected: a thread (the interpreter lock changes hands in 50 us).
"""

from __future__ import annotations

import math
import select
from collections.abc import Callable
from typing import Any, Final

from aoefs.core.link import Link
from aoefs.engine.busypoll import MOST, BusyPoll, Crowd
from aoefs.engine.waits import Callers

PATIENCE: Final = 0.001  # seconds: the least that epoll can wait
AWAY: Final = 0.004  # seconds without a turn of the loop; below the least RTO
FEW_CALLERS: Final = 4  # up to so many that sleep, their answers are polled for ...
FEW_COMMANDS: Final = 8  # ... if no more commands are under way: 4 KiB at an MTU of 1500 are four
_EVENTS: Final = 16
_MOST_LOOKS: Final = 400  # without sleeping, whatever the clock says: each takes half a microsecond at least


class InPlace:
    """See the module.

    ``receive_batch(link, in_place=...)`` and ``attended(by_other)`` are the receiver's, ``callers`` counts those that
    wait, ``in_flight()`` the commands under way where the last request went, ``now()`` is the engine's clock.
    ``busy_poll`` is for how long to poll (seconds), None to adapt; ``delay()`` for how long this thread has waited for
    a processor in all.
    """

    def __init__(
        self,
        receive_batch: Callable[..., Any],
        attended: Callable[[bool], None],
        callers: Callers,
        in_flight: Callable[[], int],
        now: Callable[[], float],
        busy_poll: float | None = None,
        delay: Callable[[], float] = float,
    ) -> None:
        self._receive_batch = receive_batch
        self.attended = attended
        self.callers = callers
        self._in_flight = in_flight
        self._now = now
        self._poll = select.epoll()
        most, adapts = (MOST, True) if busy_poll is None else (busy_poll, False)
        self._for_answers = BusyPoll(most, adapts=adapts)
        self._for_requests = BusyPoll(most, adapts=adapts)
        self._crowd = Crowd()
        self._delay = delay if adapts else float
        self._links: dict[int, Link] = {}
        self._requests = -1
        self._heeded = False
        self._loop_turned_at = 0.0
        self.descriptor = self._poll.fileno()

    def attend_to(self, descriptor: int) -> None:
        """``descriptor`` is readable when there is a FUSE request; from now on waiting in place is possible."""
        self._requests = descriptor
        self.heed_requests(True)

    def heed_requests(self, heeded: bool) -> None:
        """Whether requests are wanted: not while nobody could take one."""
        if heeded != self._heeded and self._requests >= 0:
            self._heeded = heeded
            if heeded:
                self._poll.register(self._requests, select.EPOLLIN)
            else:
                self._poll.unregister(self._requests)

    def add_link(self, link: Link) -> None:
        if link.descriptor >= 0:
            self._links[link.descriptor] = link
            self._poll.register(link.descriptor, select.EPOLLIN)

    def drop_link(self, link: Link) -> None:
        """To be called before its socket is closed."""
        if self._links.pop(link.descriptor, None) is not None:
            self._poll.unregister(link.descriptor)

    def close(self) -> None:
        self._requests = -1
        self._poll.close()
        self.descriptor = -1  # the number may soon be another file's

    def loop_turned(self) -> None:
        """The loop had a turn."""
        self._loop_turned_at = self._now()

    def others_are_ready(self) -> bool:
        """There are tasks that want a turn of the loop, or the loop had none for long."""
        return bool(self.callers.ready) or self._now() >= self._loop_turned_at + AWAY

    def look(self) -> bool | None:
        """Wait for what comes: True for a FUSE request; False for frames, which are taken; None if nothing came for
        ``PATIENCE``.  A request goes before frames, so that these come in larger batches.
        """
        asleep = self.callers.asleep
        if asleep > FEW_CALLERS or (asleep and self._in_flight() > FEW_COMMANDS):
            events = self._poll.poll(PATIENCE, _EVENTS)
        else:
            events = self._poll_busily(self._for_answers if asleep else self._for_requests)
        if not events:
            return None
        for descriptor, _ in events:
            if descriptor == self._requests:
                return True
        for descriptor, _ in events:
            self._receive_batch(self._links[descriptor], in_place=True)
        return False

    def _poll_busily(self, busy: BusyPoll) -> list[tuple[int, int]]:
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
