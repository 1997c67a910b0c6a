"""The export: golden frames, every command, and bytes that are no frames at all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aoefs.errors import AtaError
from aoefs.protocol.ata import (
    IDENTIFY_REGISTERS,
    ErrorBit,
    Opcode,
    Status,
    check_result,
    decode_identify_untrusted,
    flush_registers,
    transfer_registers,
)
from aoefs.protocol.smart import Feature, decode_smart_untrusted, is_failing_untrusted, smart_registers
from aoefs.protocol.wire import (
    BROADCAST_ADDRESS,
    BROADCAST_MAC,
    MAX_CONFIG_BYTES,
    Address,
    AoeCommand,
    AtaArgument,
    ConfigArgument,
    ConfigCommand,
    ErrorCode,
    Flag,
    Header,
    decode_ata_untrusted,
    decode_config_untrusted,
    encode,
    encode_header,
)
from aoefs.softtarget.export import Export, FlushRequest
from tests.memorystore import MemoryStore, answer_at_once
from tests.softtarget.exports import (
    ADDRESS,
    OURS,
    READ,
    SECTORS,
    TAG,
    THEIRS,
    WRITE,
    aoe_error,
    ask,
    check_answer,
    header,
    is_silent,
    make,
    registers,
)

# ── golden frames ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_golden_read() -> None:
    export = make()
    request = bytes.fromhex(
        "020000000001 020000000002 88a2 10 00 0007 03 00 80001234 40 00 01 24 0900000000000000".replace(" ", "")
    ).ljust(60, b"\0")
    expected = bytes.fromhex(
        "020000000002 020000000001 88a2 18 00 0007 03 00 80001234 40 00 00 40 0900000000000000".replace(" ", "")
    )
    assert ask(export, request) == expected + bytes(index * 7 & 0xFF for index in range(512))


def test_golden_write_is_answered_with_60_bytes() -> None:
    export = make()
    request = bytes.fromhex(
        "020000000001 020000000002 88a2 10 00 0007 03 00 80001234 41 00 01 34 0900000000000000".replace(" ", "")
    )
    expected = bytes.fromhex(
        "020000000002 020000000001 88a2 18 00 0007 03 00 80001234 41 00 00 40 0900000000000000".replace(" ", "")
    )
    assert ask(export, request + b"\xa5" * 512) == expected.ljust(60, b"\0")
    assert isinstance(export.store, MemoryStore)
    assert export.store.data[9 * 512 : 10 * 512] == b"\xa5" * 512
    assert export.store.data[10 * 512] == 0


def test_golden_config() -> None:
    export = make(config_string=b"hi", buffer_count=16)
    request = bytes.fromhex(
        "ffffffffffff 020000000002 88a2 10 00 ffff ff 01 80001234 0000 0000 00 00 0000".replace(" ", "")
    )
    expected = bytes.fromhex(
        "020000000002 020000000001 88a2 18 00 0007 03 01 80001234 0010 0100 02 10 0002 6869".replace(" ", "")
    )
    assert ask(export, request) == expected.ljust(60, b"\0")


def test_golden_announcement() -> None:
    expected = bytes.fromhex(
        "ffffffffffff 020000000001 88a2 18 00 0007 03 01 00000000 0040 0100 11 10 0000".replace(" ", "")
    )
    assert make().announcements(mac=OURS, max_sectors=17) == [expected.ljust(60, b"\0")]


# ── addressing ────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "changes",
    [
        {"address": Address(7, 4)},
        {"address": Address(8, 3)},
        {"address": Address(0xFFFF, 4)},
        {"address": Address(8, 0xFF)},
        {"destination": bytes.fromhex("020000000009")},
        {"source": BROADCAST_MAC},
        {"source": bytes.fromhex("01005e000001")},
        {"flags": Flag.RESPONSE},
        {"flags": Flag.RESPONSE | Flag.ERROR},
    ],
)
@pytest.mark.parametrize("command", [0, 1, 2, 3, 4, 0xF0])
def test_frames_that_are_not_for_us_get_no_answer(command: int, changes: dict[str, Any]) -> None:
    export = make()
    head = header(command, **changes)
    assert is_silent(export, encode(head, ConfigArgument()))
    assert is_silent(export, encode(head, IDENTIFY_REGISTERS))


BROADCASTS: Sequence[dict[str, Any]] = [
    {"destination": BROADCAST_MAC},
    {"destination": BROADCAST_MAC, "address": BROADCAST_ADDRESS},
    {"address": BROADCAST_ADDRESS},
    {"address": Address(7, 0xFF)},
    {"address": Address(0xFFFF, 3)},
]


@pytest.mark.parametrize("changes", BROADCASTS)
def test_a_broadcast_may_ask_who_is_there_and_what_it_is(changes: dict[str, Any]) -> None:
    export = make()
    ask(export, encode(header(AoeCommand.CONFIG, **changes), ConfigArgument()))
    ask(export, encode(header(**changes), IDENTIFY_REGISTERS))


@pytest.mark.parametrize("changes", BROADCASTS)
def test_a_broadcast_never_reads_writes_or_flushes(changes: dict[str, Any]) -> None:
    export = make()
    assert isinstance(export.store, MemoryStore)
    before = bytes(export.store.data)
    for ata in (READ, WRITE, flush_registers(Opcode.FLUSH_EXT), AtaArgument(0, 0, 0, 0x99, 0)):
        assert is_silent(export, encode(header(**changes), ata, b"x" * 1024))
    for command in (2, 3, 4):
        assert is_silent(export, encode(header(command, **changes), READ))
    assert export.store.data == before


@pytest.mark.parametrize("version", [0, 2, 15])
def test_another_version_gets_error_5_in_version_1(version: int) -> None:
    answer = ask(make(), encode(header(version=version), READ))
    assert aoe_error(answer) == ErrorCode.UNSUPPORTED_VERSION


@pytest.mark.parametrize("command", [4, 0x80, 0xF0, 0xFF])
def test_other_commands_get_error_1(command: int) -> None:
    assert aoe_error(ask(make(), encode(header(command), READ))) == ErrorCode.UNRECOGNIZED_COMMAND


def test_flags_of_a_request_are_not_echoed() -> None:
    answer = ask(make(), encode(header(flags=Flag.ERROR | 0x03, error=9), READ))
    assert registers(answer) == (Status.DRDY, 0, 0)


@pytest.mark.parametrize("length", [0, 13, 14, 23])
def test_a_frame_shorter_than_its_header_is_ignored(length: int) -> None:
    assert is_silent(make(), encode(header(), READ)[:length])


def test_a_frame_shorter_than_its_command_is_ignored() -> None:
    export = make()
    assert is_silent(export, encode(header(), IDENTIFY_REGISTERS)[:35])
    assert is_silent(export, encode(header(AoeCommand.CONFIG), ConfigArgument())[:31])
    ask(export, encode(header(), IDENTIFY_REGISTERS)[:36])
    ask(export, encode(header(AoeCommand.CONFIG), ConfigArgument())[:32])


# ── config query ──────────────────────────────────────────────────────────────────────────────────────────────────


def config(export: Export, command: int, string: bytes = b"") -> ConfigArgument | None:
    frame = encode(header(AoeCommand.CONFIG), ConfigArgument(command, string))
    answer = answer_at_once(export, frame, mac=OURS, max_sectors=2)
    if answer is None:
        return None
    check_answer(answer)
    found = decode_config_untrusted(answer)
    assert (found.command, found.version, found.sectors) == (command, 1, 2)
    return found


def config_error(export: Export, command: int, string: bytes = b"") -> int:
    frame = encode(header(AoeCommand.CONFIG), ConfigArgument(command, string))
    return aoe_error(ask(export, frame))


def test_config_test_and_prefix_answer_only_on_a_match() -> None:
    export = make(config_string=b"database")
    assert config(export, ConfigCommand.TEST, b"database") is not None
    assert config(export, ConfigCommand.TEST, b"data") is None
    assert config(export, ConfigCommand.TEST) is None
    assert config(export, ConfigCommand.PREFIX, b"data") is not None
    assert config(export, ConfigCommand.PREFIX) is not None
    assert config(export, ConfigCommand.PREFIX, b"database2") is None


def test_config_set_stores_once_and_force_set_always() -> None:
    export = make()
    assert config_error(export, ConfigCommand.SET, b"one") == 0
    assert config_error(export, ConfigCommand.SET, b"one") == 0
    assert config_error(export, ConfigCommand.SET, b"two") == ErrorCode.CONFIG_STRING_PRESENT
    found = config(export, ConfigCommand.READ)
    assert found is not None
    assert found.string == b"one"
    assert config_error(export, ConfigCommand.FORCE_SET, b"t" * MAX_CONFIG_BYTES) == 0
    assert export.config_string == b"t" * MAX_CONFIG_BYTES
    assert config_error(export, ConfigCommand.FORCE_SET) == 0
    assert export.config_string == b""


def test_a_refused_set_shows_the_present_string() -> None:
    export = make(config_string=b"one")
    answer = ask(export, encode(header(AoeCommand.CONFIG), ConfigArgument(ConfigCommand.SET, b"two")))
    assert decode_config_untrusted(answer).string == b"one"


@pytest.mark.parametrize("address", [BROADCAST_ADDRESS, Address(7, 0xFF), Address(0xFFFF, 3)])
@pytest.mark.parametrize("destination", [BROADCAST_MAC, OURS])
def test_a_wildcard_address_may_ask_for_the_config_string_and_not_set_it(address: Address, destination: bytes) -> None:
    export = make(config_string=b"kept")
    head = header(AoeCommand.CONFIG, address=address, destination=destination)
    for command, string in ((ConfigCommand.READ, b""), (ConfigCommand.TEST, b"kept"), (ConfigCommand.PREFIX, b"k")):
        assert decode_config_untrusted(ask(export, encode(head, ConfigArgument(command, string)))).string
    for setting in (int(ConfigCommand.SET), int(ConfigCommand.FORCE_SET), 5, 15):
        for string in (b"", b"kept", b"theirs"):
            assert is_silent(export, encode(head, ConfigArgument(setting, string)))
    assert export.config_string == b"kept"


def test_an_exact_address_sets_the_config_string_to_the_broadcast_mac_too() -> None:
    export = make()
    head = header(AoeCommand.CONFIG, destination=BROADCAST_MAC)
    ask(export, encode(head, ConfigArgument(ConfigCommand.SET, b"set")))  # as aoecfg does
    assert export.config_string == b"set"


@pytest.mark.parametrize("command", range(5, 16))
def test_an_unknown_config_command_is_a_bad_argument(command: int) -> None:
    assert config_error(make(), command) == ErrorCode.BAD_ARGUMENT


@pytest.mark.parametrize("length", [29, 1024, 1025, 0xFFFF])
def test_a_config_string_longer_than_the_frame_is_a_bad_argument_and_void_in_a_read(length: int) -> None:
    export = make(config_string=b"kept")
    for command, expected in ((ConfigCommand.FORCE_SET, ErrorCode.BAD_ARGUMENT), (ConfigCommand.READ, 0)):
        frame = bytearray(encode(header(AoeCommand.CONFIG), ConfigArgument(command)))
        frame[30:32] = length.to_bytes(2, "big")
        assert aoe_error(ask(export, bytes(frame))) == expected
    assert export.config_string == b"kept"


# ── ATA ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("count", [0, 1, 2, 255])
def test_identify_describes_the_export_whatever_the_count(count: int) -> None:
    ata = AtaArgument(0, 0, count, Opcode.IDENTIFY, 0xA0 << 24)
    answer = ask(make(), encode(header(), ata))
    assert registers(answer) == (Status.DRDY, 0, 0)
    identity = decode_identify_untrusted(answer[36:])
    assert (identity.sectors, identity.serial, identity.model) == (SECTORS, "0123456789", "aoefs software target")
    assert identity.lba48
    assert identity.flush
    assert identity.flush_ext
    assert identity.write_cache
    assert len(answer) == 36 + 512


def test_a_store_that_is_never_dirty_announces_no_write_cache() -> None:
    for store in (MemoryStore(8, volatile=False), MemoryStore(8, read_only=True)):
        export = Export(ADDRESS, store, serial="1")
        assert not export.identity.write_cache
        assert export.identity.flush_ext


@pytest.mark.parametrize("lba48", [False, True])
def test_what_was_written_is_read(lba48: bool) -> None:
    export = make()
    data = bytes(range(256)) * 4
    write = transfer_registers(998, 2, write=True, lba48=lba48)
    assert registers(ask(export, encode(header(), write, data))) == (Status.DRDY, 0, 0)
    answer = ask(export, encode(header(), transfer_registers(998, 2, write=False, lba48=lba48)))
    assert answer[36:] == data
    assert (export.read_sectors, export.written_sectors) == (2, 2)


def test_the_opcode_decides_the_width_of_the_lba_and_the_flags_nothing() -> None:
    export = make()
    for flags in (0, 0x40, 0x01, 0x53):
        answer = ask(export, encode(header(), AtaArgument(flags, 0, 1, Opcode.READ, 5 | 0xE0 << 24 | 0xFFFF << 32)))
        assert registers(answer) == (Status.DRDY, 0, 0)
        answer = ask(export, encode(header(), AtaArgument(flags, 0, 1, Opcode.READ_EXT, 5 | 0xE0 << 24)))
        assert registers(answer) == (Status.DRDY | Status.ERR, ErrorBit.IDNF, 1)


@pytest.mark.parametrize(("lba", "count"), [(999, 2), (1000, 1), (1 << 40, 1), ((1 << 48) - 1, 2)])
@pytest.mark.parametrize("write", [False, True])
def test_past_the_end_is_idnf_and_moves_nothing(lba: int, count: int, write: bool) -> None:
    export = make()
    ata = transfer_registers(lba, count, write=write, lba48=True)
    answer = ask(export, encode(header(), ata, b"x" * 1024 if write else b""))
    assert registers(answer) == (Status.DRDY | Status.ERR, ErrorBit.IDNF, count)
    assert len(answer) == 60
    assert export.written_sectors == 0


@pytest.mark.parametrize("count", [0, 3, 255])
@pytest.mark.parametrize("base", [READ, WRITE])
def test_no_sectors_or_more_than_a_frame_holds_is_a_bad_argument(base: AtaArgument, count: int) -> None:
    ata = AtaArgument(base.flags, 0, count, base.command, 0)
    answer = ask(make(), encode(header(), ata, b"x" * 1024))
    assert aoe_error(answer) == ErrorCode.BAD_ARGUMENT
    assert decode_ata_untrusted(answer) == ata


def test_a_write_with_too_few_data_is_a_bad_argument_and_writes_nothing() -> None:
    export = make()
    assert aoe_error(ask(export, encode(header(), WRITE, b"x" * 1023))) == ErrorCode.BAD_ARGUMENT
    assert export.written_sectors == 0
    assert registers(ask(export, encode(header(), WRITE, b"x" * 1030))) == (Status.DRDY, 0, 0)


def test_a_read_only_export_aborts_writes() -> None:
    export = make(read_only=True)
    answer = ask(export, encode(header(), WRITE, b"x" * 1024))
    assert registers(answer) == (0x41, ErrorBit.ABRT, 2)
    with pytest.raises(AtaError):
        check_result(decode_ata_untrusted(answer))


@pytest.mark.parametrize("opcode", [0x00, 0x06, 0x10, 0x25, 0x35, 0x40, 0xA1, 0xB0, 0xC8, 0xCA, 0xE0, 0xEF, 0xFF])
def test_unknown_ata_commands_are_aborted(opcode: int) -> None:
    answer = ask(make(), encode(header(), AtaArgument(0, 0, 1, opcode, 0), b"x" * 1024))
    assert registers(answer) == (0x41, ErrorBit.ABRT, 1)


def test_check_power_mode_says_active() -> None:
    answer = ask(make(), encode(header(), AtaArgument(0, 0, 1, Opcode.CHECK_POWER_MODE, 0)))
    assert registers(answer) == (Status.DRDY, 0, 0xFF)


# ── SMART ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_smart_says_what_the_export_knows_of_its_store() -> None:
    export = make()
    ask(export, encode(header(), WRITE, b"x" * 1024))
    ask(export, encode(header(), READ))
    ask(export, encode(header(), READ))
    answer = ask(export, encode(header(), smart_registers(Feature.READ_DATA)))
    assert registers(answer) == (Status.DRDY, 0, 0)
    raw = {attribute.number: attribute.raw for attribute in decode_smart_untrusted(answer[36:])}
    assert raw == {187: 0, 241: 2, 242: 4}
    status = ask(export, encode(header(), smart_registers(Feature.RETURN_STATUS)))
    assert not is_failing_untrusted(decode_ata_untrusted(status))


def test_smart_fails_after_a_failed_sync() -> None:
    store = BrokenStore(SECTORS)
    export = Export(ADDRESS, store, serial="1")
    ask(export, encode(header(), flush_registers(Opcode.FLUSH_EXT)))
    status = ask(export, encode(header(), smart_registers(Feature.RETURN_STATUS)))
    assert is_failing_untrusted(decode_ata_untrusted(status))


@pytest.mark.parametrize("change", [{"feature": 0xD8}, {"lba": 0}])
def test_other_smart_commands_are_aborted(change: dict[str, int]) -> None:
    ata = replace(smart_registers(Feature.READ_DATA), **change)
    assert registers(ask(make(), encode(header(), ata))) == (0x41, ErrorBit.ABRT, 1)


# ── flush and failing stores ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("opcode", [Opcode.FLUSH, Opcode.FLUSH_EXT])
def test_a_flush_waits_for_the_store(opcode: int) -> None:
    export = make()
    assert isinstance(export.store, MemoryStore)
    request = export.handle_untrusted(encode(header(), flush_registers(opcode)), mac=OURS, max_sectors=2)
    assert isinstance(request, FlushRequest)
    assert export.store.syncs == 0
    assert registers(check_answer(export.finish_flush(request, None))) == (Status.DRDY, 0, 0)
    assert registers(ask(export, encode(header(), flush_registers(opcode)))) == (Status.DRDY, 0, 0)
    assert export.store.syncs == 1


class BrokenStore(MemoryStore):
    """Everything fails while ``broken`` is set; ``short`` transfers move one sector only."""

    broken = True
    short = False

    def _check(self) -> None:
        if self.broken:
            raise OSError(5, "Input/output error")

    def readv(self, buffers: Sequence[memoryview | bytearray], offset: int) -> int:
        if self.short:
            return 512
        self._check()
        return super().readv(buffers, offset)

    def writev(self, buffers: Sequence[memoryview | bytes], offset: int) -> int:
        if self.short:
            return 512
        self._check()
        return super().writev(buffers, offset)

    def sync(self) -> None:
        self._check()
        super().sync()


@pytest.mark.parametrize("short", [False, True])
def test_a_failing_store_is_an_ata_error_that_does_not_mean_read_only(short: bool) -> None:
    reports: list[str] = []
    store = BrokenStore(SECTORS)
    store.short = short
    export = Export(ADDRESS, store, serial="1", report=reports.append)
    assert registers(ask(export, encode(header(), READ))) == (0x41, ErrorBit.UNC, 2)
    status, error, count = registers(ask(export, encode(header(), WRITE, b"x" * 1024)))
    assert status == Status.DRDY | Status.DF | Status.ERR
    assert not error & ErrorBit.ABRT
    assert count == 2
    assert [line.split(" failed")[0] for line in reports] == ["e7.3: read at sector 8", "e7.3: write at sector 8"]
    assert export.store_errors == 2


def test_after_a_failed_sync_no_flush_succeeds_any_more() -> None:
    store = BrokenStore(SECTORS)
    export = Export(ADDRESS, store, serial="1")
    flush = encode(header(), flush_registers(Opcode.FLUSH_EXT))
    failed = (Status.DRDY | Status.DF | Status.ERR, 0, 0)
    assert registers(ask(export, flush)) == failed
    store.broken = False
    assert registers(ask(export, flush)) == failed
    assert registers(ask(export, encode(header(), READ)))[0] == Status.DRDY


@pytest.mark.parametrize(("address", "buffer_count"), [(Address(0xFFFF, 0), 1), (Address(0, 0xFF), 1), (ADDRESS, 0)])
def test_an_impossible_export_is_our_own_mistake(address: Address, buffer_count: int) -> None:
    with pytest.raises(ValueError, match=r"broadcast|buffer count"):
        Export(address, MemoryStore(1), serial="1", buffer_count=buffer_count)


# ── any bytes ─────────────────────────────────────────────────────────────────────────────────────────────────────


def sized(frame: bytes, length: int) -> bytes:
    return frame[:length] if length < len(frame) else frame.ljust(length, b"\xed")


any_header = st.builds(
    Header,
    st.sampled_from([OURS, BROADCAST_MAC, THEIRS]),
    st.sampled_from([THEIRS, BROADCAST_MAC]),
    st.sampled_from([ADDRESS, BROADCAST_ADDRESS, Address(7, 0xFF), Address(1, 1)]),
    st.integers(0, 255) | st.sampled_from([0, 1, 2, 3]),
    st.just(TAG),
    st.integers(0, 15),
    st.integers(0, 255),
    st.integers(0, 15) | st.just(1),
)
near_frames = st.builds(
    lambda head, body, length: sized(encode_header(head) + body, length),
    any_header,
    st.binary(max_size=40),
    st.integers(0, 1100),
)


@given(st.lists(st.binary(max_size=80) | near_frames, max_size=20), st.integers(1, 17))
def test_whatever_comes_is_answered_well_or_not_at_all(frames: list[bytes], max_sectors: int) -> None:
    export = make(64)
    for frame in frames:
        answer = answer_at_once(export, frame, mac=OURS, max_sectors=max_sectors)
        if answer is not None:
            check_answer(answer)
            assert len(answer) <= 36 + max(max_sectors * 512, MAX_CONFIG_BYTES)
