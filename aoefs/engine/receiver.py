"""The receiver: frames off the links, to their targets and into the queues of the shards.

Owns what is done with a frame before it is completed.  Tasks, two per link: :meth:`Receiver.run` for answers, which
sleeps while another task waits in place (``engine.inplace``) and calls :meth:`Receiver.receive_batch` for all links;
and :meth:`Receiver.hear_hints` for what comes without being asked for.

The receiver does the least: it takes a batch, updates round-trip time and window, lets the freed window send more, and
queues the answers.  Good answers come from the link as runs; every other frame is judged here, one by one.

What always holds: a request is touched only by an answer of the right command, shelf, slot and length, on the link
used, from the MAC it was sent to or another verified path of that target.  What answers nothing of ours is counted.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final

import trio

from aoefs.core.link import Endpoint, Link
from aoefs.core.lonecommand import LoneCommand
from aoefs.core.request import Run
from aoefs.core.tags import is_hint_tag
from aoefs.core.target import Target
from aoefs.engine.driver import Driver
from aoefs.engine.shards import Completion, Shards
from aoefs.errors import AtaError, FrameError, RequestError, TargetError
from aoefs.net.packetsocket import LINK_DOWN
from aoefs.protocol.ata import check_result
from aoefs.protocol.wire import (
    ATA_BYTES,
    SECTOR_BYTES,
    VERSION,
    AoeCommand,
    Header,
    decode_ata_untrusted,
    decode_header_untrusted,
)

log = logging.getLogger("aoefs")

RECEIVE_BATCHES: Final = 8  # batches of one link before the other tasks get a turn
HINTS_AT_ONCE: Final = 64  # frames read off a link's socket for hints ...
HINT_PAUSE: Final = 0.01  # ... before this pause (seconds): 6,400 a second, whatever a host sends
FLOOD: Final = 1000  # answers to nothing of ours in a second, of which the log speaks ...
FLOOD_REPORTS: Final = 60.0  # ... again after as many seconds
SURPLUS: Final = 16  # answers to no command of ours from one endpoint, after which it is asked who it is
MAX_SURPLUS: Final = 256  # endpoints of which they are counted


class Receiver:
    """See the module.  ``on_hint(endpoint, announced)``: something answers there that was not asked, or too often, or
    late; ``announced`` if it says so of itself.
    """

    def __init__(self, driver: Driver, shards: Shards, on_hint: Callable[[Endpoint, bool], object]) -> None:
        self._driver = driver
        self._shards = shards
        self._on_hint = on_hint
        self._links: set[Link] = set()
        self._attended = False
        self._surplus: dict[Endpoint, int] = {}
        self._sleeping = trio.lowlevel.ParkingLot()
        self._unknown: dict[Link, tuple[int, float]] = {}  # how many at the last look; when to speak of a flood again

    def add_link(self, link: Link) -> None:
        self._links.add(link)

    def drop_link(self, link: Link) -> None:
        self._links.discard(link)
        self._unknown.pop(link, None)
        self._sleeping.unpark_all()

    def look(self, now: float) -> None:
        """To be called once a second: report a flood of answers to nothing of ours."""
        for link in self._links:
            before, again_at = self._unknown.get(link, (0, now))
            count = link.rx_unknown - before
            if count >= FLOOD and now >= again_at:
                again_at = now + FLOOD_REPORTS
                what = "that answer nothing of ours: a host there guesses tags, or repeats old frames"
                log.warning("%s: %d frames in a second %s", link.interface, count, what)
            self._unknown[link] = link.rx_unknown, again_at

    def attended(self, by_other: bool) -> None:
        """Another task waits for the frames of all links, or none does."""
        if self._attended and not by_other:
            self._sleeping.unpark_all()
        self._attended = by_other

    async def hear_hints(self, link: Link) -> None:
        """The task of one link that reads what nobody asked for, at a bounded rate, while the link is open."""
        while link in self._links:
            try:
                await link.wait_hints()
                now = self._driver.now()
                for frame in link.receive_hints(HINTS_AT_ONCE):
                    if (answer := self._judge(link, frame, now)) is not None:
                        self._shards.put(answer)
            except trio.ClosedResourceError:
                return
            await trio.sleep(HINT_PAUSE)

    async def run(self, link: Link) -> None:
        """The task of one link for its answers, while it is open."""
        while link in self._links:
            if self._attended:
                await self._sleeping.park()
                continue
            try:
                await link.wait_readable()
                if not self._attended:
                    self.receive_batches(link)
            except trio.ClosedResourceError:
                return

    def receive_batches(self, link: Link) -> None:
        """Take what is there, up to ``RECEIVE_BATCHES`` batches."""
        for _ in range(RECEIVE_BATCHES):
            if self.receive_batch(link) <= 1:
                break

    def receive_batch(self, link: Link, *, in_place: bool = False) -> int:
        """Take one batch of frames; how many.  ``in_place``: complete it here, not in the tasks of the shards."""
        try:
            received, entries, odd = link.receive()
        except OSError as error:
            if error.errno not in LINK_DOWN:
                raise
            link.up = False
            return 0
        if not received:
            return 0
        link.up = True
        now = self._driver.now()
        taken = [self._take(link, run, first, count, now) for run, first, count in entries]
        if odd:
            taken += [self._judge(link, frame, now) for frame in odd]
        answers = [answer for answer in taken if answer is not None]
        pumped: Target | None = None
        for answer in answers:
            if answer.target is not pumped and not answer.target.is_idle:
                pumped = answer.target
                self._driver.pump(pumped, now)
        for answer in answers:
            if in_place:
                self._shards.complete(answer, now)
            else:
                self._shards.put(answer)
        return received

    def _take(
        self, link: Link, run: Run, first: int, count: int, now: float, error: RequestError | None = None
    ) -> Completion | None:
        """Answers of one run: round-trip time and window are updated, and what is left is to complete them."""
        target = run.path.target
        if target is None or not target.receive(run, first, count, now):
            link.rx_unknown += 1
            if target is not None:
                self._note_surplus(Endpoint(link, run.path.mac, target.address))
            return None
        if not target.life.is_up:  # its answer is late, but it lives
            self._on_hint(Endpoint(link, run.path.mac, target.address), False)
        return Completion(target, run, first, count, error)

    # ── frames that are not simply good answers ───────────────────────────────────────────────────────────────────

    def _judge(self, link: Link, frame: bytes, now: float) -> Completion | None:
        """Handle one frame; what is to be completed if it answers a command of a run."""
        try:
            header = decode_header_untrusted(frame)
            owner = self._driver.tags.find(header.tag)
            if isinstance(owner, LoneCommand):
                owner.receive_untrusted(link, frame, now)
                return None
            if isinstance(owner, Run):
                error = self._judge_answer(link, frame, header, owner)
                return self._take(link, owner, header.tag ^ owner.tag, 1, now, error)
        except FrameError:
            link.rx_unknown += 1
            return None
        endpoint = Endpoint(link, header.source, header.address)
        if header.command == AoeCommand.CONFIG and header.is_response and is_hint_tag(header.tag):
            self._on_hint(endpoint, True)
            return None
        link.rx_unknown += 1
        if header.is_response:
            self._note_surplus(endpoint)
        return None

    def _note_surplus(self, endpoint: Endpoint) -> None:
        """An answer that answers nothing, or that came before: many of them may mean that a second disk is there."""
        if len(self._surplus) >= MAX_SURPLUS:
            self._surplus.clear()
        count = self._surplus[endpoint] = (self._surplus.get(endpoint, 0) + 1) % SURPLUS
        if count == 0:
            self._on_hint(endpoint, False)

    def _judge_answer(self, link: Link, frame: bytes, header: Header, run: Run) -> RequestError | None:
        """An answer with the tag of a data command: its error, or None for a good one from another verified path."""
        index = header.tag ^ run.tag
        target = run.path.target
        is_answer = header.is_response and header.version == VERSION and header.command == AoeCommand.ATA
        if not is_answer or target is None or index >= run.count:
            raise FrameError("not the answer to this command")
        if not target.answers_from(Endpoint(link, header.source, header.address)):
            raise FrameError("not from where this command was sent")
        start, sectors = run.sectors_of(index, 1)
        request = run.request
        lba = request.lba + start
        if header.is_error:
            return TargetError(header.error, lba)
        try:
            check_result(decode_ata_untrusted(frame), lba=lba, write=request.write)
        except AtaError as failure:
            return failure
        if not request.write:
            data = memoryview(frame)[ATA_BYTES : ATA_BYTES + sectors * SECTOR_BYTES]
            if len(data) < sectors * SECTOR_BYTES:
                raise FrameError("an answer with too few data is no answer")
            request.land(start, data)
        return None
