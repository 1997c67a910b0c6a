"""The receiver: frames off the links, to the machines of their targets and into the queues of the shards.

Owns what is done with a frame before it is completed.  Tasks: one per link (:meth:`Receiver.run`), which sleeps while
somebody waits in place (``engine.inplace``) and calls :meth:`Receiver.receive_batch` for all of them.

The receiver does the least: it takes a batch, updates RTT and window, lets the freed window send more, and queues the
answers.  Good answers come from ``net.landing`` as runs; every other frame is judged here, one by one.

What holds always: nothing but an answer of the right command, shelf, slot and length, on the link used, from the MAC
it was sent to or another verified path of that target, touches a request; what nobody waits for is counted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

import trio

from aoefs.core.path import Path, Run
from aoefs.core.tags import Exchange, TagTable
from aoefs.core.target import Target
from aoefs.engine.shards import Completion, Shards
from aoefs.errors import AtaError, FrameError, RequestError, TargetError
from aoefs.net.landing import Entry
from aoefs.net.link import Link
from aoefs.net.packetsocket import LINK_DOWN
from aoefs.protocol.ata import check_result
from aoefs.protocol.wire import (
    ATA_BYTES,
    SECTOR_BYTES,
    AoeCommand,
    Header,
    decode_ata_untrusted,
    decode_header_untrusted,
)

RECEIVE_BATCHES: Final = 8  # batches of one link before the other tasks get a turn


class Receiver:
    """See the module.

    ``owners`` tells whose a path is, ``pump(target)`` sends what an answer made room for, ``hint(link, header)`` takes
    config answers that nobody asked for, ``now()`` is the engine's clock.
    """

    def __init__(
        self,
        tags: TagTable[Run | Exchange],
        owners: Mapping[Path, Target],
        shards: Shards,
        pump: Callable[[Target], object],
        hint: Callable[[Link, Header], object],
        now: Callable[[], float],
    ) -> None:
        self._tags = tags
        self._owners = owners
        self._shards = shards
        self._pump = pump
        self._hint = hint
        self._now = now
        self._links: set[Link] = set()
        self._attended = False
        self._sleeping = trio.lowlevel.ParkingLot()

    def add_link(self, link: Link) -> None:
        self._links.add(link)

    def drop_link(self, link: Link) -> None:
        self._links.discard(link)
        self._sleeping.unpark_all()

    def attended(self, somebody: bool) -> None:
        """Somebody else waits for the frames of all links, or nobody does."""
        if self._attended and not somebody:
            self._sleeping.unpark_all()
        self._attended = somebody

    async def run(self, link: Link) -> None:
        """The task of one link, while it is one."""
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
        """Take what is there, but for a bounded number of batches."""
        for _ in range(RECEIVE_BATCHES):
            if self.receive_batch(link) <= 1:
                break

    def receive_batch(self, link: Link, *, lone: bool = False, wake: bool = True) -> int:
        """Take one batch of frames; how many.

        ``lone``: take one frame, the cheap way.  ``wake`` the shards, or leave it to the caller to complete.
        """
        try:
            received, entries, odd = link.receive_lone() if lone else link.receive()
        except OSError as error:
            if error.errno not in LINK_DOWN:
                raise
            link.up = False
            return 0
        if not received:
            return 0
        link.up = True
        now = self._now()
        touched: dict[Target, None] = {}
        for entry in entries:
            target = self._take(link, entry, now, wake)
            if target is not None:
                touched[target] = None
        for frame in odd:
            target = self._judge(link, frame, now, wake)
            if target is not None:
                touched[target] = None
        for target in touched:
            if not target.is_idle:
                self._pump(target)
        return received

    def _take(
        self, link: Link, entry: Entry, now: float, wake: bool, error: RequestError | None = None
    ) -> Target | None:
        """Answers of one run: RTT and window now, completion in the queue of a shard."""
        run, first, count = entry
        target = self._owners.get(run.path)
        if target is None or not target.receive(run, first, count, now):
            link.rx_unknown += 1
            return None
        self._shards.put(Completion(target, run, first, count, error), wake=wake)
        return target

    # ── frames that want judging ──────────────────────────────────────────────────────────────────────────────────

    def _judge(self, link: Link, frame: bytes, now: float, wake: bool) -> Target | None:
        """Handle one frame that is not simply a good answer; the target whose command it answered."""
        try:
            header = decode_header_untrusted(frame)
            owner = self._tags.find(header.tag)
            if isinstance(owner, Exchange):
                owner.on_answer(link, frame)
                return None
            if isinstance(owner, Run):
                error = self._judge_answer(link, frame, header, owner)
                return self._take(link, (owner, header.tag - owner.tag, 1), now, wake, error)
        except FrameError:
            link.rx_unknown += 1
            return None
        if header.command == AoeCommand.CONFIG and header.is_response:
            self._hint(link, header)
        else:
            link.rx_unknown += 1
        return None

    def _judge_answer(self, link: Link, frame: bytes, header: Header, run: Run) -> RequestError | None:
        """An answer with the tag of a data command: its error, or None for a good one from another verified path."""
        index = header.tag - run.tag
        target = self._owners.get(run.path)
        if target is None or index >= run.count or not target.is_from(link, header):
            raise FrameError("nobody whom this command was sent to")
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
