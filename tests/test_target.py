"""The target machine: golden frames, every command, and bytes that are no frames at all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aoefs.access import MAX_MACS, Access
from aoefs.ata import (
    IDENTIFY_REGISTERS,
    ErrorBit,
    Opcode,
    Status,
    check_result,
    decode_identify_untrusted,
    flush_registers,
    transfer_registers,
)
from aoefs.errors import AtaError
from aoefs.smart import Feature, decode_smart_untrusted, is_failing_untrusted, smart_registers
from aoefs.target import FlushRequest, MemoryStore, TargetMachine
from aoefs.wire import (
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
    MaskArgument,
    MaskCommand,
    MaskDirective,
    MaskError,
    ReserveArgument,
    ReserveCommand,
    decode_ata_untrusted,
    decode_config_untrusted,
    decode_header_untrusted,
    decode_mask_untrusted,
    decode_reserve_untrusted,
    encode_ata,
    encode_config,
    encode_header,
    encode_mask,
    encode_reserve,
)

OURS = bytes.fromhex("020000000001")
THEIRS = bytes.fromhex("020000000002")
ADDRESS = Address(7, 3)
TAG = 0x8000_1234
SECTORS = 1000


def make(sectors: int = SECTORS, **options: Any) -> TargetMachine:
    store = MemoryStore(sectors, read_only=bool(options.pop("read_only", False)))
    store.data[:] = bytes(index * 7 & 0xFF for index in range(512)) * sectors
    return TargetMachine(ADDRESS, store, serial="0123456789", **options)


def header(command: int = AoeCommand.ATA, **changes: Any) -> Header:
    fields: dict[str, Any] = {
        "destination": OURS,
        "source": THEIRS,
        "address": ADDRESS,
        "command": command,
        "tag": TAG,
    } | changes
    return Header(**fields)


def ask(machine: TargetMachine, frame: bytes, max_sectors: int = 2) -> bytes:
    answer = machine.answer(frame, mac=OURS, max_sectors=max_sectors)
    assert answer is not None
    return check_answer(answer)


def check_answer(answer: bytes) -> bytes:
    """What holds for every answer."""
    head = decode_header_untrusted(answer)
    assert len(answer) >= 60
    assert (head.destination, head.source, head.address, head.tag) == (THEIRS, OURS, ADDRESS, TAG)
    assert (head.version, head.is_response) == (1, True)
    assert head.flags & 0x03 == 0
    assert head.is_error == (head.error != 0)
    return answer


def is_silent(machine: TargetMachine, frame: bytes) -> bool:
    return machine.handle_untrusted(frame, mac=OURS, max_sectors=2) is None


def aoe_error(answer: bytes) -> int:
    head = decode_header_untrusted(answer)
    return head.error if head.is_error else 0


def registers(answer: bytes) -> tuple[int, int, int]:
    """Status, error, count; the AoE layer was content."""
    assert aoe_error(answer) == 0
    ata = decode_ata_untrusted(answer)
    return ata.command, ata.feature, ata.count


READ = transfer_registers(8, 2, write=False, lba48=True)
WRITE = transfer_registers(8, 2, write=True, lba48=True)


# ── golden frames ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_golden_read() -> None:
    machine = make()
    request = bytes.fromhex(
        "020000000001 020000000002 88a2 10 00 0007 03 00 80001234 40 00 01 24 0900000000000000".replace(" ", "")
    ).ljust(60, b"\0")
    expected = bytes.fromhex(
        "020000000002 020000000001 88a2 18 00 0007 03 00 80001234 40 00 00 40 0900000000000000".replace(" ", "")
    )
    assert ask(machine, request) == expected + bytes(index * 7 & 0xFF for index in range(512))


def test_golden_write_is_answered_with_60_bytes() -> None:
    machine = make()
    request = bytes.fromhex(
        "020000000001 020000000002 88a2 10 00 0007 03 00 80001234 41 00 01 34 0900000000000000".replace(" ", "")
    )
    expected = bytes.fromhex(
        "020000000002 020000000001 88a2 18 00 0007 03 00 80001234 41 00 00 40 0900000000000000".replace(" ", "")
    )
    assert ask(machine, request + b"\xa5" * 512) == expected.ljust(60, b"\0")
    assert isinstance(machine.store, MemoryStore)
    assert machine.store.data[9 * 512 : 10 * 512] == b"\xa5" * 512
    assert machine.store.data[10 * 512] == 0


def test_golden_config() -> None:
    machine = make(config_string=b"hi", buffer_count=16)
    request = bytes.fromhex(
        "ffffffffffff 020000000002 88a2 10 00 ffff ff 01 80001234 0000 0000 00 00 0000".replace(" ", "")
    )
    expected = bytes.fromhex(
        "020000000002 020000000001 88a2 18 00 0007 03 01 80001234 0010 0100 02 10 0002 6869".replace(" ", "")
    )
    assert ask(machine, request) == expected.ljust(60, b"\0")


def test_golden_announcement() -> None:
    expected = bytes.fromhex(
        "ffffffffffff 020000000001 88a2 18 00 0007 03 01 00000000 0040 0100 11 10 0000".replace(" ", "")
    )
    assert make().announcements(mac=OURS, max_sectors=17) == [expected.ljust(60, b"\0")]


# ── who is meant ──────────────────────────────────────────────────────────────────────────────────────────────────


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
    machine = make()
    head = header(command, **changes)
    assert is_silent(machine, encode_config(head, ConfigArgument()))
    assert is_silent(machine, encode_ata(head, IDENTIFY_REGISTERS))
    assert machine.counters.ignored == 2


BROADCASTS: Sequence[dict[str, Any]] = [
    {"destination": BROADCAST_MAC},
    {"destination": BROADCAST_MAC, "address": BROADCAST_ADDRESS},
    {"address": BROADCAST_ADDRESS},
    {"address": Address(7, 0xFF)},
    {"address": Address(0xFFFF, 3)},
]


@pytest.mark.parametrize("changes", BROADCASTS)
def test_a_broadcast_may_ask_who_is_there_and_what_it_is(changes: dict[str, Any]) -> None:
    machine = make()
    ask(machine, encode_config(header(AoeCommand.CONFIG, **changes), ConfigArgument()))
    ask(machine, encode_ata(header(**changes), IDENTIFY_REGISTERS))


@pytest.mark.parametrize("changes", BROADCASTS)
def test_a_broadcast_never_reads_writes_or_flushes(changes: dict[str, Any]) -> None:
    machine = make()
    assert isinstance(machine.store, MemoryStore)
    before = bytes(machine.store.data)
    for ata in (READ, WRITE, flush_registers(Opcode.FLUSH_EXT), AtaArgument(0, 0, 0, 0x99, 0)):
        assert is_silent(machine, encode_ata(header(**changes), ata, b"x" * 1024))
    for command in (2, 3, 4):
        assert is_silent(machine, encode_ata(header(command, **changes), READ))
    assert machine.store.data == before


@pytest.mark.parametrize("version", [0, 2, 15])
def test_another_version_gets_error_5_in_version_1(version: int) -> None:
    answer = ask(make(), encode_ata(header(version=version), READ))
    assert aoe_error(answer) == ErrorCode.UNSUPPORTED_VERSION


@pytest.mark.parametrize("command", [4, 0x80, 0xF0, 0xFF])
def test_other_commands_get_error_1(command: int) -> None:
    assert aoe_error(ask(make(), encode_ata(header(command), READ))) == ErrorCode.UNRECOGNIZED_COMMAND


def test_flags_of_a_request_are_not_echoed() -> None:
    answer = ask(make(), encode_ata(header(flags=Flag.ERROR | 0x03, error=9), READ))
    assert registers(answer) == (Status.DRDY, 0, 0)


@pytest.mark.parametrize("length", [0, 13, 14, 23])
def test_a_frame_shorter_than_its_header_is_ignored(length: int) -> None:
    assert is_silent(make(), encode_ata(header(), READ)[:length])


def test_a_frame_shorter_than_its_command_is_ignored() -> None:
    machine = make()
    assert is_silent(machine, encode_ata(header(), IDENTIFY_REGISTERS)[:35])
    assert is_silent(machine, encode_config(header(AoeCommand.CONFIG), ConfigArgument())[:31])
    ask(machine, encode_ata(header(), IDENTIFY_REGISTERS)[:36])
    ask(machine, encode_config(header(AoeCommand.CONFIG), ConfigArgument())[:32])


# ── config query ──────────────────────────────────────────────────────────────────────────────────────────────────


def config(machine: TargetMachine, command: int, string: bytes = b"") -> ConfigArgument | None:
    frame = encode_config(header(AoeCommand.CONFIG), ConfigArgument(command, string))
    answer = machine.answer(frame, mac=OURS, max_sectors=2)
    if answer is None:
        return None
    check_answer(answer)
    found = decode_config_untrusted(answer)
    assert (found.command, found.version, found.sectors) == (command, 1, 2)
    return found


def config_error(machine: TargetMachine, command: int, string: bytes = b"") -> int:
    frame = encode_config(header(AoeCommand.CONFIG), ConfigArgument(command, string))
    return aoe_error(ask(machine, frame))


def test_config_test_and_prefix_answer_only_on_a_match() -> None:
    machine = make(config_string=b"database")
    assert config(machine, ConfigCommand.TEST, b"database") is not None
    assert config(machine, ConfigCommand.TEST, b"data") is None
    assert config(machine, ConfigCommand.TEST) is None
    assert config(machine, ConfigCommand.PREFIX, b"data") is not None
    assert config(machine, ConfigCommand.PREFIX) is not None
    assert config(machine, ConfigCommand.PREFIX, b"database2") is None


def test_config_set_stores_once_and_force_set_always() -> None:
    machine = make()
    assert config_error(machine, ConfigCommand.SET, b"one") == 0
    assert config_error(machine, ConfigCommand.SET, b"one") == 0
    assert config_error(machine, ConfigCommand.SET, b"two") == ErrorCode.CONFIG_STRING_PRESENT
    found = config(machine, ConfigCommand.READ)
    assert found is not None
    assert found.string == b"one"
    assert config_error(machine, ConfigCommand.FORCE_SET, b"t" * MAX_CONFIG_BYTES) == 0
    assert machine.config_string == b"t" * MAX_CONFIG_BYTES
    assert config_error(machine, ConfigCommand.FORCE_SET) == 0
    assert machine.config_string == b""


def test_a_refused_set_shows_the_present_string() -> None:
    machine = make(config_string=b"one")
    answer = ask(machine, encode_config(header(AoeCommand.CONFIG), ConfigArgument(ConfigCommand.SET, b"two")))
    assert decode_config_untrusted(answer).string == b"one"


@pytest.mark.parametrize("command", range(5, 16))
def test_an_unknown_config_command_is_a_bad_argument(command: int) -> None:
    assert config_error(make(), command) == ErrorCode.BAD_ARGUMENT


@pytest.mark.parametrize("length", [29, 1024, 1025, 0xFFFF])
def test_a_config_string_longer_than_the_frame_is_a_bad_argument_and_void_in_a_read(length: int) -> None:
    machine = make(config_string=b"kept")
    for command, expected in ((ConfigCommand.FORCE_SET, ErrorCode.BAD_ARGUMENT), (ConfigCommand.READ, 0)):
        frame = bytearray(encode_config(header(AoeCommand.CONFIG), ConfigArgument(command)))
        frame[30:32] = length.to_bytes(2, "big")
        assert aoe_error(ask(machine, bytes(frame))) == expected
    assert machine.config_string == b"kept"


# ── who may ───────────────────────────────────────────────────────────────────────────────────────────────────────

STRANGER = bytes.fromhex("020000000003")
ADD, DELETE = MaskDirective.ADD, MaskDirective.DELETE


def mac_of(number: int) -> bytes:
    return b"\x02\xff" + number.to_bytes(4, "big")


def mask(machine: TargetMachine, *directives: tuple[int, bytes]) -> MaskArgument:
    """The answer to an edit, or without directives to a read."""
    command = MaskCommand.EDIT if directives else MaskCommand.READ
    answer = ask(machine, encode_mask(header(AoeCommand.MASK), MaskArgument(command, directives)))
    assert aoe_error(answer) == 0
    found = decode_mask_untrusted(answer)
    assert found.command == command
    assert all(directive == MaskDirective.NONE for directive, _ in found.directives)
    return found


def masked(machine: TargetMachine) -> list[bytes]:
    return [mac for _, mac in mask(machine).directives]


def reserve(machine: TargetMachine, command: int, *macs: bytes) -> tuple[int, tuple[bytes, ...]]:
    """The AoE error and the list in the answer."""
    answer = ask(machine, encode_reserve(header(AoeCommand.RESERVE), ReserveArgument(command, macs)))
    found = decode_reserve_untrusted(answer)
    assert found.command == command
    return aoe_error(answer), found.macs


def from_stranger(command: int = AoeCommand.ATA) -> Header:
    return header(command, source=STRANGER)


def answer_to_stranger(machine: TargetMachine, frame: bytes) -> bytes | None:
    return machine.answer(frame, mac=OURS, max_sectors=2)


def test_golden_mask_edit() -> None:
    request = bytes.fromhex(
        "020000000001 020000000002 88a2 10 00 0007 03 02 80001234 00 01 00 02"
        "00 01 020000000002 00 01 020000000003".replace(" ", "")
    )
    expected = bytes.fromhex(
        "020000000002 020000000001 88a2 18 00 0007 03 02 80001234 00 01 00 02"
        "00 00 020000000002 00 00 020000000003".replace(" ", "")
    )
    assert ask(make(), request) == expected.ljust(60, b"\0")


def test_golden_reserve() -> None:
    request = bytes.fromhex(
        "020000000001 020000000002 88a2 10 00 0007 03 03 80001234 01 01 020000000002".replace(" ", "")
    )
    expected = bytes.fromhex(
        "020000000002 020000000001 88a2 18 00 0007 03 03 80001234 01 01 020000000002".replace(" ", "")
    )
    assert ask(make(), request) == expected.ljust(60, b"\0")


def test_the_mask_list_is_read_added_to_and_deleted_from() -> None:
    machine = make()
    assert masked(machine) == []
    assert len(mask(machine, (ADD, THEIRS), (ADD, STRANGER), (ADD, mac_of(1)), (ADD, mac_of(2))).directives) == 4
    mask(machine, (ADD, STRANGER))  # a second time: no error, no second entry
    assert masked(machine) == [THEIRS, STRANGER, mac_of(1), mac_of(2)]  # vblade: the third add overwrites the second
    mask(machine, (DELETE, STRANGER), (DELETE, mac_of(9)), (MaskDirective.NONE, mac_of(8)))  # vblade: it dies
    assert masked(machine) == [THEIRS, mac_of(1), mac_of(2)]


def test_who_is_not_on_the_mask_list_hears_nothing_not_even_an_error() -> None:
    machine = make()
    mask(machine, (ADD, THEIRS))
    for frame in (
        encode_config(from_stranger(AoeCommand.CONFIG), ConfigArgument()),
        encode_ata(from_stranger(), IDENTIFY_REGISTERS),
        encode_ata(from_stranger(), READ),
        encode_mask(from_stranger(AoeCommand.MASK), MaskArgument()),
        encode_reserve(from_stranger(AoeCommand.RESERVE), ReserveArgument()),
        encode_header(header(0x80, source=STRANGER)),
        encode_ata(header(source=STRANGER, version=2), READ),
    ):
        assert is_silent(machine, frame)
    assert registers(ask(machine, encode_ata(header(), READ))) == (Status.DRDY, 0, 0)
    mask(machine, (DELETE, THEIRS))  # empty again: everybody
    assert answer_to_stranger(machine, encode_ata(from_stranger(), READ)) is not None


def test_an_edit_that_shuts_its_sender_out_is_still_answered() -> None:
    machine = make()
    assert [mac for _, mac in mask(machine, (ADD, STRANGER)).directives] == [STRANGER]
    assert is_silent(machine, encode_mask(header(AoeCommand.MASK), MaskArgument()))


def test_a_bad_directive_is_named_and_what_came_before_it_holds() -> None:
    machine = make()
    answer = mask(machine, (ADD, THEIRS), (ADD, STRANGER), (3, mac_of(1)), (ADD, mac_of(2)))
    assert (answer.error, answer.count) == (MaskError.BAD_DIRECTIVE, 2)
    assert masked(machine) == [THEIRS, STRANGER]


def test_a_full_mask_list_says_so_and_takes_what_it_has_already() -> None:
    machine = make()
    mask(machine, (ADD, THEIRS), *((ADD, mac_of(number)) for number in range(MAX_MACS - 1)))
    answer = mask(machine, (ADD, THEIRS), (ADD, STRANGER))
    assert (answer.error, answer.count) == (MaskError.LIST_FULL, 1)
    mask(machine, (DELETE, mac_of(5)), (ADD, STRANGER))
    assert len(masked(machine)) == MAX_MACS
    smallest_frame = 14 + 36 + 512  # the smallest MTU that carries a sector
    assert len(ask(machine, encode_mask(header(AoeCommand.MASK), MaskArgument()))) <= smallest_frame


@pytest.mark.parametrize("count", [2, 3, 255])
def test_a_directive_count_beyond_the_frame_is_a_bad_argument_and_void_in_a_read(count: int) -> None:
    machine = make()
    for command, expected in ((MaskCommand.EDIT, ErrorCode.BAD_ARGUMENT), (MaskCommand.READ, 0)):
        frame = bytearray(encode_mask(header(AoeCommand.MASK), MaskArgument(command, ((ADD, STRANGER),), count=count)))
        assert aoe_error(ask(machine, bytes(frame[:36]))) == expected
    assert masked(machine) == []


@pytest.mark.parametrize("argument", [MaskArgument(2), MaskArgument(255), MaskArgument(MaskCommand.EDIT, (), error=2)])
def test_an_unknown_mask_command_and_an_edit_with_an_error_are_bad_arguments(argument: MaskArgument) -> None:
    answer = ask(make(), encode_mask(header(AoeCommand.MASK), argument))
    assert aoe_error(answer) == ErrorCode.BAD_ARGUMENT


def test_the_allow_list_is_told_to_its_hosts_only_and_cannot_be_widened_from_the_wire() -> None:
    machine = make(access=Access([THEIRS, mac_of(1)]))
    told = [decode_header_untrusted(frame) for frame in machine.announcements(mac=OURS, max_sectors=2)]
    assert [head.destination for head in told] == [THEIRS, mac_of(1)]
    assert is_silent(machine, encode_ata(from_stranger(), IDENTIFY_REGISTERS))
    assert masked(machine) == []
    mask(machine, (ADD, THEIRS), (ADD, STRANGER))
    assert is_silent(machine, encode_ata(from_stranger(), IDENTIFY_REGISTERS))
    assert [decode_header_untrusted(frame).destination for frame in machine.announcements(mac=OURS, max_sectors=2)] == [
        THEIRS
    ]
    mask(machine, (DELETE, THEIRS), (DELETE, STRANGER))
    assert is_silent(machine, encode_ata(from_stranger(), IDENTIFY_REGISTERS))
    assert registers(ask(machine, encode_ata(header(), READ))) == (Status.DRDY, 0, 0)


def test_a_reserved_target_refuses_every_ata_command_of_others_but_identify() -> None:
    machine = make()
    assert isinstance(machine.store, MemoryStore)
    before = bytes(machine.store.data)
    assert reserve(machine, ReserveCommand.SET, THEIRS) == (0, (THEIRS,))
    for ata in (READ, WRITE, flush_registers(Opcode.FLUSH_EXT), smart_registers(Feature.RETURN_STATUS)):
        answer = answer_to_stranger(machine, encode_ata(from_stranger(), ata, b"x" * 1024))
        assert answer is not None
        assert aoe_error(answer) == ErrorCode.TARGET_RESERVED
        assert decode_ata_untrusted(answer) == ata
    assert machine.store.data == before
    answer = answer_to_stranger(machine, encode_ata(from_stranger(), IDENTIFY_REGISTERS))
    assert answer is not None
    assert decode_identify_untrusted(answer[36:]).sectors == SECTORS
    for frame in (
        encode_config(from_stranger(AoeCommand.CONFIG), ConfigArgument(ConfigCommand.SET, b"x")),
        encode_mask(from_stranger(AoeCommand.MASK), MaskArgument()),
        encode_reserve(from_stranger(AoeCommand.RESERVE), ReserveArgument()),
    ):
        answer = answer_to_stranger(machine, frame)
        assert answer is not None
        assert aoe_error(answer) == 0
    assert registers(ask(machine, encode_ata(header(), WRITE, b"x" * 1024))) == (Status.DRDY, 0, 0)


def test_a_reservation_is_changed_by_its_holders_and_by_force_only() -> None:
    machine = make()
    assert reserve(machine, ReserveCommand.READ) == (0, ())
    assert reserve(machine, ReserveCommand.SET, STRANGER, STRANGER) == (0, (STRANGER,))  # for somebody else: allowed
    assert reserve(machine, ReserveCommand.SET, THEIRS) == (ErrorCode.TARGET_RESERVED, (STRANGER,))
    assert reserve(machine, ReserveCommand.SET) == (ErrorCode.TARGET_RESERVED, (STRANGER,))
    assert reserve(machine, ReserveCommand.FORCE_SET, THEIRS, mac_of(1)) == (0, (THEIRS, mac_of(1)))
    assert reserve(machine, ReserveCommand.SET, THEIRS) == (0, (THEIRS,))
    assert reserve(machine, ReserveCommand.SET) == (0, ())
    assert reserve(machine, ReserveCommand.SET) == (0, ())  # as when the first answer was lost
    reserve(machine, ReserveCommand.SET, STRANGER)
    assert reserve(machine, ReserveCommand.FORCE_SET) == (0, ())


@pytest.mark.parametrize("command", [ReserveCommand.SET, ReserveCommand.FORCE_SET])
def test_a_count_beyond_the_frame_or_the_list_is_a_bad_argument_and_changes_nothing(command: int) -> None:
    machine = make()
    reserve(machine, ReserveCommand.SET, THEIRS)
    frame = encode_reserve(header(AoeCommand.RESERVE), ReserveArgument(command, (STRANGER,)))[:32]
    assert aoe_error(ask(machine, frame[:25] + b"\x02" + frame[26:])) == ErrorCode.BAD_ARGUMENT
    many = ReserveArgument(command, tuple(mac_of(number) for number in range(MAX_MACS + 1)))
    assert aoe_error(ask(machine, encode_reserve(header(AoeCommand.RESERVE), many))) == ErrorCode.BAD_ARGUMENT
    assert reserve(machine, ReserveCommand.READ) == (0, (THEIRS,))
    read_with_count = frame[:24] + b"\x00\xff"
    assert aoe_error(ask(machine, read_with_count)) == 0


@pytest.mark.parametrize("command", [3, 4, 255])
def test_an_unknown_reserve_command_is_a_bad_argument(command: int) -> None:
    answer = ask(make(), encode_reserve(header(AoeCommand.RESERVE), ReserveArgument(command)))
    assert aoe_error(answer) == ErrorCode.BAD_ARGUMENT


def test_mask_and_reserve_commands_shorter_than_their_header_are_ignored() -> None:
    machine = make()
    assert is_silent(machine, encode_mask(header(AoeCommand.MASK), MaskArgument())[:27])
    assert is_silent(machine, encode_reserve(header(AoeCommand.RESERVE), ReserveArgument())[:25])


# ── ATA ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("count", [0, 1, 2, 255])
def test_identify_describes_the_export_whatever_the_count(count: int) -> None:
    ata = AtaArgument(0, 0, count, Opcode.IDENTIFY, 0xA0 << 24)
    answer = ask(make(), encode_ata(header(), ata))
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
        machine = TargetMachine(ADDRESS, store, serial="1")
        assert not machine.identity.write_cache
        assert machine.identity.flush_ext


@pytest.mark.parametrize("lba48", [False, True])
def test_what_was_written_is_read(lba48: bool) -> None:
    machine = make()
    data = bytes(range(256)) * 4
    write = transfer_registers(998, 2, write=True, lba48=lba48)
    assert registers(ask(machine, encode_ata(header(), write, data))) == (Status.DRDY, 0, 0)
    answer = ask(machine, encode_ata(header(), transfer_registers(998, 2, write=False, lba48=lba48)))
    assert answer[36:] == data
    counters = machine.counters
    assert (counters.reads, counters.writes, counters.read_sectors, counters.written_sectors) == (1, 1, 2, 2)


def test_the_opcode_decides_the_width_of_the_lba_and_the_flags_nothing() -> None:
    machine = make()
    for flags in (0, 0x40, 0x01, 0x53):
        answer = ask(
            machine, encode_ata(header(), AtaArgument(flags, 0, 1, Opcode.READ, 5 | 0xE0 << 24 | 0xFFFF << 32))
        )
        assert registers(answer) == (Status.DRDY, 0, 0)
        answer = ask(machine, encode_ata(header(), AtaArgument(flags, 0, 1, Opcode.READ_EXT, 5 | 0xE0 << 24)))
        assert registers(answer) == (Status.DRDY | Status.ERR, ErrorBit.IDNF, 1)


@pytest.mark.parametrize(("lba", "count"), [(999, 2), (1000, 1), (1 << 40, 1), ((1 << 48) - 1, 2)])
@pytest.mark.parametrize("write", [False, True])
def test_past_the_end_is_idnf_and_moves_nothing(lba: int, count: int, write: bool) -> None:
    machine = make()
    ata = transfer_registers(lba, count, write=write, lba48=True)
    answer = ask(machine, encode_ata(header(), ata, b"x" * 1024 if write else b""))
    assert registers(answer) == (Status.DRDY | Status.ERR, ErrorBit.IDNF, count)
    assert len(answer) == 60
    assert machine.counters.written_sectors == 0


@pytest.mark.parametrize("count", [0, 3, 255])
@pytest.mark.parametrize("base", [READ, WRITE])
def test_no_sectors_or_more_than_a_frame_holds_is_a_bad_argument(base: AtaArgument, count: int) -> None:
    ata = AtaArgument(base.flags, 0, count, base.command, 0)
    answer = ask(make(), encode_ata(header(), ata, b"x" * 1024))
    assert aoe_error(answer) == ErrorCode.BAD_ARGUMENT
    assert decode_ata_untrusted(answer) == ata


def test_a_write_with_too_few_data_is_a_bad_argument_and_writes_nothing() -> None:
    machine = make()
    assert aoe_error(ask(machine, encode_ata(header(), WRITE, b"x" * 1023))) == ErrorCode.BAD_ARGUMENT
    assert machine.counters.writes == 0
    assert registers(ask(machine, encode_ata(header(), WRITE, b"x" * 1030))) == (Status.DRDY, 0, 0)


def test_a_read_only_export_aborts_writes() -> None:
    machine = make(read_only=True)
    answer = ask(machine, encode_ata(header(), WRITE, b"x" * 1024))
    assert registers(answer) == (0x41, ErrorBit.ABRT, 2)
    with pytest.raises(AtaError):
        check_result(decode_ata_untrusted(answer))


@pytest.mark.parametrize("opcode", [0x00, 0x06, 0x10, 0x25, 0x35, 0x40, 0xA1, 0xB0, 0xC8, 0xCA, 0xE0, 0xEF, 0xFF])
def test_unknown_ata_commands_are_aborted(opcode: int) -> None:
    answer = ask(make(), encode_ata(header(), AtaArgument(0, 0, 1, opcode, 0), b"x" * 1024))
    assert registers(answer) == (0x41, ErrorBit.ABRT, 1)


def test_check_power_mode_says_active() -> None:
    answer = ask(make(), encode_ata(header(), AtaArgument(0, 0, 1, Opcode.CHECK_POWER_MODE, 0)))
    assert registers(answer) == (Status.DRDY, 0, 0xFF)


# ── SMART ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_smart_tells_what_the_machine_knows_of_its_store() -> None:
    machine = make()
    ask(machine, encode_ata(header(), WRITE, b"x" * 1024))
    ask(machine, encode_ata(header(), READ))
    ask(machine, encode_ata(header(), READ))
    answer = ask(machine, encode_ata(header(), smart_registers(Feature.READ_DATA)))
    assert registers(answer) == (Status.DRDY, 0, 0)
    raw = {attribute.number: attribute.raw for attribute in decode_smart_untrusted(answer[36:])}
    assert raw == {187: 0, 241: 2, 242: 4}
    status = ask(machine, encode_ata(header(), smart_registers(Feature.RETURN_STATUS)))
    assert not is_failing_untrusted(decode_ata_untrusted(status))


def test_smart_fails_after_a_failed_sync() -> None:
    store = BrokenStore(SECTORS)
    machine = TargetMachine(ADDRESS, store, serial="1")
    ask(machine, encode_ata(header(), flush_registers(Opcode.FLUSH_EXT)))
    status = ask(machine, encode_ata(header(), smart_registers(Feature.RETURN_STATUS)))
    assert is_failing_untrusted(decode_ata_untrusted(status))


@pytest.mark.parametrize("change", [{"feature": 0xD8}, {"lba": 0}])
def test_other_smart_commands_are_aborted(change: dict[str, int]) -> None:
    ata = replace(smart_registers(Feature.READ_DATA), **change)
    assert registers(ask(make(), encode_ata(header(), ata))) == (0x41, ErrorBit.ABRT, 1)


# ── flush and failing stores ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("opcode", [Opcode.FLUSH, Opcode.FLUSH_EXT])
def test_a_flush_waits_for_the_store(opcode: int) -> None:
    machine = make()
    assert isinstance(machine.store, MemoryStore)
    request = machine.handle_untrusted(encode_ata(header(), flush_registers(opcode)), mac=OURS, max_sectors=2)
    assert isinstance(request, FlushRequest)
    assert machine.store.syncs == 0
    assert registers(check_answer(machine.finish_flush(request, None))) == (Status.DRDY, 0, 0)
    assert registers(ask(machine, encode_ata(header(), flush_registers(opcode)))) == (Status.DRDY, 0, 0)
    assert machine.store.syncs == 1
    assert machine.counters.flushes == 2


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
def test_a_failing_store_is_an_ata_error_that_nobody_takes_for_read_only(short: bool) -> None:
    reports: list[str] = []
    store = BrokenStore(SECTORS)
    store.short = short
    machine = TargetMachine(ADDRESS, store, serial="1", report=reports.append)
    assert registers(ask(machine, encode_ata(header(), READ))) == (0x41, ErrorBit.UNC, 2)
    status, error, count = registers(ask(machine, encode_ata(header(), WRITE, b"x" * 1024)))
    assert status == Status.DRDY | Status.DF | Status.ERR
    assert not error & ErrorBit.ABRT
    assert count == 2
    assert [line.split(" failed")[0] for line in reports] == ["e7.3: read at sector 8", "e7.3: write at sector 8"]
    assert machine.counters.store_errors == 2


def test_after_a_failed_sync_no_flush_succeeds_any_more() -> None:
    store = BrokenStore(SECTORS)
    machine = TargetMachine(ADDRESS, store, serial="1")
    flush = encode_ata(header(), flush_registers(Opcode.FLUSH_EXT))
    failed = (Status.DRDY | Status.DF | Status.ERR, 0, 0)
    assert registers(ask(machine, flush)) == failed
    store.broken = False
    assert registers(ask(machine, flush)) == failed
    assert registers(ask(machine, encode_ata(header(), READ)))[0] == Status.DRDY


@pytest.mark.parametrize(("address", "buffer_count"), [(Address(0xFFFF, 0), 1), (Address(0, 0xFF), 1), (ADDRESS, 0)])
def test_an_impossible_export_is_our_own_mistake(address: Address, buffer_count: int) -> None:
    with pytest.raises(ValueError, match=r"broadcast|buffer count"):
        TargetMachine(address, MemoryStore(1), serial="1", buffer_count=buffer_count)


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
    machine = make(64)
    for frame in frames:
        answer = machine.answer(frame, mac=OURS, max_sectors=max_sectors)
        if answer is not None:
            check_answer(answer)
            assert len(answer) <= 36 + max(max_sectors * 512, MAX_CONFIG_BYTES)


any_lists = st.lists(
    st.builds(
        lambda head, command, count, body: encode_header(replace(head, version=1)) + bytes([command, count]) + body,
        st.just(header(AoeCommand.RESERVE)),
        st.integers(0, 4),
        st.integers(0, 255),
        st.lists(st.sampled_from([THEIRS, STRANGER, mac_of(1)]), max_size=5).map(b"".join) | st.binary(max_size=600),
    )
    | st.builds(
        lambda command, error, count, body: (
            encode_header(header(AoeCommand.MASK)) + bytes([0, command, error, count]) + body
        ),
        st.integers(0, 3),
        st.sampled_from([0, 0, 0, 1]),
        st.integers(0, 255),
        st.lists(
            st.builds(lambda kind, mac: bytes([0, kind]) + mac, st.integers(0, 3), st.sampled_from([THEIRS, STRANGER])),
            max_size=5,
        ).map(b"".join)
        | st.binary(max_size=1500),
    ),
    max_size=8,
)


@given(any_lists, st.sampled_from([(), (THEIRS,), (THEIRS, STRANGER)]))
def test_whatever_mask_and_reserve_commands_come_the_lists_stay_bounded_and_mean_what_they_say(
    frames: list[bytes], allow: tuple[bytes, ...]
) -> None:
    machine = make(64, access=Access(allow))
    access = machine.access
    for frame in frames:
        before = (access.mask, access.holders)
        heard = access.hears(THEIRS)
        answer = machine.answer(frame, mac=OURS, max_sectors=2)
        if answer is None:
            assert (access.mask, access.holders) == before
        else:
            assert heard
            check_answer(answer)
            assert len(answer) <= 14 + 36 + 512
        assert max(len(access.mask), len(access.holders)) <= MAX_MACS
        assert len(set(access.mask)) == len(access.mask)
        for mac in (THEIRS, STRANGER, mac_of(1)):
            heard = (not allow or mac in allow) and (not access.mask or mac in access.mask)
            assert access.hears(mac) == heard
            if heard:
                assert access.admits(mac) == (not access.holders or mac in access.holders)
