"""Partition tables: MBR with its chain of logical partitions, and GPT, read from sectors that may hold anything.

Pure.  ``read_table_untrusted`` is a generator: it yields the sectors that it needs and is sent their bytes.  So a disk
of terabytes costs a few reads, and a test needs no disk.  Sources: UEFI 2.10 chapter 5 for GPT; for MBR what fdisk and
the Linux kernel agree on.

What always holds:

- The partitions in a result are sorted, lie within the disk and do not overlap.  Otherwise FrameError says in a few
  words why the table is broken, and no part of it is used.
- The boot sector of a file system is no table (those of FAT, exFAT and NTFS end in 55AA too).
- Whatever the bytes say, at most ``MAX_CHAIN`` sectors of a chain and three times ``MAX_ENTRIES_BYTES`` are requested,
  all of them within the disk.

Rejected: using the good entries of a broken table, as the kernel does (a file at the wrong place invites writing at the
wrong place), and a GPT without its protective MBR (fdisk, parted and the kernel do not see it either).
"""

from __future__ import annotations

import itertools
import struct
import zlib
from collections.abc import Generator
from dataclasses import dataclass
from typing import NamedTuple

from aoefs.errors import FrameError
from aoefs.protocol.wire import SECTOR_BYTES

MAX_PARTITIONS = 256  # of one disk, as the Linux kernel
MAX_CHAIN = 128  # extended boot records of one disk; fdisk makes at most 60
MAX_ENTRIES_BYTES = 1 << 19  # of a GPT: 4096 entries of the usual size

_ENTRY = struct.Struct("<B3xB3xII")  # of an MBR: status, type, first sector, sectors
_HEADER = struct.Struct("<8sIII4xQQQQ16xQIII")  # of a GPT, 92 bytes
_GPT_ENTRY = struct.Struct("<16s16sQQ")  # type, unique GUID, first and last sector
_TABLE_OFFSET, _SIGNATURE_OFFSET = 446, 510
_PROTECTIVE = 0xEE
_EXTENDED = (0x05, 0x0F, 0x85)
_PRIMARY_HEADER_LBA = 1
_NO_TYPE = bytes(16)


@dataclass(frozen=True, slots=True)
class Partition:
    """Partition ``number`` (from 1; logical ones of an MBR from 5): ``sectors`` of 512 bytes from sector ``first``."""

    number: int
    first: int
    sectors: int

    @property
    def end(self) -> int:
        return self.first + self.sectors


Extent = tuple[int, int]  # (first sector, how many) that the parser requests
Reader = Generator[Extent, bytes, tuple[Partition, ...]]


class _Slot(NamedTuple):
    """One entry of an MBR or of an extended boot record, unchecked."""

    status: int
    type: int
    first: int
    sectors: int


def read_table_untrusted(disk_sectors: int) -> Reader:
    """The partitions of a disk, none without a table.  FrameError when the table is broken.

    Yields extents within the disk, and must be sent exactly the bytes of each.
    """
    boot = yield 0, 1
    slots = _slots(boot)
    if not slots or _is_file_system(boot) or any(slot.status not in (0x00, 0x80) for slot in slots):
        return ()
    if any(slot.type == _PROTECTIVE for slot in slots):
        return (yield from _read_gpt(disk_sectors))
    return (yield from _read_mbr(slots, disk_sectors))


def _checked(found: list[Partition]) -> tuple[Partition, ...]:
    """Check the number and the overlap of partitions; the partitions sorted by number."""
    if len(found) > MAX_PARTITIONS:
        raise FrameError(f"{len(found)} partitions, {MAX_PARTITIONS} are the most")
    by_place = sorted(found, key=lambda partition: partition.first)
    for left, right in itertools.pairwise(by_place):
        if left.end > right.first:
            raise FrameError(f"partitions {left.number} and {right.number} overlap")
    return tuple(sorted(found, key=lambda partition: partition.number))


# ── MBR ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def _slots(sector: bytes) -> list[_Slot]:
    """The four entries of a boot record; none without its signature."""
    if sector[_SIGNATURE_OFFSET:SECTOR_BYTES] != b"\x55\xaa":
        return []
    return [_Slot(*entry) for entry in _ENTRY.iter_unpack(sector[_TABLE_OFFSET:_SIGNATURE_OFFSET])]


def _is_file_system(boot: bytes) -> bool:
    """Whether this is the boot sector of NTFS, exFAT or FAT: a jump, then a plausible BIOS parameter block."""
    if boot[0] not in (0xE9, 0xEB):
        return False
    if boot[3:11] in (b"NTFS    ", b"EXFAT   "):
        return True
    sector_bytes, cluster_sectors, reserved, fats = struct.unpack_from("<HBHB", boot, 11)
    media = boot[21]
    powers = _is_power(sector_bytes) and 512 <= sector_bytes <= 4096 and _is_power(cluster_sectors)
    return powers and reserved > 0 and fats in (1, 2) and (media == 0xF0 or media >= 0xF8)


def _is_power(number: int) -> bool:
    return number > 0 and not number & number - 1


def _read_mbr(slots: list[_Slot], disk_sectors: int) -> Reader:
    found: list[Partition] = []
    extended: list[Partition] = []
    for number, slot in enumerate(slots, 1):
        if slot.type and slot.sectors:
            partition = _within(number, slot.first, slot.sectors, 1, disk_sectors)
            (extended if slot.type in _EXTENDED else found).append(partition)
    _checked(found + extended)
    logical: list[Partition] = []
    seen: set[int] = set()
    for area in extended:
        yield from _read_chain(area, logical, seen)
    for partition, record in itertools.product(logical, seen):
        if partition.first <= record < partition.end:
            raise FrameError(f"partition {partition.number} covers the extended boot record in sector {record}")
    return _checked(found + logical)


