"""A host on the wire that sends lies: none of them makes a file, changes a target, fills the memory or stops I/O."""

from __future__ import annotations

import os
import random
import re
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from aoefs.protocol.ata import IDENTIFY_BYTES, Identity, Status, encode_identify
from aoefs.protocol.wire import (
    BROADCAST_MAC,
    Address,
    AoeCommand,
    AtaArgument,
    ConfigArgument,
    Flag,
    Header,
    encode,
)
from tests.faults.live import Worker, log_of, mount_until, pattern, read, write
from tests.lab import INITIATOR, TARGET, Lab, Mount, open_packet_socket, opened, wait_until
from tests.lab.forwarder import Wire

SIZE = 4 << 20
FRAMES = 20_000
MEGABYTE = 1 << 20


@pytest.fixture
def raw(lab: Lab, wire: Wire) -> Iterator[socket.socket]:
    """A socket at the target's end of the wire, for the lies."""
    with open_packet_socket(lab, TARGET) as opened_socket:
        yield opened_socket


def resident(mount: Mount) -> int:
    """Bytes of memory that the daemon uses."""
    assert mount.process is not None
    found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{mount.process.pid}/status").read_text())
    assert found is not None
    return int(found[1]) << 10


class Liar:
    """Frames of every kind that a stranger can make without seeing our frames."""

    def __init__(self, lab: Lab) -> None:
        self._dice = random.Random(9)
        self._ours = lab.mac(INITIATOR)
        self._target = lab.mac(TARGET)

    def _mac(self) -> bytes:
        return b"\x02" + self._dice.randbytes(5)

    def _address(self) -> Address:
        return Address(self._dice.randrange(0xFFFF), self._dice.randrange(0xFF))

    def _config(self, destination: bytes, source: bytes, address: Address, tag: int) -> bytes:
        header = Header(destination, source, address, AoeCommand.CONFIG, tag, Flag.RESPONSE)
        return encode(header, ConfigArgument(0, b"x", 0xFFFF, 1, 255, 1))

    def announcement(self) -> bytes:
        return self._config(BROADCAST_MAC, self._mac(), self._address(), 0)

    def config_answer(self) -> bytes:
        return self._config(self._ours, self._mac(), self._address(), self._dice.getrandbits(31) | 1 << 31)

    def ata_answer(self) -> bytes:
        """From the target itself, with a tag that is in use only by chance."""
        tag = self._dice.getrandbits(31) | 1 << 31
        header = Header(self._ours, self._target, Address(0, 0), AoeCommand.ATA, tag, Flag.RESPONSE)
        return encode(header, AtaArgument(0x40, 0, 0, Status.DRDY, 0), self._dice.randbytes(1024))

    def identity(self) -> bytes:
        tag = self._dice.getrandbits(31) | 1 << 31
        header = Header(self._ours, self._target, Address(0, 0), AoeCommand.ATA, tag, Flag.RESPONSE)
        identity = Identity(sectors=1, serial="liar", model="liar", firmware="1")
        return encode(header, AtaArgument(0, 0, 0, Status.DRDY, 0), encode_identify(identity)[:IDENTIFY_BYTES])

    def noise(self) -> bytes:
        return (self._ours + self._mac() + b"\x88\xa2" + self._dice.randbytes(self._dice.randrange(100)))[:1500]


