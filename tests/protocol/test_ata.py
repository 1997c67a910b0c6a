"""Registers and IDENTIFY data against a real vblade's, against themselves, and against noise."""

from __future__ import annotations

import dataclasses
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aoefs.errors import AtaError, FrameError
from aoefs.protocol.ata import (
    IDENTIFY_BYTES,
    IDENTIFY_REGISTERS,
    LBA28_SECTORS,
    LBA48_SECTORS,
    Identity,
    Opcode,
    check_result,
    decode_identify_untrusted,
    encode_identify,
    flush_registers,
    transfer_registers,
)
from aoefs.protocol.wire import (
    CLIENT_TAG_BIT,
    Address,
    AoeCommand,
    AtaArgument,
    Header,
    decode_header_untrusted,
    encode,
)
from tests.lab import INITIATOR, TARGET, Lab, open_packet_socket

# What vblade 25 answered to IDENTIFY for "vblade 7 3 aoe0 FILE" of 6149 sectors on a host named "vm", as runs of
# hexadecimal at offsets; all other bytes were 0.
VBLADE_IDENTIFY = {
    0x14: "2e373a336d76" + "20" * 14,  # serial "7.3:vm"
    0x2E: "32562035" + "20" * 4,  # firmware "V25"
    0x36: "6f43617264694520687472657244766920656276616c6564" + "20" * 16,  # model "Coraid EtherDrive vblade"
    0x5E: "0080",
    0x62: "00020040",  # LBA
    0x78: "05180000",  # 6149 sectors
    0xA6: "0054004000000014" + "0040",  # FLUSH CACHE and LBA48 supported, and on
    0xBA: "0b40",
    0xC8: "0518",  # 6149 sectors once more
}


def vblade_identify() -> bytearray:
    block = bytearray(IDENTIFY_BYTES)
    for offset, text in VBLADE_IDENTIFY.items():
        block[offset : offset + len(text) // 2] = bytes.fromhex(text)
    return block


def with_words(**words: int) -> Identity:
    """What is read from vblade's data with some words replaced, given as ``w83=0x4000``."""
    block = vblade_identify()
    for name, value in words.items():
        struct.pack_into("<H", block, int(name[1:]) * 2, value)
    return decode_identify_untrusted(bytes(block))


VBLADE = Identity(6149, "7.3:vm", "Coraid EtherDrive vblade", "V25", lba48=True, flush=True)


def test_identify_data_of_vblade_are_read() -> None:
    identity = decode_identify_untrusted(bytes(vblade_identify()))
    assert identity == VBLADE
    assert identity.size_bytes == 6149 * 512
    assert identity.flush_opcode is Opcode.FLUSH


def test_a_running_vblade_still_answers_what_the_table_says(lab: Lab) -> None:
    lab.vblade(7, 3, lab.image("disk", 6149 * 512 + 100, seed=None))
    header = Header(lab.mac(TARGET), lab.mac(INITIATOR), Address(7, 3), AoeCommand.ATA, CLIENT_TAG_BIT | 1)
    with open_packet_socket(lab, INITIATOR) as wire:
        wire.send(encode(header, IDENTIFY_REGISTERS))
        while decode_header_untrusted(frame := wire.recv(2000)).tag != header.tag:
            pass  # its announcement
        block = bytearray(frame[36:])
    block[0x14:0x28] = vblade_identify()[0x14:0x28]  # the serial number holds the name of the host
    assert block == vblade_identify()


def test_the_capacity_is_the_48_bit_one_only_if_that_is_announced() -> None:
    assert with_words(w100=0, w101=0, w102=1).sectors == 1 << 32
    assert with_words(w102=1, w83=0x5000, w86=0x1000).sectors == 6149
    assert with_words(w100=0).sectors == 6149, "a 48-bit capacity of 0 means that only the other one was filled in"


def test_either_of_the_two_feature_words_announces_lba48() -> None:
    assert with_words(w83=0x4000).lba48
    assert with_words(w86=0).lba48
    assert not with_words(w83=0x4000, w86=0).lba48
    assert not with_words(w83=0xFFFF, w86=0xFFFF, w87=0xFFFF).lba48, "words without a valid mark are ignored"


def test_the_flush_command_is_the_extended_one_if_there_is_one() -> None:
    assert with_words(w83=0x7400).flush_opcode is Opcode.FLUSH_EXT
    assert with_words(w83=0x4400, w86=0x0400).flush_opcode is None
    assert with_words(w83=0x6000, w86=0x2000).flush_opcode is None, "FLUSH EXT is a 48-bit command"


def test_the_physical_sector_size_is_a_power_of_two_in_word_106() -> None:
    assert with_words(w106=0x6003).physical_sector_bytes == 4096
    assert with_words(w106=0x2003).physical_sector_bytes == 512
    assert with_words(w106=0xFFFF).physical_sector_bytes == 512


def test_trim_and_smart_are_read_unless_the_words_are_all_ones() -> None:
    able = with_words(w82=0x0001, w169=0x0001, w105=8)
    assert (able.trim, able.max_trim_blocks, able.smart) == (True, 8, True)
    unable = with_words(w82=0xFFFF, w169=0xFFFF)
    assert (unable.trim, unable.smart) == (False, False)


@pytest.mark.parametrize("size", [0, 1, 511])
def test_short_identify_data_are_a_frame_error(size: int) -> None:
    with pytest.raises(FrameError, match="512 needed"):
        decode_identify_untrusted(bytes(size))


def test_a_disk_of_no_sectors_is_a_frame_error() -> None:
    with pytest.raises(FrameError, match="capacity of 0"):
        decode_identify_untrusted(bytes(512))


def test_text_that_is_not_printable_never_reaches_a_terminal() -> None:
    block = vblade_identify()
    block[0x14:0x28] = b"\x1b[\x802\0Jab" + b"\0" * 12
    assert decode_identify_untrusted(bytes(block)).serial == "[?2?J?ba"


printable = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E))
identities = st.builds(
    Identity,
    sectors=st.integers(1, LBA48_SECTORS - 1),
    serial=printable.map(lambda text: text[:20]),
    model=printable.map(lambda text: text[:40]),
    firmware=printable.map(lambda text: text[:8]),
    lba48=st.booleans(),
    flush=st.booleans(),
    flush_ext=st.booleans(),
    write_cache=st.booleans(),
    smart=st.booleans(),
    trim=st.booleans(),
    max_trim_blocks=st.integers(0, 0xFFFF),
    physical_sector_bytes=st.sampled_from([512 << shift for shift in range(16)]),
)


