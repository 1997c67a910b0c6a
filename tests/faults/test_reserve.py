"""Reservations: held with all our addresses while a target is open for writing, then released; and what ``discover``
reports of reservations of others, and of MAC masks."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import select
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator

import pytest

from aoefs.protocol.ata import Opcode
from aoefs.protocol.wire import (
    Address,
    AoeCommand,
    Header,
    MaskArgument,
    MaskCommand,
    MaskDirective,
    ReserveArgument,
    ReserveCommand,
    decode_header_untrusted,
    decode_reserve_untrusted,
    encode,
)
from tests.faults.live import Worker, errno_of, log_of, mount_until, pattern, read, write
from tests.lab import INITIATOR, TARGET, Lab, Process, open_packet_socket, opened, wait_until
from tests.lab.forwarder import Misdeeds, Wire

SIZE = 1 << 20
STRANGER = bytes.fromhex("02ae000000ee")
Serve = Callable[[], Process]


@pytest.fixture(params=["vblade", "own"])
def serve(request: pytest.FixtureRequest, lab: Lab) -> Serve:
    """Exports a disk as e0.0, by vblade or by ``aoefs target``; each call exports the same disk."""

    def run() -> Process:
        disk = lab.image("disk", SIZE)
        return lab.vblade(0, 0, disk) if request.param == "vblade" else lab.target(f"0.0={disk}")

    return run


@pytest.fixture
def raw(lab: Lab, wire: Wire) -> Iterator[socket.socket]:
    with open_packet_socket(lab) as opened_socket:
        yield opened_socket


def reserve(lab: Lab, raw: socket.socket, argument: ReserveArgument) -> tuple[bytes, ...]:
    """The MACs in the answer of the target, which is asked again every second."""
    tag = os.getpid()
    header = Header(lab.mac(TARGET), lab.mac(INITIATOR), Address(0, 0), AoeCommand.RESERVE, tag)
    ask_at = 0.0
    for _ in range(30 * 1000):  # the stream of others is seen, too
        if time.monotonic() >= ask_at:
            raw.send(encode(header, argument))
            ask_at = time.monotonic() + 1
        if not select.select([raw], [], [], 1)[0]:
            continue
        frame = raw.recv(1 << 16)
        answer = decode_header_untrusted(frame)
        if answer.tag == tag and answer.is_response:
            assert not answer.is_error, answer
            return decode_reserve_untrusted(frame).macs
    raise AssertionError("the target does not answer")


def holders(lab: Lab, raw: socket.socket) -> tuple[bytes, ...]:
    return reserve(lab, raw, ReserveArgument())


def test_a_reservation_is_held_with_all_our_addresses_while_a_file_is_open_for_writing(
    lab: Lab, wire: Wire, raw: socket.socket, serve: Serve
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
        wait_until(lambda: holders(lab, raw) == (), what="the last close releases it")
        with opened(mount.here / "e0.0"):
            assert set(holders(lab, raw)) == ours


def test_a_disk_that_another_host_has_reserved_is_busy(lab: Lab, wire: Wire, raw: socket.socket, serve: Serve) -> None:
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
    assert mount.target()["state"] == "up"


def test_a_target_that_was_restarted_is_reserved_again(lab: Lab, wire: Wire, raw: socket.socket, serve: Serve) -> None:
    target = serve()
    mount = mount_until(lab, "e0.0", reserve=True)
    with opened(mount.here / "e0.0") as file:
        write(file, pattern(1))
        os.fsync(file)  # see tests.lab.opened
        target.stop(signal.SIGKILL)
        serve()
        wait_until(lambda: holders(lab, raw) == (lab.mac(INITIATOR),), what="it was reserved again")
        write(file, pattern(2))
    wait_until(lambda: holders(lab, raw) == (), what="it is released")
    assert mount.target()["errors"] == 0


def test_an_interface_that_gets_another_mac_keeps_what_it_reserved_and_io_goes_on(
    lab: Lab, wire: Wire, raw: socket.socket, serve: Serve
) -> None:
    serve()
    mount = mount_until(lab, "e0.0", reserve=True)
    other = bytes.fromhex("02ae0000aa01")
    with opened(mount.here / "e0.0") as file, Worker(lambda step: write(file, pattern(step))) as worker:
        worker.wait_for_steps(20)
        lab.ip(INITIATOR, "link", "set", wire.left, "address", other.hex(":"))
        wait_until(lambda: holders(lab, raw) == (other,), what="it is reserved with the new MAC")
        worker.wait_for_steps(20)
    wait_until(lambda: holders(lab, raw) == (), what="it is released")
    assert mount.target()["errors"] == 0
    assert f"{wire.left} has the address {other.hex(':')} now" in log_of(mount)


def test_a_mount_that_ends_releases_what_open_files_have_reserved(lab: Lab, wire: Wire, raw: socket.socket) -> None:
    lab.vblade(0, 0, lab.image("disk", SIZE))
    mount = mount_until(lab, "e0.0", reserve=True)
    assert mount.process is not None
    with opened(mount.here / "e0.0") as file:
        write(file, pattern(1))
        assert holders(lab, raw) == (lab.mac(INITIATOR),)
        mount.process.send_signal(signal.SIGTERM)
        wait_until(lambda: not mount.mounted)
        mount.process.send_signal(signal.SIGTERM)
        assert mount.process.wait(30) == 0
        assert holders(lab, raw) == ()


def discover(lab: Lab, *options: str) -> subprocess.CompletedProcess[str]:
    links = [word for name in lab.sides[INITIATOR].interfaces for word in ("-i", name)]
    return lab.aoefs("discover", *links, *options, check=False)


def test_discover_reports_which_host_has_reserved_a_disk(lab: Lab, wire: Wire, raw: socket.socket) -> None:
    lab.vblade(0, 0, lab.image("disk", SIZE))
    assert json.loads(discover(lab, "--json").stdout)[0]["state"] == "up"
    reserve(lab, raw, ReserveArgument(ReserveCommand.SET, (lab.mac(INITIATOR), STRANGER)))
    assert json.loads(discover(lab, "--json").stdout)[0]["state"] == "up", "we are among them"
    reserve(lab, raw, ReserveArgument(ReserveCommand.FORCE_SET, (STRANGER,)))
    (found,) = json.loads(discover(lab, "--json").stdout)
    assert (found["state"], found["size"]) == ("reserved", SIZE)
    answer = discover(lab)
    assert answer.returncode == 0
    assert " reserved" in answer.stdout
    assert answer.stderr == (
        f"aoefs: e0.0 ({lab.mac(TARGET).hex(':')} on aoe0): "
        f"{STRANGER.hex(':')} has reserved it: its I/O fails (EBUSY)\n"
    )


def test_discover_lists_a_target_that_answers_but_cannot_be_identified(lab: Lab, wire: Wire) -> None:
    lab.vblade(0, 0, lab.image("disk", SIZE))
    wire.misbehave(out=Misdeeds(lost_opcodes=(Opcode.IDENTIFY,)))
    answer = discover(lab)
    assert answer.returncode == 0
    assert answer.stdout.splitlines()[1].split() == ["e0.0", "aoe0", "1024", "no", "answer"]
    assert "not IDENTIFY: its MAC mask or access list may leave this host out" in answer.stderr
    assert answer.stderr.count("\n") == 1
    (found,) = json.loads(discover(lab, "--json").stdout)
    assert (found["state"], found["size"]) == ("no answer", None)
    mount = lab.mount(foreground=True)
    wait_until(lambda: mount.status()["strangers"], what="the mount reports it")
    assert mount.status()["strangers"][0]["state"] == "no answer"
    assert mount.status()["targets"] == []


def test_discover_explains_a_mac_mask_that_leaves_an_interface_out(lab: Lab, serve: Serve) -> None:
    """Both interfaces see the target; over one of them its mask list can be read."""
    lab.switch(INITIATOR, INITIATOR, TARGET)
    serve()
    (both,) = json.loads(discover(lab, "--json").stdout)
    assert {path["interface"] for path in both["paths"]} == {"aoe0", "aoe1"}
    assert both["reason"] is None
    with open_packet_socket(lab) as raw:
        header = Header(lab.mac(TARGET), lab.mac(INITIATOR), Address(0, 0), AoeCommand.MASK, 4711)
        allowed = MaskArgument(MaskCommand.EDIT, ((MaskDirective.ADD, lab.mac(INITIATOR)),))
        raw.send(encode(header, allowed))
        while decode_header_untrusted(raw.recv(1 << 16)).tag != 4711:
            pass
    (found,) = json.loads(discover(lab, "--json").stdout)
    assert {path["interface"] for path in found["paths"]} == {"aoe0"}
    assert (found["state"], found["reason"]) == (
        "up",
        f"its MAC mask leaves out aoe1 ({lab.mac(INITIATOR, 1).hex(':')})",
    )


def test_without_the_option_nothing_is_reserved(lab: Lab, wire: Wire, raw: socket.socket) -> None:
    lab.vblade(0, 0, lab.image("disk", SIZE))
    mount = mount_until(lab, "e0.0")
    with opened(mount.here / "e0.0") as file:
        write(file, pattern(1))
        assert holders(lab, raw) == ()
