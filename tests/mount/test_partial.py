"""Writes of any length at any place: a partial sector loses nothing around it, even if others write into it, too."""

from __future__ import annotations

import errno
import mmap
import os
import random
import threading

import pytest

from tests.lab import INITIATOR, require
from tests.mount.place import EVERY_PLACE, MIB, Place, places, random_bytes

SIZES = {"e0.0": 16 * MIB, "e0.1": MIB + 512}
pytestmark = places(EVERY_PLACE)

WRITERS = """
import os, sys
number, rounds, flags, path = int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
file = os.open(path, os.O_RDWR | flags)
for turn in range(rounds):
    for piece in range(16):  # 16 sectors, 13 bytes of each are ours
        assert os.pwrite(file, bytes([number * 7 + turn & 0xFF]) * 13, 4096 + piece * 512 + number * 13) == 13
os.close(file)
"""


def aligned_buffer(size: int) -> memoryview:
    return memoryview(mmap.mmap(-1, size))


@pytest.mark.parametrize("flags", [0, os.O_DIRECT, os.O_DSYNC], ids=["buffered", "direct", "dsync"])
def test_seven_bytes_at_odd_places_change_seven_bytes(place: Place, flags: int) -> None:
    image = place.images["e0.1"]
    expected = bytearray(image.read_bytes())
    places = random.Random(flags).sample(range(len(expected) - 7), 60)
    places += [0, 505, 506, 511, 512, 4093, len(expected) - 7]
    with place.opened("e0.1", os.O_RDWR | flags) as file:
        for number, offset in enumerate(places):
            data = bytes([number]) * 7
            assert os.pwrite(file, data, offset) == 7
            expected[offset : offset + 7] = data
            assert os.pread(file, 9, max(0, offset - 1)) == expected[max(0, offset - 1) :][:9]
    assert image.read_bytes() == expected


@pytest.mark.parametrize("shift", [16, 1, 511])
def test_one_large_direct_write_from_a_misaligned_buffer_arrives_whole(place: Place, shift: int) -> None:
    """The kernel cuts it at its pages: four requests at once, of which neighbours share a sector."""
    data = random_bytes(3 * MIB, shift)
    buffer = aligned_buffer(4 * MIB)
    buffer[shift : shift + 3 * MIB] = data
    expected = bytearray(place.images["e0.0"].read_bytes())
    for offset in (MIB, 5 * MIB + 512, 2 * MIB + 100):
        with place.opened("e0.0", os.O_RDWR | os.O_DIRECT) as file:
            assert os.pwrite(file, buffer[shift : shift + 3 * MIB], offset) == 3 * MIB
            expected[offset : offset + 3 * MIB] = data
            back = aligned_buffer(4 * MIB)
            assert os.preadv(file, [back[shift : shift + 3 * MIB]], offset) == 3 * MIB
        assert back[shift : shift + 3 * MIB] == data
    assert place.images["e0.0"].read_bytes() == expected


@pytest.mark.parametrize("flags", [0, os.O_DIRECT], ids=["buffered", "direct"])
def test_many_processes_that_write_into_the_same_sectors_lose_nothing(place: Place, flags: int) -> None:
    expected = bytearray(place.images["e0.0"].read_bytes())
    command = ["python3", "-c", WRITERS]
    writers = [place.lab.popen(INITIATOR, [*command, number, 5, flags, place.file("e0.0")]) for number in range(12)]
    for number, writer in enumerate(writers):
        assert writer.wait(60) == 0, writer.output
        for piece in range(16):
            start = 4096 + piece * 512 + number * 13
            expected[start : start + 13] = bytes([number * 7 + 4 & 0xFF]) * 13
    assert place.images["e0.0"].read_bytes() == expected


def test_two_mounts_that_write_neighbouring_sectors_do_not_disturb_each_other(place: Place) -> None:
    other = place.lab.mount()
    expected = bytearray(place.images["e0.0"].read_bytes())

    def write_own_sectors(path: str, first: int, value: int) -> None:
        file = os.open(path, os.O_RDWR | os.O_DIRECT)
        for sector in range(first, 128, 2):
            assert os.pwrite(file, bytes([value]) * 300, sector * 512 + 100) == 300
        os.close(file)

    arguments = [(str(place.here("e0.0")), 0, 0xAA), (str(other.here / "e0.0"), 1, 0xBB)]
    threads = [threading.Thread(target=write_own_sectors, args=each) for each in arguments]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for sector in range(128):
        expected[sector * 512 + 100 : sector * 512 + 400] = (b"\xbb" if sector % 2 else b"\xaa") * 300
    other.umount()
    assert place.images["e0.0"].read_bytes() == expected


