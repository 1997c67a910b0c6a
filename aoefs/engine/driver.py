"""What drives the targets: the links, the tags, the clock, and the one place that sends runs.

Owns the links that are open and, for each of them, which targets wait for room in its socket.  A task for each link
whose socket is full, while it is.

What always holds: :meth:`Driver.pump` is the only place that sends runs.  It is called after every input that may have
opened a window, it never waits, and it arms the timer.

Rejected: to wait in ``pump`` (a full socket would stop the caller, which may be the receiver).
"""

from __future__ import annotations

from typing import Final

import trio

from aoefs.core.link import Link
from aoefs.core.lonecommand import LoneCommand
from aoefs.core.request import Request, Run
from aoefs.core.tags import TagTable
from aoefs.core.target import Target
from aoefs.engine.clock import RunningClock
from aoefs.engine.timer import Timer
from aoefs.engine.waits import Callers
from aoefs.protocol.wire import Address

ROOM_PAUSE: Final = 0.0005  # seconds until a full device queue is tried again, doubling ...
MAX_ROOM_PAUSE: Final = 0.008  # ... up to this


class Driver:
    """See the module.  ``links`` are the open ones by interface; ``callers`` counts who waits."""

    def __init__(self, nursery: trio.Nursery, clock: RunningClock, tags: TagTable[Run | LoneCommand]) -> None:
        self.links: dict[str, Link] = {}
        self.tags = tags
        self.clock = clock
        self.now = clock.now
        self.callers = Callers()
        self.timer = Timer(clock)
        self.reserved: dict[tuple[Address, str], tuple[bytes, ...]] = {}  # of engine.reservation
        self._nursery = nursery
        self._latest: Target | None = None
        self._blocked: dict[Link, dict[Target, None]] = {}

    def macs(self) -> tuple[bytes, ...]:
        """Our addresses on all links."""
        return tuple(link.mac for link in self.links.values())

    def submit(self, target: Target, request: Request) -> None:
        """A new request: queue it, and send what the windows allow."""
        now = self.now()
        self._latest = target
        target.submit(request, now)
        self.pump(target, now)

    def in_flight(self) -> int:
        """Commands under way of the target that got the last request."""
        return 0 if self._latest is None else self._latest.in_flight

    def pump(self, target: Target, now: float) -> None:
        """Send all that the windows allow, and arm the timer."""
        while (run := target.next_run(now)) is not None:
            link = run.path.link
            sent = link.send_run(run)
            if sent < run.count:
                target.unsent(run, sent)
                run.path.sectors = max(1, min(run.path.sectors, link.max_sectors))  # the MTU may be what refused it
                self._block(link, target)
                break
        self.timer.arm(target, now)

    def _block(self, link: Link, target: Target) -> None:
        """The link has no room: pump this target again when there is some, in turn with the others."""
        waiting = self._blocked.get(link)
        if waiting is None:
            waiting = self._blocked[link] = {}
            self._nursery.start_soon(self._unblock, link, name=f"room on {link.interface}")
        waiting[target] = None

    async def _unblock(self, link: Link) -> None:
        pause = ROOM_PAUSE
        try:
            while waiting := self._blocked.get(link):
                await trio.sleep(pause)  # ENOBUFS comes from a full device queue, which no descriptor reports
                if self._blocked.get(link) is not waiting:
                    return
                await link.wait_writable()
                self._blocked[link] = {}
                now = self.now()
                for target in waiting:
                    self.pump(target, now)
                pause = min(2 * pause, MAX_ROOM_PAUSE)
        except trio.ClosedResourceError:
            return
        self._blocked.pop(link, None)

    def drop_link(self, link: Link) -> None:
        """The link is gone, and with it the wait for room there."""
        del self.links[link.interface]
        self._blocked.pop(link, None)
