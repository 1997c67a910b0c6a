"""The faulty wire itself: it forwards what it should, and injects each fault that a test asks for."""

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

    def __init__(self, lab: Lab, wire: Wire, left: socket.socket, right: socket.socket) -> None:
        self.wire = wire
        self.directions = {left: "out", right: "back"}
        self.macs = {left: lab.mac(INITIATOR), right: lab.mac(TARGET)}
        self.other = {left: right, right: left}

    def send(self, sender: socket.socket, *, command: int = 0, write: bool = False, size: int = 60) -> list[int]:
        """Send numbered frames; the numbers that arrive at the other end, but for those that are held back."""
        receiver, before = self.other[sender], self.wire.report()[self.directions[sender]]
        for number in range(COUNT):
            flags = 0 if sender is next(iter(self.other)) else Flag.RESPONSE
            header = Header(self.macs[receiver], self.macs[sender], Address(0, 0), AoeCommand.ATA, number, flags)
            argument = bytes([int(write), 0, 1, command])
            sender.send((encode_header(header) + argument).ljust(size, b"\0"))
        wait_until(lambda: self.wire.report()[self.directions[sender]].sent >= before.sent + COUNT)
        after = self.wire.report()[self.directions[sender]]
        more, fewer = ("duplicated",), ("lost", "too_long", "corrupted", "held")
        count = COUNT + sum(getattr(after, name) - getattr(before, name) for name in more)
        return self.receive(receiver, count - sum(getattr(after, name) - getattr(before, name) for name in fewer))

    @staticmethod
    def receive(receiver: socket.socket, count: int) -> list[int]:
        """The numbers of ``count`` frames that must arrive, and of those that arrive soon after them."""
        arrived: list[int] = []
        with contextlib.suppress(TimeoutError):
            while True:
                receiver.settimeout(10 if len(arrived) < count else 0.2)
                arrived.append(int.from_bytes(receiver.recv(1 << 16)[20:24], "big"))
        return arrived


@pytest.fixture
def ends(lab: Lab, wire: Wire) -> Iterator[Ends]:
    with open_packet_socket(lab, INITIATOR) as left, open_packet_socket(lab, TARGET) as right:
        for end in (left, right):
            end.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 32 << 20)  # where all frames wait until they are read
        yield Ends(lab, wire, left, right)


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
    wire.misbehave(out=Misdeeds(hold_writes=0.5, hold_by=3.0, lost_opcodes=(0xEA,)))
    assert ends.send(left, command=0xEA) == []
    assert ends.send(left, command=0x24) == list(range(COUNT))
    at_once = ends.send(left, command=0x34, write=True)
    held = wire.report()["out"].held
    assert 0 < held == COUNT - len(at_once)
    assert sorted(at_once + ends.receive(right, held)) == list(range(COUNT))


def test_faults_are_compared_by_their_values() -> None:
    assert Misdeeds(Faults(loss=1.0)) == BLACK_HOLE != NOTHING_WRONG == Misdeeds()