FIO_JOBS = {
    "psync": "--ioengine=psync --bs=4k --size=4M --numjobs=2 --offset_increment=4M",
    "psync-odd": "--ioengine=psync --rw=write --bsrange=100-9000 --bs_unaligned --size=1M",
    "libaio": "--ioengine=libaio --direct=1 --bs=4k --iodepth=16 --size=8M",
    "libaio-large": "--ioengine=libaio --direct=1 --bs=1M --iodepth=4 --size=16M",
    "libaio-partial": "--ioengine=libaio --bs=333 --ba=333 --direct=1 --iodepth=12 --size=1M",
    "libaio-odd": "--ioengine=libaio --bsrange=512-70k --blockalign=512 --direct=1 --iodepth=12 --size=4M",
    "io_uring": "--ioengine=io_uring --direct=1 --bs=2k --iodepth=16 --size=4M",
    "mmap": "--ioengine=mmap --bs=4k --size=4M",
}


@pytest.mark.parametrize("job", FIO_JOBS)
def test_fio_reads_back_what_it_wrote(place: Place, job: str) -> None:
    require("fio")
    options = FIO_JOBS[job].split()
    name = place.file("e0.0")
    common = ["--rw=randwrite", "--verify=crc32c", "--verify_fatal=1", "--allow_file_create=0", "--minimal"]
    common.append(f"--aux-path={place.lab.directory}")  # of the state that a verification leaves
    answer = place.run("fio", "--name=job", f"--filename={name}", *common, *options, "--end_fsync=1", timeout=60)
    assert "bad" not in answer.stderr + answer.stdout, answer.stderr
    place.run("cmp", place.images["e0.0"], name)


def test_what_one_process_stored_through_a_shared_map_is_on_the_disk(place: Place) -> None:
    expected = bytearray(place.images["e0.1"].read_bytes())
    with place.opened("e0.1", os.O_RDWR) as file, mmap.mmap(file, SIZES["e0.1"]) as shared:
        for offset, size in ((3, 7), (4090, 12), (70_000, 40_000), (MIB + 512 - 5, 5)):
            data = random_bytes(size, offset)
            shared[offset : offset + size] = data
            expected[offset : offset + size] = data
            assert os.pread(file, size, offset) == data
        shared.flush()
        assert place.images["e0.1"].read_bytes() == expected
        assert os.pwrite(file, b"seen through the map", 9000) == 20
        assert shared[9000:9020] == b"seen through the map"


def test_a_long_mixture_of_writes_and_reads_leaves_what_a_plain_array_holds(place: Place) -> None:
    image, size = place.images["e0.1"], SIZES["e0.1"]
    model = bytearray(image.read_bytes())
    dice = random.Random(9)
    files = [os.open(place.here("e0.1"), os.O_RDWR | flag) for flag in (0, os.O_DIRECT, os.O_SYNC)]
    try:
        for turn in range(300):
            file = dice.choice(files)
            length = dice.choice((1, 7, 511, 512, 513, 4096, 5000, 65536, 200_001))
            offset = dice.choice((dice.randrange(size), dice.randrange(size // 512) * 512, size - 1, size - 512))
            room = max(0, min(length, size - offset))
            if dice.random() < 0.5:
                data = random_bytes(length, turn)
                if file == files[1] and room < length:  # FUSE has no short count for it
                    with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
                        os.pwrite(file, data, offset)
                else:
                    assert os.pwrite(file, data, offset) == room
                model[offset : offset + room] = data[:room]
            else:
                assert os.pread(file, length, offset) == model[offset : offset + room], (turn, offset, length)
        with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
            os.pwrite(files[0], b"x", size)
    finally:
        for file in files:
            os.close(file)
    assert image.read_bytes() == model
