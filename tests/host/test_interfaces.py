"""The choice of interfaces: which ones can be used, and what is said of the others."""

from __future__ import annotations

from dataclasses import replace

import pytest

from aoefs.errors import UserError
from aoefs.host.interfaces import choose
from aoefs.net.netlink import Interface
from aoefs.protocol.wire import BROADCAST_MAC, ETHERTYPE
from tests.lab import INITIATOR, TARGET, Lab, open_packet_socket

MAC = bytes.fromhex("02ae00000100")
GOOD = Interface(index=2, name="eth0", mac=MAC, mtu=1500, up=True, running=True, ethernet=True)
LOOPBACK = replace(GOOD, index=1, name="lo", ethernet=False)
DOWN = replace(GOOD, index=3, name="down0", up=False)
SMALL = replace(GOOD, index=4, name="small0", mtu=547)
BRIDGE = replace(GOOD, index=5, name="br0")
PORT = replace(GOOD, index=6, name="port0", master=5)
VRF = replace(GOOD, index=7, name="vrf0", ethernet=False)
VRF_MEMBER = replace(GOOD, index=8, name="member0", master=7)
ALL = [LOOPBACK, GOOD, DOWN, SMALL, BRIDGE, PORT, VRF, VRF_MEMBER]


def test_without_names_every_usable_interface_is_chosen() -> None:
    assert choose([], ALL) == [GOOD, BRIDGE, VRF_MEMBER]


def test_names_are_chosen_in_their_order_and_once() -> None:
    assert choose(["br0", "eth0", "br0"], ALL) == [BRIDGE, GOOD]


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("eth9", "interface eth9 does not exist: there is eth0, down0"),
        ("lo", "lo is not Ethernet"),
        ("down0", "'ip link set down0 up'"),
        ("small0", "MTU 547 is too small"),
        ("port0", "port0 is a port of br0, which receives for it: use -i br0"),
    ],
)
def test_an_unusable_name_is_refused_with_what_to_do(name: str, says: str) -> None:
    with pytest.raises(UserError, match=says) as refused:
        choose([name], ALL)
    assert refused.value.exit_code == 1
    assert "\n" not in str(refused.value)


def test_a_host_without_usable_interface_gets_an_error() -> None:
    with pytest.raises(UserError, match="no usable Ethernet interface is up"):
        choose([], [LOOPBACK, DOWN])
    with pytest.raises(UserError, match="there is no Ethernet interface"):
        choose(["eth0"], [LOOPBACK])


# ── real links ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_of_real_interfaces_the_usable_ones_are_chosen(lab: Lab) -> None:
    with lab.inside(INITIATOR):
        assert [interface.name for interface in choose([])] == ["aoe0"]


def test_a_bridge_takes_the_frames_of_its_ports(lab: Lab) -> None:
    lab.ip(INITIATOR, "link", "add", "br0", "type", "bridge")
    lab.ip(INITIATOR, "link", "set", "br0", "up")
    lab.ip(INITIATOR, "link", "set", "aoe0", "master", "br0")
    with lab.inside(INITIATOR):
        assert [interface.name for interface in choose([])] == ["br0"]
        with pytest.raises(UserError, match="use -i br0"):
            choose(["aoe0"])
    ours, theirs = open_packet_socket(lab, INITIATOR), open_packet_socket(lab, TARGET)
    bridge = open_packet_socket(lab, INITIATOR, "br0")
    with ours, theirs, bridge:
        theirs.send((BROADCAST_MAC + lab.mac(TARGET) + ETHERTYPE.to_bytes(2, "big")).ljust(60, b"\0"))
        assert len(bridge.recv(100)) == 60
        ours.settimeout(0.1)
        with pytest.raises(TimeoutError):
            ours.recv(100)
