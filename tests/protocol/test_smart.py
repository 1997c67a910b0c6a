"""SMART registers and data: what is made is read back, and any bytes are read or refused."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aoefs.errors import FrameError
from aoefs.protocol.smart import (
    Attribute,
    Feature,
    decode_smart_untrusted,
    encode_smart,
    is_failing_untrusted,
    is_smart_untrusted,
    smart_registers,
    status_lba,
)
from aoefs.protocol.wire import AtaArgument

byte = st.integers(0, 255)
attributes = st.lists(
    st.builds(Attribute, st.integers(1, 255), byte, byte, st.integers(0, (1 << 48) - 1), st.integers(0, 0xFFFF)),
    max_size=30,
)


def test_registers_are_those_that_aoeping_sends() -> None:
    ata = smart_registers(Feature.RETURN_STATUS)
    assert (ata.flags, ata.feature, ata.command) == (0, 0xDA, 0xB0)
    assert ata.lba.to_bytes(6, "little")[1:3] == b"\x4f\xc2"
    assert smart_registers(Feature.READ_DATA).count == 1
    assert is_smart_untrusted(ata)
    assert not is_smart_untrusted(AtaArgument(0, 0xDA, 0, 0xB0, 0))


def test_data_of_a_disk_are_read() -> None:
    block = bytearray(512)
    block[2:14] = bytes.fromhex("05 3300 64 62 080000000000 00")
    block[26:38] = bytes.fromhex("c2 2200 46 30 1e0000000000 00")  # the second entry is empty
    block[511] = -sum(block) & 0xFF
    five, temperature = decode_smart_untrusted(bytes(block))
    assert (five.name, five.value, five.worst, five.raw, five.flags) == ("reallocated sectors", 100, 98, 8, 0x33)
    assert (temperature.name, temperature.raw) == ("temperature", 30)


@pytest.mark.parametrize("failing", [False, True])
def test_a_status_says_well_or_failing_or_is_refused(failing: bool) -> None:
    lba = status_lba(smart_registers(Feature.RETURN_STATUS).lba, failing=failing)
    assert is_failing_untrusted(AtaArgument(0, 0, 0, 0x40, lba)) == failing
    with pytest.raises(FrameError, match="0x2cc200"):
        is_failing_untrusted(AtaArgument(0, 0, 0, 0x40, 0x2CC200))


@given(attributes)
def test_what_is_made_is_read_back(made: list[Attribute]) -> None:
    assert list(decode_smart_untrusted(encode_smart(made))) == made


@given(st.binary(max_size=600))
def test_any_bytes_are_read_or_refused(block: bytes) -> None:
    with suppress(FrameError):
        decode_smart_untrusted(bytes(block))
