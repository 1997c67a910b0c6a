"""Answers off a socket: each good one lands exactly in its place, and no other frame does, in whatever order."""

from __future__ import annotations

import random
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aoefs.core.link import Entry, Link
from aoefs.core.lonecommand import LoneCommand
from aoefs.core.path import Path
from aoefs.core.request import Request, Run
from aoefs.core.tags import TagTable
from aoefs.core.target import Target
from aoefs.net.frames import SLOTS, Frames
from aoefs.protocol.ata import Identity, Status
from aoefs.protocol.wire import (
    ATA_BYTES,
    SECTOR_BYTES,
    Address,
    AoeCommand,
    AtaArgument,
    ErrorCode,
    Flag,
    Header,
    encode,
    encode_header,
    pad,
)
from tests.net.sockets import OURS, FakeSocket, socket_and_wire

DISK_SECTORS = 4096


def content(address: Address, lba: int) -> bytes:
    """What the disk at ``address`` holds in a sector: no two sectors of any two disks are equal."""
    word = (address.shelf << 24 | address.slot << 16 | lba).to_bytes(4, "big")
    return word * (SECTOR_BYTES // 4)


def contents(address: Address, lba: int, sectors: int) -> bytes:
    return b"".join(content(address, lba + index) for index in range(sectors))


@dataclass(eq=False)
class Reader:
    """A request as its owner sees it: the buffer, and what was in it when the request ended."""

    address: Address
    request: Request
    buffer: bytearray
    ended: bytes | None = None


@dataclass
class Bench:
    """Frames and the targets whose answers it receives; entries are completed as the engine does."""

    ours: FakeSocket
    wire: socket.socket
    frames: Frames
    tags: TagTable[Run | LoneCommand]
    now: float = 1.0
    targets: list[Target] = field(default_factory=list)
    owners: dict[Path, Target] = field(default_factory=dict)
    readers: list[Reader] = field(default_factory=list)
    queue: list[tuple[Target, Entry]] = field(default_factory=list)
    odd: list[bytes] = field(default_factory=list)

    def add_target(self, shelf: int, slot: int, *, step: int = 2, window: int = 64) -> Target:
        identity = Identity(sectors=DISK_SECTORS, serial="S", model="M", firmware="F")
        target = Target(Address(shelf, slot), identity, self.tags, deadsecs=0)
        target.set_bufcnt(64)
        path = target.add_path(self.ours.as_link, "fake0", (OURS, self.mac(target)), step)
        path.window.size = window
        self.targets.append(target)
        self.owners[path] = target
        return target

    @staticmethod
    def mac(target: Target) -> bytes:
        return bytes((2, 0xAA, 0, target.address.shelf, 0, target.address.slot))

    def submit(self, target: Target, lba: int, sectors: int, *, write: bool = False) -> Reader:
        buffer = bytearray(b"\xee" * sectors * SECTOR_BYTES)

        def on_end(_request: Request) -> None:
            reader.ended = bytes(buffer)

        request = Request(lba, sectors, memoryview(buffer), write=write, on_end=on_end)
        reader = Reader(target.address, request, buffer)
        self.readers.append(reader)
        target.submit(request, self.now)
        return reader

    def send(self, target: Target) -> list[Run]:
        """Everything that the windows allow."""
        runs = []
        while (run := target.next_run(self.now)) is not None:
            assert self.frames.send(run) == run.count
            for _ in range(run.count):
                self.wire.recv(1 << 16)
            runs.append(run)
        return runs

    def answer(self, run: Run, index: int, **changes: object) -> bytes:
        """The good answer to one command, or one with other fields; ``data``, ``status`` and header fields."""
        target = self.owners[run.path]
        start, sectors = run.sectors_of(index, 1)
        lba = run.request.lba + start
        data = b"" if run.request.write else contents(target.address, lba, sectors)
        data = cast(bytes, changes.pop("data", data))
        status = cast(int, changes.pop("status", Status.DRDY))
        fields: dict[str, object] = {
            "destination": OURS,
            "source": run.path.mac,
            "address": target.address,
            "command": AoeCommand.ATA,
            "tag": run.tag ^ index,
            "flags": Flag.RESPONSE,
        }
        header = Header(**(fields | changes))  # type: ignore[arg-type]  # a field by its name
        return encode(header, AtaArgument(0x40, 0, 0, status, lba), data)

    def receive(self, frames: list[bytes], *, complete: bool = True) -> list[Entry]:
        """Put frames on the wire and take them off, batch by batch; the entries."""
        for frame in frames:
            self.wire.send(frame)
        before = self.ours.rx_frames
        found = []
        while True:
            received, entries, odd = self.frames.receive()
            if not received:
                break
            assert received <= SLOTS
            covered = sum(count for _, _, count in entries)
            assert covered + len(odd) == received, "every frame is an answer or an odd one"
            self.odd += odd
            for entry in entries:
                run, first, count = entry
                target = self.owners[run.path]
                if target.receive(run, first, count, self.now):
                    self.queue.append((target, entry))
            found += entries
        assert self.ours.rx_frames - before == len(frames)
        if complete:
            self.complete()
        return found

    def complete(self) -> None:
        for target, (run, first, count) in self.queue:
            target.complete(run, first, count)
        self.queue.clear()

    def check(self) -> None:
        """No reader was given a wrong byte, and no buffer changed after its request ended."""
        for reader in self.readers:
            request = reader.request
            if reader.ended is None:
                continue
            assert bytes(reader.buffer) == reader.ended, "written to after its end"
            if not request.write and request.error is None:
                expected = contents(reader.address, request.lba, request.sectors)
                wrong = [
                    index
                    for index in range(request.sectors)
                    if reader.ended[index * SECTOR_BYTES : (index + 1) * SECTOR_BYTES]
                    != expected[index * SECTOR_BYTES : (index + 1) * SECTOR_BYTES]
                ]
                assert not wrong, f"sectors {wrong} of {request.sectors} are wrong"


@contextmanager
def open_bench(mtu: int = 1500) -> Iterator[Bench]:
    with socket_and_wire(mtu) as (ours, wire):
        tags: TagTable[Run | LoneCommand] = TagTable(random.Random(7).randbytes)
        yield Bench(ours, wire, Frames(ours.as_packet_socket, tags), tags)


@pytest.fixture
def bench() -> Iterator[Bench]:
    with open_bench() as made:
        yield made


def spans(entries: list[Entry]) -> list[tuple[int, int]]:
    return [(first, count) for _, first, count in entries]


# ── examples ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("commands", [1, 2, 3, 4, 16, 63, 64])
@pytest.mark.parametrize("short", [False, True])
def test_answers_in_order_are_one_entry_in_place(bench: Bench, commands: int, short: bool) -> None:
    target = bench.add_target(1, 2)
    sectors = commands * 2 - short
    reader = bench.submit(target, 100, sectors)
    (run,) = bench.send(target)
    entries = bench.receive([bench.answer(run, index) for index in range(commands)])
    assert spans(entries) == [(0, commands)]
    assert reader.ended == contents(target.address, 100, sectors)
    assert not bench.odd


def test_nothing_queued_is_no_batch(bench: Bench) -> None:
    assert bench.frames.receive() == (0, [], [])


@pytest.mark.parametrize("order", ["reversed", "shuffled", "doubled"])
def test_answers_out_of_order_land_in_place(bench: Bench, order: str) -> None:
    target = bench.add_target(1, 2)
    reader = bench.submit(target, 0, 40)
    (run,) = bench.send(target)
    frames = [bench.answer(run, index) for index in range(20)]
    if order == "reversed":
        frames.reverse()
    elif order == "shuffled":
        random.Random(1).shuffle(frames)
    else:
        frames = [frame for frame in frames for _ in range(2)]
    bench.receive(frames)
    assert reader.ended == contents(target.address, 0, 40)
    bench.check()


def test_several_targets_interleaved_land_each_in_its_own_buffer(bench: Bench) -> None:
    targets = [bench.add_target(shelf, 1) for shelf in range(3)]
    readers = [bench.submit(target, 7, 32) for target in targets]
    runs = [bench.send(target)[0] for target in targets]
    bench.receive([bench.answer(run, index) for index in range(16) for run in runs])
    for target, reader in zip(targets, readers, strict=True):
        assert reader.ended == contents(target.address, 7, 32)
    assert not bench.odd


def test_jumbo_frames_land_in_place(bench: Bench) -> None:
    with open_bench(9000) as jumbo:
        target = jumbo.add_target(1, 2, step=17)
        reader = jumbo.submit(target, 3, 17 * 5 + 4)
        (run,) = jumbo.send(target)
        frames = [jumbo.answer(run, index) for index in range(6)]
        assert spans(jumbo.receive(frames)) == [(0, 6)]
        assert reader.ended == contents(target.address, 3, 17 * 5 + 4)


def test_the_spill_grows_with_the_mtu(bench: Bench) -> None:
    target = bench.add_target(1, 2, step=17)
    bench.ours.mtu = 9000
    reader = bench.submit(target, 0, 17 * 4)
    (run,) = bench.send(target)
    bench.receive([bench.answer(run, index) for index in (3, 2, 1, 0)])
    assert reader.ended == contents(target.address, 0, 17 * 4)


def test_answers_to_writes_need_no_data(bench: Bench) -> None:
    target = bench.add_target(1, 2)
    reader = bench.submit(target, 0, 16, write=True)
    (run,) = bench.send(target)
    short = [bench.answer(run, index)[:ATA_BYTES] for index in range(8)]  # vblade on veth does not pad
    assert spans(bench.receive(short)) == [(0, 8)]
    assert reader.ended == b"\xee" * 16 * SECTOR_BYTES
    assert (target.writes, target.write_bytes) == (1, 16 * SECTOR_BYTES)


BAD: dict[str, dict[str, object]] = {
    "another MAC": {"source": bytes.fromhex("02bad0000001"), "data": b"\x66" * 1024},
    "another shelf": {"address": Address(9, 2), "data": b"\x66" * 1024},
    "another slot": {"address": Address(1, 9), "data": b"\x66" * 1024},
    "another command": {"command": AoeCommand.CONFIG, "data": b"\x66" * 1024},
    "no response": {"flags": 0, "data": b"\x66" * 1024},
    "another version": {"version": 2, "data": b"\x66" * 1024},
    "an AoE error": {"flags": Flag.RESPONSE | Flag.ERROR, "error": ErrorCode.BAD_ARGUMENT, "data": b"\x66" * 1024},
    "a failed status": {"status": Status.DRDY | Status.ERR, "data": b"\x66" * 1024},
    "too few data": {"data": b"\x66" * 511},
    "no data": {"data": b""},
    "an unknown tag": {"tag": 0x8000_0001, "data": b"\x66" * 1024},
    "the driver's tag": {"tag": 5, "data": b"\x66" * 1024},
}


@pytest.mark.parametrize("kind", BAD)
@pytest.mark.parametrize("place", [0, 3, 7], ids=["first", "middle", "last"])
def test_a_frame_that_is_no_good_answer_is_odd_whole_and_never_reaches_a_reader(
    bench: Bench, kind: str, place: int
) -> None:
    target = bench.add_target(1, 2)
    reader = bench.submit(target, 0, 16)
    (run,) = bench.send(target)
    frames = [bench.answer(run, index) for index in range(8)]
    bad = bench.answer(run, place, **dict(BAD[kind]))
    bench.receive([*frames[:place], bad, *frames[place:]])
    assert bench.odd == [bad]
    assert reader.ended == contents(target.address, 0, 16)


@pytest.mark.parametrize("size", [1, 13, 23, 24, 35, 36, 59, 60, 1500])
def test_junk_of_any_length_is_odd(bench: Bench, size: int) -> None:
    target = bench.add_target(1, 2)
    reader = bench.submit(target, 0, 16)
    (run,) = bench.send(target)
    junk = bytes(index * 37 & 0xFF for index in range(size))
    bench.receive([junk, *(bench.answer(run, index) for index in range(8))])
    assert bench.odd == [junk]
    assert reader.ended == contents(target.address, 0, 16)


def test_a_short_frame_does_not_inherit_the_headers_of_an_earlier_one(bench: Bench) -> None:
    target = bench.add_target(1, 2)
    bench.submit(target, 0, 8)
    (run,) = bench.send(target)
    whole = [bench.answer(run, index) for index in range(4)]
    assert not bench.receive([frame[:20] for frame in whole])
    for tail in (24, 28, 35):
        bench.receive([frame[:tail] for frame in whole])
    assert len(bench.odd) == 16
    bench.receive(whole)
    bench.check()
    assert bench.readers[0].ended is not None


def test_odd_frames_among_good_ones_keep_their_order(bench: Bench) -> None:
    target = bench.add_target(1, 2)
    bench.submit(target, 0, 16)
    (run,) = bench.send(target)
    header = Header(OURS, run.path.mac, target.address, AoeCommand.CONFIG, 1, Flag.RESPONSE)
    odd = [pad(encode_header(header)) + bytes([number]) for number in range(8)]
    bench.receive([frame for index in range(8) for frame in (odd[index], bench.answer(run, index))])
    assert bench.odd == odd


def test_a_late_answer_to_a_resent_command_is_used_and_a_bad_frame_cannot_undo_it(bench: Bench) -> None:
    """The first sending is answered late; then junk lies where the answer to the second one was predicted."""
    target = bench.add_target(1, 2)
    reader = bench.submit(target, 0, 64)
    (first,) = bench.send(target)
    bench.now += 0.3
    target.handle_timeout(bench.now)
    retransmitted = bench.send(target)
    assert retransmitted
    assert sum(run.count for run in retransmitted) >= 3
    late = [bench.answer(first, index) for index in range(first.count)]
    bench.receive(late, complete=False)
    bad = [
        bench.answer(retransmitted[0], index, source=OURS, data=b"\x66" * 1024)
        for index in range(retransmitted[0].count)
    ]
    bench.receive(bad, complete=False)
    bench.complete()
    assert reader.ended == contents(target.address, 0, 64)


def test_a_bad_frame_after_a_late_answer_is_harmless_while_the_request_goes_on(bench: Bench) -> None:
    target = bench.add_target(1, 2)
    reader = bench.submit(target, 0, 64)
    (first,) = bench.send(target)
    bench.now += 0.3
    target.handle_timeout(bench.now)
    retransmitted = [run for run in bench.send(target) if run.count >= 3]
    bench.receive([bench.answer(first, index) for index in range(first.count - 1)])
    assert reader.ended is None
    for _ in range(3):
        bench.receive([bench.answer(retransmitted[0], 0, source=OURS, data=b"\x66" * 1024)])
    bench.receive([bench.answer(first, first.count - 1)])
    assert reader.ended == contents(target.address, 0, 64)


def test_nothing_is_written_to_the_buffer_of_an_abandoned_request(bench: Bench) -> None:
    target = bench.add_target(1, 2)
    reader = bench.submit(target, 0, 32)
    (run,) = bench.send(target)
    target.abandon(reader.request)
    entries = bench.receive([bench.answer(run, index) for index in range(16)])
    assert sum(count for _, _, count in entries) == 16, "they still count for the windows"
    assert bytes(reader.buffer) == b"\xee" * 32 * SECTOR_BYTES
    assert target.in_flight == 0


def test_a_bad_frame_does_not_reach_the_buffer_of_an_abandoned_request(bench: Bench) -> None:
    target = bench.add_target(1, 2)
    reader = bench.submit(target, 0, 32)
    (run,) = bench.send(target)
    target.abandon(reader.request)
    bench.receive([bench.answer(run, index, source=OURS, data=b"\x66" * 1024) for index in range(16)])
    assert bytes(reader.buffer) == b"\xee" * 32 * SECTOR_BYTES


def test_a_bad_frame_does_not_reach_the_place_of_a_command_that_was_given_up(bench: Bench) -> None:
    target = bench.add_target(1, 2)
    reader = bench.submit(target, 0, 32)
    (run,) = bench.send(target)
    bench.now += 0.3
    target.handle_timeout(bench.now)
    assert run.lost
    bench.receive([bench.answer(run, index, source=OURS, data=b"\x66" * 1024) for index in range(16)])
    kept = [index for index in range(16) if run.lost >> index & 1]
    assert all(reader.buffer[index * 1024 : (index + 1) * 1024] == b"\xee" * 1024 for index in kept)


@pytest.mark.parametrize("index", [8, 20, 63])
def test_a_tag_of_the_block_that_no_command_has_is_odd(bench: Bench, index: int) -> None:
    target = bench.add_target(1, 2)
    reader = bench.submit(target, 0, 16)
    (run,) = bench.send(target)
    bad = bench.answer(run, 0, tag=run.tag ^ index, data=b"\x66" * 1024)
    bench.receive([bad, *(bench.answer(run, index) for index in range(8))])
    assert bench.odd == [bad]
    assert reader.ended == contents(target.address, 0, 16)


def test_an_answer_from_another_link_of_the_same_target_is_odd(bench: Bench) -> None:
    target = bench.add_target(1, 2)
    other = target.add_path(cast(Link, object()), "fake1", (OURS, Bench.mac(target)), 2)
    bench.owners[other] = target
    reader = bench.submit(target, 0, 8)
    target.paths = [other]
    other.window.size = 16
    run = target.next_run(bench.now)
    assert run is not None
    frame = bench.answer(run, 0)
    bench.receive([frame])
    assert bench.odd == [frame]
    assert bytes(reader.buffer) == b"\xee" * 8 * SECTOR_BYTES


def test_a_silent_target_does_not_keep_the_answers_of_another_one_from_their_place(bench: Bench) -> None:
    silent, lively = bench.add_target(1, 1), bench.add_target(1, 2)
    bench.submit(silent, 0, 128)
    bench.send(silent)
    for _ in range(4):
        reader = bench.submit(lively, 0, 32)
        (run,) = bench.send(lively)
        bench.receive([bench.answer(run, index) for index in range(16)])
        assert reader.ended == contents(lively.address, 0, 32)
    assert not bench.odd


# ── properties ────────────────────────────────────────────────────────────────────────────────────────────────────


@settings(max_examples=150)
@given(seed=st.integers(0, 1 << 32), targets=st.integers(1, 3), badness=st.sampled_from([0.0, 0.1, 0.4]))
def test_whatever_comes_in_whatever_order_every_good_answer_lands_in_place(
    seed: int, targets: int, badness: float
) -> None:
    chance = random.Random(seed)
    with open_bench() as bench:
        disks = [bench.add_target(index, 0, step=chance.choice((1, 2))) for index in range(targets)]
        for _ in range(chance.randint(1, 6)):
            target = chance.choice(disks)
            bench.submit(target, chance.randrange(500), chance.randint(1, 90), write=chance.random() < 0.2)
        air: list[bytes] = []  # answers that are on their way
        for step in range(400):
            for target in disks:
                target.handle_timeout(bench.now)
                for run in bench.send(target):
                    for index in range(run.count):
                        fate = chance.random()
                        if fate < badness / 4 and step < 60:
                            continue  # lost
                        frame = bench.answer(run, index)
                        air += [frame] * (2 if fate > 1 - badness / 4 else 1)
                        if chance.random() < badness:
                            bad = dict(BAD[chance.choice(list(BAD))])
                            air.append(bench.answer(run, index, **bad))
            if not any(target.requests() for target in disks):
                break
            if chance.random() < badness:
                chance.shuffle(air)
            batch = air[: chance.randint(0, 80)]
            if chance.random() < badness:  # some of these stay in the air for a long time
                late = [frame for frame in batch if chance.random() < 0.3]
                batch = [frame for frame in batch if frame not in late]
                air = [*air[len(batch) + len(late) :], *late]
            else:
                air = air[len(batch) :]
            bench.receive(batch, complete=chance.random() < 0.7)
            if chance.random() < 0.3:
                bench.complete()
            if chance.random() < badness / 20:
                reader = chance.choice(bench.readers)
                if not reader.request.ended:
                    bench.targets[[t.address for t in disks].index(reader.address)].abandon(reader.request)
                    reader.ended = bytes(reader.buffer)
            bench.now += chance.choice((0.00001, 0.0003, 0.02, 0.3))
            for target in disks:
                target.heard(bench.now)
            bench.check()
        bench.receive(air)
        bench.check()
        for reader in bench.readers:
            assert reader.ended is not None
        assert not any(target.requests() for target in disks)
