"""The bytes that are written: each write fills each sector with a number that names disk, write and sector.

Every byte of the number depends on all three, so that even a few bytes of a partial sector tell writes apart.  Write 0
stands for what was there at first; every second disk has a partition table then.
"""

from __future__ import annotations

import struct
from functools import lru_cache

from aoefs.protocol.wire import SECTOR_BYTES

PARTITIONS = ((32, 32), (64, 32))  # first sector, sectors
_ENTRIES = [bytes(4) + b"\x83" + bytes(3) + struct.pack("<II", *partition) for partition in PARTITIONS]
TABLE = b"".join(_ENTRIES).ljust(64, b"\0") + b"\x55\xaa"  # of an MBR
_MASK = (1 << 64) - 1


def stamp(drive: int, write: int, sector: int) -> bytes:
    """Eight bytes (the last step is that of the generator SplitMix64)."""
    mixed = (write * 0x9E3779B97F4A7C15 + sector * 0xD1B54A32D192ED03 + (drive + 1) * 0x8CB92BA72F3D8DD7) & _MASK
    mixed = ((mixed ^ mixed >> 30) * 0xBF58476D1CE4E5B9) & _MASK
    mixed = ((mixed ^ mixed >> 27) * 0x94D049BB133111EB) & _MASK
    return (mixed ^ mixed >> 31).to_bytes(8, "little")


@lru_cache(maxsize=4096)
def content(drive: int, write: int, sector: int) -> bytes:
    """What this write puts into a whole sector."""
    filled = stamp(drive, write, sector) * (SECTOR_BYTES // 8)
    return filled[:446] + TABLE if drive % 2 and write == sector == 0 else filled


def data_of(drive: int, write: int, offset: int, size: int) -> bytes:
    """What this write puts into the bytes from ``offset`` of the disk on."""
    first, end = offset // SECTOR_BYTES, -(-(offset + size) // SECTOR_BYTES)
    whole = b"".join(content(drive, write, sector) for sector in range(first, end))
    skip = offset - first * SECTOR_BYTES
    return whole[skip : skip + size]
