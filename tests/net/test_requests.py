"""Requests off a socket: their runs are found whatever comes among them, and answered as the codec encodes."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aoefs.net.requests import Requests
from aoefs.protocol.ata import Opcode, Status, transfer_registers
from aoefs.protocol.wire import Address, AoeCommand, AtaArgument, Flag, Header, decode_ata_untrusted, encode
from aoefs.softtarget.export import Export
from aoefs.softtarget.server import transfer
from tests.memorystore import MemoryStore
from tests.net.sockets import socket_and_wire
from tests.softtarget.serving import OURS, SECTORS, STRANGER, THEIRS, make_export, read, request, write


class Bench:
    def __init__(self, descriptor: int, wire: socket.socket) -> None:
        self.descriptor = descriptor
        self.wire = wire
        self.batch = Requests(2)

    def receive(self, *frames: bytes) -> list[tuple[int, int, int, int, int, int]]:
        for frame in frames:
            self.wire.send(frame)
        assert self.batch.receive(self.descriptor) == len(frames)
        return self.batch.runs_untrusted(OURS)

    def spans(self, *frames: bytes) -> list[tuple[int, int, bool]]:
        """First slot, end, and whether the frames are a run."""
        return [(first, end, word >= 0) for first, end, word, *_ in self.receive(*frames)]


@pytest.fixture
def bench() -> Iterator[Bench]:
    with socket_and_wire() as (ours, wire):
        yield Bench(ours.descriptor, wire)


def stored(export: Export, lba: int, sectors: int) -> bytes:
    assert isinstance(export.store, MemoryStore)
    return bytes(export.store.data[lba * 512 : (lba + sectors) * 512])


def test_a_frame_is_given_back_as_it_came(bench: Bench) -> None:
    frames = [write(1, 0, b"a" * 1024), read(2, 0), b"\1" * 24, b"\2" * 36]
    bench.receive(*frames)
    assert [bench.batch.frame(slot) for slot in range(4)] == frames
    assert bench.batch.sender(0) == THEIRS


def test_nothing_queued_is_no_frame(bench: Bench) -> None:
    assert bench.receive() == []


def test_consecutive_sectors_of_one_address_are_a_run(bench: Bench) -> None:
    word = 0 << 16 | 0 << 8 | AoeCommand.ATA
    frames = [read(tag, 2 * tag) for tag in range(4)]
    assert bench.receive(*frames) == [(0, 4, word, Opcode.READ_EXT, 0, 4096)]
    other = [read(tag, 2 * tag, address=Address(7, 3)) for tag in range(3)]
    assert bench.receive(*other) == [(0, 3, 7 << 16 | 3 << 8, Opcode.READ_EXT, 0, 3072)]


@pytest.mark.parametrize(
    "second",
    [
        read(1, 3),
        write(1, 2, b"x" * 1024),
        read(1, 2, address=Address(7, 3)),
        request(1, transfer_registers(2, 2, write=False, lba48=False)),
        request(1, transfer_registers(2, 2, write=False, lba48=True), sender=STRANGER),
    ],
    ids=["a gap", "a write", "another address", "28 bits", "another initiator"],
)
def test_what_differs_begins_another_run(bench: Bench, second: bytes) -> None:
    assert bench.spans(read(0, 0), second) == [(0, 1, True), (1, 2, True)]


@pytest.mark.parametrize(
    "odd",
    [
        b"\1" * 24,
        read(1, 2)[:35],
        read(1, 2, 3),
        read(1, 2, 0),
        write(1, 2, b"x" * 1024)[:-1],
        request(1, transfer_registers(2, 2, write=False, lba48=True), to=STRANGER),
        request(1, transfer_registers(2, 2, write=False, lba48=True), sender=b"\1" + THEIRS[1:]),
        read(1, 2)[:14] + b"\x18" + read(1, 2)[15:],
        read(1, 2)[:14] + b"\x20" + read(1, 2)[15:],
        read(1, 2)[:15] + b"\1" + read(1, 2)[16:],
    ],
    ids=[
        "short",
        "shorter than its headers",
        "too many sectors",
        "no sectors",
        "too few data",
        "for another",
        "from a group",
        "a response",
        "another version",
        "an error",
    ],
)
def test_a_frame_that_no_export_serves_without_a_look_belongs_to_no_run(bench: Bench, odd: bytes) -> None:
    assert bench.spans(read(0, 0), odd, read(2, 4)) == [(0, 1, True), (1, 2, False), (2, 3, True)]
    assert bench.batch.frame(1) == odd


def test_a_run_is_cut_where_the_initiator_can_begin_with_a_part(bench: Bench) -> None:
    jumbo = Requests(17)
    for tag in range(16):
        bench.wire.send(read(tag, 17 * tag, 17))
    jumbo.receive(bench.descriptor)
    assert [run[:2] for run in jumbo.runs_untrusted(OURS)] == [(0, 8), (8, 16)]


@pytest.mark.parametrize("sectors", [(2, 2, 2), (1, 1, 1), (2, 1, 2), (1,), (2,)])
def test_a_run_of_writes_is_gathered_from_its_slots(bench: Bench, sectors: tuple[int, ...]) -> None:
    export = make_export()
    pieces = [bytes([65 + index]) * (512 * count) for index, count in enumerate(sectors)]
    lbas = [8 + sum(sectors[:index]) for index in range(len(sectors))]
    runs = bench.receive(read(0, 0), *(write(1, lba, piece) for lba, piece in zip(lbas, pieces, strict=True)))
    assert transfer(export, bench.batch, runs[1])
    assert stored(export, 8, sum(sectors)) == b"".join(pieces)
    assert export.written_sectors == sum(sectors)


@pytest.mark.parametrize(
    "ata",
    [
        transfer_registers(SECTORS - 1, 2, write=False, lba48=True),
        transfer_registers(SECTORS - 1, 2, write=True, lba48=True),
        transfer_registers(SECTORS - 1, 2, write=False, lba48=False),
        AtaArgument(0, 0, 2, Opcode.IDENTIFY, 0),
    ],
    ids=["read", "write", "28 bits", "identify"],
)
def test_what_the_export_would_answer_with_an_error_or_otherwise_is_left_to_it(bench: Bench, ata: AtaArgument) -> None:
    export = make_export()
    before = stored(export, 0, SECTORS)
    [run] = bench.receive(request(1, ata, b"x" * 1024))
    assert not transfer(export, bench.batch, run)
    assert stored(export, 0, SECTORS) == before
    assert (export.read_sectors, export.written_sectors, export.store_errors) == (0, 0, 0)


def test_a_write_to_a_read_only_store_is_left_to_the_export(bench: Bench) -> None:
    export = make_export(store=MemoryStore(SECTORS, read_only=True))
    before = stored(export, 0, SECTORS)
    [run] = bench.receive(write(1, 0, b"x" * 512))
    assert not transfer(export, bench.batch, run)
    assert stored(export, 0, SECTORS) == before


@given(
    kinds=st.lists(st.tuples(st.booleans(), st.integers(0, 60), st.integers(1, 2)), min_size=1, max_size=64),
    reserved=st.binary(min_size=2, max_size=2),
)
def test_each_answer_is_what_the_codec_encodes(kinds: list[tuple[bool, int, int]], reserved: bytes) -> None:
    """Reads and writes of any sectors; what lies in the reserved bytes behind an LBA does not count."""
    export = make_export()
    expected = bytearray(stored(export, 0, SECTORS))
    with socket_and_wire() as (ours, wire):
        bench = Bench(ours.descriptor, wire)
        frames, answers = [], []
        for tag, (writes, lba, sectors) in enumerate(kinds):
            data = bytes([tag]) * (512 * sectors)
            frame = bytearray(write(tag, lba, data) if writes else read(tag, lba, sectors))
            frame[34:36] = reserved
            frames.append(bytes(frame))
            if writes:
                expected[lba * 512 : (lba + sectors) * 512] = data
            header = Header(THEIRS, OURS, Address(0, 0), AoeCommand.ATA, tag, Flag.RESPONSE)
            flags = decode_ata_untrusted(bytes(frame)).flags
            found = b"" if writes else bytes(expected[lba * 512 : (lba + sectors) * 512])
            answers.append(encode(header, AtaArgument(flags, 0, 0, Status.DRDY, lba), found).ljust(60, b"\0"))
        for run in bench.receive(*frames):
            first, end, *_ = run
            assert transfer(export, bench.batch, run)
            bench.batch.answer(first, end, OURS)
            assert bench.batch.send(bench.descriptor, first, end) == end - first
        assert [bench.wire.recv(1 << 16) for _ in answers] == answers
    assert stored(export, 0, SECTORS) == bytes(expected)
