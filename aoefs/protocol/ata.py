"""ATA as AoE carries it: opcodes, register bits, and the 512 bytes of IDENTIFY DEVICE decoded and encoded.

Used by both ends: the initiator decodes IDENTIFY data and makes registers, the software target does the reverse.
Pure functions.  Sources: ATA8-ACS for opcodes and words, AoEr11 section 3.1 for the place of the registers in a frame.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from enum import IntEnum, IntFlag
from typing import Final

from aoefs.errors import AtaError, FrameError
from aoefs.errors import ErrorBit as ErrorBit
from aoefs.protocol.wire import SECTOR_BYTES, AtaArgument, AtaFlag

LBA28_SECTORS: Final = 1 << 28
LBA48_SECTORS: Final = 1 << 48
IDENTIFY_BYTES: Final = 512
DEVICE_LBA: Final = 0xE0 << 24  # the LBA bit and the two obsolete bits, in byte 3 of the LBA of an LBA28 command
_DEVICE_IDENTIFY: Final = 0xA0 << 24


class Opcode(IntEnum):
    """Command register values used or served here (ATA8-ACS, clause 7)."""

    READ = 0x20
    READ_EXT = 0x24
    WRITE = 0x30
    WRITE_EXT = 0x34
    SMART = 0xB0
    CHECK_POWER_MODE = 0xE5
    FLUSH = 0xE7
    FLUSH_EXT = 0xEA
    IDENTIFY = 0xEC


class Status(IntFlag):
    """Status register.  Success is ``status & FAILED == 0``; DRDY may be missing (vblade answers a FLUSH with 0x00)."""

    BSY = 0x80
    DRDY = 0x40
    DF = 0x20
    DRQ = 0x08
    ERR = 0x01


# A plain int: arithmetic with enums costs a microsecond.
FAILED: Final = int(Status.BSY | Status.DF | Status.DRQ | Status.ERR)


def check_result(ata: AtaArgument, *, lba: int | None = None, write: bool = False) -> None:
    """Raise ``AtaError`` when the registers of an answer say that the command failed.

    The sector count of an answer is ignored: vblade returns what remains, ggaoed what was requested.
    """
    if ata.command & FAILED:
        raise AtaError(ata.command, ata.feature, lba, write=write)


# AFlags and opcode by (write, lba48), plain ints
TRANSFERS: Final = {
    (False, False): (0, int(Opcode.READ)),
    (True, False): (int(AtaFlag.WRITE), int(Opcode.WRITE)),
    (False, True): (int(AtaFlag.LBA48), int(Opcode.READ_EXT)),
    (True, True): (int(AtaFlag.LBA48 | AtaFlag.WRITE), int(Opcode.WRITE_EXT)),
}


def transfer_registers(lba: int, count: int, *, write: bool, lba48: bool) -> AtaArgument:
    """Registers of a READ or WRITE of ``count`` sectors (1 to 255) at ``lba`` (sectors)."""
    flags, opcode = TRANSFERS[write, lba48]
    return AtaArgument(flags, 0, count, opcode, lba if lba48 else lba | DEVICE_LBA)


IDENTIFY_REGISTERS: Final = AtaArgument(0, 0, 1, Opcode.IDENTIFY, _DEVICE_IDENTIFY)


def flush_registers(opcode: int) -> AtaArgument:
    """Registers of FLUSH CACHE or FLUSH CACHE EXT."""
    extended = opcode == Opcode.FLUSH_EXT
    return AtaArgument(AtaFlag.LBA48 if extended else 0, 0, 0, opcode, 0 if extended else _DEVICE_IDENTIFY)


@dataclass(frozen=True, slots=True)
class Identity:
    """What IDENTIFY DEVICE says (ATA8-ACS 7.12).  ``sectors`` is the capacity in sectors of 512 bytes.

    Two answers come from the same disk when ``serial``, ``model`` and ``sectors`` agree (:meth:`same_disk`).
    ``block`` is the data that were decoded, 512 bytes, or empty.
    """

    sectors: int
    serial: str
    model: str
    firmware: str
    lba48: bool = True
    flush: bool = False
    flush_ext: bool = False
    write_cache: bool = False
    smart: bool = False
    trim: bool = False
    max_trim_blocks: int = 0
    physical_sector_bytes: int = SECTOR_BYTES
    block: bytes = field(default=b"", compare=False, repr=False)

    @property
    def size_bytes(self) -> int:
        return self.sectors * SECTOR_BYTES

    @property
    def flush_opcode(self) -> Opcode | None:
        """The flush command that the disk supports, the EXT form if possible; None if it supports none."""
        if self.flush_ext and self.lba48:
            return Opcode.FLUSH_EXT
        return Opcode.FLUSH if self.flush else None

    def same_unit(self, other: Identity) -> bool:
        """Whether serial and model agree; the capacity may differ (a disk that grew is still the same unit)."""
        return (self.serial, self.model) == (other.serial, other.model)

    def same_disk(self, other: Identity) -> bool:
        return self.same_unit(other) and self.sectors == other.sectors


def _string_untrusted(block: bytes, first_word: int, words: int) -> str:
    """An ATA string: the two bytes of each word are swapped, and spaces fill the end.

    Anything but printable ASCII becomes ``?``, since the text is printed on terminals, in JSON and in log lines.
    """
    raw = bytearray(block[first_word * 2 : (first_word + words) * 2])
    raw[0::2], raw[1::2] = raw[1::2], raw[0::2]
    text = bytes(raw).strip(b" \0").decode("ascii", "replace")
    return "".join(character if " " <= character <= "~" else "?" for character in text)


def decode_identify_untrusted(block: bytes | memoryview) -> Identity:
    """Decode the 512 bytes of an IDENTIFY DEVICE answer; FrameError when they are short or the capacity is 0."""
    if len(block) < IDENTIFY_BYTES:
        raise FrameError(f"IDENTIFY data: {len(block)} bytes, {IDENTIFY_BYTES} needed")
    data = bytes(block[:IDENTIFY_BYTES])
    words = struct.unpack("<256H", data)
    # Words 83 and 86 say the same for a disk whose features are on.  Some targets fill only one of them, so either is
    # accepted, as the Linux driver does.  Word 83 is valid if its two top bits are 01, word 86 if those of word 87 are.
    features = (words[83] if words[83] >> 14 == 1 else 0) | (words[86] if words[87] >> 14 == 1 else 0)
    lba48 = bool(features & 1 << 10)
    sectors28 = words[60] | words[61] << 16
    sectors48 = (words[100] | words[101] << 16 | words[102] << 32 | words[103] << 48) & LBA48_SECTORS - 1
    sectors = sectors48 if lba48 and sectors48 else min(sectors28, LBA28_SECTORS)
    if not sectors:
        raise FrameError("IDENTIFY data: a capacity of 0 sectors")
    physical = SECTOR_BYTES << (words[106] & 0x0F) if words[106] >> 13 == 0b011 else SECTOR_BYTES
    return Identity(
        sectors=sectors,
        serial=_string_untrusted(data, 10, 10),
        firmware=_string_untrusted(data, 23, 4),
        model=_string_untrusted(data, 27, 20),
        lba48=lba48,
        flush=bool(features & 1 << 12),
        flush_ext=bool(features & 1 << 13),
        write_cache=words[87] >> 14 == 1 and bool(words[85] & 1 << 5),
        smart=words[83] >> 14 == 1 and bool(words[82] & 1) and words[82] != 0xFFFF,  # 83 says whether 82 is valid
        trim=bool(words[169] & 1) and words[169] != 0xFFFF,
        max_trim_blocks=words[105],
        physical_sector_bytes=physical,
        block=data,
    )


def encode_identify(identity: Identity) -> bytes:
    """The 512 bytes that describe ``identity``, with the checksum (word 255); text is cut to the size of its field."""
    words = [0] * 256

    def put_string(first_word: int, count: int, text: str) -> None:
        raw = bytearray(text.encode("ascii", "replace")[: count * 2].ljust(count * 2))
        raw[0::2], raw[1::2] = raw[1::2], raw[0::2]
        words[first_word : first_word + count] = struct.unpack(f"<{count}H", raw)

    put_string(10, 10, identity.serial)
    put_string(23, 4, identity.firmware)
    put_string(27, 20, identity.model)
    words[0] = 0x0040  # ATA, not removable
    words[47] = 0x8000
    words[49] = 1 << 9  # LBA
    words[50] = 0x4000
    sectors28 = min(identity.sectors, LBA28_SECTORS - 1)
    words[60], words[61] = sectors28 & 0xFFFF, sectors28 >> 16
    words[82] = identity.smart | identity.write_cache << 5
    words[83] = 0x4000 | identity.lba48 << 10 | identity.flush << 12 | identity.flush_ext << 13
    words[84] = 0x4000
    words[85] = words[82]
    words[86] = words[83] & ~0x4000
    words[87] = 0x4000
    words[93] = 0x400B
    if identity.lba48:
        words[100:104] = [identity.sectors >> shift & 0xFFFF for shift in (0, 16, 32, 48)]
    words[105] = identity.max_trim_blocks
    if identity.physical_sector_bytes > SECTOR_BYTES:
        words[106] = 0x6000 | (identity.physical_sector_bytes // SECTOR_BYTES).bit_length() - 1
    words[169] = int(identity.trim)
    block = bytearray(struct.pack("<256H", *words))
    block[510] = 0xA5
    block[511] = -sum(block) & 0xFF
    return bytes(block)
