"""Message vectors on real packet sockets: pieces gathered and scattered, batches cut short, errors."""

from __future__ import annotations

import errno
import socket
import struct

import numpy as np
import pytest
from numpy.typing import NDArray

from aoefs.net.mmsg import MessageVector, address_of
from tests.lab import INITIATOR, TARGET, Lab, open_packet_socket, wait_until

HEADER, PAYLOAD = 24, 1024


def ethernet(lab: Lab) -> bytes:
    """An Ethernet header from the initiator to the target."""
    return lab.mac(TARGET) + lab.mac(INITIATOR) + b"\x88\xa2"


def wait_for(wire: socket.socket, count: int) -> None:
    """Wait until so many frames are in the socket's queue: a busy kernel delivers them a little later."""
    arrived = 0

    def enough() -> bool:
        nonlocal arrived
        arrived += struct.unpack("II", wire.getsockopt(263, 6, 8))[0]  # SOL_PACKET, PACKET_STATISTICS
        return bool(arrived >= count)

    wait_until(enough, what=f"{count} frames")


def lay_out(vector: MessageVector, headers: NDArray[np.uint8], payloads: NDArray[np.uint8]) -> None:
    """Slot by slot: a row of the one table, then a row of the other."""
    rows = np.arange(vector.slots, dtype=np.uintp)
    for piece, table in enumerate((headers, payloads)):
        vector.base[:, piece] = address_of(table) + rows * table.strides[0]
        vector.size[:, piece] = table.shape[1]


def tables(slots: int, fill: int | None = None) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    random = np.random.default_rng(1)
    shapes = (slots, HEADER), (slots, PAYLOAD)
    if fill is None:
        headers, payloads = (random.integers(0, 256, shape, np.uint8) for shape in shapes)
    else:
        headers, payloads = (np.full(shape, fill, np.uint8) for shape in shapes)
    return headers, payloads


def test_a_batch_is_gathered_from_its_pieces_and_scattered_into_others(lab: Lab) -> None:
    sender, receiver = MessageVector(8, 2), MessageVector(16, 2)
    headers, payloads = tables(8)
    headers[:, :14] = np.frombuffer(ethernet(lab), np.uint8)
    got_headers, got_payloads = tables(16, fill=0xEE)
    lay_out(sender, headers, payloads)
    lay_out(receiver, got_headers, got_payloads)
    with open_packet_socket(lab, INITIATOR) as here, open_packet_socket(lab, TARGET) as there:
        assert receiver.receive(there.fileno(), 16) == 0, "nothing is queued yet, and nothing waits"
        assert sender.send(here.fileno(), 8) == 8
        wait_for(there, 8)
        assert receiver.receive(there.fileno(), 16) == 8
    assert (got_headers[:8] == headers).all()
    assert (got_payloads[:8] == payloads).all()
    assert (got_headers[8:] == 0xEE).all()
    assert (got_payloads[8:] == 0xEE).all()
    assert receiver.length[:8].tolist() == [HEADER + PAYLOAD] * 8


def test_slots_may_be_sent_from_the_middle_on(lab: Lab) -> None:
    sender = MessageVector(4, 2)
    headers, payloads = tables(4)
    headers[:, :14] = np.frombuffer(ethernet(lab), np.uint8)
    lay_out(sender, headers, payloads)
    with open_packet_socket(lab, INITIATOR) as here, open_packet_socket(lab, TARGET) as there:
        assert sender.send(here.fileno(), 2, first=1) == 2
        for row in (1, 2):
            assert there.recv(2000) == headers[row].tobytes() + payloads[row].tobytes()


def test_a_piece_of_no_bytes_is_skipped_and_a_short_frame_has_its_length(lab: Lab) -> None:
    sender, receiver = MessageVector(2, 2), MessageVector(2, 2)
    headers, payloads = tables(2)
    headers[:, :14] = np.frombuffer(ethernet(lab), np.uint8)
    got_headers, got_payloads = tables(2, fill=0xEE)
    lay_out(sender, headers, payloads)
    lay_out(receiver, got_headers, got_payloads)
    sender.base[0, 1] = 0  # with no bytes, the address is never used
    sender.size[0, 1] = 0
    sender.size[1, 1] = 3
    with open_packet_socket(lab, INITIATOR) as here, open_packet_socket(lab, TARGET) as there:
        assert sender.send(here.fileno(), 2) == 2
        wait_for(there, 2)
        assert receiver.receive(there.fileno(), 2) == 2
    assert receiver.length.tolist() == [HEADER, HEADER + 3]
    assert (got_headers == headers).all()
    assert (got_payloads[0] == 0xEE).all()
    assert (got_payloads[1, :3] == payloads[1, :3]).all()
    assert (got_payloads[1, 3:] == 0xEE).all()


