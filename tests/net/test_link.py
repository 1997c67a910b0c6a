"""A link on a real interface: a run goes out, its answers land in the buffer of its reader, other frames are odd."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator

import pytest
import trio

from aoefs.core.lonecommand import LoneCommand
from aoefs.core.request import Request, Run
from aoefs.core.tags import TagTable
from aoefs.core.target import Target
from aoefs.net.link import EthernetLink
from aoefs.protocol.ata import Identity, Status
from aoefs.protocol.wire import (
    Address,
    AoeCommand,
    AtaArgument,
    ConfigArgument,
    Flag,
    Header,
    decode_ata_untrusted,
    decode_header_untrusted,
    encode,
)
from tests.lab import INITIATOR, TARGET, Lab, open_packet_socket

ADDRESS = Address(3, 4)
SECTORS, COMMANDS = 16, 8  # of one read at MTU 1500


class Wire:
    """A link in the lab, a target behind it, and a plain socket where that target would be."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.tags: TagTable[Run | LoneCommand] = TagTable(random.Random(5).randbytes)
        with lab.inside(INITIATOR):
            self.link = EthernetLink("aoe0", self.tags)
        self.far = open_packet_socket(lab, TARGET)
        identity = Identity(sectors=1000, serial="S", model="M", firmware="F")
        self.target = Target(ADDRESS, identity, self.tags)
        self.target.set_bufcnt(64)
        macs = (self.link.mac, lab.mac(TARGET))
        path = self.target.add_path(self.link, "aoe0", macs, self.link.max_sectors)
        path.window.size = 64

    def read(self) -> tuple[Request, bytearray, Run]:
        """A new read, and the run that carries all of it."""
        buffer = bytearray(SECTORS * 512)
        request = Request(5, SECTORS, memoryview(buffer), write=False, on_end=lambda _ended: None)
        self.target.submit(request, 0.0)
        run = self.target.next_run(0.0)
        assert run is not None
        assert run.count == COMMANDS
        return request, buffer, run

    def answer(self, frame: bytes) -> bytes:
        """The answer to a READ: each sector holds its own number."""
        header, ata = decode_header_untrusted(frame), decode_ata_untrusted(frame)
        data = b"".join(bytes([ata.lba + index]) * 512 for index in range(ata.count))
        reply = Header(header.source, header.destination, ADDRESS, AoeCommand.ATA, header.tag, Flag.RESPONSE)
        return encode(reply, AtaArgument(ata.flags, 0, 0, Status.DRDY, ata.lba), data)

    def config_answer(self, tag: int) -> bytes:
        header = Header(self.link.mac, self.lab.mac(TARGET), ADDRESS, AoeCommand.CONFIG, tag, Flag.RESPONSE)
        return encode(header, ConfigArgument(buffer_count=16, sectors=2, version=1))


@pytest.fixture
async def wire(lab: Lab) -> AsyncIterator[Wire]:
    made = Wire(lab)
    with made.far:
        yield made
        made.link.close()


async def test_a_link_knows_its_interface(wire: Wire) -> None:
    link = wire.link
    assert (link.interface, link.mac, link.max_sectors, link.up) == ("aoe0", wire.lab.mac(INITIATOR), 2, True)
    wire.lab.ip(INITIATOR, "link", "set", "aoe0", "mtu", 9000)
    link.refresh()
    assert link.max_sectors == 17
    link.up = False
    link.rx_unknown = 3
    statistics = link.statistics()
    assert (statistics.interface, statistics.mtu, statistics.up, statistics.rx_unknown) == ("aoe0", 9000, False, 3)


async def test_the_answers_to_a_run_land_in_the_buffer_of_its_reader(wire: Wire) -> None:
    _, buffer, run = wire.read()
    assert wire.link.send_run(run) == COMMANDS
    for _ in range(COMMANDS):
        wire.far.send(wire.answer(wire.far.recv(2000)))
    answered = 0
    with trio.fail_after(10):
        while answered < COMMANDS:
            await wire.link.wait_readable()
            _, entries, odd = wire.link.receive()
            assert not odd
            assert all(entry[0] is run for entry in entries)
            answered += sum(count for _, _, count in entries)
    assert buffer == b"".join(bytes([5 + index]) * 512 for index in range(SECTORS))
    assert wire.link.statistics().rx_frames == wire.link.statistics().tx_frames == COMMANDS


async def test_a_lone_answer_lands_too(wire: Wire) -> None:
    _, buffer, run = wire.read()
    wire.link.send_run(run)
    wire.far.send(wire.answer(wire.far.recv(2000)))
    with trio.fail_after(10):
        await wire.link.wait_readable()
    assert wire.link.receive() == (1, [(run, 0, 1)], [])
    assert wire.link.receive() == (0, [], [])
    assert buffer[:1024] == b"\5" * 512 + b"\6" * 512


async def test_any_other_frame_is_odd(wire: Wire) -> None:
    frame = wire.config_answer(0x9000_0000)
    wire.far.send(frame)
    with trio.fail_after(10):
        await wire.link.wait_readable()
    assert wire.link.receive() == (1, [], [frame])


async def test_an_announcement_is_a_hint(wire: Wire) -> None:
    frame = wire.config_answer(0)
    wire.far.send(frame)
    with trio.fail_after(10):
        await wire.link.wait_hints()
    assert wire.link.receive_hints(5) == [frame]
    assert wire.link.receive() == (0, [], [])


async def test_a_lone_frame_goes_out(wire: Wire) -> None:
    frame = bytes(wire.lab.mac(TARGET) + wire.link.mac + b"\x88\xa2").ljust(60, b"\0")
    assert wire.link.send_frame(frame)
    assert wire.far.recv(2000) == frame
    with trio.fail_after(10):
        await wire.link.wait_writable()


async def test_a_link_on_an_interface_that_is_down_loses_a_run_and_says_so(wire: Wire) -> None:
    wire.lab.ip(INITIATOR, "link", "set", "aoe0", "down")
    _, _, run = wire.read()
    assert wire.link.send_run(run) == COMMANDS
    assert not wire.link.up


async def test_closing_a_link_ends_the_wait_for_it(wire: Wire) -> None:
    async def close() -> None:
        wire.link.close()

    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(close)
            with pytest.raises(trio.ClosedResourceError):
                await wire.link.wait_readable()
