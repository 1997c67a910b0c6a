"""What lies around the initiator: the virtual clock, the cables, and the machines at their other ends.

No task: everything here is an event on one heap, carried out by :meth:`World.run`, or by :meth:`World.freeze` while the
initiator's process is not allowed to run.
"""

from __future__ import annotations

import hashlib
import heapq
import itertools
import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from random import Random

import trio
import trio.abc

from aoefs.core.lonecommand import LoneCommand
from aoefs.core.request import Run
from aoefs.core.tags import TagTable
from aoefs.protocol.ata import Opcode
from aoefs.protocol.wire import (
    ATA_BYTES,
    BROADCAST_MAC,
    SECTOR_BYTES,
    Address,
    AoeCommand,
    ErrorCode,
    Flag,
    decode_ata_untrusted,
    decode_header_untrusted,
    encode,
)
from aoefs.softtarget.export import Export, FlushRequest
from tests.scene import SegmentLink, Wire
from tests.segment import Segment
from tests.simulation.drive import Drive

_DESTINATION, _FLAGS, _COMMAND, _OPCODE = slice(0, 6), 14, 19, 27  # in a frame, see protocol.wire
TURN = 1e-7  # seconds that a turn of the loop takes at least
MOST_TURNS = 20_000  # of the loop in one second
MOST_FRAMES = 200_000  # of a run that ends
MOST_LOOKS = 300  # at the clock, until it moves by itself


class World(trio.abc.Clock):
    """The clock of the run, the heap of events, and the log.  The run ends before ``until`` (seconds).  ``digest`` is
    that of all that was logged, frames included.

    Time jumps to the next event or deadline as soon as no task can run; what only looks at the clock sees it move, too,
    in the end.  An event that wakes a task says so with :meth:`touch`.
    """

    def __init__(self, until: float = math.inf, *, verbose: bool = False) -> None:
        self.time = 0.0
        self.digest = hashlib.blake2b(digest_size=16)
        self.lines: list[str] = []
        self.frames = 0
        self.complaint = ""  # what was wrong first
        self.on_complaint: Callable[[], object] = lambda: None
        self._until = until
        self._verbose = verbose
        self._heap: list[tuple[float, int, Callable[[], object]]] = []
        self._order = itertools.count()
        self._frozen = False
        self._touched = False
        self._looks = 0  # at the clock since it moved
        self._idle = 0  # turns of the loop without any deadline

    # ── time ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def start_clock(self) -> None:
        pass

    def current_time(self) -> float:
        self._looks += 1
        if self._looks > MOST_LOOKS:
            self._move(self.time + TURN)
        return self.time

    def deadline_to_sleep_time(self, deadline: float) -> float:
        self._touched = False
        self._carry_out(deadline)
        if self._touched:
            pass
        elif deadline < math.inf:
            self._move(max(self.time + TURN, deadline))
            self._idle = 0
        else:  # trio itself has no deadline when it begins and ends
            self._idle += 1
            if self._idle > 1000:
                raise RuntimeError("nothing will ever happen any more")
        return 0.0

    def _move(self, time: float) -> None:
        self.time = time
        self._looks = 0

    def at(self, time: float, action: Callable[[], object]) -> None:
        heapq.heappush(self._heap, (time, next(self._order), action))

    def after(self, seconds: float, action: Callable[[], object]) -> None:
        self.at(self.time + seconds, action)

    def touch(self) -> None:
        """A task can run now."""
        self._touched = True

    def _carry_out(self, until: float) -> None:
        """What happens until then; only until a task can run, unless these are frozen."""
        heap = self._heap
        while heap and heap[0][0] <= (self.time if self._touched and not self._frozen else until):
            time, _, action = heapq.heappop(heap)
            self._move(max(self.time, time))
            action()

    def wait_in_place(self, seconds: float) -> None:
        """A task waits without a turn of the loop, until there is something for it or the time is over."""
        until = self.time + seconds
        self._touched = False
        self._carry_out(until)
        if not self._touched:
            self._move(until)

    def freeze(self, seconds: float) -> None:
        """The process of the initiator stands still, and the world goes on."""
        until = self.time + seconds
        self._frozen = True
        self._carry_out(until)
        self._frozen = False
        self._move(until)

    # ── the log ───────────────────────────────────────────────────────────────────────────────────────────────────

    def log(self, text: str) -> None:
        line = f"{self.time:.6f} {text}"
        self.digest.update(line.encode())
        self.lines.append(line)
        if self._verbose:
            print(line)

    def log_frame(self, cable: str, frame: bytes) -> None:
        self.frames += 1
        if self.frames > MOST_FRAMES or self.time > self._until:
            self.complain(f"it does not end: {self.frames} frames until {self.time:.0f} s")
        self.digest.update(b"%.6f" % self.time)
        self.digest.update(frame)
        if self._verbose:
            print(f"{self.time:.6f} {cable}: {describe(frame)}")

    def complain(self, complaint: str) -> None:
        """An invariant does not hold: the run ends."""
        if complaint and not self.complaint:
            self.complaint = complaint
            self.log(f"WRONG: {complaint}")
            self.on_complaint()
            self.touch()