def _within(number: int, first: int, sectors: int, start: int, end: int) -> Partition:
    if first < start or first + sectors > end:
        raise FrameError(
            f"partition {number} (sectors {first} to {first + sectors - 1}) is not within {start} to {end - 1}"
        )
    return Partition(number, first, sectors)


def _read_chain(area: Partition, logical: list[Partition], seen: set[int]) -> Generator[Extent, bytes, None]:
    """Append the logical partitions of an extended one: each record holds one and a link to the next record."""
    at: int | None = area.first
    while at is not None:
        if at in seen:
            raise FrameError(f"the chain of logical partitions runs in a circle at sector {at}")
        if len(seen) >= MAX_CHAIN:
            raise FrameError(f"the chain of logical partitions has more than {MAX_CHAIN} records")
        seen.add(at)
        sector = yield at, 1
        slots = _slots(sector)
        if not slots:
            if at == area.first and not any(sector[_TABLE_OFFSET:]):
                return  # a new extended partition without logical ones
            raise FrameError(f"sector {at} holds no extended boot record")
        here, at = at, None
        for slot in slots[:2]:
            if not slot.type or not slot.sectors:
                continue
            if slot.type in _EXTENDED:
                if at is not None:
                    raise FrameError(f"the extended boot record at sector {here} leads two ways")
                at = _within(area.number, area.first + slot.first, 1, area.first, area.end).first
            else:
                number = 5 + len(logical)
                logical.append(_within(number, here + slot.first, slot.sectors, area.first, area.end))


# ── GPT ───────────────────────────────────────────────────────────────────────────────────────────────────────────


class _Header(NamedTuple):
    """What a good GPT header says."""

    alternate: int
    first_usable: int
    last_usable: int
    entries_lba: int
    entries: int
    entry_bytes: int
    entries_crc: int

    @property
    def entries_sectors(self) -> int:
        return -(-self.entries * self.entry_bytes // SECTOR_BYTES)


def _read_gpt(disk_sectors: int) -> Reader:
    """Use the primary header, or else the backup: where the primary one says, then in the last sector of the disk."""
    complaint = ""
    places = [_PRIMARY_HEADER_LBA, disk_sectors - 1]
    tried: set[int] = set()
    while places:
        lba = places.pop(0)
        if lba in tried or not 0 < lba < disk_sectors:
            continue
        tried.add(lba)
        try:
            header = _header_untrusted((yield lba, 1), lba, disk_sectors)
            places.insert(0, header.alternate)  # not in the last sector if the disk grew
            entries = yield header.entries_lba, header.entries_sectors
            return _entries_untrusted(entries, header)
        except FrameError as error:
            complaint = complaint or str(error)
        if len(tried) > 2:
            break
    raise FrameError(f"no good GPT behind its protective MBR: {complaint or 'the disk is too small'}")


def _header_untrusted(sector: bytes, lba: int, disk_sectors: int) -> _Header:
    signature, revision, size, crc, own_lba, *rest = _HEADER.unpack_from(sector)
    header = _Header(*rest)
    first, last, entries_lba = header.first_usable, header.last_usable, header.entries_lba
    if signature != b"EFI PART":
        raise FrameError(f"no GPT header in sector {lba}")
    if not _HEADER.size <= size <= SECTOR_BYTES or revision >> 16 != 1:
        raise FrameError(f"GPT header in sector {lba}: revision 0x{revision:x} of {size} bytes")
    if zlib.crc32(sector[:16] + bytes(4) + sector[20:size]) != crc:
        raise FrameError(f"GPT header in sector {lba}: wrong checksum")
    if own_lba != lba:
        raise FrameError(f"GPT header in sector {lba} belongs into sector {own_lba}")
    if not 1 < first <= last < disk_sectors:
        raise FrameError(f"GPT header in sector {lba}: usable sectors {first} to {last} of {disk_sectors}")
    table_bytes = header.entries * header.entry_bytes
    if header.entry_bytes < 128 or not _is_power(header.entry_bytes) or not 0 < table_bytes <= MAX_ENTRIES_BYTES:
        raise FrameError(f"GPT header in sector {lba}: {header.entries} entries of {header.entry_bytes} bytes")
    end = entries_lba + header.entries_sectors
    if entries_lba < 2 or end > disk_sectors or (entries_lba <= last and first < end):
        raise FrameError(f"GPT header in sector {lba}: entries in sectors {entries_lba} to {end - 1}")
    return header


def _entries_untrusted(data: bytes, header: _Header) -> tuple[Partition, ...]:
    table = data[: header.entries * header.entry_bytes]
    if zlib.crc32(table) != header.entries_crc:
        raise FrameError(f"GPT entries in sector {header.entries_lba}: wrong checksum")
    found: list[Partition] = []
    for index in range(header.entries):
        kind, _, first, last = _GPT_ENTRY.unpack_from(table, index * header.entry_bytes)
        if kind == _NO_TYPE:
            continue
        if not header.first_usable <= first <= last <= header.last_usable:
            raise FrameError(f"partition {index + 1} (sectors {first} to {last}) is outside of the usable sectors")
        found.append(Partition(index + 1, first, last - first + 1))
    return _checked(found)
