"""An Ethernet segment that misbehaves on purpose: frames in, deliveries out, in virtual time.

Pure: no clock, no task, no socket; ``now`` is an argument and the random numbers are seeded, so every run is the same.
:meth:`Segment.transmit` decides what becomes of one frame.  ``send``, ``next_delivery`` and ``deliver`` keep a heap of
the frames under way, for drivers that go step by step.

The response flag tells answers from requests, so one segment carries both directions and may lose one of them only.
A duplicate comes with its original unless ``duplicate_after`` says otherwise: no initiator can guard against a copy
that the *network* makes and delivers after newer writes.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

from aoefs.protocol.wire import AoeCommand, AtaFlag, Flag

_FLAGS, _COMMAND, _ATA_FLAGS = 14, 19, 24  # offsets, see protocol.wire
_LBA = slice(28, 34)

Delivery = tuple[float, bytes]  # when (seconds), what


def is_answer(frame: bytes) -> bool:
    return bool(frame[_FLAGS] & Flag.RESPONSE)


def is_request(frame: bytes) -> bool:
    return not is_answer(frame)


def is_write(frame: bytes) -> bool:
    """A request that carries data."""
    return is_request(frame) and frame[_COMMAND] == AoeCommand.ATA and bool(frame[_ATA_FLAGS] & AtaFlag.WRITE)


def lba_of(frame: bytes) -> int:
    """The first sector of an LBA48 command."""
    return int.from_bytes(frame[_LBA], "little")


@dataclass(frozen=True, slots=True)
class Faults:
    """What a segment does to its frames.  Rates are probabilities per frame, times are seconds.

    ``loss`` is the rate at which a burst of ``burst`` lost frames begins; ``loss_of_requests`` and
    ``loss_of_answers`` are one way only; frames above ``longest`` bytes are lost.  A reordered frame is held back by
    ``reorder_by``, every frame by up to ``jitter``.  ``corrupt`` flips one bit, in the bytes from ``corrupt_first``
    to ``corrupt_end`` (not included; None: the frame's end).
    """

    loss: float = 0.0
    burst: int = 1
    loss_of_requests: float = 0.0
    loss_of_answers: float = 0.0
    longest: int | None = None
    duplicate: float = 0.0
    duplicate_after: float = 0.0
    reorder: float = 0.0
    reorder_by: float = 0.002
    jitter: float = 0.0
    corrupt: float = 0.0
    corrupt_first: int = 0
    corrupt_end: int | None = None


NO_FAULTS = Faults()


@dataclass(slots=True)
class Injected:
    """How many frames came in (``sent``), and what was done to them."""

    sent: int = 0
    lost: int = 0
    too_long: int = 0
    duplicated: int = 0
    reordered: int = 0
    held: int = 0
    corrupted: int = 0


class Segment:
    """See the module.  ``latency`` is the time of a frame from end to end (seconds).

    ``faults`` are the faults; or give a ``schedule`` of (until, faults): each holds until its time, after the last
    one ``faults`` hold.  ``lose`` and ``hold`` choose frames: true means lost, a number of seconds means held back.
    With ``checked`` the receiving card drops what was corrupted, as Ethernet's checksum does.
    """

    def __init__(
        self,
        faults: Faults = NO_FAULTS,
        *,
        seed: int = 0,
        latency: float = 0.0001,
        schedule: Sequence[tuple[float, Faults]] = (),
        checked: bool = False,
    ) -> None:
        self.faults = faults
        self.latency = latency
        self.schedule = schedule
        self.checked = checked
        self.lose: Callable[[bytes], object] | None = None
        self.hold: Callable[[bytes], float] | None = None
        self.injected = Injected()
        self._random = Random(seed)
        self._burst_left = 0
        self._numbers = itertools.count()
        self._under_way: list[tuple[float, int, bytes]] = []

    # ── what becomes of a frame ───────────────────────────────────────────────────────────────────────────────────

    def faults_at(self, now: float) -> Faults:
        return next((faults for until, faults in self.schedule if now < until), self.faults)

    def transmit(self, frame: bytes, now: float) -> list[Delivery]:
        """When and as what a frame sent ``now`` arrives: not at all, once, or twice."""
        faults = self.faults_at(now)
        injected = self.injected
        injected.sent += 1
        if faults.longest is not None and len(frame) > faults.longest:
            injected.too_long += 1
            return []
        if self._is_lost(frame, faults):
            injected.lost += 1
            return []
        if self._happens(faults.corrupt):
            injected.corrupted += 1
            if self.checked:
                return []
            frame = self._corrupt(frame, faults)
        arrives = now + self.latency
        if self.hold is not None and (held := self.hold(frame)):
            injected.held += 1
            arrives += held
        if self._happens(faults.reorder):
            injected.reordered += 1
            arrives += faults.reorder_by
        if faults.jitter:
            arrives += self._random.uniform(0.0, faults.jitter)
        if self._happens(faults.duplicate):
            injected.duplicated += 1
            return [(arrives, frame), (arrives + faults.duplicate_after, frame)]
        return [(arrives, frame)]

    def _happens(self, rate: float) -> bool:
        return rate > 0.0 and self._random.random() < rate

    def _is_lost(self, frame: bytes, faults: Faults) -> bool:
        self._burst_left = min(self._burst_left, faults.burst - 1 if faults.loss else 0)  # a burst ends with its phase
        if self._burst_left:
            self._burst_left -= 1
            return True
        if self._happens(faults.loss):
            self._burst_left = faults.burst - 1
            return True
        if self._happens(faults.loss_of_answers if is_answer(frame) else faults.loss_of_requests):
            return True
        return self.lose is not None and bool(self.lose(frame))

    def _corrupt(self, frame: bytes, faults: Faults) -> bytes:
        end = len(frame) if faults.corrupt_end is None else min(faults.corrupt_end, len(frame))
        damaged = bytearray(frame)
        damaged[self._random.randrange(faults.corrupt_first, end)] ^= 1 << self._random.randrange(8)
        return bytes(damaged)

    # ── what is under way ─────────────────────────────────────────────────────────────────────────────────────────

    def send(self, frame: bytes, now: float) -> None:
        """Put a frame on the segment."""
        for arrives, what in self.transmit(frame, now):
            heapq.heappush(self._under_way, (arrives, next(self._numbers), what))

    def next_delivery(self) -> float | None:
        """When the next frame arrives; None when nothing is under way."""
        return self._under_way[0][0] if self._under_way else None

    def deliver(self, now: float) -> list[bytes]:
        """Take what has arrived by ``now``, in the order of arrival."""
        frames = []
        while self._under_way and self._under_way[0][0] <= now:
            frames.append(heapq.heappop(self._under_way)[2])
        return frames