class Turns(trio.abc.Instrument):
    """Counts the turns of the loop; ``end()`` is called when it turns without end while the clock hardly moves."""

    def __init__(self, clock: World, end: Callable[[], object]) -> None:
        self._clock = clock
        self._end = end
        self._second = -1
        self._turns = 0

    def before_io_wait(self, timeout: float) -> None:
        self._turns += 1
        if int(self._clock.time) != self._second:
            self._second = int(self._clock.time)
            self._turns = 0
        elif self._turns == MOST_TURNS:
            self._end()


def describe(frame: bytes) -> str:
    """A frame in a few words."""
    header = decode_header_untrusted(frame)
    words = ["answer" if header.is_response else "request", f"{header.address}", f"{header.tag:#x}"]
    words.append(f"{header.source[-2:].hex()}>{header.destination[-2:].hex()}")
    if header.command == AoeCommand.ATA and len(frame) >= ATA_BYTES:
        ata = decode_ata_untrusted(frame)
        words.append(f"ATA {ata.command:#04x} {ata.lba & 0xFFFFFFF}+{ata.count}")
        if len(frame) >= ATA_BYTES + 8:
            words.append(frame[ATA_BYTES : ATA_BYTES + 4].hex())
    else:
        words.append(f"command {header.command}")
    if header.is_error:
        words.append(f"error {header.error}")
    return " ".join(words)


class Cable(Wire):
    """One Ethernet segment.  What becomes of a frame is ``segment``'s."""

    def __init__(self, world: World, name: str, segment: Segment, max_sectors: int) -> None:
        super().__init__()
        self.name = name
        self.segment = segment
        self.max_sectors = max_sectors
        self.world = world

    def send(self, frame: bytes, sender: Callable[[bytes], object] | None = None, after: float = 0.0) -> None:
        if after:
            self.world.after(after, partial(self.send, frame, sender))
            return
        self.world.log_frame(self.name, frame)
        for arrives, routed in self.segment.transmit(frame, self.world.time):
            self.world.at(arrives, partial(self._arrive, routed, sender))

    def _arrive(self, frame: bytes, sender: Callable[[bytes], object] | None) -> None:
        for listener in list(self.listeners):
            if listener != sender:
                listener(frame)


class Link(SegmentLink):
    """A link of ours on a cable.  Without ``carrier`` nothing passes; ``mtu_sectors`` is what the MTU allows now."""

    def __init__(
        self,
        cable: Cable,
        tags: TagTable[Run | LoneCommand],
        mac: bytes,
        descriptor: int,
        on_frame: Callable[[], object],
    ) -> None:
        super().__init__(cable, tags, cable.name, mac, cable.max_sectors)
        self.cable = cable
        self.descriptor = descriptor
        self.on_frame = on_frame
        self.carrier = True
        self.mtu_sectors = cable.max_sectors

    def deliver(self, frame: bytes) -> None:
        if self.carrier and frame[_FLAGS] & Flag.RESPONSE and frame[_DESTINATION] in (self.mac, BROADCAST_MAC):
            self.inbox.append(frame)
            self._changed.unpark_all()
            self.on_frame()
            self.cable.world.touch()

    def _put(self, frame: bytes) -> bool:
        if not self.carrier:
            self.up = False
            return False
        if len(frame) > ATA_BYTES + self.mtu_sectors * SECTOR_BYTES:  # EMSGSIZE
            self.refresh()
            return False
        return super()._put(frame)

    def refresh(self) -> None:
        super().refresh()
        self.max_sectors = self.mtu_sectors


@dataclass
class Habits:
    """How a machine behaves, beyond its disk.

    Answers take ``service`` seconds, up to ``jitter`` more, a FLUSH ``flush_seconds``, during which a machine that
    ``blocks`` does nothing else.  A share ``refusals`` of the data commands gets the AoE error ``error``, a share
    ``broken_flushes`` of the flushes an ATA error.
    """

    service: float = 0.0001
    jitter: float = 0.0
    flush_seconds: float = 0.001
    blocks: bool = False
    refusals: float = 0.0
    error: int = int(ErrorCode.DEVICE_UNAVAILABLE)
    broken_flushes: float = 0.0


