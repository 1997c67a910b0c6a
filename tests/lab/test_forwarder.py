"""The faulty wire itself: it forwards what it should, and it injects each fault that it is told."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator

import pytest

from aoefs.protocol.wire import Address, AoeCommand, Flag, Header, encode_header
from tests.lab import INITIATOR, TARGET, Lab, open_packet_socket, wait_until
from tests.lab.forwarder import BLACK_HOLE, NOTHING_WRONG, Misdeeds, Wire
from tests.segment import Faults

COUNT = 200
_SO_RCVBUFFORCE = 33


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab(mtu=9000, pairs=0) as made:
        yield made


@pytest.fixture
def wire(lab: Lab) -> Iterator[Wire]:
    with contextlib.closing(Wire(lab, INITIATOR, TARGET)) as made:
        yield made


class Ends:
    """A socket at each end of the wire."""

    def __init__(self, lab: Lab, left: socket.socket, right: socket.socket) -> None:
        self.macs = {left: lab.mac(INITIATOR), right: lab.mac(TARGET)}
        self.other = {left: right, right: left}

    def send(self, sender: socket.socket, *, command: int = 0, write: bool = False, size: int = 60) -> list[int]:
        """Send numbered frames; the numbers that arrive at the other end, once the wire is quiet."""
        receiver = self.other[sender]
        for number in range(COUNT):
            flags = 0 if sender is next(iter(self.other)) else Flag.RESPONSE
            header = Header(self.macs[receiver], self.macs[sender], Address(0, 0), AoeCommand.ATA, number, flags)
            argument = bytes([int(write), 0, 1, command])
            sender.send((encode_header(header) + argument).ljust(size, b"\0"))
        return self.receive(receiver)

    @staticmethod
    def receive(receiver: socket.socket) -> list[int]:
        arrived = []
        with contextlib.suppress(TimeoutError):
            while True:
                arrived.append(int.from_bytes(receiver.recv(1 << 16)[20:24], "big"))
        return arrived


@pytest.fixture
def ends(lab: Lab, wire: Wire) -> Iterator[Ends]:
    with open_packet_socket(lab, INITIATOR) as left, open_packet_socket(lab, TARGET) as right:
        for end in (left, right):
            end.settimeout(0.2)
            end.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 32 << 20)  # all of it waits here for a moment
        yield Ends(lab, left, right)


def test_a_good_wire_carries_every_frame_both_ways_in_order(ends: Ends) -> None:
    for end in ends.other:
        assert ends.send(end, size=9000) == list(range(COUNT))


def test_each_fault_is_injected_and_counted(wire: Wire, ends: Ends) -> None:
    left, right = ends.other
    wire.faults(loss=0.2)
    for end, direction in ((left, "out"), (right, "back")):
        arrived = ends.send(end)
        lost = wire.report()[direction].lost
        assert 0 < lost < COUNT
        assert len(arrived) == COUNT - lost
        assert arrived == sorted(arrived)
    wire.faults(duplicate=0.5)
    assert sorted(set(arrived := ends.send(left))) == list(range(COUNT))
    assert len(arrived) == COUNT + wire.report()["out"].duplicated > COUNT
    wire.faults(reorder=0.2, reorder_by=0.05)
    arrived = ends.send(left)
    assert sorted(arrived) == list(range(COUNT)) != arrived
    wire.faults(corrupt=0.5)
    assert len(ends.send(left)) == COUNT - wire.report()["out"].corrupted < COUNT
    wire.faults(longest=1514)
    assert ends.send(left, size=1515) == []
    assert ends.send(left, size=1514) == list(range(COUNT))


def test_one_direction_may_be_a_black_hole(wire: Wire, ends: Ends) -> None:
    left, right = ends.other
    wire.misbehave(out=BLACK_HOLE, back=NOTHING_WRONG)
    assert ends.send(left) == []
    assert ends.send(right) == list(range(COUNT))
    wire.faults()
    assert ends.send(left) == list(range(COUNT))


def test_chosen_requests_are_held_back_or_lost(wire: Wire, ends: Ends) -> None:
    left, right = ends.other
    wire.misbehave(out=Misdeeds(hold_writes=0.5, hold_by=0.5, lost_opcodes=(0xEA,)))
    assert ends.send(left, command=0xEA) == []
    assert ends.send(left, command=0x24) == list(range(COUNT))
    at_once = ends.send(left, command=0x34, write=True)
    held = wire.report()["out"].held
    assert 0 < held == COUNT - len(at_once)
    wait_until(lambda: not wire.report()["out"].under_way)
    assert sorted(at_once + ends.receive(right)) == list(range(COUNT))


def test_faults_are_told_apart_by_their_names() -> None:
    assert Misdeeds(Faults(loss=1.0)) == BLACK_HOLE != NOTHING_WRONG == Misdeeds()
