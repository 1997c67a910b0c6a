"""The pure core back to back with the pure target: the smallest driver that keeps the core's contract.

A :class:`Pair` holds targets, the exports that they stand for, the segments between them, and a virtual ``now``.  It
does what the engine does, frame by frame and in the plainest way: give out runs, encode, deliver, judge answers,
receive, complete, call the timer, and send IDENTIFY to a silent target once a second.  Callbacks of the core never call
back into it: what they cause is a call later in the same instant, as when a task is woken.

After every step the invariants of the core are checked (:func:`check_invariants`); many steps without time moving are a
failure.  :class:`Operation` is a read or write as a user sees it.  :func:`check_history` is the model of a disk that
judges them.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Callable, Iterable, Sequence
from typing import cast

from aoefs.core.health import Sign
from aoefs.core.link import Endpoint, Link
from aoefs.core.lonecommand import Answer, LoneCommand
from aoefs.core.overlap import Claim
from aoefs.core.request import NOTHING, Request, Run
from aoefs.core.tags import TagTable
from aoefs.core.target import DEFAULT_MAXOUT, Target
from aoefs.errors import AtaError, FrameError, RequestError, TargetError
from aoefs.protocol.ata import IDENTIFY_REGISTERS, check_result, decode_identify_untrusted, transfer_registers
from aoefs.protocol.wire import (
    ATA_BYTES,
    SECTOR_BYTES,
    VERSION,
    Address,
    AoeCommand,
    Header,
    decode_ata_untrusted,
    decode_header_untrusted,
    encode,
)
from aoefs.softtarget.export import Export
from tests.memorystore import MemoryStore, answer_at_once
from tests.segment import Segment, is_answer

LATENCY = 2.0**-13  # seconds one way; a power of two, so that sums are exact
RTT = 2 * LATENCY
LOCAL = bytes.fromhex("020000000001")
REMOTE = bytes.fromhex("020000000002")
STUCK = 2000  # steps without time moving
QUERY_PAUSE = 1.0  # seconds between the queries for a silent target


class Wire:
    """A link of ours: its segment, our MAC on it, and the targets behind the one remote MAC."""

    def __init__(self, name: str, segment: Segment, number: int) -> None:
        self.name = name
        self.segment = segment
        self.mac = LOCAL[:5] + bytes([0x10 + number])
        self.remote = REMOTE[:5] + bytes([0x20 + number])
        self.exports: list[Export] = []
        self.max_sectors = 255


def as_link(wire: Wire) -> Link:
    """The core sees nothing of a link but which one it is, and its address."""
    return cast(Link, wire)


def wire_of(link: Link) -> Wire:
    return cast(Wire, link)


class Operation:
    """A read or a write of whole sectors: times (None: not yet), ``error``, and ``data`` that was read or written."""

    def __init__(self, lba: int, data: bytearray, *, write: bool) -> None:
        self.lba = lba
        self.data = data
        self.write = write
        self.request: Request | None = None
        self.asked_at: float | None = None
        self.started_at: float | None = None  # submitted: a write before that waits for its range
        self.ended_at: float | None = None
        self.error: RequestError | None = None

    @property
    def sectors(self) -> int:
        return len(self.data) // SECTOR_BYTES

    @property
    def good(self) -> bool:
        return self.ended_at is not None and self.error is None

    def __repr__(self) -> str:
        kind = "write" if self.write else "read"
        times = f"{self.asked_at} {self.started_at} {self.ended_at}"
        return f"<{kind} {self.lba}+{self.sectors} {times} {self.error!r}>"


class Sent:
    """One transmission, as it went on the wire."""

    def __init__(self, at: float, tag: int, wire: Wire, lba: int, sectors: int, *, write: bool) -> None:
        self.at = at
        self.tag = tag
        self.wire = wire
        self.lba = lba
        self.sectors = sectors
        self.write = write

    def __repr__(self) -> str:
        return f"<{self.at} {self.tag:#x} {self.lba}+{self.sectors} {'write' if self.write else 'read'}>"


class Pair:
    """See the module.  ``targets`` disks of ``sectors``, each behind all ``segments`` (one path each).

    All targets of a segment are behind one MAC.  ``payload`` is in sectors.  Completion lags receiving by
    ``shard_delay`` seconds.  ``quarantine=False`` disables the guard against late duplicates.
    """

    def __init__(
        self,
        *segments: Segment,
        targets: int = 1,
        sectors: int = 256,
        payload: int = 2,
        bufcnt: int = 16,
        deadsecs: float = 0.0,
        maxout: int = DEFAULT_MAXOUT,
        shard_delay: float = 0.0,
        quarantine: bool = True,
    ) -> None:
        self.now = 0.0
        self.shard_delay = shard_delay
        self.quarantine = quarantine
        self.tags: TagTable[Run | LoneCommand] = TagTable(random.Random(4).randbytes)
        self.wires = [
            Wire(f"eth{number}", segment, number)
            for number, segment in enumerate(segments or (Segment(latency=LATENCY),))
        ]
        self.targets: list[Target] = []
        self.stores: list[MemoryStore] = []
        self.operations: list[list[Operation]] = [[] for _ in range(targets)]
        self.sent: list[Sent] = []
        self.strangers = 0  # frames that no command of ours waited for
        self._calls: list[tuple[float, int, Callable[[], object]]] = []
        self._numbers = itertools.count()
        self._asked: dict[Target, LoneCommand] = {}
        for slot in range(targets):
            store = MemoryStore(sectors)
            export = Export(Address(0, slot), store, serial=f"disk{slot}", buffer_count=max(1, bufcnt))
            target = Target(export.address, export.identity, self.tags, deadsecs=deadsecs, maxout=maxout)
            target.set_bufcnt(bufcnt)
            for wire in self.wires:
                wire.exports.append(export)
                target.add_path(as_link(wire), wire.name, (wire.mac, wire.remote), payload)
            self.targets.append(target)
            self.stores.append(store)

    @property
    def target(self) -> Target:
        return self.targets[0]

    # ── what users do ─────────────────────────────────────────────────────────────────────────────────────────────

    def read(self, lba: int, sectors: int, target: int = 0) -> Operation:
        """Begin to read, now."""
        operation = self._ask(lba, bytearray(sectors * SECTOR_BYTES), target, write=False)
        self._submit(operation, target, None)
        return operation

    def write(self, lba: int, data: bytes, target: int = 0) -> Operation:
        """Begin to write, now; it waits for its range as :class:`engine.disk.Disk` does."""
        operation = self._ask(lba, bytearray(data), target, write=True)
        claim = Claim(lba, lba + operation.sectors)
        claim.granted = lambda: self.call(self.now, lambda: self._submit(operation, target, claim))
        if self.targets[target].order.acquire(claim):
            self._submit(operation, target, claim)
        return operation

    def abandon(self, operation: Operation, target: int = 0) -> None:
        """The user of a read that was submitted goes away."""
        assert operation.request is not None
        self.targets[target].abandon(operation.request)

    def _ask(self, lba: int, data: bytearray, target: int, *, write: bool) -> Operation:
        operation = Operation(lba, data, write=write)
        operation.asked_at = self.now
        self.operations[target].append(operation)
        return operation

    def _submit(self, operation: Operation, number: int, claim: Claim | None) -> None:
        target = self.targets[number]
        operation.started_at = self.now

        def end(request: Request) -> None:
            assert operation.ended_at is None, "a request ends once"
            operation.ended_at = self.now
            operation.error = request.error
            if claim is not None:
                self.call(self.now, release)

        def release() -> None:
            assert claim is not None
            if self.quarantine:
                target.release(claim, [request])
            else:
                target.order.release(claim)

        request = Request(
            operation.lba, operation.sectors, memoryview(operation.data), write=operation.write, on_end=end
        )
        operation.request = request
        target.submit(request, self.now)
        self.pump()

    # ── the driver ────────────────────────────────────────────────────────────────────────────────────────────────

    def call(self, at: float, action: Callable[[], object]) -> None:
        """Do something at a time."""
        heapq.heappush(self._calls, (at, next(self._numbers), action))

    def pump(self) -> None:
        """Send all that the windows allow, target by target, run by run."""
        busy = True
        while busy:
            busy = False
            for target in self.targets:
                run = target.next_run(self.now)
                if run is not None:
                    self._send(run)
                    busy = True

    def _send(self, run: Run) -> None:
        wire, request = wire_of(run.path.link), run.request
        assert isinstance(wire, Wire)
        address = next(target.address for target in self.targets if run.path in target.paths)
        for index in range(run.count):
            start, sectors = run.sectors_of(index, 1)
            lba = request.lba + start
            header = Header(run.path.mac, wire.mac, address, AoeCommand.ATA, run.tag ^ index)
            registers = transfer_registers(lba, sectors, write=request.write, lba48=run.path.lba48)
            data = request.buffer[start * SECTOR_BYTES : (start + sectors) * SECTOR_BYTES] if request.write else b""
            self.sent.append(Sent(self.now, run.tag ^ index, wire, lba, sectors, write=request.write))
            wire.segment.send(encode(header, registers, data), self.now)

    def next_event(self) -> float | None:
        """When something happens next; None: never."""
        times = [wire.segment.next_delivery() for wire in self.wires]
        times += [target.next_timeout() for target in self.targets]
        times += [self._calls[0][0] if self._calls else None]
        return min((time for time in times if time is not None), default=None)

    def step(self) -> bool:
        """Move to the next event and carry it out; False when there is none."""
        event = self.next_event()
        if event is None:
            return False
        self.now = max(self.now, event)
        while self._calls and self._calls[0][0] <= self.now:
            heapq.heappop(self._calls)[2]()
        for wire in self.wires:
            for frame in wire.segment.deliver(self.now):
                self._deliver(wire, frame)
        for target in self.targets:
            timeout = target.next_timeout()
            if timeout is not None and timeout <= self.now:
                target.handle_timeout(self.now)
            if target.is_silent and target.paths and target not in self._asked:
                self._identify(target)
        self.pump()
        for target in self.targets:
            check_invariants(target)
        return True

    def run(self, until: float = float("inf"), *, done: Iterable[Operation] = ()) -> None:
        """Step until ``until``, until all of ``done`` ended, or until nothing is left to happen."""
        waiting = list(done)
        limited = bool(waiting)
        steps = 0
        while not limited or (waiting := [operation for operation in waiting if operation.ended_at is None]):
            event = self.next_event()
            if event is None or event > until:
                break
            steps = steps + 1 if event <= self.now else 0
            assert steps < STUCK, f"nothing moves at {self.now}"
            self.step()
        if not limited and until != float("inf"):
            self.now = max(self.now, until)

    def finish(self, *operations: Operation, within: float = 60.0) -> None:
        """Run until these ended, at most ``within`` virtual seconds; all must be good."""
        self.run(self.now + within, done=operations)
        bad = [operation for operation in operations if not operation.good]
        assert not bad, f"at {self.now}: {bad}"

    def _identify(self, target: Target) -> None:
        """IDENTIFY on all paths of a silent target, until it is not silent any more."""

        def on_answer(answer: Answer) -> None:
            if target.identity.same_disk(decode_identify_untrusted(answer.data)):
                path = target.find_path(answer.endpoint.link, answer.endpoint.mac)
                if path is not None:
                    path.take(Sign.IDENTITY)
                if target.is_silent:
                    target.come_up(self.now)

        def ask() -> None:
            if not target.is_silent:
                self.tags.close(self._asked.pop(target))
                return
            endpoints = [Endpoint(path.link, path.mac, target.address) for path in target.paths]
            for endpoint, frame in zip(endpoints, command.frames(endpoints, self.now), strict=True):
                wire_of(endpoint.link).segment.send(frame, self.now)
            self.call(self.now + QUERY_PAUSE, ask)

        command = LoneCommand(IDENTIFY_REGISTERS, target.answers_from, on_answer=on_answer)
        self._asked[target] = command
        self.tags.open(command)
        self.call(self.now, ask)

    # ── frames ────────────────────────────────────────────────────────────────────────────────────────────────────

    def _deliver(self, wire: Wire, frame: bytes) -> None:
        if is_answer(frame):
            try:
                self._judge(wire, frame)
            except FrameError:
                self.strangers += 1
            return
        for export in wire.exports:
            answer = answer_at_once(export, frame, mac=wire.remote, max_sectors=wire.max_sectors)
            if answer is not None:
                wire.segment.send(answer, self.now)

    def _judge(self, wire: Wire, frame: bytes) -> None:
        """What ``Engine._judge`` does: land the data, receive, and complete a little later."""
        header = decode_header_untrusted(frame)
        run = self.tags.find(header.tag)
        if header.destination != wire.mac or run is None:
            raise FrameError("not for us")
        if isinstance(run, LoneCommand):
            run.receive_untrusted(as_link(wire), frame, self.now)
            return
        target = next(target for target in self.targets if target.address == run_address(run))
        index = header.tag ^ run.tag
        endpoint = Endpoint(as_link(wire), header.source, header.address)
        is_ata = header.version == VERSION and header.command == AoeCommand.ATA
        if not is_ata or index >= run.count or not target.answers_from(endpoint):
            raise FrameError("not from where this command was sent")
        request = run.request
        start, sectors = run.sectors_of(index, 1)
        error: RequestError | None = None
        if header.is_error:
            error = TargetError(header.error, request.lba + start)
        else:
            try:
                check_result(decode_ata_untrusted(frame), lba=request.lba + start, write=request.write)
            except AtaError as failure:
                error = failure
        if error is None and not request.write:
            data = frame[ATA_BYTES : ATA_BYTES + sectors * SECTOR_BYTES]
            if len(data) < sectors * SECTOR_BYTES:
                raise FrameError("an answer with too few data is no answer")
            request.land(start, data)
        if not target.receive(run, index, 1, self.now):
            raise FrameError("answered before")

        def complete() -> None:
            if error is None:
                target.complete(run, index, 1)
            else:
                target.fail_command(run, index, error)

        if self.shard_delay:
            self.call(self.now + self.shard_delay, complete)
        else:
            complete()


def run_address(run: Run) -> Address:
    """The target that a run was sent to, as its frames say."""
    return decode_header_untrusted(run.path.request_head + bytes(4)).address


# ── what must hold ────────────────────────────────────────────────────────────────────────────────────────────────


def check_invariants(target: Target) -> None:
    """What the docstrings of ``core.path`` and ``core.target`` promise to hold always."""
    for path in target.paths:
        runs = list(path.runs)
        assert path.in_flight == sum(run.flying.bit_count() for run in runs)
        assert all(run.flying for run in runs), "a run without a command in flight is kept among the flying"
        assert all(not run.flying & run.lost for run in runs)
        orders = [run.order for run in runs]
        assert orders == sorted(set(orders)), "runs are kept in the order of sending"
        assert path.retransmits >= 0
        assert 1 <= path.window.size <= path.window.limit
    assert target.in_flight == sum(path.in_flight for path in target.paths)
    granted = target.order.granted
    assert all(a.end <= b.first for a, b in itertools.pairwise(granted)), "granted ranges are disjoint"


def stamp(number: int, sectors: int = 1) -> bytes:
    """Data that names the write that they come from, in every eight bytes."""
    return number.to_bytes(8, "little") * (SECTOR_BYTES // 8 * sectors)


def check_history(operations: Sequence[Operation]) -> None:
    """Is there an order of these operations, per sector, in which each read returns the write before it?

    Overlapping writes never run together, so those of a sector are in the order in which they started, and the disk
    holds the last one.  The writes must carry stamps of their own (1 and up); the disk begins with zeros.  A failed
    write may have happened or not.
    """
    for sector in {operation.lba + index for operation in operations for index in range(operation.sectors)}:
        touching = [op for op in operations if op.started_at is not None and op.lba <= sector < op.lba + op.sectors]
        writes = sorted((op for op in touching if op.write), key=_start)
        for earlier, later in itertools.pairwise(writes):
            assert earlier.ended_at is not None, f"{later!r} started within {earlier!r}"
            assert earlier.ended_at <= _start(later)
        places = {_sector(op, sector): place for place, op in enumerate(writes, 1)}
        places[stamp(0)] = 0
        seen: list[tuple[float, int]] = []  # (end, place) of earlier reads
        for read in sorted((op for op in touching if not op.write and op.good), key=_start):
            data = _sector(read, sector)
            assert data in places, f"{read!r}: sector {sector} holds what was never written there: {data[:8].hex()}"
            place = places[data]
            start, end = _start(read), read.ended_at or 0.0
            oldest = max((p for p, w in enumerate(writes, 1) if w.good and (w.ended_at or 0.0) < start), default=0)
            oldest = max([oldest, *(p for ended, p in seen if ended < start)])
            newest = max((p for p, w in enumerate(writes, 1) if _start(w) <= end), default=0)
            assert oldest <= place <= newest, f"{read!r}: sector {sector} holds write {place}, not {oldest} to {newest}"
            seen.append((end, place))


def _start(operation: Operation) -> float:
    assert operation.started_at is not None
    return operation.started_at


def _sector(operation: Operation, sector: int) -> bytes:
    first = (sector - operation.lba) * SECTOR_BYTES
    return bytes(operation.data[first : first + SECTOR_BYTES])


def check_at_rest(pair: Pair) -> None:
    """Nothing of what ended is left behind but tags kept for late answers."""
    for target in pair.targets:
        assert target.in_flight == 0
        now = target.statistics()
        assert (now.waiting, now.quarantined, target.requests()) == (0, 0, set())
        assert target.next_run(pair.now) is None
        assert target.order.idle
        assert target.next_timeout() is None
        for path in target.paths:
            assert not path.runs
    for operation in itertools.chain.from_iterable(pair.operations):
        if operation.request is not None and operation.ended_at is not None:
            assert operation.request.buffer is NOTHING
    assert not pair.tags.live, "something still waits for an answer"
