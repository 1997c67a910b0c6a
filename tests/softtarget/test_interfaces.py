"""The server on real interfaces, which come and go."""

from __future__ import annotations

import socket

import pytest
import trio

from aoefs.net.netlink import list_interfaces
from aoefs.net.packetsocket import PacketSocket, Role
from aoefs.protocol.ata import transfer_registers
from aoefs.protocol.wire import (
    BROADCAST_MAC,
    ETHERTYPE,
    Address,
    AoeCommand,
    ConfigArgument,
    Header,
    decode_config_untrusted,
    decode_header_untrusted,
    encode,
)
from aoefs.softtarget.server import Server
from tests.lab import INITIATOR, TARGET, Lab
from tests.memorystore import MemoryStore
from tests.softtarget.serving import ADDRESSES, THEIRS, make_export, until


async def announced(wire: socket.socket) -> tuple[Address, int, int]:
    """The next announcement: address, tag and sectors per frame."""
    frame = await trio.to_thread.run_sync(wire.recv, 1 << 16)
    header = decode_header_untrusted(frame)
    assert (header.destination, header.version, header.is_response) == (BROADCAST_MAC, 1, True)
    assert len(frame) == 60
    return header.address, header.tag, decode_config_untrusted(frame).sectors


async def test_exports_are_announced_at_the_start_and_when_an_interface_comes_back(
    lab: Lab, wire: socket.socket
) -> None:
    export = make_export()
    with lab.inside(TARGET):
        server = Server([export], [PacketSocket("aoe0", role=Role.TARGET)])
        async with trio.open_nursery() as nursery:
            await nursery.start(server.run)
            assert await announced(wire) == (export.address, 0, 2)
            lab.ip(TARGET, "link", "set", "aoe0", "down")
            await until(lambda: not server.services[0].running)
            lab.ip(TARGET, "link", "set", "aoe0", "up")
            assert await announced(wire) == (export.address, 0, 2)
            lab.ip(INITIATOR, "link", "set", "aoe0", "mtu", 9000)
            lab.ip(TARGET, "link", "set", "aoe0", "mtu", 9000)
            assert await announced(wire) == (export.address, 0, 17)
            target = lab.mac(TARGET)
            frame = encode(
                Header(target, lab.mac(INITIATOR), export.address, 0, 5),
                transfer_registers(0, 17, write=False, lba48=True),
            )
            wire.send(frame)
            answer = await trio.to_thread.run_sync(wire.recv, 1 << 16)
            assert isinstance(export.store, MemoryStore)
            assert answer[36:] == export.store.data[: 17 * 512]
            nursery.cancel_scope.cancel()


async def test_an_interface_without_carrier_hears_of_the_exports_when_it_gets_one(
    lab: Lab, wire: socket.socket
) -> None:
    lab.ip(INITIATOR, "link", "set", "aoe0", "down")
    with pytest.raises(OSError, match="down"):
        wire.recv(1)
    with lab.inside(TARGET):
        # The kernel reports a lost carrier up to a second later.
        await until(lambda: not any(each.running for each in list_interfaces() if each.name == "aoe0"))
        server = Server([make_export()], [PacketSocket("aoe0", role=Role.TARGET)])
        async with trio.open_nursery() as nursery:
            await nursery.start(server.run)
            assert not server.services[0].running
            lab.ip(INITIATOR, "link", "set", "aoe0", "up")
            assert await announced(wire) == (ADDRESSES[0], 0, 2)
            nursery.cancel_scope.cancel()


async def test_an_interface_of_the_same_name_takes_the_place_of_one_that_went(lab: Lab) -> None:
    export = make_export()
    with lab.inside(TARGET):
        server = Server([export], [PacketSocket("aoe0", role=Role.TARGET)])
        async with trio.open_nursery() as nursery:
            await nursery.start(server.run)
            lab.ip(TARGET, "link", "del", "aoe0")
            await until(lambda: not server.services[0].running)
            lab.ip(TARGET, "link", "add", "aoe0", "type", "veth", "peer", "name", "other0")
            lab.ip(TARGET, "link", "set", "other0", "up")
            sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
            with sock:
                sock.bind(("other0", ETHERTYPE))
                sock.settimeout(5)
                lab.ip(TARGET, "link", "set", "aoe0", "up")
                assert await announced(sock) == (export.address, 0, 2)
                query = Header(BROADCAST_MAC, THEIRS, Address(0xFFFF, 0xFF), AoeCommand.CONFIG, 9)
                sock.send(encode(query, ConfigArgument()))
                answer = await trio.to_thread.run_sync(sock.recv, 1 << 16)
                assert decode_header_untrusted(answer).tag == 9
            nursery.cancel_scope.cancel()
