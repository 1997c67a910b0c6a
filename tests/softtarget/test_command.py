"""``aoefs target``: what it says about wrong usage and what cannot be served, what it prints, how it ends."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import socket
from pathlib import Path

import pytest

from aoefs.cli.commands.target import parse_export
from aoefs.errors import UserError
from aoefs.host.claims import Inquiry, claim
from aoefs.protocol.wire import (
    BROADCAST_MAC,
    Address,
    AoeCommand,
    ConfigArgument,
    Flag,
    Header,
    decode_config_untrusted,
    decode_header_untrusted,
    encode,
)
from tests.lab import INITIATOR, TARGET, Lab, open_packet_socket
from tests.softtarget.serving import OURS, THEIRS, WireSocket, datagram_pair


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
        sock.send(encode(query, ConfigArgument()))
        while decode_header_untrusted(frame := sock.recv(1 << 16)).tag != 0x8000_0009:
            pass  # announcements
    answer = decode_config_untrusted(frame)
    assert (answer.buffer_count, answer.string, answer.sectors) == (7, "hé".encode(), 2)
    assert process.stop(number) == 0
    assert [line for line in process.output.splitlines() if line in lines] == lines
    assert "the last 488 bytes are not exported" in process.output


# ── config strings ────────────────────────────────────────────────────────────────────────────────────────────────


def config_string(lab: Lab, *arguments: str) -> str:
    """The config string of e7.0 after ``aoefs config`` has done what the arguments say."""
    if arguments:
        lab.aoefs("config", "-i", "aoe0", "7.0", "set", *arguments)
    return lab.aoefs("config", "-i", "aoe0", "7.0").stdout


def test_a_config_string_that_was_set_outlives_the_target(lab: Lab) -> None:
    disk = lab.image("disk", 4096)
    link = lab.directory / "link"
    link.symlink_to(disk)
    kept = lab.directory / "disk.aoe"
    process = lab.target(f"7.0={link}")
    assert not kept.exists()
    assert config_string(lab, "who") == "who\n"
    assert kept.read_bytes() == b"who\n"  # and not beside the link
    process.stop(signal.SIGKILL)
    process = lab.target("--read-only", f"7.0={disk}")
    assert config_string(lab) == "who\n"
    assert config_string(lab, "else", "--force") == "else\n"
    process.stop()
    assert kept.read_bytes() == b"who\n"  # a read-only export writes nothing
    process = lab.target("--config-string", "given", f"7.0={disk}")
    assert config_string(lab) == "given\n"
    process.stop()
    assert kept.read_bytes() == b"given\n"
    kept.write_bytes(b"")
    process = lab.target(f"7.0={disk}")
    assert config_string(lab, "other") == "other\n"
    process.stop()
    assert process.output.count(str(kept)) == 1
    assert f"{kept} is no config string" in process.output
    assert kept.read_bytes() == b""


def test_a_state_directory_keeps_what_cannot_be_beside_the_image(lab: Lab) -> None:
    disk, state = lab.image("disk", 4096), lab.directory / "state"
    line = complaint(lab, "-i", "aoe0", "--state-dir", state, f"7.0={disk}", code=1)
    assert line == f"aoefs: --state-dir {state} is not a directory\n"
    state.mkdir()
    for device in (disk, lab.losetup(disk, side=TARGET)):
        for options, answer in ((("who",), "who\n"), ((), "who\n")):
            process = lab.target("--state-dir", state, f"7.0={device}")
            assert config_string(lab, *options) == answer
            process.stop()
    assert [file.suffix for file in state.iterdir()] == [".aoe", ".aoe"]
    assert sorted(file.name for file in lab.directory.glob("disk*")) == ["disk"]


# ── what is served or exported already ────────────────────────────────────────────────────────────────────────────


def test_an_address_has_one_owner_on_an_interface_until_its_end() -> None:
    place = f"if{os.getpid()}"
    with claim(Address(7, 0), place), claim(Address(7, 1), place), claim(Address(7, 0), f"{place}b"):
        for _ in range(3):
            with pytest.raises(UserError) as caught:
                claim(Address(7, 0), place)
            assert caught.value.exit_code == 1
            assert str(caught.value) == (
                f"e7.0 is already served on {place} by another process (pid {os.getpid()}): "
                "end that one, or choose another slot"
            )
    claim(Address(7, 0), place).close()


@pytest.mark.parametrize(
    ("address", "flags", "command", "is_refused"),
    [
        (Address(7, 0), Flag.RESPONSE, AoeCommand.CONFIG, True),
        (Address(7, 0), Flag.RESPONSE | Flag.ERROR, AoeCommand.CONFIG, True),
        (Address(7, 1), Flag.RESPONSE, AoeCommand.CONFIG, False),
        (Address(7, 0), 0, AoeCommand.CONFIG, False),  # another host asks, too
        (Address(7, 0), Flag.RESPONSE, AoeCommand.ATA, False),  # of a mount that has just lost the target, say
    ],
)
def test_only_an_answer_for_the_address_shows_that_it_is_served(
    address: Address, flags: int, command: AoeCommand, is_refused: bool
) -> None:
    theirs, ours = datagram_pair()
    with theirs, ours:
        inquiry = Inquiry([Address(7, 0)], [WireSocket(ours)])
        asked = decode_header_untrusted(theirs.recv(1 << 16))
        assert (asked.destination, asked.address, asked.command) == (BROADCAST_MAC, Address(7, 0), AoeCommand.CONFIG)
        theirs.send(b"short")
        header = Header(OURS, THEIRS, address, AoeCommand.CONFIG, asked.tag, flags)
        theirs.send(encode(dataclasses.replace(header, command=command), ConfigArgument()))
        with pytest.raises(UserError, match=f"by {THEIRS.hex(':')}") if is_refused else contextlib.nullcontext():
            inquiry.require_silence()


def test_an_address_that_another_process_of_this_host_serves_is_refused_until_that_one_is_gone(lab: Lab) -> None:
    lab.cable(INITIATOR, TARGET)
    first, second = lab.image("first", 4096), lab.image("second", 4096)
    process = lab.target(f"7.0={first}", "--allow-mac", "02:00:00:00:00:09")  # it answers no question of ours
    line = complaint(lab, "-i", "aoe1", "-i", "aoe0", f"7.1={second}", f"7.0={second}", code=1)
    assert line == (
        f"aoefs: e7.0 is already served on aoe0 by another process (pid {process.pid}): "
        "end that one, or choose another slot\n"
    )
    other = lab.target(f"7.0={second}", interfaces=["aoe1"])  # another wire
    process.stop(signal.SIGKILL)
    lab.target(f"7.0={first}")
    assert other.poll() is None


def test_an_address_that_another_host_serves_is_refused(lab: Lab) -> None:
    lab.target(f"7.0={lab.image('first', 4096)}", side=INITIATOR)
    second = lab.image("second", 4096)
    line = complaint(lab, "-i", "aoe0", f"7.1={second}", f"7.0={second}x", code=1)
    assert "no such file" in line
    other = lab.image("other", 4096)
    line = complaint(lab, "-i", "aoe0", f"7.1={second}", f"7.0={other}", code=1)
    assert line == (
        f"aoefs: e7.0 is already served on aoe0 by {lab.mac(INITIATOR).hex(':')}: "
        "stop that target, or choose another slot\n"
    )
    lab.target(f"7.1={second}")


def test_a_file_is_exported_for_writing_once(lab: Lab) -> None:
    disk = lab.image("disk", 4096)
    link = lab.directory / "link"
    link.symlink_to(disk)
    assert "is given twice" in complaint(lab, "-i", "aoe0", f"0.0={disk}", f"0.1={link}", code=1)
    writer = lab.target(f"0.0={disk}")
    for options in ((), ("--read-only",)):
        line = complaint(lab, "-i", "aoe0", *options, f"0.1={link}", code=1)
        assert line.startswith(f"aoefs: cannot export {link}: process {writer.pid} has locked it")
    writer.stop(signal.SIGKILL)
    reader = lab.target("--read-only", f"0.0={disk}", f"0.1={disk}")
    lab.target("--read-only", f"0.2={link}")
    assert "has locked it" in complaint(lab, "-i", "aoe0", f"0.3={disk}", code=1)
    assert reader.poll() is None
