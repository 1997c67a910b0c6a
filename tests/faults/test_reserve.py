"""Reservations: taken with all our addresses while a target is open for writing, and given back."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from collections.abc import Callable, Iterator

import pytest

from aoefs.wire import (
    Address,
    AoeCommand,
    Header,
    ReserveArgument,
    ReserveCommand,
    decode_header_untrusted,
    decode_reserve_untrusted,
    encode_reserve,
)
from tests.faults.live import errno_of, log_of, mount_until, opened, pattern, read, target_of, write
from tests.forwarder import Wire
from tests.lab import INITIATOR, TARGET, Lab, open_packet_socket, wait_until

SIZE = 1 << 20
STRANGER = bytes.fromhex("02ae000000ee")


@pytest.fixture(params=["vblade", "own"])
def serve(request: pytest.FixtureRequest, lab: Lab) -> Callable[[], object]:
    """Exports a disk as e0.0, by vblade or by ``aoefs target``."""

    def run() -> object:
        disk = lab.image("disk", SIZE)
        return lab.vblade(0, 0, disk) if request.param == "vblade" else lab.target(f"0.0={disk}")

    return run


@pytest.fixture
def raw(lab: Lab, wire: Wire) -> Iterator[socket.socket]:
    with open_packet_socket(lab) as opened_socket:
        yield opened_socket


def reserve(lab: Lab, raw: socket.socket, argument: ReserveArgument) -> tuple[bytes, ...]:
    """The list of MACs that the target answers."""
    tag = os.getpid()
    header = Header(lab.mac(TARGET), lab.mac(INITIATOR), Address(0, 0), AoeCommand.RESERVE, tag)
    raw.send(encode_reserve(header, argument))
    while True:
        frame = raw.recv(1 << 16)
        answer = decode_header_untrusted(frame)
        if answer.tag == tag and answer.is_response:
            assert not answer.is_error, answer
            return decode_reserve_untrusted(frame).macs


def holders(lab: Lab, raw: socket.socket) -> tuple[bytes, ...]:
    return reserve(lab, raw, ReserveArgument())


def test_a_reservation_is_held_with_all_our_addresses_while_a_file_is_open_for_writing(
    lab: Lab, wire: Wire, raw: socket.socket, serve: Callable[[], object]
) -> None:
    with contextlib.closing(Wire(lab, INITIATOR, TARGET)):
        serve()
        mount = mount_until(lab, "e0.0", reserve=True)
        assert holders(lab, raw) == ()
        with opened(mount.here / "e0.0", os.O_RDONLY):
            assert holders(lab, raw) == ()
        ours = {lab.mac(INITIATOR, 0), lab.mac(INITIATOR, 1)}
        with opened(mount.here / "e0.0") as file, opened(mount.here / "e0.0") as other:
            assert set(holders(lab, raw)) == ours
            write(file, pattern(1))
            assert read(other, 4096) == pattern(1)
        wait_until(lambda: holders(lab, raw) == (), what="it was given back at the last close")
        with opened(mount.here / "e0.0"):
            assert set(holders(lab, raw)) == ours


def test_a_disk_that_somebody_else_holds_is_busy(
    lab: Lab, wire: Wire, raw: socket.socket, serve: Callable[[], object]
) -> None:
    serve()
    mount = mount_until(lab, "e0.0", reserve=True)
    reserve(lab, raw, ReserveArgument(ReserveCommand.SET, (STRANGER,)))
    assert errno_of(lambda: os.open(mount.here / "e0.0", os.O_RDWR)) == errno.EBUSY
    assert holders(lab, raw) == (STRANGER,)
    assert "target is reserved" in log_of(mount)
    reserve(lab, raw, ReserveArgument(ReserveCommand.FORCE_SET, ()))
    with opened(mount.here / "e0.0") as file:
        write(file, pattern(1))
        reserve(lab, raw, ReserveArgument(ReserveCommand.FORCE_SET, (STRANGER,)))
        assert errno_of(lambda: read(file, 4096)) == errno.EBUSY
        assert errno_of(lambda: write(file, pattern(2))) == errno.EBUSY
        reserve(lab, raw, ReserveArgument(ReserveCommand.FORCE_SET, ()))
        assert read(file, 4096) == pattern(1)
    assert target_of(mount)["state"] == "up"


def test_without_the_option_nothing_is_reserved(lab: Lab, wire: Wire, raw: socket.socket) -> None:
    lab.vblade(0, 0, lab.image("disk", SIZE))
    mount = mount_until(lab, "e0.0")
    with opened(mount.here / "e0.0") as file:
        write(file, pattern(1))
        assert holders(lab, raw) == ()
