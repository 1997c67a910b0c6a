"""A simulated Ethernet segment for the engine under trio's virtual clock: a wire, links on it, targets on it.

:class:`SegmentLink` is a second, plain implementation of ``core.link.Link``: it builds and judges every frame with
``protocol.wire`` alone, so that it is independent of the fast one.  Frames are delivered by one task from a heap of
(time, order), so each run is the same; ``Wire.route`` injects faults.
"""

from __future__ import annotations

import heapq
import itertools
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace

import trio

from aoefs.core.link import Entry, LinkStatistics
from aoefs.core.lonecommand import LoneCommand
from aoefs.core.request import Run
from aoefs.core.tags import TagTable
from aoefs.core.target import Target
from aoefs.engine.changes import Change
from aoefs.engine.disk import Disk
from aoefs.engine.engine import Engine, open_engine
from aoefs.engine.settings import Settings
from aoefs.protocol.ata import FAILED, Identity, Opcode, encode_identify, transfer_registers
from aoefs.protocol.wire import (
    ATA_BYTES,
    BROADCAST_MAC,
    SECTOR_BYTES,
    VERSION,
    Address,
    AoeCommand,
    AtaArgument,
    ConfigArgument,
    Flag,
    Header,
    decode_ata_untrusted,
    decode_header_untrusted,
    encode,
)
from aoefs.softtarget.export import Export
from tests.memorystore import MemoryStore, answer_at_once

OUR_MAC = bytes.fromhex("020000000001")
DELAY = 0.0001  # seconds, one way
Announce = Callable[[str], None]  # the fixture of tests/conftest.py
Deliveries = list[tuple[float, bytes]]  # (seconds from now, frame)


def target_mac(number: int) -> bytes:
    return bytes.fromhex("02aa") + number.to_bytes(4, "big")


class Wire:
    """Every frame reaches every listener but its sender.  ``route(frame)`` says when and as what; ``log`` has all."""

    def __init__(self) -> None:
        self.route: Callable[[bytes], Deliveries] = lambda frame: [(DELAY, frame)]
        self.listeners: list[Callable[[bytes], object]] = []
        self.log: list[tuple[float, bytes]] = []
        self.immediate = False  # every frame is there before ``send`` returns
        self._heap: list[tuple[float, int, Callable[[bytes], object], bytes]] = []
        self._order = itertools.count()
        self._scope = trio.CancelScope()

    def send(self, frame: bytes, sender: Callable[[bytes], object] | None = None, after: float = 0.0) -> None:
        """Put a frame on the wire, ``after`` seconds from now; the listener ``sender`` does not get it."""
        now = trio.current_time() + after
        self.log.append((now, frame))
        if self.immediate:
            for listener in self.listeners:
                if listener != sender:
                    listener(frame)
            return
        for delay, routed in self.route(frame):
            for listener in self.listeners:
                if listener != sender:
                    heapq.heappush(self._heap, (now + delay, next(self._order), listener, routed))
        if self._heap:
            self._scope.deadline = min(self._scope.deadline, self._heap[0][0])

    async def run(self) -> None:
        while True:
            with trio.CancelScope(deadline=self._heap[0][0] if self._heap else float("inf")) as self._scope:
                await trio.sleep_forever()
            while self._heap and self._heap[0][0] <= trio.current_time():
                _, _, listener, frame = heapq.heappop(self._heap)
                listener(frame)

    def sent(self, command: AoeCommand | None = None, *, response: bool = False) -> list[tuple[float, Header, bytes]]:
        """(time, header, frame) of the requests (or answers) on the wire, of one command or all."""
        found = ((at, decode_header_untrusted(frame), frame) for at, frame in self.log)
        return [
            (at, header, frame)
            for at, header, frame in found
            if header.is_response is response and command in (None, header.command)
        ]

    def ata(self, opcode: int) -> list[tuple[float, AtaArgument]]:
        """(time, registers) of the ATA requests with this opcode."""
        found = ((at, decode_ata_untrusted(frame)) for at, _, frame in self.sent(AoeCommand.ATA))
        return [(at, registers) for at, registers in found if registers.command == opcode]