@given(identities)
def test_identify_data_that_we_made_are_read_unchanged(identity: Identity) -> None:
    block = encode_identify(identity)
    assert len(block) == IDENTIFY_BYTES
    assert sum(block) & 0xFF == 0, "the checksum of word 255"
    if not identity.lba48:
        identity = dataclasses.replace(identity, sectors=min(identity.sectors, LBA28_SECTORS - 1))
    assert decode_identify_untrusted(block) == identity


@given(st.text(max_size=100), st.text(max_size=100))
def test_text_of_any_kind_and_length_makes_valid_identify_data(serial: str, model: str) -> None:
    identity = decode_identify_untrusted(encode_identify(dataclasses.replace(VBLADE, serial=serial, model=model)))
    assert identity.sectors == VBLADE.sectors
    assert (identity.serial + identity.model).isprintable()


@given(st.one_of(st.binary(max_size=600), st.binary(min_size=512, max_size=512)))
def test_identify_data_of_any_bytes_are_read_or_a_frame_error(noise: bytes) -> None:
    try:
        identity = decode_identify_untrusted(noise)
    except FrameError:
        return
    assert 0 < identity.sectors < LBA48_SECTORS
    assert (identity.serial + identity.model + identity.firmware).isprintable()


def test_the_same_disk_has_the_same_serial_model_and_size() -> None:
    assert VBLADE.same_disk(dataclasses.replace(VBLADE, firmware="V26"))
    assert not VBLADE.same_disk(dataclasses.replace(VBLADE, serial="7.3:other"))
    assert not VBLADE.same_disk(dataclasses.replace(VBLADE, model="other"))
    grown = dataclasses.replace(VBLADE, sectors=VBLADE.sectors + 1)
    assert not VBLADE.same_disk(grown)
    assert VBLADE.same_unit(grown)


# ── registers ─────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("write", "lba48", "lba", "text"),
    [
        (False, False, 0x0ABCDEF1, "00 00 11 20 f1debcea0000 0000"),  # the upper nibble is LBA mode, 0xE0
        (True, False, 0, "01 00 11 30 000000e00000 0000"),
        (False, True, 0xABCD_EF12_3456, "40 00 11 24 563412efcdab 0000"),
        (True, True, 1, "41 00 11 34 010000000000 0000"),
    ],
)
def test_the_registers_of_a_transfer_are_those_of_the_specification(
    write: bool, lba48: bool, lba: int, text: str
) -> None:
    header = Header(bytes(6), bytes(6), Address(0, 0), AoeCommand.ATA, 0)
    frame = encode(header, transfer_registers(lba, 17, write=write, lba48=lba48))
    assert frame[24:36] == bytes.fromhex(text)


@pytest.mark.parametrize(
    ("registers", "text"),
    [
        (IDENTIFY_REGISTERS, "00 00 01 ec 000000a00000 0000"),
        (flush_registers(Opcode.FLUSH), "00 00 00 e7 000000a00000 0000"),
        (flush_registers(Opcode.FLUSH_EXT), "40 00 00 ea 000000000000 0000"),
    ],
    ids=["identify", "flush", "flush ext"],
)
def test_the_registers_of_other_commands_are_those_of_the_specification(registers: AtaArgument, text: str) -> None:
    header = Header(bytes(6), bytes(6), Address(0, 0), AoeCommand.ATA, 0)
    assert encode(header, registers)[24:36] == bytes.fromhex(text)


@pytest.mark.parametrize("status", [0x00, 0x40, 0x50, 0x44])
def test_an_answer_without_an_error_bit_is_a_success(status: int) -> None:
    check_result(AtaArgument(0, 0xFF, 3, status, 0))


@pytest.mark.parametrize(
    ("status", "error", "text"),
    [
        (0x41, 0x40, "UNC"),
        (0x41, 0x10, "IDNF"),
        (0x41, 0x04, "ABRT"),
        (0x41, 0x84, "ICRC|ABRT"),
        (0x60, 0x00, "no error bit"),
        (0x80, 0x00, "no error bit"),
        (0x48, 0x00, "no error bit"),
    ],
)
def test_an_answer_with_an_error_bit_says_what_failed_and_where(status: int, error: int, text: str) -> None:
    with pytest.raises(AtaError) as caught:
        check_result(AtaArgument(0, error, 0, status, 0), lba=77, write=True)
    assert str(caught.value) == f"ATA error {text} (status 0x{status:02x}, error 0x{error:02x})"
    assert (caught.value.lba, caught.value.write) == (77, True)
