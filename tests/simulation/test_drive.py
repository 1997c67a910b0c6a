"""The simulated disk: what its cache loses without power."""

from __future__ import annotations

from random import Random

import pytest

from aoefs.protocol.wire import SECTOR_BYTES
from tests.simulation.drive import Drive


def put(drive: Drive, sector: int, byte: bytes) -> bytes:
    data = byte * SECTOR_BYTES
    assert drive.writev([data], sector * SECTOR_BYTES) == SECTOR_BYTES
    return data


def get(drive: Drive, sector: int) -> bytes:
    data = bytearray(SECTOR_BYTES)
    drive.readv([data], sector * SECTOR_BYTES)
    return bytes(data)


@pytest.fixture
def drive() -> Drive:
    return Drive(0, 8, most_sectors=8)


def test_without_power_all_that_was_not_flushed_may_be_lost(drive: Drive) -> None:
    flushed = put(drive, 1, b"a")
    drive.sync()
    put(drive, 1, b"b")
    assert get(drive, 1) == b"b" * SECTOR_BYTES
    assert not drive.is_clean
    drive.cut_power(None)
    assert get(drive, 1) == flushed
    assert drive.is_clean


def test_any_version_since_the_last_flush_may_survive(drive: Drive) -> None:
    seen = set()
    for seed in range(50):
        for byte in (b"a", b"b", b"c"):
            put(drive, 0, byte)
            if byte == b"a":
                drive.sync()
        drive.cut_power(Random(seed))
        seen.add(get(drive, 0)[:1])
    assert seen == {b"a", b"b", b"c"}


def test_a_flush_covers_what_was_written_when_it_began(drive: Drive) -> None:
    before = put(drive, 0, b"a")
    mark = drive.begin_flush()
    put(drive, 0, b"b")
    put(drive, 1, b"b")
    drive.end_flush(mark)
    first = drive.durable[1]
    drive.cut_power(None)
    assert (get(drive, 0), get(drive, 1)) == (before, first)


def test_a_bad_sector_is_neither_read_nor_written(drive: Drive) -> None:
    drive.bad.add(3)
    for call in (get, lambda drive, sector: put(drive, sector, b"x")):
        with pytest.raises(OSError, match="Input/output error"):
            call(drive, 3)
    with pytest.raises(OSError, match="Input/output error"):
        drive.writev([bytes(3 * SECTOR_BYTES)], SECTOR_BYTES)
    assert drive.is_clean, "no sector of it was written"


def test_a_drive_without_a_cache_loses_nothing() -> None:
    drive = Drive(0, 8, most_sectors=8, volatile=False)
    data = put(drive, 2, b"a")
    drive.cut_power(Random(0))
    assert get(drive, 2) == data
