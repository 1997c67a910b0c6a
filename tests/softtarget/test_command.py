"""``aoefs target``: what it says about wrong usage and what cannot be served, what it prints, how it ends."""

from __future__ import annotations

import signal
import socket
from pathlib import Path

import pytest

from aoefs.cli.commands.target import parse_export
from aoefs.protocol.wire import (
    BROADCAST_MAC,
    Address,
    AoeCommand,
    ConfigArgument,
    Header,
    decode_config_untrusted,
    decode_header_untrusted,
    encode_config,
)
from tests.lab import INITIATOR, TARGET, Lab, open_packet_socket


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