@pytest.mark.parametrize("kind", ["announcement", "config_answer", "ata_answer", "identity", "noise"])
def test_a_flood_of_lies_makes_no_file_and_changes_nothing_and_io_goes_on(
    lab: Lab, wire: Wire, raw: socket.socket, kind: str
) -> None:
    disk = lab.image("disk", SIZE)
    lab.vblade(0, 0, disk)
    mount = mount_until(lab, "e0.0")
    lie: Callable[[], bytes] = getattr(Liar(lab), kind)
    lies = [lie() for _ in range(1000)]
    contents = disk.read_bytes()
    before = mount.target()

    def work(step: int) -> None:
        assert read(file, 65536, 1 << 20) == contents[1 << 20 : (1 << 20) + 65536]
        write(file, pattern(step), 0)
        assert read(file, 4096, 0) == pattern(step)

    with opened(mount.here / "e0.0") as file, Worker(work) as worker:
        worker.wait_for_steps(20)
        memory = resident(mount)
        for index in range(FRAMES):
            raw.send(lies[index % 1000] if index % 2 else lie())
        worker.wait_for_steps(20)
        assert resident(mount) - memory < 24 * MEGABYTE
    assert sorted(os.listdir(mount.here)) == [".aoefs", "by-serial", "e0.0"]
    after = mount.target()
    assert after["errors"] == 0
    for field in ("state", "size", "serial", "model", "config"):
        assert after[field] == before[field]
    for field in ("mac", "bufcnt", "sectors", "interface"):
        assert [path[field] for path in after["paths"]] == [path[field] for path in before["paths"]]
    if kind == "announcement":
        assert mount.status()["hints"] > 0


def test_announcements_with_the_targets_own_address_change_neither_its_window_nor_its_payload(
    lab: Lab, wire: Wire, raw: socket.socket
) -> None:
    lab.vblade(0, 0, lab.image("disk", SIZE))
    mount = mount_until(lab, "e0.0")
    (before,) = mount.target()["paths"]
    assert (before["bufcnt"], before["sectors"]) == (16, 2)
    heard = mount.status()["hints"]
    for buffers, sectors in ((0, 0), (0, 1), (0xFFFF, 255), (1, 17)):
        for destination in (BROADCAST_MAC, lab.mac(INITIATOR)):
            header = Header(destination, lab.mac(TARGET), Address(0, 0), AoeCommand.CONFIG, 0, Flag.RESPONSE)
            raw.send(encode(header, ConfigArgument(0, b"", buffers, 0, sectors, 1)))
    wait_until(lambda: mount.status()["hints"] >= heard + 8)
    with opened(mount.here / "e0.0") as file:
        for step in range(50):
            write(file, pattern(step), step * 4096)
            assert read(file, 4096, step * 4096) == pattern(step)
    found = mount.target()
    (after,) = found["paths"]
    for field in ("mac", "bufcnt", "sectors", "healthy"):
        assert after[field] == before[field]
    assert (found["state"], found["errors"]) == ("up", 0)


def test_no_more_targets_become_files_than_are_allowed(lab: Lab, wire: Wire) -> None:
    disk = lab.image("disk", SIZE)
    lab.target("--read-only", *(f"0.{slot}={disk}" for slot in range(8)))
    mount = lab.mount(foreground=True, max_targets=3)
    wait_until(lambda: len(os.listdir(mount.here)) == 5)
    wait_until(lambda: "3 targets are the most" in log_of(mount))
    seen = mount.status()["links"][0]["rx_frames"]
    wait_until(lambda: mount.status()["links"][0]["rx_frames"] > seen + 16, what="all were queried again")
    assert len(os.listdir(mount.here)) == 5
    lines = [line for line in log_of(mount).splitlines() if "targets are the most" in line]
    assert len(lines) == len(set(lines)) == 5


def test_no_frame_is_sent_to_an_address_that_is_not_allowed(lab: Lab, wire: Wire) -> None:
    lab.vblade(0, 0, lab.image("disk", SIZE))
    _, other = lab.cable(INITIATOR, TARGET)
    lab.vblade(0, 1, lab.image("other", SIZE), interface=other)
    capture = lab.capture(INITIATOR, "aoe0")
    mount = mount_until(lab, "e0.1", allow_mac=lab.mac(TARGET, 1).hex(":"))
    wait_until(lambda: any(frame[6:12] == lab.mac(TARGET) for frame in capture.frames()), what="it answers a broadcast")
    assert os.listdir(mount.here).count("e0.0") == 0
    assert not [frame for frame in capture.frames() if frame[:6] == lab.mac(TARGET)]
