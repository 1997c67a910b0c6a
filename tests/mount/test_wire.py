"""What a mount sends: correct frames only, and none to other initiators."""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Sequence

from aoefs.engine.discovery import QUERY_TIMES
from aoefs.protocol.ata import Opcode, transfer_registers
from aoefs.protocol.wire import (
    BROADCAST_MAC,
    MIN_FRAME_BYTES,
    Address,
    AoeCommand,
    ConfigArgument,
    Header,
    decode_ata_untrusted,
    decode_header_untrusted,
    encode,
)
from tests.lab import INITIATOR, TARGET, Capture, Lab, open_packet_socket, require
from tests.mount.place import EVERY_PLACE, MIB, Place, places, random_bytes

SIZES = {"e0.0": 2 * MIB, "e0.1": MIB + 3 * 512}
pytestmark = places(EVERY_PLACE)


def mixed_load(place: Place) -> None:
    for flags in (0, os.O_DIRECT):
        with place.opened("e0.1", os.O_RDWR | flags) as file:
            for offset, size in ((0, 1), (513, 4096), (1000, 300_000), (SIZES["e0.1"] - 7, 7), (MIB, 1536)):
                os.pwrite(file, random_bytes(size), offset)
                assert os.pread(file, size, offset) == random_bytes(size)
            os.fsync(file)
    place.run("dd", f"if={place.file('e0.0')}", f"of={place.file('e0.1')}", "bs=1M", "count=1", "status=none")
    place.run("cmp", place.images["e0.0"], place.file("e0.0"))


def sent_by_us(lab: Lab, capture: Capture) -> list[bytes]:
    return [frame for frame in capture.frames() if frame[6:12] == lab.mac(INITIATOR)]


def test_every_frame_that_is_sent_is_as_the_specification_says(place: Place) -> None:
    require("tshark")
    lab = place.lab
    capture = lab.capture()
    second = lab.mount()  # so that its discovery is captured, too
    mixed_load(Place(place.kind, lab, second, place.images))
    second.umount()
    frames = sent_by_us(lab, capture)
    assert len(frames) > 100
    tags = set()
    largest = 0
    for frame in frames:
        header = decode_header_untrusted(frame)
        assert MIN_FRAME_BYTES <= len(frame) <= lab.mtu + 14
        assert frame[14] == 0x10, "version 1, no flag"
        assert frame[15] == 0, "no error in a request"
        assert header.tag >> 31 == 1
        assert header.tag not in tags or header.command == AoeCommand.CONFIG
        tags.add(header.tag)
        if header.command == AoeCommand.CONFIG:
            assert header.destination in (BROADCAST_MAC, lab.mac(TARGET))
            assert frame[24:] == bytes(len(frame) - 24), "a query carries no string"
        else:
            assert header.command == AoeCommand.ATA
            assert header.destination == lab.mac(TARGET)
            check_ata(frame)
            largest = max(largest, len(frame))
    assert lab.mtu - 512 < largest - 14 <= lab.mtu, "frames are as full as the MTU allows"
    pcap = capture.pcap()
    assert pcap.exists()
    assert capture.tshark("_ws.malformed || _ws.expert.severity >= 0x600000", "frame.number") == []
    assert capture.tshark("aoe.response == 0 && aoe.cmd > 1", "frame.number") == []


def check_ata(frame: bytes) -> None:
    """Registers that make sense, zeros in unused bytes, and no byte too many."""
    registers = decode_ata_untrusted(frame)
    assert frame[34:36] == b"\0\0", "reserved"
    write, extended = bool(registers.flags & 1), bool(registers.flags & 0x40)
    payload = len(frame) - 36
    if registers.command in (Opcode.READ, Opcode.READ_EXT, Opcode.WRITE, Opcode.WRITE_EXT):
        assert registers.count > 0
        assert write == (registers.command in (Opcode.WRITE, Opcode.WRITE_EXT))
        assert extended == (registers.command in (Opcode.READ_EXT, Opcode.WRITE_EXT))
        # A read that measures the payload of a path is as long as its answer.
        assert payload in {registers.count * 512} | (set() if write else {MIN_FRAME_BYTES - 36})
    else:
        assert registers.command in (Opcode.IDENTIFY, Opcode.FLUSH, Opcode.FLUSH_EXT)
        assert not write
    if not write:
        assert frame[36:] == bytes(payload), "padding is zero"