class Machine:
    """A target: ``drive`` at ``address``, on one or more cables, each with a MAC.

    ``off`` and ``silent`` hear nothing; one that is ``asleep`` handles what came when it wakes up.
    """

    def __init__(
        self,
        world: World,
        address: Address,
        drive: Drive,
        cables: dict[Cable, bytes],
        *,
        bufcnt: int,
        habits: Habits,
        dice: Random,
    ) -> None:
        self.world = world
        self.address = address
        self.cables = cables
        self.habits = self.usual_habits = habits
        self.bufcnt = bufcnt
        self.off = False
        self.silent = False
        self.asleep = False
        self.export: Export
        self.drive: Drive
        self._dice = dice
        self._power = 0  # counts the times it lost its power
        self._flushing = 0  # flushes under way that block everything else
        self._queue: deque[tuple[Cable, bytes]] = deque()
        self._hears = {cable: partial(self._hear, cable) for cable in cables}
        for cable in cables:
            cable.listeners.append(self._hears[cable])
        self.insert(drive)

    def insert(self, drive: Drive) -> None:
        """Another disk, or the same one with another size."""
        self.drive = drive
        self.export = Export(self.address, drive, serial=drive.serial, buffer_count=self.bufcnt)

    @property
    def is_idle(self) -> bool:
        """It has nothing left to do."""
        return not (self._flushing or self._queue)

    @property
    def is_healthy(self) -> bool:
        is_here = self.is_idle and not (self.off or self.silent or self.asleep)
        return is_here and self.habits == self.usual_habits and not self.drive.bad

    # ── frames ────────────────────────────────────────────────────────────────────────────────────────────────────

    def _hear(self, cable: Cable, frame: bytes) -> None:
        if frame[_FLAGS] & Flag.RESPONSE or frame[_DESTINATION] not in (self.cables[cable], BROADCAST_MAC):
            return
        if self.off or self.silent:
            return
        if self.asleep or self._flushing:
            self._queue.append((cable, frame))
        else:
            self._serve(cable, frame)

    def _work(self) -> None:
        while self._queue and not (self.asleep or self.off or self._flushing):
            self._serve(*self._queue.popleft())

    def _serve(self, cable: Cable, frame: bytes) -> None:
        mac, habits = self.cables[cable], self.habits
        is_ata = frame[_COMMAND] == AoeCommand.ATA
        opcode = frame[_OPCODE] if is_ata and len(frame) > _OPCODE else 0
        is_data = opcode not in (0, Opcode.IDENTIFY, Opcode.FLUSH, Opcode.FLUSH_EXT)
        if is_data and habits.refusals and self._dice.random() < habits.refusals:
            header = decode_header_untrusted(frame)
            if header.address == self.address:
                flags = Flag.RESPONSE | Flag.ERROR
                answer = replace(header, destination=header.source, source=mac, flags=flags, error=habits.error)
                self._answer(cable, encode(answer, decode_ata_untrusted(frame)))
            return
        reply = self.export.handle_untrusted(frame, mac=mac, max_sectors=cable.max_sectors)
        if isinstance(reply, FlushRequest):
            failing = self._dice.random() < habits.broken_flushes
            self._flushing += habits.blocks
            end = partial(self._end_flush, cable, reply, None if failing else self.drive.begin_flush(), habits.blocks)
            self.world.after(habits.flush_seconds, partial(self._unless_without_power, self._power, end))
        elif reply is not None:
            self._answer(cable, reply)

    def _end_flush(self, cable: Cable, request: FlushRequest, mark: int | None, blocked: bool) -> None:
        """``mark`` is the drive's; without it the flush fails."""
        self._flushing -= blocked
        if mark is not None:
            self.drive.end_flush(mark)
        answer = self.export.finish_flush(request, OSError(5, "Input/output error") if mark is None else None)
        self.export.sync_failed = False  # one flush may fail, and the next one succeed
        self._answer(cable, answer)
        self._work()

    def _unless_without_power(self, power: int, action: Callable[[], object]) -> None:
        if power == self._power:
            action()

    def _answer(self, cable: Cable, frame: bytes) -> None:
        delay = self.habits.service + (self._dice.uniform(0.0, self.habits.jitter) if self.habits.jitter else 0.0)
        self.world.after(delay, partial(self._unless_without_power, self._power, partial(self._send, cable, frame)))

    def _send(self, cable: Cable, frame: bytes) -> None:
        if not self.silent:
            cable.send(frame, self._hears[cable])

    def announce(self) -> None:
        """Say on all cables that it is there."""
        for cable, mac in self.cables.items():
            for frame in self.export.announcements(mac=mac, max_sectors=cable.max_sectors):
                cable.send(frame, self._hears[cable])

    # ── what happens to it ────────────────────────────────────────────────────────────────────────────────────────

    def sleep(self, asleep: bool) -> None:
        self.asleep = asleep
        self._work()

    def lose_power(self) -> None:
        """All that it knew is gone, and what its drive had not written (the caller cuts the drive's power)."""
        self.off = True
        self._power += 1
        self._flushing = 0  # flushes under way that block everything else
        self._queue.clear()

    def get_power(self, drive: Drive | None = None) -> None:
        """With another drive, or the same: what was reserved is forgotten."""
        self.off = self.asleep = False
        self.insert(drive or self.drive)
        self.announce()
