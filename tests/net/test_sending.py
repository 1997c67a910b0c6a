"""Runs onto a socket: bit for bit what ``protocol.wire`` encodes, and the right count of what the socket took."""

from __future__ import annotations

import errno
import random
import socket
from collections.abc import Iterator
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aoefs.core.lonecommand import LoneCommand
from aoefs.core.request import Request, Run
from aoefs.core.tags import TagTable
from aoefs.core.target import Target
from aoefs.net.frames import Frames
from aoefs.protocol.ata import Identity, transfer_registers
from aoefs.protocol.wire import SECTOR_BYTES, Address, AoeCommand, Header, encode
from tests.net.sockets import OURS, FakeSocket, socket_and_wire

THEIRS = bytes.fromhex("02aa00000001")
LBA28_DISK = 1 << 28
LBA48_DISK = 1 << 40


class Sender:
    """Frames and the targets whose runs it sends."""

    def __init__(self, ours: FakeSocket, wire: socket.socket) -> None:
        self.ours = ours
        self.wire = wire
        self.tags: TagTable[Run | LoneCommand] = TagTable(random.Random(5).randbytes)
        self.frames = Frames(ours.as_packet_socket, self.tags)

    def run(
        self,
        lba: int,
        sectors: int,
        *,
        write: bool = False,
        lba48: bool = True,
        step: int = 2,
        address: Address = Address(3, 4),  # noqa: B008 (immutable)
    ) -> Run:
        """The first run of a new request, as the windows give it out."""
        identity = Identity(sectors=LBA48_DISK, serial="S", model="M", firmware="F", lba48=lba48)
        target = Target(address, identity, self.tags)
        target.set_bufcnt(64)
        path = target.add_path(self.ours.as_link, "fake0", (OURS, THEIRS), step)
        path.window.size = 64
        data = random.Random(lba).randbytes(sectors * SECTOR_BYTES)
        buffer = memoryview(data if write else bytearray(data))
        target.submit(Request(lba, sectors, buffer, write=write, on_end=lambda _ended: None), 0.0)
        run = target.next_run(0.0)
        assert run is not None
        return run

    def received(self) -> list[bytes]:
        frames = []
        with suppress(BlockingIOError):
            while True:
                frames.append(self.wire.recv(1 << 16))
        return frames


def encoded(run: Run) -> list[bytes]:
    """The frames of a run as the codec makes them."""
    frames = []
    request = run.request
    for index in range(run.count):
        start = run.sector + index * run.step
        sectors = min(run.step, run.sector + run.sectors - start)
        header = Header(THEIRS, OURS, Address(3, 4), AoeCommand.ATA, run.tag ^ index)
        registers = transfer_registers(request.lba + start, sectors, write=request.write, lba48=run.path.lba48)
        data = request.buffer[start * SECTOR_BYTES : (start + sectors) * SECTOR_BYTES] if request.write else b""
        frames.append(encode(header, registers, data))
    return frames


@pytest.fixture
def sender() -> Iterator[Sender]:
    with socket_and_wire(9000) as (ours, wire):
        yield Sender(ours, wire)


@pytest.mark.parametrize("write", [False, True], ids=["read", "write"])
@pytest.mark.parametrize("lba48", [False, True], ids=["LBA28", "LBA48"])
@pytest.mark.parametrize("step", [1, 2, 17])
@pytest.mark.parametrize("commands", [1, 2, 3, 64])
def test_a_run_is_sent_bit_for_bit_as_the_codec_encodes_it(
    sender: Sender, write: bool, lba48: bool, step: int, commands: int
) -> None:
    for short in {0, step - 1, step // 2}:
        lba = (LBA48_DISK if lba48 else LBA28_DISK) - commands * step  # the last commands of the disk
        run = sender.run(lba, commands * step - short, write=write, lba48=lba48, step=step)
        assert run.count == commands
        assert sender.frames.send(run) == commands
        assert sender.received() == encoded(run)
    assert sender.ours.tx_frames == commands * len({0, step - 1, step // 2})


@given(seed=st.integers(0, 1 << 32))
def test_no_run_leaves_a_trace_in_the_next_one(seed: int) -> None:
    """Reads and writes, short last commands, both widths, other payloads, one after another through one Frames."""
    chance = random.Random(seed)
    with socket_and_wire(9000) as (ours, wire):
        sender = Sender(ours, wire)
        for _ in range(8):
            step = chance.choice((1, 2, 3))
            run = sender.run(
                chance.randrange(1 << 27),
                chance.randint(1, 64 * step),
                write=chance.random() < 0.5,
                lba48=chance.random() < 0.5,
                step=step,
            )
            assert sender.frames.send(run) == run.count
            assert sender.received() == encoded(run)


def test_a_path_whose_disk_learned_long_addresses_uses_them(sender: Sender) -> None:
    """A disk that grows past 2^28 sectors begins to take the EXT commands; the same path goes on."""
    run = sender.run(100, 16, lba48=False)
    sender.frames.send(run)
    assert sender.received() == encoded(run)
    run.path.lba48 = True
    sender.frames.send(run)
    assert sender.received() == encoded(run)


def test_the_rest_of_a_request_is_sent_from_its_place_in_the_buffer(sender: Sender) -> None:
    run = sender.run(5, 200, write=True)
    rest = Run(run.request, run.path, 37, 21, 2, 0.0)
    rest.tag = 0x9000_0000
    sender.frames.send(rest)
    assert sender.received() == encoded(rest)


@pytest.mark.parametrize("commands", [1, 2, 3, 64])
@pytest.mark.parametrize("write", [False, True], ids=["read", "write"])
def test_a_full_socket_takes_a_part_and_says_how_much(sender: Sender, commands: int, write: bool) -> None:
    sender.ours.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    taken = []
    for _ in range(40):
        run = sender.run(0, commands * 2, write=write)
        sent = sender.frames.send(run)
        taken += encoded(run)[:sent]
        if sent < commands:
            break
    else:
        pytest.fail("the socket never was full")
    assert sender.received() == taken
    assert sender.ours.tx_frames == len(taken)
    sent = sender.frames.send(run)
    assert sender.received() == encoded(run)[:sent]
    assert sent > 0


def test_a_frame_that_is_too_large_leaves_the_run_unsent(sender: Sender) -> None:
    sender.ours.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    assert sender.frames.send(sender.run(0, 34, write=True, step=17)) == 0
    assert sender.ours.errors == [errno.EMSGSIZE]


def test_a_link_that_is_down_takes_everything_and_loses_it(sender: Sender) -> None:
    sender.ours.socket.close()
    assert sender.frames.send(sender.run(0, 4)) == 2
    assert sender.ours.errors == [errno.EBADF]
    assert sender.ours.tx_frames == 0
