"""AoE version 1 on the wire: every field, flag and error code of the four commands.

Owns the layout and nothing else: no socket, no clock, no policy.  ``encode_*`` build bytes.  ``decode_*_untrusted``
read bytes from the network, and raise ``FrameError`` and no other exception, whatever the bytes.

What holds always:

- Frames that we encode have at least 60 bytes (zero padded, since virtual interfaces do not pad); reserved bytes are
  zero.
- Frames that we decode may be shorter than 60 bytes (vblade on veth sends 26 to 36) and may end in any garbage.  A
  length in a frame is compared with the frame before it is used; reserved bytes are ignored.
- All fields are big-endian, except the LBA, which is little-endian (AoEr11 section 3.1).

Offsets (AoEr11 section 2; the Ethernet header is counted)::

     0  destination MAC (6)   6  source MAC (6)   12  ethertype 0x88A2 (2)
    14  version (high nibble), flags (low nibble)          15  error
    16  shelf, "major" (2)    18  slot, "minor" (1)        19  command
    20  tag (4)               24  argument of the command

Rejected: checking lengths by the size of the frame alone (Ethernet padding makes every short frame look longer than
it is).
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from typing import Final, NamedTuple, TypeAlias

from aoefs.errors import ErrorCode as ErrorCode
from aoefs.errors import FrameError

ETHERTYPE: Final = 0x88A2
VERSION: Final = 1
BROADCAST_MAC: Final = b"\xff" * 6
MIN_FRAME_BYTES: Final = 60  # Ethernet minimum without the checksum
SECTOR_BYTES: Final = 512  # the only size in AoE (AoEr11 section 3.1)
MAX_SECTORS: Final = 255  # the sector count is one byte; 0 is never sent
MAX_CONFIG_BYTES: Final = 1024  # AoEr11 section 3.2
CLIENT_TAG_BIT: Final = 0x8000_0000  # set by user-space initiators: the Linux driver ignores answers that carry it

_HEADER: Final = struct.Struct("!6s6sHBBHBBI")
_ATA: Final = struct.Struct("<BBBBQ")  # flags, feature/error, count, command/status, 48-bit LBA and 2 reserved bytes
_CONFIG: Final = struct.Struct("!HHBBH")  # bufcnt, firmware, sector count, version|ccmd, string length
_MASK: Final = struct.Struct("!BBBB")  # reserved, mcmd, merror, directive count
_DIRECTIVE: Final = struct.Struct("!BB6s")  # reserved, dcmd, MAC
_RESERVE: Final = struct.Struct("!BB")  # rcmd, number of MACs

HEADER_BYTES: Final = _HEADER.size  # 24
ATA_BYTES: Final = HEADER_BYTES + _ATA.size  # 36
CONFIG_BYTES: Final = HEADER_BYTES + _CONFIG.size  # 32
MASK_BYTES: Final = HEADER_BYTES + _MASK.size  # 28
RESERVE_BYTES: Final = HEADER_BYTES + _RESERVE.size  # 26


class AoeCommand(IntEnum):
    """The command byte (AoEr11 section 2.3); 0xF0 to 0xFF are vendor commands."""

    ATA = 0
    CONFIG = 1
    MASK = 2
    RESERVE = 3


class Flag(IntFlag):
    """The low nibble of byte 14 (AoEr11 section 2.2)."""

    RESPONSE = 0x08
    ERROR = 0x04


class AtaFlag(IntFlag):
    """AFlags of an ATA command (AoEr11 section 3.1)."""

    LBA48 = 0x40  # "E": an extended (48-bit) command
    DEVICE = 0x10  # "D": bit 4 of the device register
    ASYNC = 0x02  # "A": the target may answer before the write is done; never set here
    WRITE = 0x01  # "W": the data go to the device


class ConfigCommand(IntEnum):
    """CCmd of a config query (AoEr11 section 3.2)."""

    READ = 0  # always answered
    TEST = 1  # answered if the string is equal
    PREFIX = 2  # answered if the argument is a prefix of the string
    SET = 3  # stored if empty so far, else error 4
    FORCE_SET = 4  # stored


class MaskCommand(IntEnum):
    """MCmd of a MAC mask list command (AoEr11 section 3.3)."""

    READ = 0
    EDIT = 1


class MaskDirective(IntEnum):
    """DCmd of one directive of a mask edit (AoEr11 section 3.3)."""

    NONE = 0
    ADD = 1
    DELETE = 2


class MaskError(IntEnum):
    """MError of a mask answer (AoEr11 section 3.3); the error flag stays clear."""

    NONE = 0
    UNSPECIFIED = 1
    BAD_DIRECTIVE = 2
    LIST_FULL = 3


class ReserveCommand(IntEnum):
    """RCmd of a reserve/release command (AoEr11 section 3.4)."""

    READ = 0
    SET = 1
    FORCE_SET = 2


class Address(NamedTuple):
    """Shelf and slot of a target, written ``e0.0``; shelf 0 to 65534, slot 0 to 254 (the maxima are broadcast)."""

    shelf: int
    slot: int

    def __str__(self) -> str:
        return f"e{self.shelf}.{self.slot}"

    @property
    def is_target(self) -> bool:
        """False for the two broadcast values, which no target may have."""
        return 0 <= self.shelf < 0xFFFF and 0 <= self.slot < 0xFF

    @classmethod
    def parse(cls, text: str) -> Address:
        """Read ``X.Y`` or ``eX.Y``, as a user or a file name gives it; ValueError says what is wrong."""
        match = re.fullmatch(r"e?(0|[1-9]\d{0,5})\.(0|[1-9]\d{0,3})", text, re.ASCII)
        if match is None:
            raise ValueError(f"'{text}' is not a target address: write shelf.slot, such as 0.1 or e0.1")
        address = cls(int(match[1]), int(match[2]))
        if not address.is_target:
            raise ValueError(f"'{text}' is out of range: shelf 0 to 65534, slot 0 to 254 (65535 and 255 are broadcast)")
        return address


BROADCAST_ADDRESS: Final = Address(0xFFFF, 0xFF)


class Share(NamedTuple):
    """The targets that one of ``of`` processes serves: those of which shelf + slot leaves ``number``."""

    number: int
    of: int

    def number_of(self, address: Address) -> int:
        """Of the share that an address belongs to."""
        return (address.shelf + address.slot) % self.of


ALL: Final = Share(0, 1)


def format_mac(mac: bytes) -> str:
    """``b'\\x02\\0\\0\\0\\0\\x01'`` as ``02:00:00:00:00:01``."""
    return mac.hex(":")


def parse_mac(text: str) -> bytes:
    """Read ``02:00:00:00:00:01`` (also with ``-`` or nothing between the bytes); ValueError otherwise."""
    if re.fullmatch(r"[0-9a-fA-F]{2}([:-]?[0-9a-fA-F]{2}){5}", text, re.ASCII) is None:
        raise ValueError(f"'{text}' is not a MAC address: write it as 02:00:00:00:00:01")
    return bytes.fromhex(re.sub("[:-]", "", text))


def payload_sectors(mtu: int) -> int:
    """Sectors of data that a frame holds on a link of this MTU (bytes): ``(mtu - 36) / 512``, at most 255.

    The 36 bytes include the Ethernet header, which the MTU does not.  All initiators and targets use this formula, so
    both ends agree (1500 gives 2, 9000 gives 17).  0 means that the MTU is too small for AoE.
    """
    return max(0, min(MAX_SECTORS, (mtu - ATA_BYTES) // SECTOR_BYTES))


@dataclass(frozen=True, slots=True)
class Header:
    """The Ethernet and AoE header of one frame."""

    destination: bytes
    source: bytes
    address: Address
    command: int
    tag: int
    flags: int = 0
    error: int = 0
    version: int = VERSION

    @property
    def is_response(self) -> bool:
        return bool(self.flags & Flag.RESPONSE)

    @property
    def is_error(self) -> bool:
        return bool(self.flags & Flag.ERROR)


@dataclass(frozen=True, slots=True)
class AtaArgument:
    """Command 0: the registers; the data follow at offset 36.

    In an answer ``feature`` is the error register and ``command`` the status register.  ``lba`` holds the six bytes as
    they are: for LBA28 the upper nibble of byte 3 belongs to the device register.
    """

    flags: int
    feature: int
    count: int
    command: int
    lba: int


@dataclass(frozen=True, slots=True)
class ConfigArgument:
    """Command 1.  The target queues ``buffer_count`` messages and takes ``sectors`` per command (0 means 2)."""

    command: int = ConfigCommand.READ
    string: bytes = b""
    buffer_count: int = 0
    firmware: int = 0
    sectors: int = 0
    version: int = 0


@dataclass(frozen=True, slots=True)
class MaskArgument:
    """Command 2.  When an edit failed, ``error`` is set and ``count`` is the index of the directive that failed."""

    command: int = MaskCommand.READ
    directives: tuple[tuple[int, bytes], ...] = ()
    error: int = MaskError.NONE
    count: int | None = None  # None: the number of directives


@dataclass(frozen=True, slots=True)
class ReserveArgument:
    """Command 3.  SET or FORCE_SET without MACs is a release."""

    command: int = ReserveCommand.READ
    macs: tuple[bytes, ...] = ()


Argument: TypeAlias = AtaArgument | ConfigArgument | MaskArgument | ReserveArgument

_COMMANDS: Final[dict[type[Argument], AoeCommand]] = {
    AtaArgument: AoeCommand.ATA,
    ConfigArgument: AoeCommand.CONFIG,
    MaskArgument: AoeCommand.MASK,
    ReserveArgument: AoeCommand.RESERVE,
}


def command_of(argument: Argument) -> AoeCommand:
    """The command byte of a frame with this argument."""
    return _COMMANDS[type(argument)]


# ── encode ────────────────────────────────────────────────────────────────────────────────────────────────────────


def encode_header(header: Header) -> bytes:
    """The first 24 bytes of a frame."""
    return _HEADER.pack(
        header.destination,
        header.source,
        ETHERTYPE,
        header.version << 4 | header.flags,
        header.error,
        header.address.shelf,
        header.address.slot,
        header.command,
        header.tag,
    )


def pad(frame: bytes) -> bytes:
    """Zero padded to the Ethernet minimum."""
    return frame.ljust(MIN_FRAME_BYTES, b"\0")


def _encode_argument(argument: Argument) -> bytes:
    """What follows the header.  ValueError for a config string over 1024 bytes."""
    if isinstance(argument, AtaArgument):
        lba = argument.lba & (1 << 48) - 1
        return _ATA.pack(argument.flags, argument.feature, argument.count, argument.command, lba)
    if isinstance(argument, ConfigArgument):
        length = len(argument.string)
        if length > MAX_CONFIG_BYTES:
            raise ValueError(f"a config string has at most {MAX_CONFIG_BYTES} bytes, not {length}")
        versions = argument.version << 4 | argument.command
        fixed = _CONFIG.pack(argument.buffer_count, argument.firmware, argument.sectors, versions, length)
        return fixed + argument.string
    if isinstance(argument, MaskArgument):
        count = len(argument.directives) if argument.count is None else argument.count
        directives = b"".join(_DIRECTIVE.pack(0, command, mac) for command, mac in argument.directives)
        return _MASK.pack(0, argument.command, argument.error, count) + directives
    return _RESERVE.pack(argument.command, len(argument.macs)) + b"".join(argument.macs)


def encode(header: Header, argument: Argument, data: bytes | memoryview = b"") -> bytes:
    """A whole frame, padded; ``data`` follow the registers of an ATA command.  ValueError as above."""
    return pad(b"".join((encode_header(header), _encode_argument(argument), data)))


# ── decode ────────────────────────────────────────────────────────────────────────────────────────────────────────


def _fixed_untrusted(layout: struct.Struct, frame: bytes | memoryview, offset: int, what: str) -> tuple[int, ...]:
    if len(frame) < offset + layout.size:
        raise FrameError(f"{what}: {len(frame)} bytes, {offset + layout.size} needed")
    return layout.unpack_from(frame, offset)


def decode_header_untrusted(frame: bytes | memoryview) -> Header:
    """The header of any AoE frame.  Any version is accepted (vblade announces itself with 0)."""
    if len(frame) < HEADER_BYTES:
        raise FrameError(f"header: {len(frame)} bytes, {HEADER_BYTES} needed")
    destination, source, ethertype, version_flags, error, shelf, slot, command, tag = _HEADER.unpack_from(frame)
    if ethertype != ETHERTYPE:
        raise FrameError(f"ethertype 0x{ethertype:04x} is not AoE")
    flags, version = version_flags & 0x0F, version_flags >> 4
    return Header(destination, source, Address(shelf, slot), command, tag, flags, error, version)


def decode_ata_untrusted(frame: bytes | memoryview) -> AtaArgument:
    """The registers of an ATA frame.  The data are ``frame[36:]``; the caller checks their length."""
    flags, feature, count, command, lba = _fixed_untrusted(_ATA, frame, HEADER_BYTES, "ATA argument")
    return AtaArgument(flags, feature, count, command, lba & (1 << 48) - 1)


def decode_config_untrusted(frame: bytes | memoryview) -> ConfigArgument:
    """The argument of a config query or answer."""
    bufcnt, firmware, sectors, versions, length = _fixed_untrusted(_CONFIG, frame, HEADER_BYTES, "config argument")
    if length > MAX_CONFIG_BYTES:
        raise FrameError(f"config string: length {length} is above {MAX_CONFIG_BYTES}")
    if len(frame) < CONFIG_BYTES + length:
        raise FrameError(f"config string: length {length}, {len(frame) - CONFIG_BYTES} bytes follow")
    string = bytes(frame[CONFIG_BYTES : CONFIG_BYTES + length])
    return ConfigArgument(versions & 0x0F, string, bufcnt, firmware, sectors, versions >> 4)


def decode_mask_untrusted(frame: bytes | memoryview) -> MaskArgument:
    """The argument of a mask list command or answer.

    With ``MError`` set, the count is the index of the directive that failed, and no list follows.
    """
    _, command, error, count = _fixed_untrusted(_MASK, frame, HEADER_BYTES, "mask argument")
    if error:
        return MaskArgument(command, (), error, count)
    if len(frame) < MASK_BYTES + count * _DIRECTIVE.size:
        raise FrameError(f"mask list: {count} directives do not fit into {len(frame)} bytes")
    found = (_DIRECTIVE.unpack_from(frame, MASK_BYTES + index * _DIRECTIVE.size) for index in range(count))
    return MaskArgument(command, tuple((directive, mac) for _, directive, mac in found), error, count)


def decode_reserve_untrusted(frame: bytes | memoryview) -> ReserveArgument:
    """The argument of a reserve/release command or answer."""
    command, count = _fixed_untrusted(_RESERVE, frame, HEADER_BYTES, "reserve argument")
    if len(frame) < RESERVE_BYTES + count * 6:
        raise FrameError(f"reserve list: {count} MACs do not fit into {len(frame)} bytes")
    macs = (bytes(frame[RESERVE_BYTES + index * 6 : RESERVE_BYTES + index * 6 + 6]) for index in range(count))
    return ReserveArgument(command, tuple(macs))


_ARGUMENT_DECODERS: Final[dict[int, Callable[[bytes | memoryview], Argument]]] = {
    AoeCommand.ATA: decode_ata_untrusted,
    AoeCommand.CONFIG: decode_config_untrusted,
    AoeCommand.MASK: decode_mask_untrusted,
    AoeCommand.RESERVE: decode_reserve_untrusted,
}


def decode_argument_untrusted(command: int, frame: bytes | memoryview) -> Argument:
    """The argument of a frame whose command byte is ``command``; FrameError also for a command that has no decoder."""
    decode = _ARGUMENT_DECODERS.get(command)
    if decode is None:
        raise FrameError(f"command {command} is not one of AoE")
    return decode(frame)
