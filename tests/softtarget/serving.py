"""The target in trio: batches answer as the export alone does, syncs block nobody, interfaces come and go.

Most tests give the server a :class:`WireLink`, a link over a pair of datagram sockets: the batch code sees no
difference to a packet socket, and no rights are needed.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from aoefs.cli.commands.target import parse_export
from aoefs.net.netlink import list_interfaces
from aoefs.net.packetsocket import PacketSocket, Role
from aoefs.protocol.ata import Opcode, flush_registers, transfer_registers
from aoefs.protocol.wire import (
    BROADCAST_MAC,
    ETHERTYPE,
    Address,
    AoeCommand,
    AtaArgument,
    ConfigArgument,
    ErrorCode,
    Header,
    MaskDirective,
    ReserveArgument,
    ReserveCommand,
    decode_ata_untrusted,
    decode_config_untrusted,
    decode_header_untrusted,
    encode_ata,
    encode_config,
    encode_reserve,
)
from aoefs.softtarget.export import Export
from aoefs.softtarget.server import Server
from aoefs.softtarget.store import MemoryStore
from tests.lab import INITIATOR, TARGET, Lab, open_packet_socket

OURS = bytes.fromhex("020000000001")
THEIRS = bytes.fromhex("020000000002")
STRANGER = bytes.fromhex("020000000003")
ADDRESSES = (Address(0, 0), Address(7, 3))
SECTORS = 64


def datagram_pair(family: socket.AddressFamily = socket.AF_INET) -> tuple[socket.socket, socket.socket]:
    """Two connected sockets that keep the bounds of messages.  UDP for long queues, AF_UNIX for short ones."""
    if family == socket.AF_UNIX:
        left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    else:
        left, right = (socket.socket(family, socket.SOCK_DGRAM) for _ in range(2))
        for sock in (left, right):
            sock.bind(("127.0.0.1", 0))
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        left.connect(right.getsockname())
        right.connect(left.getsockname())
    for sock in (left, right):
        sock.setblocking(False)
    return left, right


class WireLink(PacketSocket):
    """A link over any datagram socket."""

    def __init__(self, sock: socket.socket, mtu: int = 1500) -> None:
        self.interface = "wire"
        self.index = -1
        self.mac = OURS
        self.up = True
        self.rx_frames = self.rx_unknown = self.tx_frames = self.tx_full = self._rx_dropped = 0
        self.socket = sock
        self.descriptor = sock.fileno()
        self.mtu = mtu


def make_export(address: Address = ADDRESSES[0], store: MemoryStore | None = None) -> Export:
    store = store if store is not None else MemoryStore(SECTORS)
    store.data[:] = os.urandom(len(store.data))
    return Export(address, store, serial=str(address))


def twin(original: Export) -> Export:
    """The same export on a store of its own."""
    assert isinstance(original.store, MemoryStore)
    store = MemoryStore(original.store.sectors, read_only=original.store.read_only)
    store.data[:] = original.store.data
    return Export(original.address, store, serial=original.identity.serial)


def request(
    tag: int,
    ata: AtaArgument,
    data: bytes = b"",
    *,
    address: Address = ADDRESSES[0],
    to: bytes = OURS,
    sender: bytes = THEIRS,
) -> bytes:
    return encode_ata(Header(to, sender, address, AoeCommand.ATA, tag), ata, data)


def read(tag: int, lba: int, count: int = 2, address: Address = ADDRESSES[0]) -> bytes:
    return request(tag, transfer_registers(lba, count, write=False, lba48=True), address=address)


def write(tag: int, lba: int, data: bytes, address: Address = ADDRESSES[0]) -> bytes:
    return request(tag, transfer_registers(lba, len(data) // 512, write=True, lba48=True), data, address=address)


FLUSH = flush_registers(Opcode.FLUSH_EXT)


class Client:
    """The other end of a :class:`WireLink`."""

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock

    def send(self, *frames: bytes) -> None:
        for frame in frames:
            self.socket.send(frame)

    async def receive(self, count: int = 1) -> list[bytes]:
        answers: list[bytes] = []
        with trio.fail_after(5):
            while len(answers) < count:
                try:
                    answers.append(self.socket.recv(1 << 16))
                except BlockingIOError:
                    await trio.lowlevel.wait_readable(self.socket)
        return answers

    async def ask(self, frame: bytes) -> bytes:
        self.send(frame)
        return (await self.receive())[0]


@contextlib.asynccontextmanager
async def serving(
    *exports: Export, mtu: int = 1500, family: socket.AddressFamily = socket.AF_INET
) -> AsyncIterator[tuple[Server, Client]]:
    """A server over one wire, its announcements already taken off it."""
    theirs, ours = datagram_pair(family)
    with theirs:
        server = Server(exports, [WireLink(ours, mtu)])
        async with trio.open_nursery() as nursery:
            await nursery.start(server.run)
            client = Client(theirs)
            for each in exports:
                await client.receive(len(each.announcements(mac=OURS, max_sectors=1)))
            yield server, client
            nursery.cancel_scope.cancel()


# ── batches ───────────────────────────────────────────────────────────────────────────────────────────────────────


@st.composite
def runs(draw: st.DrawFn) -> list[bytes]:
    """Frames as initiators send them: runs of neighbours, now and then broken, odd or nonsense."""
    frames: list[bytes] = []
    tag = 0x8000_0000
    for _ in range(draw(st.integers(1, 8))):
        address = draw(st.sampled_from([*ADDRESSES, ADDRESSES[0], Address(0, 1), Address(0xFFFF, 0xFF)]))
        opcode = draw(st.sampled_from([0x20, 0x24, 0x24, 0x24, 0x30, 0x34, 0x34, 0x34, 0xEA, 0xEC, 0x99]))
        lba = draw(st.integers(0, SECTORS) | st.sampled_from([0, 8, SECTORS - 1, (1 << 48) - 2, (1 << 28) - 1]))
        count = draw(st.sampled_from([1, 2, 2, 2, 0, 3]))
        to = draw(st.sampled_from([OURS, OURS, OURS, OURS, BROADCAST_MAC, THEIRS]))
        senders = draw(st.sampled_from([(THEIRS,), (THEIRS,), (STRANGER,), (THEIRS, STRANGER)]))
        for _ in range(draw(st.integers(1, 24))):
            tag += 1
            data = bytes([tag & 0xFF]) * (512 * count - draw(st.sampled_from([0] * 12 + [1, -7])))
            device = 0xE0 << 24 if not opcode & 0x04 else 0
            ata = AtaArgument(draw(st.sampled_from([0, 0x40, 0x41])), 0, count, opcode, (lba | device) & (1 << 48) - 1)
            frame = request(
                tag,
                ata,
                data if opcode & 0xF0 == 0x30 else b"",
                address=address,
                to=to,
                sender=senders[tag % len(senders)],
            )
            cut = draw(st.sampled_from([None] * 20 + [24, 35, 36, 59]))
            frames.append(frame[:cut])
            lba += count + draw(st.sampled_from([0] * 12 + [1, -2]))
            lba = max(lba, 0)
    return frames


#: How an export is shut: its mask list, its holders.
any_access = st.tuples(*[st.sampled_from([(), (), (THEIRS,), (STRANGER,), (THEIRS, STRANGER)])] * 2)


@given(runs(), st.booleans(), st.integers(1, 2), any_access)
@settings(max_examples=150)
def test_a_batch_answers_as_the_machine_alone_does(
    frames: list[bytes], read_only: bool, max_sectors: int, access: tuple[tuple[bytes, ...], tuple[bytes, ...]]
) -> None:
    exports = [make_export(ADDRESSES[0]), make_export(ADDRESSES[1], MemoryStore(SECTORS, read_only=read_only))]
    alone = [twin(each) for each in exports]
    frames.append(request(1, AtaArgument(0, 0, 1, Opcode.CHECK_POWER_MODE, 0), address=ADDRESSES[1]))
    mask, holders = access
    for each in (exports[0], alone[0]):
        each.access.edit_mask([(MaskDirective.ADD, mac) for mac in mask])
        each.access.reserve(THEIRS, holders, force=True)
    expected = Counter(
        answer
        for frame in frames
        for each in alone
        if (answer := each.answer(frame, mac=OURS, max_sectors=max_sectors)) is not None
    )

    async def main() -> None:
        async with serving(*exports, mtu=36 + 512 * max_sectors) as (server, client):
            client.send(*frames)
            assert Counter(await client.receive(expected.total())) == expected
            await trio.testing.wait_all_tasks_blocked(0.001)
            with pytest.raises(BlockingIOError):
                client.socket.recv(1)
            assert server.statistics()[0].rx_frames == len(frames)

    trio.run(main)
    for each, other in zip(exports, alone, strict=True):
        assert isinstance(each.store, MemoryStore)
        assert isinstance(other.store, MemoryStore)
        assert each.store.data == other.store.data
        assert (each.counters.reads, each.counters.writes) == (other.counters.reads, other.counters.writes)
        assert each.counters.errors == other.counters.errors


@pytest.mark.parametrize("count", [1, 5, 60, 300])
@pytest.mark.parametrize("sectors", [1, 2])
async def test_consecutive_frames_become_few_calls_of_the_store(count: int, sectors: int) -> None:
    calls: list[int] = []

    class CountingStore(MemoryStore):
        def readv(self, buffers: object, offset: int) -> int:
            calls.append(offset)
            return super().readv(buffers, offset)  # type: ignore[arg-type]

        def writev(self, buffers: object, offset: int) -> int:
            calls.append(offset)
            return super().writev(buffers, offset)  # type: ignore[arg-type]

    export = make_export(store=CountingStore(1024))
    data = os.urandom(count * sectors * 512)
    pieces = [data[at : at + sectors * 512] for at in range(0, len(data), sectors * 512)]
    async with serving(export) as (server, client):
        client.send(*(write(index, index * sectors, piece) for index, piece in enumerate(pieces)))
        for answer in await client.receive(count):
            assert len(answer) == 60
        writes = len(calls)
        client.send(*(read(index, index * sectors, sectors) for index in range(count)))
        answers = {decode_header_untrusted(answer).tag: answer[36:] for answer in await client.receive(count)}
        assert b"".join(answers[index] for index in range(count)) == data
        statistics = server.statistics()[0]
    assert export.counters.written_sectors == export.counters.read_sectors == count * sectors
    assert statistics.rx_frames == statistics.tx_frames - 1 == 2 * count
    if count >= 60:
        assert statistics.batches >= 2
        assert writes < count // 4
        assert len(calls) - writes < count // 4
    elif count == 1:
        assert (statistics.lone, statistics.batches) == (2, 0)


async def test_a_read_sees_each_write_before_it_and_none_after_it() -> None:
    async with serving(make_export()) as (_, client):
        frames = []
        for round_ in range(20):
            frames += [write(round_ * 2, 5, bytes([round_]) * 512), read(round_ * 2 + 1, 5, 1)]
        client.send(*frames)
        answers = {decode_header_untrusted(answer).tag: answer for answer in await client.receive(40)}
        for round_ in range(20):
            assert answers[round_ * 2 + 1][36:] == bytes([round_]) * 512


async def test_a_failing_run_is_answered_frame_by_frame() -> None:
    class HoleStore(MemoryStore):
        def readv(self, buffers: object, offset: int) -> int:
            assert isinstance(buffers, list)
            if offset <= 30 * 512 < offset + sum(map(len, buffers)):
                raise OSError(5, "Input/output error")
            return super().readv(buffers, offset)

    export = make_export(store=HoleStore(SECTORS))
    assert isinstance(export.store, MemoryStore)
    async with serving(export) as (_, client):
        client.send(*(read(lba, lba, 1) for lba in range(SECTORS)))
        for answer in await client.receive(SECTORS):
            lba = decode_header_untrusted(answer).tag
            ata = decode_ata_untrusted(answer)
            if lba == 30:
                assert (ata.command, ata.feature) == (0x41, 0x40)
            else:
                assert ata.command == 0x40
                assert answer[36:] == export.store.data[lba * 512 : lba * 512 + 512]
    assert export.counters.store_errors == 1
    assert export.counters.reads == SECTORS - 1


@pytest.mark.parametrize("count", [1, 6, 60])
async def test_a_reservation_in_the_midst_of_a_batch_holds_for_the_frames_behind_it(count: int) -> None:
    async with serving(make_export()) as (server, client):
        head = Header(OURS, STRANGER, ADDRESSES[0], AoeCommand.RESERVE, 0)
        client.send(
            *(write(1000 + lba, lba, b"a" * 512) for lba in range(count)),
            encode_reserve(head, ReserveArgument(ReserveCommand.SET, (STRANGER,))),
            *(write(2000 + lba, lba, b"b" * 512) for lba in range(count)),
        )
        errors = {}
        for answer in await client.receive(2 * count + 1):
            header = decode_header_untrusted(answer)
            errors[header.tag] = header.error
        assert errors == {
            0: 0,
            **dict.fromkeys(range(1000, 1000 + count), 0),
            **dict.fromkeys(range(2000, 2000 + count), ErrorCode.TARGET_RESERVED),
        }
        store = server.exports[ADDRESSES[0]].store
        assert isinstance(store, MemoryStore)
        assert store.data[: count * 512] == b"a" * 512 * count


@pytest.mark.parametrize("count", [1, 6, 60])
async def test_the_holder_of_a_reserved_export_keeps_its_batches(count: int) -> None:
    export = make_export()
    export.access.reserve(THEIRS, [THEIRS], force=False)
    async with serving(export) as (server, client):
        client.send(*(read(lba, lba, 1) for lba in range(count)))
        answers = {decode_header_untrusted(answer).tag: answer for answer in await client.receive(count)}
        assert isinstance(export.store, MemoryStore)
        assert b"".join(answers[lba][36:] for lba in range(count)) == export.store.data[: count * 512]
        assert (server.statistics()[0].batches > 0) == (count > 3)


async def test_many_exports_answer_one_broadcast() -> None:
    exports = [make_export(Address(shelf, slot)) for shelf in range(6) for slot in range(6)]
    async with serving(*exports) as (_, client):
        query = Header(BROADCAST_MAC, THEIRS, Address(0xFFFF, 0xFF), AoeCommand.CONFIG, 9)
        client.send(encode_config(query, ConfigArgument()))
        found = {decode_header_untrusted(answer).address for answer in await client.receive(36)}
    assert found == {each.address for each in exports}


async def test_interleaved_exports_are_not_mixed() -> None:
    exports = [make_export(address) for address in ADDRESSES]
    async with serving(*exports) as (_, client):
        client.send(*(read(tag, tag // 2, 1, ADDRESSES[tag % 2]) for tag in range(100)))
        for answer in await client.receive(100):
            header = decode_header_untrusted(answer)
            store = exports[header.tag % 2].store
            assert isinstance(store, MemoryStore)
            assert header.address == ADDRESSES[header.tag % 2]
            assert answer[36:] == store.data[header.tag // 2 * 512 :][:512]


async def test_answers_that_find_no_room_wait_and_are_then_dropped_and_counted() -> None:
    async with serving(make_export(), family=socket.AF_UNIX) as (server, client):
        # The short queue back to us fills up, since nobody reads; the server takes the next batch nevertheless.
        for tag in range(200):
            with contextlib.suppress(BlockingIOError):
                client.send(read(tag, 0))
            await trio.sleep(0.002)
        await until(lambda: server.statistics()[0].dropped > 0)
        with contextlib.suppress(BlockingIOError):
            while True:
                client.socket.recv(1 << 16)
        with trio.fail_after(5):
            while True:  # until what was still queued is answered
                client.send(read(777, 3))
                if any(decode_header_untrusted(answer).tag == 777 for answer in await client.receive(1)):
                    break


# ── flush ─────────────────────────────────────────────────────────────────────────────────────────────────────────


class SlowSync(MemoryStore):
    """Each sync begins at once and ends when the test lets it."""

    def __init__(self) -> None:
        super().__init__(SECTORS)
        self.begun = 0
        self.go = threading.Semaphore(0)
        self.failure: OSError | None = None

    def sync(self) -> None:
        self.begun += 1
        assert self.go.acquire(timeout=10)
        super().sync()
        if self.failure is not None:
            raise self.failure


async def until(predicate: Callable[[], bool]) -> None:
    with trio.fail_after(5):
        while not predicate():  # noqa: ASYNC110 (what is waited for happens in threads and in the kernel)
            await trio.sleep(0.001)


async def test_a_slow_sync_stops_neither_its_own_export_nor_another() -> None:
    slow = SlowSync()
    async with serving(make_export(store=slow), make_export(ADDRESSES[1])) as (_, client):
        client.send(request(1, FLUSH))
        await until(lambda: slow.begun == 1)
        assert decode_header_untrusted(await client.ask(read(2, 0))).tag == 2
        assert decode_header_untrusted(await client.ask(write(3, 0, bytes(512)))).tag == 3
        assert decode_header_untrusted(await client.ask(request(4, FLUSH, address=ADDRESSES[1]))).tag == 4
        slow.go.release()
        assert decode_header_untrusted((await client.receive())[0]).tag == 1


async def test_a_flush_during_a_sync_waits_for_the_next_one_and_shares_it() -> None:
    slow = SlowSync()
    async with serving(make_export(store=slow)) as (_, client):
        client.send(request(1, FLUSH))
        await until(lambda: slow.begun == 1)
        client.send(request(2, FLUSH), request(3, FLUSH))
        assert decode_header_untrusted(await client.ask(read(9, 0))).tag == 9  # so they have come
        slow.go.release()
        assert decode_header_untrusted((await client.receive())[0]).tag == 1
        await until(lambda: slow.begun == 2)
        with pytest.raises(BlockingIOError):
            client.socket.recv(1)
        slow.go.release()
        assert {decode_header_untrusted(answer).tag for answer in await client.receive(2)} == {2, 3}
        assert slow.syncs == 2


async def test_a_failed_sync_fails_its_flushes() -> None:
    slow = SlowSync()
    slow.failure = OSError(5, "Input/output error")
    slow.go.release()
    export = make_export(store=slow)
    async with serving(export) as (server, client):
        assert decode_ata_untrusted(await client.ask(request(1, FLUSH))).command == 0x61
        assert export.sync_failed
        slow.go.release()
        assert [(each.address, error.errno) for each, error in await server.sync_all()] == [(export.address, 5)]


async def test_the_end_waits_for_a_running_sync() -> None:
    slow = SlowSync()
    async with serving(make_export(store=slow)) as (_, client):
        client.send(request(1, FLUSH))
        await until(lambda: slow.begun == 1)
        threading.Timer(0.05, slow.go.release).start()
    assert slow.syncs == 1


def test_one_address_twice_is_our_own_mistake() -> None:
    with pytest.raises(ValueError, match="same address"):
        Server([make_export(), make_export()], [])


# ── real interfaces ───────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def wire(lab: Lab) -> Iterator[socket.socket]:
    with open_packet_socket(lab) as sock:
        yield sock


async def announced(wire: socket.socket) -> tuple[Address, int, int]:
    """The next announcement: address, tag and sectors per frame."""
    frame = await trio.to_thread.run_sync(wire.recv, 1 << 16)
    header = decode_header_untrusted(frame)
    assert (header.destination, header.version, header.is_response) == (BROADCAST_MAC, 1, True)
    assert len(frame) == 60
    return header.address, header.tag, decode_config_untrusted(frame).sectors


async def test_exports_are_announced_at_the_start_and_when_an_interface_comes_back(
    lab: Lab, wire: socket.socket
) -> None:
    export = make_export()
    with lab.inside(TARGET):
        server = Server([export], [PacketSocket("aoe0", role=Role.TARGET)])
        async with trio.open_nursery() as nursery:
            await nursery.start(server.run)
            assert await announced(wire) == (export.address, 0, 2)
            lab.ip(TARGET, "link", "set", "aoe0", "down")
            await until(lambda: not server.statistics()[0].running)
            lab.ip(TARGET, "link", "set", "aoe0", "up")
            assert await announced(wire) == (export.address, 0, 2)
            lab.ip(INITIATOR, "link", "set", "aoe0", "mtu", 9000)
            lab.ip(TARGET, "link", "set", "aoe0", "mtu", 9000)
            assert await announced(wire) == (export.address, 0, 17)
            target = lab.mac(TARGET)
            frame = encode_ata(
                Header(target, lab.mac(INITIATOR), export.address, 0, 5),
                transfer_registers(0, 17, write=False, lba48=True),
            )
            wire.send(frame)
            answer = await trio.to_thread.run_sync(wire.recv, 1 << 16)
            assert isinstance(export.store, MemoryStore)
            assert answer[36:] == export.store.data[: 17 * 512]
            nursery.cancel_scope.cancel()


async def test_an_interface_without_carrier_hears_of_the_exports_when_it_gets_one(
    lab: Lab, wire: socket.socket
) -> None:
    lab.ip(INITIATOR, "link", "set", "aoe0", "down")
    with pytest.raises(OSError, match="down"):
        wire.recv(1)
    with lab.inside(TARGET):
        # The kernel tells of a lost carrier up to a second later.
        await until(lambda: not any(each.running for each in list_interfaces() if each.name == "aoe0"))
        server = Server([make_export()], [PacketSocket("aoe0", role=Role.TARGET)])
        async with trio.open_nursery() as nursery:
            await nursery.start(server.run)
            assert not server.statistics()[0].running
            lab.ip(INITIATOR, "link", "set", "aoe0", "up")
            assert await announced(wire) == (ADDRESSES[0], 0, 2)
            nursery.cancel_scope.cancel()


async def test_an_interface_of_the_same_name_takes_the_place_of_one_that_went(lab: Lab) -> None:
    export = make_export()
    with lab.inside(TARGET):
        server = Server([export], [PacketSocket("aoe0", role=Role.TARGET)])
        async with trio.open_nursery() as nursery:
            await nursery.start(server.run)
            lab.ip(TARGET, "link", "del", "aoe0")
            await until(lambda: not server.statistics()[0].running)
            lab.ip(TARGET, "link", "add", "aoe0", "type", "veth", "peer", "name", "other0")
            lab.ip(TARGET, "link", "set", "other0", "up")
            sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
            with sock:
                sock.bind(("other0", ETHERTYPE))
                sock.settimeout(5)
                lab.ip(TARGET, "link", "set", "aoe0", "up")
                assert await announced(sock) == (export.address, 0, 2)
                query = Header(BROADCAST_MAC, THEIRS, Address(0xFFFF, 0xFF), AoeCommand.CONFIG, 9)
                sock.send(encode_config(query, ConfigArgument()))
                answer = await trio.to_thread.run_sync(sock.recv, 1 << 16)
                assert decode_header_untrusted(answer).tag == 9
            nursery.cancel_scope.cancel()


# ── the command ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_an_export_is_an_address_and_a_path() -> None:
    assert parse_export("0.1=/disk") == (Address(0, 1), "/disk")
    assert parse_export("e7.3=a=b") == (Address(7, 3), "a=b")


def complaint(lab: Lab, *arguments: str | Path, code: int) -> str:
    answer = lab.aoefs("target", *arguments, side=TARGET, check=False)
    assert (answer.returncode, answer.stdout) == (code, "")
    assert answer.stderr.startswith("aoefs: ")
    assert answer.stderr.count("\n") == 1
    return answer.stderr


def test_bad_usage_gets_one_line_and_exit_code_2(lab: Lab) -> None:
    disk = lab.image("disk", 4096)
    on = ("-i", "aoe0")
    assert "-i" in complaint(lab, f"0.0={disk}", code=2)
    assert "X.Y=PATH" in complaint(lab, *on, code=2)
    assert "X.Y=PATH" in complaint(lab, *on, f"{disk}", code=2)
    assert "X.Y=PATH" in complaint(lab, *on, "0.0=", code=2)
    assert "shelf.slot" in complaint(lab, *on, f"0={disk}", code=2)
    assert "broadcast" in complaint(lab, *on, f"65535.0={disk}", code=2)
    assert "broadcast" in complaint(lab, *on, f"0.255={disk}", code=2)
    assert "e0.0 is given twice" in complaint(lab, *on, f"0.0={disk}", f"e0.0={disk}", code=2)
    assert "--bufcnt" in complaint(lab, *on, "--bufcnt", "0", f"0.0={disk}", code=2)
    assert "bufcnt" in complaint(lab, *on, "--bufcnt", "many", f"0.0={disk}", code=2)
    assert "--config-string" in complaint(lab, *on, "--config-string", "x" * 1025, f"0.0={disk}", code=2)


def test_what_cannot_be_served_gets_one_line_and_announces_nothing(lab: Lab, wire: socket.socket) -> None:
    disk = lab.image("disk", 4096)
    good = f"0.0={disk}"
    assert "no such file" in complaint(lab, "-i", "aoe0", good, f"0.1={disk}x", code=1)
    assert "directory" in complaint(lab, "-i", "aoe0", good, f"0.1={lab.directory}", code=1)
    assert "does not exist" in complaint(lab, "-i", "aoe0", "-i", "nosuch", good, code=1)
    assert "not Ethernet" in complaint(lab, "-i", "lo", good, code=1)
    lab.ip(TARGET, "link", "add", "low0", "mtu", 500, "type", "veth", "peer", "name", "low1")
    assert "is down" in complaint(lab, "-i", "low0", good, code=1)
    lab.ip(TARGET, "link", "set", "low0", "up")
    assert "MTU 500" in complaint(lab, "-i", "low0", good, code=1)
    unprivileged = ["setpriv", "--bounding-set=-net_raw", "--inh-caps=-net_raw", "--"]
    answer = lab.run(
        TARGET, [*unprivileged, *lab.command(TARGET, ["aoefs"])[-1:], "target", "-i", "aoe0", good], check=False
    )
    assert (answer.returncode, answer.stderr.count("\n")) == (1, 1)
    assert "CAP_NET_RAW" in answer.stderr
    wire.settimeout(0.05)
    with pytest.raises(TimeoutError):
        wire.recv(1 << 16)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_says_what_it_exports_and_a_signal_ends_it_well(lab: Lab, number: signal.Signals) -> None:
    disk, odd = lab.image("disk", 1 << 20), lab.image("odd", 1000)
    process = lab.target("--read-only", "--bufcnt", 7, "--config-string", "hé", f"0.1={disk}", f"e2.3={odd}")
    lines = [f"e0.1 {disk} 2048 sectors read-only on aoe0", f"e2.3 {odd} 1 sectors read-only on aoe0"]
    with open_packet_socket(lab) as sock:
        query = Header(BROADCAST_MAC, lab.mac(INITIATOR), Address(0, 1), AoeCommand.CONFIG, 0x8000_0009)
        sock.send(encode_config(query, ConfigArgument()))
        while decode_header_untrusted(frame := sock.recv(1 << 16)).tag != 0x8000_0009:
            pass  # announcements
    answer = decode_config_untrusted(frame)
    assert (answer.buffer_count, answer.string, answer.sectors) == (7, "hé".encode(), 2)
    assert process.stop(number) == 0
    assert [line for line in process.output.splitlines() if line in lines] == lines
    assert "the last 488 bytes are not exported" in process.output