def test_a_frame_longer_than_its_slot_is_cut_and_does_not_touch_the_next(lab: Lab) -> None:
    receiver = MessageVector(2, 2)
    got_headers, got_payloads = tables(2, fill=0xEE)
    lay_out(receiver, got_headers, got_payloads)
    receiver.size[:, 1] = 10
    with open_packet_socket(lab, INITIATOR) as here, open_packet_socket(lab, TARGET) as there:
        here.send(ethernet(lab) + bytes(1200))
        wait_for(there, 1)
        assert receiver.receive(there.fileno(), 2) == 1
    assert receiver.length[0] == HEADER + 10
    assert (got_payloads[0, 10:] == 0xEE).all()
    assert (got_payloads[1] == 0xEE).all()


def test_only_as_many_frames_are_taken_as_asked_for(lab: Lab) -> None:
    receiver = MessageVector(4, 2)
    headers, payloads = tables(4)  # kept by name: the vector holds only their addresses
    lay_out(receiver, headers, payloads)
    with open_packet_socket(lab, INITIATOR) as here, open_packet_socket(lab, TARGET) as there:
        for _ in range(7):
            here.send(ethernet(lab) + bytes(46))
        wait_for(there, 7)
        assert [receiver.receive(there.fileno(), 4) for _ in range(3)] == [4, 3, 0]


def test_a_batch_that_fails_in_the_middle_returns_how_many_went_out(lab: Lab) -> None:
    sender = MessageVector(4, 2)
    headers, payloads = tables(4)
    headers[:, :14] = np.frombuffer(ethernet(lab), np.uint8)
    lay_out(sender, headers, payloads)
    lab.ip(INITIATOR, "link", "set", "aoe0", "mtu", 700)
    sender.size[:, 1] = [100, 100, PAYLOAD, 100]
    with open_packet_socket(lab, INITIATOR) as here:
        assert sender.send(here.fileno(), 4) == 2
        with pytest.raises(OSError, match="Message too long") as caught:
            sender.send(here.fileno(), 2, first=2)
        assert caught.value.errno == errno.EMSGSIZE


def test_a_full_socket_is_a_blocking_io_error_and_never_waits(lab: Lab) -> None:
    sender = MessageVector(64, 2)
    headers, payloads = tables(64)
    headers[:, :14] = np.frombuffer(ethernet(lab), np.uint8)
    lay_out(sender, headers, payloads)
    # A token bucket that passes almost nothing keeps what is sent in its queue, and so in the socket's send buffer.
    bucket = ["tbf", "rate", "8bit", "burst", "1600", "limit", "1000000"]
    lab.run(INITIATOR, ["tc", "qdisc", "add", "dev", "aoe0", "root", *bucket])
    with open_packet_socket(lab, INITIATOR) as here:
        here.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16384)
        assert 0 < sender.send(here.fileno(), 64) < 64
        with pytest.raises(BlockingIOError) as caught:
            sender.send(here.fileno(), 1)
        assert caught.value.errno == errno.EAGAIN


def test_an_interface_that_went_down_is_reported_once_in_both_directions(lab: Lab) -> None:
    vector = MessageVector(2, 2)
    headers, payloads = tables(2)
    headers[:, :14] = np.frombuffer(ethernet(lab), np.uint8)
    lay_out(vector, headers, payloads)
    with open_packet_socket(lab, INITIATOR) as here:
        lab.ip(INITIATOR, "link", "set", "aoe0", "down")
        with pytest.raises(OSError, match="Network is down") as caught:
            vector.receive(here.fileno(), 2)
        assert caught.value.errno == errno.ENETDOWN
        assert vector.receive(here.fileno(), 2) == 0
        with pytest.raises(OSError, match="Network is down"):
            vector.send(here.fileno(), 2)


def test_the_address_of_a_buffer_is_where_its_bytes_lie() -> None:
    array = np.zeros(10, np.uint8)
    assert address_of(array[3:]) == address_of(array) + 3
    buffer = bytearray(10)
    assert address_of(memoryview(buffer)[4:]) == address_of(buffer) + 4
    assert address_of(b"read-only") > 0


def test_a_vector_keeps_its_tables_alive(lab: Lab) -> None:
    """The kernel uses addresses that Python does not see; what they point to must live as long."""
    vectors = [MessageVector(64, 2) for _ in range(50)]
    del vectors[::2]
    np.random.default_rng(2).bytes(1 << 20)  # use what was freed
    with open_packet_socket(lab, TARGET) as there:
        wait_until(lambda: all(vector.receive(there.fileno(), 64) == 0 for vector in vectors))
