"""Packet sockets on real veth pairs: what the filter passes, and what happens when the interface changes."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress

import pytest

from aoefs.core.tags import HINT_TAGS
from aoefs.net.packetsocket import LINK_DOWN, PacketSocket, Role
from aoefs.protocol.wire import (
    ALL,
    BROADCAST_MAC,
    CLIENT_TAG_BIT,
    Address,
    AoeCommand,
    Flag,
    Header,
    Share,
    encode_header,
    pad,
)
from tests.lab import INITIATOR, TARGET, Lab, open_packet_socket, wait_until
from tests.lab.fixtures import both_mtus

OURS = CLIENT_TAG_BIT | 0x1000_1234  # a tag as user-space initiators make them
KERNEL_DRIVERS = 0x1234
ZERO = Address(0, 0)
STRANGER = bytes.fromhex("02ae0000ff00")


def open_link(lab: Lab, side: str = INITIATOR, role: Role = Role.INITIATOR, share: Share = ALL) -> PacketSocket:
    with lab.inside(side):
        return PacketSocket("aoe0", role=role, share=share)


def frame(
    destination: bytes,
    source: bytes,
    *,
    response: bool,
    command: int = AoeCommand.ATA,
    tag: int = OURS,
    flags: int = 0,
    address: Address = ZERO,
) -> bytes:
    flags |= Flag.RESPONSE if response else 0
    return pad(encode_header(Header(destination, source, address, command, tag, flags)))


def queued(link: PacketSocket) -> list[bytes]:
    """What has arrived at a link so far."""
    frames = []
    with suppress(BlockingIOError):
        while True:
            frames.append(link.socket.recv(1 << 16))
    return frames


def received(link: PacketSocket, count: int) -> list[bytes]:
    """What arrives at a link until ``count`` frames are there, sorted (a busy kernel may change the order).

    To see that a frame was rejected, send one after it that is not.
    """
    frames: list[bytes] = []

    def enough() -> bool:
        frames.extend(queued(link))
        return len(frames) >= count

    wait_until(enough, what=f"{count} frames")
    return sorted(frames)


@contextmanager
def wire_of(lab: Lab, side: str) -> Iterator[socket.socket]:
    """A plain socket at the other end."""
    with open_packet_socket(lab, side) as wire:
        yield wire


def hints(us: bytes, them: bytes) -> list[bytes]:
    return [
        frame(us, them, response=True, command=AoeCommand.CONFIG, tag=0),  # an announcement by unicast
        frame(BROADCAST_MAC, them, response=True, command=AoeCommand.CONFIG, tag=0),  # and by broadcast
        frame(BROADCAST_MAC, them, response=True, command=AoeCommand.CONFIG),
        frame(us, them, response=True, command=AoeCommand.CONFIG, tag=HINT_TAGS << 16 | 0xFFFF),
    ]


def test_hints_come_by_a_socket_of_their_own_with_a_small_buffer(lab: Lab) -> None:
    us, them = lab.mac(INITIATOR), lab.mac(TARGET)
    unwanted = [
        frame(us, them, response=True),
        frame(us, them, response=True, command=AoeCommand.CONFIG),
        frame(us, them, response=True, tag=HINT_TAGS << 16),
        frame(us, them, response=False, command=AoeCommand.CONFIG, tag=0),
        frame(STRANGER, them, response=True, command=AoeCommand.CONFIG, tag=0),
    ]
    with open_link(lab, role=Role.HINTS) as link, wire_of(lab, TARGET) as wire:
        lab.ip(INITIATOR, "link", "set", "aoe0", "promisc", "on")
        wanted = hints(us, them)[:2] + hints(us, them)[3:]
        for sent in (*unwanted, *wanted):
            wire.send(sent)
        assert received(link, len(wanted)) == sorted(wanted)
        assert link.receive_frames(5) == []
        assert link.socket.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) == 2 << 20


def test_an_initiator_receives_answers_to_it_and_nothing_else(lab: Lab) -> None:
    us, them = lab.mac(INITIATOR), lab.mac(TARGET)
    wanted = [
        frame(us, them, response=True),
        frame(us, them, response=True, tag=0xFFFF_FFFF),
        frame(us, them, response=True, flags=Flag.ERROR),
        frame(us, them, response=True, command=AoeCommand.MASK),
        frame(us, them, response=True, command=AoeCommand.CONFIG)[:32],  # as short as vblade's
    ]
    unwanted = [
        *hints(us, them),
        frame(us, them, response=False),
        frame(BROADCAST_MAC, them, response=False, command=AoeCommand.CONFIG),
        frame(us, them, response=True, tag=KERNEL_DRIVERS),
        frame(us, them, response=True, tag=KERNEL_DRIVERS, command=AoeCommand.RESERVE),
        frame(STRANGER, them, response=True),
        frame(us[:4] + b"\xff\xff", them, response=True),
        frame(b"\xff\xff\xff\xff" + us[4:], them, response=True),
        frame(us, them, response=True)[:20],  # too short to hold a tag
        frame(us, them, response=True).replace(b"\x88\xa2", b"\x88\xa3"),
    ]
    with open_link(lab) as link, wire_of(lab, TARGET) as wire:
        lab.ip(INITIATOR, "link", "set", "aoe0", "promisc", "on")  # so that the filter decides, not the interface
        for sent in (*unwanted, *wanted):
            wire.send(sent)
        assert received(link, len(wanted)) == sorted(wanted)


def test_a_socket_of_one_share_never_sees_frames_of_another(lab: Lab) -> None:
    us, them = lab.mac(INITIATOR), lab.mac(TARGET)
    addresses = [Address(0, 0), Address(0, 1), Address(0, 254), Address(3, 0), Address(256, 2), Address(65534, 253)]
    with wire_of(lab, TARGET) as wire, ExitStack() as stack:
        links = {
            (role, number): stack.enter_context(open_link(lab, role=role, share=Share(number, 3)))
            for role in (Role.INITIATOR, Role.HINTS)
            for number in range(3)
        }
        sent = {
            (role, address): frame(us, them, response=True, command=AoeCommand.CONFIG, tag=tag, address=address)
            for role, tag in ((Role.INITIATOR, OURS), (Role.HINTS, 0))
            for address in addresses
        }
        for one in sent.values():
            wire.send(one)
        for (role, number), link in links.items():
            own = [sent[role, address] for address in addresses if sum(address) % 3 == number]
            assert own
            assert received(link, len(own)) == sorted(own)
            assert queued(link) == []
            with pytest.raises(BlockingIOError):  # so nothing is readable, and no process that waits is woken
                link.socket.recv(1)


def test_a_target_receives_requests_to_it_and_nothing_else(lab: Lab) -> None:
    us, them = lab.mac(TARGET), lab.mac(INITIATOR)
    wanted = [
        frame(us, them, response=False),
        frame(us, them, response=False, tag=KERNEL_DRIVERS),
        frame(BROADCAST_MAC, them, response=False, command=AoeCommand.CONFIG, tag=0),
        frame(us, them, response=False, command=0xF0),
    ]
    unwanted = [
        frame(us, them, response=True),
        frame(BROADCAST_MAC, them, response=True, command=AoeCommand.CONFIG, tag=0),
        frame(STRANGER, them, response=False),
    ]
    with open_link(lab, TARGET, Role.TARGET) as link, wire_of(lab, INITIATOR) as wire:
        lab.ip(TARGET, "link", "set", "aoe0", "promisc", "on")
        for sent in (*unwanted, *wanted):
            wire.send(sent)
        assert received(link, len(wanted)) == sorted(wanted)


def test_frames_that_this_host_sends_are_not_received(lab: Lab) -> None:
    us = lab.mac(INITIATOR)
    with open_link(lab) as link, wire_of(lab, INITIATOR) as neighbour, wire_of(lab, TARGET) as wire:
        assert link.send_frame(frame(us, us, response=True))
        neighbour.send(frame(us, us, response=True))
        assert link.tx_frames == 1
        answer = frame(us, lab.mac(TARGET), response=True)
        wire.send(answer)
        assert received(link, 1) == [answer]


def test_a_frame_arrives_as_it_was_sent(lab: Lab) -> None:
    whole = frame(lab.mac(TARGET), lab.mac(INITIATOR), response=False)
    with open_link(lab) as link, wire_of(lab, TARGET) as wire:
        assert link.send_frame(whole)
        assert wire.recv(2000) == whole


@both_mtus
def test_the_mtu_says_how_many_sectors_fit(lab: Lab) -> None:
    with open_link(lab) as link:
        assert (link.mtu, link.max_sectors) == {1500: (1500, 2), 9000: (9000, 17)}[lab.mtu]
        assert link.mac == lab.mac(INITIATOR)
        lab.ip(INITIATOR, "link", "set", "aoe0", "mtu", 4470)
        assert link.max_sectors != 8
        link.refresh()
        assert (link.mtu, link.max_sectors) == (4470, 8)


def test_a_frame_above_a_lowered_mtu_is_lost_and_the_mtu_read_again(lab: Lab) -> None:
    with open_link(lab) as link:
        lab.ip(INITIATOR, "link", "set", "aoe0", "mtu", 600)
        assert not link.send_frame(bytes(1060))
        assert link.mtu == 600
        assert link.up
        assert (link.tx_frames, link.tx_full) == (0, 0)


def test_a_send_on_an_interface_that_is_down_marks_the_link_down(lab: Lab) -> None:
    with open_link(lab) as link:
        lab.ip(INITIATOR, "link", "set", "aoe0", "down")
        assert not link.send_frame(frame(lab.mac(TARGET), link.mac, response=False))
        assert not link.up
        with pytest.raises(OSError, match="Network is down") as caught:
            link.socket.recv(2000)
        assert caught.value.errno in LINK_DOWN


def test_a_link_works_again_when_its_interface_came_back(lab: Lab) -> None:
    with open_link(lab) as link, wire_of(lab, TARGET) as wire:
        lab.ip(INITIATOR, "link", "set", "aoe0", "down")
        lab.ip(INITIATOR, "link", "set", "aoe0", "up")
        carrier = lab.sides[INITIATOR].root / "sys/class/net/aoe0/carrier"
        wait_until(lambda: carrier.read_text() == "1\n", what="carrier")
        with pytest.raises(OSError, match="Network is down"):  # reported once
            link.socket.recv(2000)
        answer = frame(link.mac, lab.mac(TARGET), response=True)
        wire.send(answer)
        assert received(link, 1) == [answer]


def test_an_interface_that_is_gone_is_down_and_cannot_be_refreshed(lab: Lab) -> None:
    with open_link(lab) as link:
        lab.ip(INITIATOR, "link", "del", "aoe0")
        assert not link.send_frame(frame(lab.mac(TARGET), link.mac, response=False))
        assert not link.up
        with pytest.raises(OSError, match="No such device") as caught:
            link.refresh()
        assert caught.value.errno in LINK_DOWN
        assert not link.statistics().up


def test_an_interface_that_does_not_exist_is_enodev_and_leaves_no_socket(lab: Lab) -> None:
    before = os.listdir("/proc/self/fd")
    with lab.inside(INITIATOR), pytest.raises(OSError, match=r"interface|device") as caught:
        PacketSocket("nosuch0")
    assert caught.value.errno == errno.ENODEV
    assert len(os.listdir("/proc/self/fd")) == len(before)


def test_a_failed_send_without_an_explanation_is_raised(lab: Lab) -> None:
    with open_link(lab) as link:
        with pytest.raises(OSError, match="Invalid argument"):
            link.send_frame(b"short")  # no complete Ethernet header: a defect of ours
        assert link.up


def test_a_full_socket_is_counted_and_the_frame_lost(lab: Lab) -> None:
    with open_link(lab) as link:
        link.on_send_error(OSError(errno.ENOBUFS, "No buffer space available"))
        link.on_send_error(BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable"))
        statistics = link.statistics()
    assert (statistics.tx_full, statistics.up) == (2, True)


def test_frames_lost_because_the_buffer_is_full_are_counted_once(lab: Lab) -> None:
    answer = frame(lab.mac(INITIATOR), lab.mac(TARGET), response=True)
    with open_link(lab) as link, wire_of(lab, TARGET) as wire:
        link.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        for _ in range(100):
            wire.send(answer)
        kept: list[bytes] = []

        def lost() -> int:
            kept.extend(queued(link))
            return link.statistics().rx_dropped

        # Read often: the kernel resets its counter each time, ours must keep the sum.
        wait_until(lambda: lost() + len(kept) == 100, what="every frame is received or counted as lost")
        assert lost() > 0
        assert kept
        assert link.statistics().mac == lab.mac(INITIATOR)


def test_the_buffers_hold_what_many_targets_send(lab: Lab) -> None:
    with open_link(lab) as link:
        assert link.socket.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) == 2 * 16 << 20
        assert link.socket.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) == 2 * 4 << 20


def test_a_link_may_be_opened_before_its_interface_comes_up(lab: Lab) -> None:
    lab.ip(INITIATOR, "link", "set", "aoe0", "down")
    with open_link(lab) as link, wire_of(lab, TARGET) as wire:
        lab.ip(INITIATOR, "link", "set", "aoe0", "up")
        carrier = lab.sides[TARGET].root / "sys/class/net/aoe0/carrier"
        wait_until(lambda: carrier.read_text() == "1\n", what="carrier")
        answer = frame(link.mac, lab.mac(TARGET), response=True)
        wire.send(answer)
        with pytest.raises(OSError, match="Network is down"):  # reported once
            link.socket.recv(2000)
        assert received(link, 1) == [answer]
