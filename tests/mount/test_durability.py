"""Which calls flush the target, and that they return only after its answer."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
from pathlib import Path

import pytest

from aoefs.protocol.ata import Opcode
from aoefs.protocol.wire import AoeCommand, decode_ata_untrusted, decode_header_untrusted
from tests.lab import INITIATOR, Capture, Lab, is_gone, require, wait_until
from tests.mount.place import MIB, TWO_PLACES, VBLADE, Place, fails_with, open_place, places, serve

SIZES = {"e0.0": 4 * MIB}
COMMANDS: dict[int, str] = {
    Opcode.FLUSH: "flush",
    Opcode.FLUSH_EXT: "flush",
    Opcode.WRITE: "write",
    Opcode.WRITE_EXT: "write",
}
pytestmark = places(TWO_PLACES)


def commands(capture: Capture) -> list[str]:
    """The writes and flushes on the wire so far, in order, and their answers."""
    names: dict[int, str] = {}  # by tag
    found = []
    for frame in capture.frames():
        header = decode_header_untrusted(frame)
        if header.command != AoeCommand.ATA:
            continue
        registers = decode_ata_untrusted(frame)
        if not header.is_response:
            names[header.tag] = COMMANDS.get(registers.command, "")
        if name := names[header.tag]:
            found.append(f"{name} answered" if header.is_response else name)
            assert not header.is_response or not registers.command & 1  # no error
    return found


def test_fsync_returns_when_the_target_has_answered_its_flush(place: Place) -> None:
    require("tshark")
    capture = place.lab.capture()
    with place.opened("e0.0", os.O_RDWR) as file:
        os.fsync(file)  # nothing is written: it flushes all the same
        assert commands(capture) == ["flush", "flush answered"]
        os.pwrite(file, bytes(512), 0)
        os.fdatasync(file)
        expected = ["write", "write answered", "flush", "flush answered"]
        assert commands(capture)[2:] == expected
    assert commands(capture)[2:] == expected  # the close has nothing left to flush
    flush = "(aoe.ata.cmd == 0xe7 || aoe.ata.cmd == 0xea) && aoe.response == 0"
    assert [len(row) for row in capture.tshark(flush, "aoe.tag")] == [1, 1]


@pytest.mark.parametrize("direct", [False, True], ids=["cached", "direct"])
@pytest.mark.parametrize("flags", [os.O_SYNC, os.O_DSYNC, os.O_DIRECT | os.O_DSYNC], ids=["sync", "dsync", "o_direct"])
def test_each_synchronous_write_is_followed_by_a_flush(place: Place, direct: bool, flags: int) -> None:
    mount = place.lab.mount(direct=True) if direct else place.mount
    before = place.counters("e0.0", mount)["flushes"]
    file = os.open(mount.here / "e0.0", os.O_WRONLY | flags)
    for number in range(1, 4):
        os.pwrite(file, bytes(512), 512 * number)
        status = place.counters("e0.0", mount)
        assert status["flushes"] == before + number
        assert not status["dirty"]
    os.close(file)
    if direct:
        mount.umount()


def flushes(place: Place) -> int:
    return place.counters("e0.0")["flushes"]


def test_close_flushes_what_was_written_and_nothing_else(place: Place) -> None:
    before = flushes(place)
    with place.opened("e0.0", os.O_RDWR) as file:
        os.pread(file, 512, 0)
    assert flushes(place) == before
    with place.opened("e0.0", os.O_RDWR) as file:
        os.pwrite(file, b"data", 0)
        os.close(os.dup(file))
        assert flushes(place) == before + 1
    assert flushes(place) == before + 1
    place.run("sync", place.file("e0.0"))
    assert flushes(place) == before + 2


def store_through_a_map(path: Path, offset: int, data: bytes) -> None:
    """Store into a shared map that outlives its descriptor (Python's own maps keep one): no close flushes it."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    file = os.open(path, os.O_RDWR)
    start = libc.mmap(None, MIB, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_SHARED, file, 0)
    os.close(file)
    assert start not in (None, ctypes.c_void_p(-1).value)
    ctypes.memmove(start + offset, data, len(data))
    assert libc.munmap(start, MIB) == 0


def test_umount_flushes_what_a_map_has_left(place: Place) -> None:
    with open_place(place.kind, place.lab.mtu, {"e0.0": MIB}) as other:
        capture = other.lab.capture()
        store_through_a_map(other.here("e0.0"), 5000, b"in memory")
        assert "flush" not in commands(capture)
        other.mount.umount()
        assert "write" in commands(capture)
        assert commands(capture)[-2:] == ["flush", "flush answered"]
        assert other.images["e0.0"].read_bytes()[5000:5009] == b"in memory"


def test_a_lazy_umount_serves_what_is_open_and_flushes_in_the_end(place: Place) -> None:
    with open_place(place.kind, place.lab.mtu, {"e0.0": MIB}) as other:
        capture = other.lab.capture()
        pid = other.mount.pid
        with other.opened("e0.0", os.O_RDWR) as file:
            other.mount.umount("--lazy")
            assert not other.mount.mounted
            assert os.pwrite(file, b"still here", 12345) == 10
            assert os.pread(file, 10, 12345) == b"still here"
            os.fsync(file)
            os.pwrite(file, b"unflushed!", 12345)
        wait_until(lambda: is_gone(pid), what="the daemon is gone")
        assert commands(capture)[-4:] == ["write", "write answered", "flush", "flush answered"]
        assert other.images["e0.0"].read_bytes()[12345:12355] == b"unflushed!"
        assert other.lab.sides[INITIATOR].packet_sockets() == 0


def test_a_target_that_takes_no_writes_is_a_read_only_disk(place: Place) -> None:
    with Lab() as lab:
        image = lab.image("image", MIB)
        option = "-r" if place.kind == VBLADE else "--read-only"
        serve(lab, place.kind, {"e0.0": image}, option)
        other = Place(place.kind, lab, lab.mount(), {"e0.0": image})
        with other.opened("e0.0", os.O_RDWR) as file:
            fails_with(errno.EROFS, lambda: os.pwrite(file, bytes(512), 0))
            assert os.pread(file, 512, 0) == image.read_bytes()[:512]