def run_frames(run: Run, ours: bytes) -> list[bytes]:
    """The frames of a run, one by one, as ``protocol.wire`` encodes them."""
    frames = []
    request, path = run.request, run.path
    address = decode_header_untrusted(path.request_head + bytes(16)).address
    for index in range(run.count):
        start, sectors = run.sectors_of(index, 1)
        header = Header(path.mac, ours, address, AoeCommand.ATA, run.tag ^ index)
        registers = transfer_registers(request.lba + start, sectors, write=request.write, lba48=path.lba48)
        data = request.buffer[start * SECTOR_BYTES : (start + sectors) * SECTOR_BYTES] if request.write else b""
        frames.append(encode(header, registers, data))
    return frames


class SegmentLink:
    """``net.link.Link`` on a :class:`Wire`.  ``room`` is how many frames the "socket" takes until it is full."""

    def __init__(
        self,
        wire: Wire,
        tags: TagTable[Run | LoneCommand],
        interface: str = "seg0",
        mac: bytes = OUR_MAC,
        max_sectors: int = 2,
    ) -> None:
        self.wire = wire
        self.interface = interface
        self.mac = mac
        self.up = True
        self.max_sectors = max_sectors
        self.room: float = float("inf")
        self.rx_frames = self.rx_unknown = self.tx_frames = self.tx_full = 0
        self.descriptor = -1  # a simulated link cannot be polled
        self.closed = False
        self.refreshed = 0
        self.failure: OSError | None = None  # what the next receive raises
        self._tags = tags
        self.inbox: deque[bytes] = deque()
        self._changed = trio.lowlevel.ParkingLot()
        wire.listeners.append(self.deliver)

    def deliver(self, frame: bytes) -> None:
        header = decode_header_untrusted(frame) if len(frame) >= 24 else None
        if header is None or (header.is_response and header.destination in (self.mac, BROADCAST_MAC)):
            self.inbox.append(frame)
            self._changed.unpark_all()

    def set_room(self, room: float) -> None:
        self.room = room
        self._changed.unpark_all()

    def fail_next_receive(self, failure: OSError) -> None:
        self.failure = failure
        self._changed.unpark_all()

    def _put(self, frame: bytes) -> bool:
        if self.closed:
            raise OSError(9, "Bad file descriptor")
        if self.room < 1:
            self.tx_full += 1
            return False
        self.room -= 1
        self.tx_frames += 1
        self.wire.send(frame, self.deliver)
        return True

    def send_run(self, run: Run) -> int:
        for index, frame in enumerate(run_frames(run, self.mac)):
            if not self._put(frame):
                return index
        return run.count

    def send_frame(self, frame: bytes) -> bool:
        return self._put(frame)

    def receive(self) -> tuple[int, list[Entry], list[bytes]]:
        if self.failure is not None:
            failure, self.failure = self.failure, None
            raise failure
        entries: list[Entry] = []
        odd: list[bytes] = []
        received = 0
        while self.inbox and received < 64:
            frame = self.inbox.popleft()
            received += 1
            entry = self._judge(frame)
            if entry is None:
                odd.append(frame)
            elif entries and entries[-1][0] is entry[0] and sum(entries[-1][1:]) == entry[1]:
                entries[-1] = (entry[0], entries[-1][1], entries[-1][2] + 1)
            else:
                entries.append(entry)
        self.rx_frames += received
        return received, entries, odd

    def _judge(self, frame: bytes) -> Entry | None:
        if len(frame) < ATA_BYTES:
            return None
        header, ata = decode_header_untrusted(frame), decode_ata_untrusted(frame)
        run = self._tags.find(header.tag)
        if not isinstance(run, Run) or ata.command & FAILED or header.tag ^ run.tag >= run.count:
            return None
        address = decode_header_untrusted(run.path.request_head + bytes(16)).address
        expected = Header(self.mac, run.path.mac, address, AoeCommand.ATA, header.tag, Flag.RESPONSE, 0, VERSION)
        if header != expected or run.path.link is not self:
            return None
        index, request = header.tag ^ run.tag, run.request
        start, sectors = run.sectors_of(index, 1)
        if not request.write:
            data = frame[ATA_BYTES : ATA_BYTES + sectors * SECTOR_BYTES]
            if len(data) < sectors * SECTOR_BYTES:
                return None
            request.land(start, data)
        return run, index, 1

    async def wait_readable(self) -> None:
        await trio.lowlevel.checkpoint()
        while not (self.inbox or self.closed or self.failure):
            await self._changed.park()
        if self.closed:
            raise trio.ClosedResourceError

    def receive_hints(self, most: int) -> list[bytes]:
        return []  # they come by receive()

    async def wait_hints(self) -> None:
        while not self.closed:
            await self._changed.park()
        raise trio.ClosedResourceError

    async def wait_writable(self) -> None:
        if self.closed:
            raise OSError(9, "Bad file descriptor")
        await trio.lowlevel.checkpoint()
        while self.room < 1 and not self.closed:
            await self._changed.park()
        if self.closed:
            raise trio.ClosedResourceError

    def refresh(self) -> None:
        self.refreshed += 1

    def statistics(self) -> LinkStatistics:
        return LinkStatistics(
            interface=self.interface,
            mac=self.mac,
            mtu=1500,
            up=self.up,
            rx_frames=self.rx_frames,
            rx_dropped=0,
            rx_unknown=self.rx_unknown,
            tx_frames=self.tx_frames,
            tx_full=self.tx_full,
        )

    def close(self) -> None:
        self.closed = True
        if self.deliver in self.wire.listeners:
            self.wire.listeners.remove(self.deliver)
        self._changed.unpark_all()