def others_frames(lab: Lab, other: bytes) -> Sequence[bytes]:
    """What other initiators, and hosts that behave oddly, may send to us."""
    us = lab.mac(INITIATOR)
    frames = []
    for to in (us, BROADCAST_MAC):
        for tag in (0, 5, 0x8000_0001, 0xFFFF_FFFF):
            config = Header(to, other, Address(0xFFFF, 0xFF), AoeCommand.CONFIG, tag)
            frames.append(encode(config, ConfigArgument()))
            ata = Header(to, other, Address(0, 0), AoeCommand.ATA, tag)
            frames.append(encode(ata, transfer_registers(0, 1, write=False, lba48=True)))
            frames.append(encode(ata, transfer_registers(0, 1, write=True, lba48=True), b"x" * 512))
            for flags in (8, 0xC):  # answers without a request
                answer = Header(to, other, Address(0, 0), AoeCommand.ATA, tag, flags=flags, error=flags & 4)
                frames.append(encode(answer, transfer_registers(0, 1, write=False, lba48=True), b"x" * 512))
        frames += [to + other + struct.pack("!H", 0x88A2) + bytes(length) for length in (1, 10, 46, 1400)]
        frames += [to + other + struct.pack("!H", 0x88A2) + b"\xff" * length for length in (1, 10, 46, 1400)]
    return frames


def test_other_initiators_get_no_answer_and_change_nothing(place: Place) -> None:
    lab = place.lab
    other = bytes.fromhex("02ae00000909")
    before = place.images["e0.0"].read_bytes()
    names = set(os.listdir(place.mount.here))
    time.sleep(QUERY_TIMES[-1] + 0.3)  # a mount that just began asks everybody a few times
    capture = lab.capture()
    with open_packet_socket(lab, TARGET) as wire, place.opened("e0.0", os.O_RDONLY | os.O_DIRECT) as file:
        for _ in range(3):
            for frame in others_frames(lab, other):
                wire.send(frame)
            assert os.pread(file, MIB, 0) == before[:MIB]
    for frame in sent_by_us(lab, capture):
        header = decode_header_untrusted(frame)
        assert not header.is_response
        assert header.destination == lab.mac(TARGET), "nothing goes to the other initiator"
    assert set(os.listdir(place.mount.here)) == names
    assert place.images["e0.0"].read_bytes() == before
    place.run("cmp", place.images["e0.0"], place.file("e0.0"))
    assert place.counters("e0.0")["errors"] == 0


def test_a_second_initiator_on_the_same_wire_works_beside_the_mount(place: Place) -> None:
    with Lab(mtu=place.lab.mtu) as lab:
        for name in ("left", "right", "disks"):
            lab.add_side(name)
        lab.switch("left", "right", "disks")
        image = lab.image("image", 4 * MIB)
        if place.kind == "vblade":
            lab.vblade(0, 0, image, side="disks")
        else:
            lab.target(f"0.0={image}", side="disks")
        mounts = [lab.mount(side=side) for side in ("left", "right")]
        compares = [lab.popen(mount.side, ["cmp", image, mount.file("e0.0")]) for mount in mounts]
        assert [compare.wait(60) for compare in compares] == [0, 0]
        for mount in mounts:
            (link,) = mount.status()["links"]
            assert link["rx_unknown"] == 0, "frames for the other initiator do not arrive here"
            mount.umount()
