"""The codec against bytes written by hand from AoEr11, against itself, against noise, and against tshark."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from aoefs.errors import FrameError
from aoefs.protocol.wire import (
    BROADCAST_ADDRESS,
    BROADCAST_MAC,
    CLIENT_TAG_BIT,
    MAX_CONFIG_BYTES,
    MIN_FRAME_BYTES,
    Address,
    AoeCommand,
    Argument,
    AtaArgument,
    AtaFlag,
    ConfigArgument,
    ConfigCommand,
    ErrorCode,
    Flag,
    Header,
    MaskArgument,
    MaskCommand,
    MaskDirective,
    MaskError,
    ReserveArgument,
    ReserveCommand,
    decode_argument_untrusted,
    decode_ata_untrusted,
    decode_config_untrusted,
    decode_header_untrusted,
    decode_mask_untrusted,
    encode,
    encode_header,
    format_mac,
    pad,
    parse_mac,
    payload_sectors,
)
from tests.lab import require, tshark, write_pcap

OURS = bytes.fromhex("02ae00000100")
THEIRS = bytes.fromhex("02ae00000200")

# (what, header, argument, payload, the bytes of the frame as AoEr11 draws them, without padding)
GOLDEN: list[tuple[str, Header, Argument, bytes, str]] = [
    (
        "broadcast config query",
        Header(BROADCAST_MAC, OURS, BROADCAST_ADDRESS, AoeCommand.CONFIG, 0x8000_0001),
        ConfigArgument(),
        b"",
        "ffffffffffff 02ae00000100 88a2 10 00 ffff ff 01 80000001 0000 0000 00 00 0000",
    ),
    (
        "config answer with a string",
        Header(OURS, THEIRS, Address(0x0102, 3), AoeCommand.CONFIG, 0x8000_0001, Flag.RESPONSE),
        ConfigArgument(ConfigCommand.READ, b"disk", buffer_count=16, firmware=0x4019, sectors=17, version=1),
        b"",
        "02ae00000100 02ae00000200 88a2 18 00 0102 03 01 80000001 0010 4019 11 10 0004 6469736b",
    ),
    (
        "announcement of vblade, version 0",
        Header(BROADCAST_MAC, THEIRS, Address(0, 0), AoeCommand.CONFIG, 0, Flag.RESPONSE, version=0),
        ConfigArgument(buffer_count=16, firmware=0x4019, sectors=17, version=1),
        b"",
        "ffffffffffff 02ae00000200 88a2 08 00 0000 00 01 00000000 0010 4019 11 10 0000",
    ),
    (
        "config string refused because there is one",
        Header(
            OURS,
            THEIRS,
            Address(1, 2),
            AoeCommand.CONFIG,
            0x8000_0002,
            Flag.RESPONSE | Flag.ERROR,
            ErrorCode.CONFIG_STRING_PRESENT,
        ),
        ConfigArgument(ConfigCommand.SET, b"x", buffer_count=2, firmware=1, sectors=2, version=1),
        b"",
        "02ae00000100 02ae00000200 88a2 1c 04 0001 02 01 80000002 0002 0001 02 13 0001 78",
    ),
    (
        "force set of a config string",
        Header(THEIRS, OURS, Address(1, 2), AoeCommand.CONFIG, 0x8000_0003),
        ConfigArgument(ConfigCommand.FORCE_SET, b"ab"),
        b"",
        "02ae00000200 02ae00000100 88a2 10 00 0001 02 01 80000003 0000 0000 00 04 0002 6162",
    ),
    (
        "READ EXT of two sectors: the LBA is little-endian",
        Header(THEIRS, OURS, Address(65534, 254), AoeCommand.ATA, 0xFFFF_FFFF),
        AtaArgument(AtaFlag.LBA48, 0, 2, 0x24, 0x0605_0403_0201),
        b"",
        "02ae00000200 02ae00000100 88a2 10 00 fffe fe 00 ffffffff 40 00 02 24 010203040506 0000",
    ),
    (
        "WRITE EXT of one sector",
        Header(THEIRS, OURS, Address(0, 1), AoeCommand.ATA, 0x8000_0004),
        AtaArgument(AtaFlag.LBA48 | AtaFlag.WRITE, 0, 1, 0x34, 7),
        b"\xa5" * 512,
        "02ae00000200 02ae00000100 88a2 10 00 0000 01 00 80000004 41 00 01 34 070000000000 0000" + "a5" * 512,
    ),
    (
        "answer to a failed read: a media error at the disk, no error of AoE",
        Header(OURS, THEIRS, Address(0, 1), AoeCommand.ATA, 0x8000_0005, Flag.RESPONSE),
        AtaArgument(AtaFlag.LBA48, 0x40, 1, 0x41, 9),
        b"",
        "02ae00000100 02ae00000200 88a2 18 00 0000 01 00 80000005 40 40 01 41 090000000000 0000",
    ),
    (
        "reading the mask list",
        Header(THEIRS, OURS, Address(0, 1), AoeCommand.MASK, 0x8000_0006),
        MaskArgument(),
        b"",
        "02ae00000200 02ae00000100 88a2 10 00 0000 01 02 80000006 00 00 00 00",
    ),
    (
        "adding one MAC and removing another",
        Header(THEIRS, OURS, Address(0, 1), AoeCommand.MASK, 0x8000_0007),
        MaskArgument(MaskCommand.EDIT, ((MaskDirective.ADD, OURS), (MaskDirective.DELETE, THEIRS))),
        b"",
        "02ae00000200 02ae00000100 88a2 10 00 0000 01 02 80000007 00 01 00 02 00 01 02ae00000100  00 02 02ae00000200",
    ),
    (
        "the second directive of an edit failed: the list is full",
        Header(OURS, THEIRS, Address(0, 1), AoeCommand.MASK, 0x8000_0007, Flag.RESPONSE),
        MaskArgument(MaskCommand.EDIT, (), MaskError.LIST_FULL, 1),
        b"",
        "02ae00000100 02ae00000200 88a2 18 00 0000 01 02 80000007 00 01 03 01",
    ),
    (
        "reserving for two MACs",
        Header(THEIRS, OURS, Address(0, 1), AoeCommand.RESERVE, 0x8000_0008),
        ReserveArgument(ReserveCommand.SET, (OURS, THEIRS)),
        b"",
        "02ae00000200 02ae00000100 88a2 10 00 0000 01 03 80000008 01 02 02ae00000100 02ae00000200",
    ),
    (
        "releasing by force",
        Header(THEIRS, OURS, Address(0, 1), AoeCommand.RESERVE, 0x8000_0009),
        ReserveArgument(ReserveCommand.FORCE_SET),
        b"",
        "02ae00000200 02ae00000100 88a2 10 00 0000 01 03 80000009 02 00",
    ),
]
golden = pytest.mark.parametrize(
    ("header", "argument", "payload", "text"), [row[1:] for row in GOLDEN], ids=[row[0] for row in GOLDEN]
)


@golden
def test_encoding_gives_the_bytes_of_the_specification_padded_to_60(
    header: Header, argument: Argument, payload: bytes, text: str
) -> None:
    assert encode(header, argument, payload) == bytes.fromhex(text).ljust(60, b"\0")


@golden
@pytest.mark.parametrize("trailer", [b"", b"\0" * 40, b"\xff" * 40], ids=["unpadded", "padded", "garbage"])
def test_decoding_ignores_whatever_follows_the_frame(
    header: Header, argument: Argument, payload: bytes, text: str, trailer: bytes
) -> None:
    frame = bytes.fromhex(text) + trailer
    decoded = decode_argument_untrusted(header.command, frame)
    assert decode_header_untrusted(frame) == header
    if isinstance(argument, MaskArgument) and argument.count is None:
        assert isinstance(decoded, MaskArgument)
        assert decoded.count == len(argument.directives)
        decoded = MaskArgument(decoded.command, decoded.directives, decoded.error)
    assert decoded == argument


@golden
def test_a_frame_cut_anywhere_is_a_frame_error(header: Header, argument: Argument, payload: bytes, text: str) -> None:
    whole = bytes.fromhex(text)
    for size in range(len(whole) - len(payload)):
        with pytest.raises(FrameError):
            decode_argument_untrusted(header.command, whole[:size])


@given(st.integers(4, 255), st.binary(max_size=80))
def test_the_argument_of_an_unknown_command_is_a_frame_error(command: int, noise: bytes) -> None:
    with pytest.raises(FrameError, match=f"command {command} "):
        decode_argument_untrusted(command, noise)


def test_a_header_of_another_ethertype_is_a_frame_error() -> None:
    with pytest.raises(FrameError, match="0x0800"):
        decode_header_untrusted(bytes(12) + b"\x08\x00" + bytes(46))


def test_reserved_bytes_are_ignored() -> None:
    registers = decode_ata_untrusted(bytes(24) + bytes.fromhex("40 00 02 24 010203040506 ffff"))
    assert registers == AtaArgument(0x40, 0, 2, 0x24, 0x0605_0403_0201)
    assert decode_mask_untrusted(bytes(24) + b"\xff\0\0\1\xff\1" + OURS).directives == ((1, OURS),)


def test_a_config_string_longer_than_1024_is_refused_on_both_sides() -> None:
    header = Header(THEIRS, OURS, Address(0, 0), AoeCommand.CONFIG, CLIENT_TAG_BIT)
    longest = ConfigArgument(ConfigCommand.SET, b"x" * MAX_CONFIG_BYTES)
    assert decode_config_untrusted(encode(header, longest)) == longest
    with pytest.raises(ValueError, match="1024"):
        encode(header, ConfigArgument(ConfigCommand.SET, b"x" * (MAX_CONFIG_BYTES + 1)))
    with pytest.raises(FrameError, match="1025"):
        decode_config_untrusted(bytes(24) + bytes.fromhex("0000 0000 00 03 0401") + bytes(2000))


def test_the_flags_and_the_version_share_a_byte() -> None:
    header = decode_header_untrusted(bytes(12) + bytes.fromhex("88a2 2f 05") + bytes(8))
    assert (header.version, header.flags, header.error) == (2, 0x0F, ErrorCode.UNSUPPORTED_VERSION)
    assert header.is_response
    assert header.is_error


# ── properties ────────────────────────────────────────────────────────────────────────────────────────────────────

byte = st.integers(0, 0xFF)
word = st.integers(0, 0xFFFF)
nibble = st.integers(0, 0x0F)
mac = st.binary(min_size=6, max_size=6)
headers = st.builds(
    Header,
    destination=mac,
    source=mac,
    address=st.builds(Address, word, byte),
    command=byte,
    tag=st.integers(0, 0xFFFF_FFFF),
    flags=nibble,
    error=byte,
    version=nibble,
)
ata_arguments = st.builds(AtaArgument, byte, byte, byte, byte, st.integers(0, (1 << 48) - 1))
config_arguments = st.builds(ConfigArgument, nibble, st.binary(max_size=MAX_CONFIG_BYTES), word, word, byte, nibble)
mask_lists = st.lists(st.tuples(byte, mac), max_size=255).map(tuple)
mask_arguments = st.one_of(
    st.builds(lambda command, found: MaskArgument(command, found, 0, len(found)), byte, mask_lists),
    st.builds(lambda command, error, count: MaskArgument(command, (), error, count), byte, st.integers(1, 255), byte),
)
reserve_arguments = st.builds(ReserveArgument, byte, st.lists(mac, max_size=255).map(tuple))


@given(headers, st.one_of(ata_arguments, config_arguments, mask_arguments, reserve_arguments), st.binary(max_size=80))
def test_what_was_encoded_is_decoded_unchanged(header: Header, argument: Argument, trailer: bytes) -> None:
    frame = encode(header, argument)
    commands: dict[type, AoeCommand] = {
        AtaArgument: AoeCommand.ATA,
        ConfigArgument: AoeCommand.CONFIG,
        MaskArgument: AoeCommand.MASK,
        ReserveArgument: AoeCommand.RESERVE,
    }
    assert len(frame) >= MIN_FRAME_BYTES
    assert decode_header_untrusted(frame + trailer) == header
    assert decode_argument_untrusted(commands[type(argument)], frame + trailer) == argument


@given(st.one_of(st.binary(max_size=120), st.binary(max_size=40).map(lambda tail: bytes(24) + tail)))
@example(b"")
@example(bytes(24) + b"\xff" * 8)
def test_no_decoder_raises_anything_but_frame_error(noise: bytes) -> None:
    for frame in (noise, memoryview(noise)):
        with suppress(FrameError):
            decode_header_untrusted(frame)
        for command in range(5):
            with suppress(FrameError):
                decode_argument_untrusted(command, frame)


@given(st.binary(max_size=1200))
def test_what_can_be_decoded_is_decoded_the_same_after_encoding(noise: bytes) -> None:
    frame = THEIRS + OURS + b"\x88\xa2" + noise
    try:
        header = decode_header_untrusted(frame)
    except FrameError:
        return
    for command in AoeCommand:
        try:
            argument = decode_argument_untrusted(command, frame)
        except FrameError:
            continue
        again = encode(header, argument)
        assert decode_argument_untrusted(command, again) == argument
        assert decode_header_untrusted(again) == header


@given(st.binary(max_size=1600))
def test_padding_adds_zeros_up_to_60_bytes_and_nothing_else(frame: bytes) -> None:
    padded = pad(frame)
    assert len(padded) == max(60, len(frame))
    assert padded[: len(frame)] == frame
    assert not any(padded[len(frame) :])


# ── addresses ─────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("text", "address"),
    [("0.0", (0, 0)), ("e0.0", (0, 0)), ("1.10", (1, 10)), ("e65534.254", (65534, 254))],
)
def test_an_address_is_written_as_shelf_and_slot(text: str, address: tuple[int, int]) -> None:
    assert Address.parse(text) == Address(*address)
    assert str(Address.parse(text)) == "e" + text.removeprefix("e")


@pytest.mark.parametrize("text", ["", "e", "1", "1.", ".1", "1.2.3", "1.0 ", " 1.0", "1.0\n", "1,0", "e1.0p1"])
def test_what_is_no_address_is_refused_with_how_to_write_one(text: str) -> None:
    with pytest.raises(ValueError, match=r"shelf\.slot"):
        Address.parse(text)


@pytest.mark.parametrize("text", ["-1.0", "+1.0", "01.0", "0x1.0", "1_0.0", "1.²", "١.٠", "9999999.0", "0.99999"])
def test_a_number_of_an_address_is_plain_decimal_and_short(text: str) -> None:
    with pytest.raises(ValueError, match=r"shelf\.slot"):
        Address.parse(text)


@pytest.mark.parametrize("text", ["65535.0", "0.255", "65535.255", "65536.0", "0.256", "999999.9999"])
def test_the_broadcast_values_are_no_target(text: str) -> None:
    with pytest.raises(ValueError, match="broadcast"):
        Address.parse(text)


@given(st.integers(0, 65534), st.integers(0, 254))
def test_every_address_of_a_target_is_read_back(shelf: int, slot: int) -> None:
    address = Address(shelf, slot)
    assert address.is_target
    assert Address.parse(str(address)) == address


@given(mac)
def test_every_mac_is_read_back(raw: bytes) -> None:
    text = format_mac(raw)
    for form in (text, text.upper(), text.replace(":", "-"), text.replace(":", "")):
        assert parse_mac(form) == raw


@pytest.mark.parametrize(
    "text",
    ["", "02:00:00:00:00", "02:00:00:00:00:01:02", "02:00:00:00:00:0g", "2:0:0:0:0:1", " 020000000001", "02:00\n"],
)
def test_what_is_no_mac_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not a MAC address"):
        parse_mac(text)


@pytest.mark.parametrize(
    ("mtu", "sectors"),
    [(0, 0), (547, 0), (548, 1), (1059, 1), (1060, 2), (1500, 2), (4470, 8), (9000, 17), (65536, 127), (1 << 20, 255)],
)
def test_a_frame_holds_as_many_sectors_as_every_initiator_and_target_computes(mtu: int, sectors: int) -> None:
    assert payload_sectors(mtu) == sectors


# ── tshark ────────────────────────────────────────────────────────────────────────────────────────────────────────


def _number(text: str) -> int | None:
    if text in {"True", "False"}:  # newer releases write flags so
        return int(text == "True")
    return int(text, 0) if text else None


def test_tshark_reads_our_frames_as_we_meant_them(tmp_path: Path) -> None:
    require("tshark", root=False)
    rows = [row for row in GOLDEN if row[1].version == 1]  # of another version it decodes the version only
    frames = [encode(header, argument, payload) for _, header, argument, payload, _ in rows]
    pcap = write_pcap(tmp_path / "frames.pcap", frames)
    common = ("version", "response", "flags_error", "error", "major", "minor", "cmd", "tag")
    registers = ("aflags.e", "err_feature", "sector_count", "ata.cmd", "ata.status", "lba")
    read = tshark(pcap, "aoe", *(f"aoe.{name}" for name in common + registers))
    assert len(read) == len(frames)
    for (what, header, argument, _, _), texts in zip(rows, read, strict=True):
        numbers = [_number(text) for text in texts]
        error = header.error if header.is_error else None
        expected = [1, header.is_response, header.is_error, error, *header.address, header.command, header.tag]
        assert numbers[: len(common)] == expected, what
        if isinstance(argument, AtaArgument):
            command, status = (None, argument.command) if header.is_response else (argument.command, None)
            expected = [bool(argument.flags & AtaFlag.LBA48), argument.feature, argument.count, command, status]
            assert numbers[len(common) :] == [*expected, argument.lba], what
    assert tshark(pcap, "_ws.malformed", "frame.number") == []


def test_a_header_alone_is_24_bytes() -> None:
    header = Header(OURS, THEIRS, Address(1, 2), 0xF0, 0x8000_0000, Flag.RESPONSE | Flag.ERROR, 1)
    assert encode_header(header) == bytes.fromhex("02ae00000100 02ae00000200 88a2 1c 01 0001 02 f0 80000000")