class SimulatedTarget:
    """A target on a wire.  ``answer(frame, reply)`` may be replaced: what is sent, and when, in place of ``reply``.

    Several of them may share one ``export``: one disk behind several MACs.
    """

    def __init__(
        self,
        wire: Wire,
        export: Export,
        *,
        mac: bytes | None = None,
        max_sectors: int = 2,
    ) -> None:
        self.wire = wire
        self.export = export
        self.mac = mac or target_mac(export.address.shelf << 8 | export.address.slot)
        self.max_sectors = max_sectors
        self.silent = False
        self.heard: list[tuple[float, Header, bytes]] = []
        self.answer: Callable[[bytes, bytes], Deliveries] = lambda _frame, reply: [(0.0, reply)]
        wire.listeners.append(self.hear)

    @property
    def data(self) -> bytearray:
        store = self.export.store
        assert isinstance(store, MemoryStore)
        return store.data

    def hear(self, frame: bytes) -> None:
        if self.silent or frame[:6] not in (self.mac, BROADCAST_MAC):
            return  # before it is decoded: there may be hundreds of targets on a wire
        header = decode_header_untrusted(frame)
        if header.is_response:
            return
        reply = answer_at_once(self.export, frame, mac=self.mac, max_sectors=self.max_sectors)
        if reply is None:
            return
        if header.command == AoeCommand.ATA and frame[27] == Opcode.IDENTIFY and len(reply) > ATA_BYTES + 24:
            reply = reply[:ATA_BYTES] + encode_identify(self.export.identity)
        self.heard.append((trio.current_time(), header, frame))
        for delay, answer in self.answer(frame, reply):
            self.wire.send(answer, self.hear, after=delay)

    def announce(self, version: int = VERSION, config: ConfigArgument | None = None) -> None:
        """Broadcast a config answer that nothing asked for; without ``config`` it is true."""
        header = Header(BROADCAST_MAC, self.mac, self.export.address, AoeCommand.CONFIG, 0, Flag.RESPONSE)
        if config is None:
            config = ConfigArgument(0, b"", self.export.buffer_count, 0x14, self.max_sectors, 1)
        self.wire.send(encode(replace(header, version=version), config), self.hear)

    def unplug(self) -> None:
        self.wire.listeners.remove(self.hear)

    def resize(self, sectors: int) -> None:
        store = self.export.store
        assert isinstance(store, MemoryStore)
        size = sectors * SECTOR_BYTES
        store.data = store.data[:size].ljust(size, b"\0")
        store.sectors = sectors
        self.identify_as(replace(self.export.identity, sectors=sectors))

    def identify_as(self, identity: Identity) -> None:
        """What IDENTIFY says from now on."""
        self.export.identity = identity


