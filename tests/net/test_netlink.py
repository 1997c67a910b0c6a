"""Interfaces: bytes from rtnetlink, and the watch over real links in namespaces."""

from __future__ import annotations

import errno
import socket
import struct
from dataclasses import replace

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from aoefs.net.netlink import (
    Interface,
    InterfaceGone,
    InterfaceMonitor,
    list_interfaces,
    parse_link,
    parse_messages,
)
from tests.lab import INITIATOR, Lab

MAC = bytes.fromhex("02ae00000100")


def attribute(kind: int, value: bytes) -> bytes:
    length = 4 + len(value)
    return struct.pack("=HH", length, kind) + value + b"\0" * (-length % 4)


def link_message(*attributes: bytes, family: int = 0, kind: int = 1, flags: int = 0x10043) -> bytes:
    return struct.pack("=BxHiII", family, kind, 7, flags, 0) + b"".join(attributes)


NAMED = (attribute(3, b"eth7\0"), attribute(1, MAC), attribute(4, struct.pack("=I", 9000)))


# ── bytes ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_link_message_is_read() -> None:
    expected = Interface(index=7, name="eth7", mac=MAC, mtu=9000, up=True, running=True, ethernet=True, master=3)
    assert parse_link(link_message(*NAMED, attribute(10, struct.pack("=I", 3)))) == expected


@pytest.mark.parametrize(
    ("kind", "flags"), [(772, 0x49), (1, 0x08), (1, 0x81), (65534, 0x41)], ids=["lo", "loop flag", "NOARP", "tun"]
)
def test_loopback_noarp_and_tunnels_are_no_ethernet(kind: int, flags: int) -> None:
    interface = parse_link(link_message(*NAMED, kind=kind, flags=flags))
    assert interface is not None
    assert not interface.ethernet


def test_messages_about_bridge_ports_are_not_about_the_interface() -> None:
    assert parse_link(link_message(*NAMED, family=socket.AF_BRIDGE)) is None


@given(st.binary(max_size=200))
def test_no_bytes_make_the_parser_fail(data: bytes) -> None:
    for _, _, body in parse_messages(data):
        parse_link(body)
    parse_link(data)
    parse_link(link_message(data))


@given(st.lists(st.tuples(st.integers(0, 65535), st.binary(max_size=20))), st.binary(max_size=15))
def test_messages_are_cut_apart_and_a_torn_last_one_is_left(bodies: list[tuple[int, bytes]], rest: bytes) -> None:
    data = b"".join(
        struct.pack("=IHHII", 16 + len(body), kind, 0, 0, 0) + body + b"\0" * (-len(body) % 4) for kind, body in bodies
    )
    assert [(kind, body) for kind, _, body in parse_messages(data + rest)] == bodies


# ── real links ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_listing_shows_what_ip_made(lab: Lab) -> None:
    with lab.inside(INITIATOR):
        by_name = {interface.name: interface for interface in list_interfaces()}
    aoe0 = by_name["aoe0"]
    assert (aoe0.mac, aoe0.mtu, aoe0.up, aoe0.running) == (lab.mac(INITIATOR), 1500, True, True)
    assert not by_name["lo"].ethernet


def test_many_interfaces_need_several_answers_and_all_are_listed(lab: Lab) -> None:
    script = "for n in $(seq 100); do echo link add d$n type bridge; done | ip -batch -"
    lab.run(INITIATOR, ["sh", "-c", script])
    with lab.inside(INITIATOR):
        assert sum(interface.name.startswith("d") for interface in list_interfaces()) == 100


async def test_the_monitor_yields_each_change_once(lab: Lab) -> None:
    with lab.inside(INITIATOR), InterfaceMonitor() as monitor, trio.fail_after(10):
        aoe0 = next(interface for interface in monitor.interfaces.values() if interface.name == "aoe0")
        lab.ip(INITIATOR, "link", "set", "aoe0", "mtu", 1400)
        assert await anext(monitor) == replace(aoe0, mtu=1400)
        lab.ip(INITIATOR, "link", "set", "aoe0", "down")
        changed = await anext(monitor)
        while isinstance(changed, Interface) and (changed.up or changed.running):  # the carrier may go a little earlier
            changed = await anext(monitor)
        assert changed == replace(aoe0, mtu=1400, up=False, running=False)
        lab.ip(INITIATOR, "link", "set", "aoe0", "name", "renamed0")
        assert await anext(monitor) == InterfaceGone(aoe0.index, "aoe0")
        assert await anext(monitor) == replace(aoe0, name="renamed0", mtu=1400, up=False, running=False)
        lab.ip(INITIATOR, "link", "del", "renamed0")
        assert await anext(monitor) == InterfaceGone(aoe0.index, "renamed0")
        with trio.move_on_after(0.05) as silence:
            await anext(monitor)
        assert silence.cancelled_caught


async def test_leaving_a_bridge_is_not_going_away(lab: Lab) -> None:
    lab.ip(INITIATOR, "link", "add", "br0", "type", "bridge")
    lab.ip(INITIATOR, "link", "set", "aoe0", "master", "br0")
    with lab.inside(INITIATOR), InterfaceMonitor() as monitor, trio.fail_after(10):
        lab.ip(INITIATOR, "link", "set", "aoe0", "nomaster")
        changed = await anext(monitor)
        assert isinstance(changed, Interface)
        assert (changed.name, changed.master) == ("aoe0", 0)


async def test_after_lost_messages_the_monitor_is_right_again(lab: Lab) -> None:
    with lab.inside(INITIATOR), InterfaceMonitor() as monitor, trio.fail_after(30):
        monitor.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        script = "for n in $(seq 50); do echo link add d$n type bridge; done | ip -batch -; ip link del d50"
        lab.run(INITIATOR, ["sh", "-c", script])
        lab.ip(INITIATOR, "link", "set", "aoe0", "mtu", 1300)
        known = dict(monitor.interfaces)
        while monitor.interfaces != {interface.index: interface for interface in list_interfaces()}:
            await anext(monitor)
        assert len(monitor.interfaces) == len(known) + 49


async def test_messages_older_than_the_lost_ones_are_skipped(lab: Lab) -> None:
    class Scripted:
        def __init__(self, *answers: bytes | OSError) -> None:
            self.answers = list(answers)

        def recvfrom(self, size: int) -> tuple[bytes, tuple[int, int]]:
            answer = self.answers.pop(0)
            if isinstance(answer, OSError):
                raise answer
            return answer, (0, 1)

    with lab.inside(INITIATOR), InterfaceMonitor() as monitor:
        known = dict(monitor.interfaces)
        body = link_message(*NAMED)
        stale = struct.pack("=IHHII", 16 + len(body), 16, 0, 0, 0) + body
        real = monitor.socket
        monitor.socket = Scripted(OSError(errno.ENOBUFS, "lost"), stale, BlockingIOError())  # type: ignore[assignment]
        assert monitor.receive_nowait() == 0, "no eth7 that came and went"
        assert monitor.interfaces == known
        monitor.socket = Scripted(stale, BlockingIOError())  # type: ignore[assignment]
        assert monitor.receive_nowait() == 1
        assert monitor.interfaces[7].name == "eth7"
        monitor.socket = real
