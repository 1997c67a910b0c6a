"""SMART as AoE carries it: the registers of its two commands, and the 512 bytes of attributes decoded and encoded.

Used by both ends: ``aoefs identify --smart`` asks and decodes, the software target answers.  Pure functions.  Sources:
ATA8-ACS 7.52 for RETURN STATUS; SFF-8035i for the layout of READ DATA, which every disk follows although ATA calls
these bytes vendor specific.

Rejected: thresholds, obsolete since ATA-4.  RETURN STATUS says whether the disk itself expects to fail.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum

from aoefs.errors import FrameError
from aoefs.protocol.ata import Opcode
from aoefs.protocol.wire import SECTOR_BYTES, AtaArgument

_KEY = 0xC24F00  # LBA mid and high of every SMART command, and of the status of a healthy disk
_FAILING = 0x2CF400
_KEY_MASK = 0xFFFF00
_DEVICE = 0xA0 << 24
_ATTRIBUTE = struct.Struct("<BHBB6sx")  # id, flags, value, worst, raw
_FIRST_ATTRIBUTE, _ATTRIBUTES = 2, 30
_REVISION = 0x0010


class Feature(IntEnum):
    """The feature register of a SMART command."""

    READ_DATA = 0xD0
    RETURN_STATUS = 0xDA


#: What an attribute's number means on nearly all disks; other numbers differ between vendors.
NAMES = {
    1: "read error rate",
    3: "spin-up time",
    4: "start/stop count",
    5: "reallocated sectors",
    7: "seek error rate",
    9: "power-on hours",
    10: "spin retries",
    12: "power cycles",
    177: "wear leveling count",
    184: "end-to-end errors",
    187: "reported uncorrectable",
    188: "command timeouts",
    190: "airflow temperature",
    192: "power-off retracts",
    193: "load cycles",
    194: "temperature",
    196: "reallocation events",
    197: "pending sectors",
    198: "offline uncorrectable",
    199: "CRC errors",
    231: "life left",
    233: "media wearout",
    241: "sectors written",
    242: "sectors read",
}


@dataclass(frozen=True, slots=True)
class Attribute:
    """One attribute: ``value`` and ``worst`` are normalised (1 to 253, higher is better), ``raw`` is 48 bits."""

    number: int
    value: int
    worst: int
    raw: int
    flags: int = 0x0032  # kept across power cycles, counts events

    @property
    def name(self) -> str:
        return NAMES.get(self.number, "vendor specific")


def smart_registers(feature: Feature) -> AtaArgument:
    """Registers of a SMART command that moves one sector, or none for RETURN STATUS."""
    return AtaArgument(0, feature, int(feature == Feature.READ_DATA), Opcode.SMART, _DEVICE | _KEY)


def is_smart_untrusted(ata: AtaArgument) -> bool:
    """Whether the registers of a SMART command hold its key; a disk aborts a command without it."""
    return ata.lba & _KEY_MASK == _KEY


def status_lba(lba: int, *, failing: bool) -> int:
    """The LBA registers of an answer to RETURN STATUS."""
    return lba & ~_KEY_MASK | (_FAILING if failing else _KEY)


def is_failing_untrusted(ata: AtaArgument) -> bool:
    """Whether an answer to RETURN STATUS reports a failing disk; FrameError when it says neither yes nor no."""
    key = ata.lba & _KEY_MASK
    if key not in (_KEY, _FAILING):
        raise FrameError(f"SMART status: LBA registers 0x{key:06x} mean nothing")
    return key == _FAILING


def decode_smart_untrusted(block: bytes | memoryview) -> tuple[Attribute, ...]:
    """The attributes in the data of READ DATA; FrameError when they are short or the checksum is wrong."""
    if len(block) < SECTOR_BYTES:
        raise FrameError(f"SMART data: {len(block)} bytes, {SECTOR_BYTES} needed")
    block = bytes(block[:SECTOR_BYTES])
    if sum(block) & 0xFF:
        raise FrameError("SMART data: the checksum is wrong")
    rows = (_ATTRIBUTE.unpack_from(block, _FIRST_ATTRIBUTE + index * _ATTRIBUTE.size) for index in range(_ATTRIBUTES))
    return tuple(
        Attribute(number, value, worst, int.from_bytes(raw, "little"), flags)
        for number, flags, value, worst, raw in rows
        if number
    )


def encode_smart(attributes: Iterable[Attribute]) -> bytes:
    """The 512 bytes of READ DATA, with their checksum, for at most 30 attributes."""
    block = bytearray(SECTOR_BYTES)
    block[0:2] = _REVISION.to_bytes(2, "little")
    for index, each in enumerate(attributes):
        raw = (each.raw & (1 << 48) - 1).to_bytes(6, "little")
        offset = _FIRST_ATTRIBUTE + index * _ATTRIBUTE.size
        _ATTRIBUTE.pack_into(block, offset, each.number, each.flags, each.value, each.worst, raw)
    block[511] = -sum(block) & 0xFF
    return bytes(block)