def make_export(address: Address, *, sectors: int = 256, serial: str | None = None, bufcnt: int = 16) -> Export:
    """A target export whose disk has another byte pattern in every sector."""
    store = MemoryStore(sectors)
    for sector in range(sectors):
        store.data[sector * SECTOR_BYTES : (sector + 1) * SECTOR_BYTES] = (
            (address.shelf * 31 + address.slot * 17 + sector + 1) & 0xFFFF_FFFF
        ).to_bytes(4, "big") * (SECTOR_BYTES // 4)
    return Export(address, store, serial=serial or f"serial {address}", buffer_count=bufcnt)


class Scene:
    """An engine, a wire, and a link that joins them; more of each on demand."""

    def __init__(self, engine: Engine, wire: Wire, link: SegmentLink, nursery: trio.Nursery) -> None:
        self.engine = engine
        self.wire = wire
        self.link = link
        self.nursery = nursery

    def add_target(
        self,
        shelf: int = 0,
        slot: int = 0,
        *,
        sectors: int = 256,
        serial: str | None = None,
        bufcnt: int = 16,
        mac: bytes | None = None,
        max_sectors: int = 2,
    ) -> SimulatedTarget:
        export = make_export(Address(shelf, slot), sectors=sectors, serial=serial, bufcnt=bufcnt)
        return SimulatedTarget(self.wire, export, mac=mac, max_sectors=max_sectors)

    def add_wire(
        self, interface: str = "seg1", max_sectors: int = 2, *, discover: bool = True
    ) -> tuple[Wire, SegmentLink]:
        """A second segment with a link of the engine on it."""
        wire = Wire()
        self.nursery.start_soon(wire.run)
        mac = OUR_MAC[:-1] + bytes([len(self.engine.links) + 1])
        link = SegmentLink(wire, self.engine.driver.tags, interface, mac, max_sectors)
        self.engine.add_link(link, discover=discover)
        return wire, link

    async def disk(self, shelf: int = 0, slot: int = 0) -> Disk:
        """The disk of this address, once it was discovered."""
        address = Address(shelf, slot)
        with trio.fail_after(5):
            while address not in self.engine.disks:  # noqa: ASYNC110 (virtual time costs nothing)
                await trio.sleep(0.001)
        return self.engine.disks[address]


@asynccontextmanager
async def open_scene(
    settings: Settings | None = None,
    max_sectors: int = 2,
    *,
    discover: bool = True,
    on_change: Callable[[Disk, Change], object] | None = None,
) -> AsyncIterator[Scene]:
    """The engine runs on one segment from here on; its first query goes out when the caller first waits."""
    async with trio.open_nursery() as nursery:
        wire = Wire()
        nursery.start_soon(wire.run)
        async with open_engine([], settings) as engine:
            if on_change is not None:
                engine.changes.subscribe(on_change)
            link = SegmentLink(wire, engine.driver.tags, max_sectors=max_sectors)
            engine.add_link(link, discover=discover)
            yield Scene(engine, wire, link, nursery)
        nursery.cancel_scope.cancel()


def nothing_is_left(target: Target) -> bool:
    """No request, claim, run or command of a target is under way or remembered as such."""
    now = target.statistics()
    runs = [run for path in target.paths for run in path.runs]
    flying = sum(path.in_flight for path in target.paths)
    return (
        not (now.queued or now.waiting or now.quarantined or runs or target.in_flight or flying) and target.order.idle
    )
