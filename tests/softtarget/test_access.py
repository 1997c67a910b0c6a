"""Access: the mask list, the reservation and the allow list of an export, on the wire and in effect."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aoefs.protocol.ata import IDENTIFY_REGISTERS, Opcode, Status, decode_identify_untrusted, flush_registers
from aoefs.protocol.smart import Feature, smart_registers
from aoefs.protocol.wire import (
    AoeCommand,
    ConfigArgument,
    ConfigCommand,
    ErrorCode,
    Header,
    MaskArgument,
    MaskCommand,
    MaskDirective,
    MaskError,
    ReserveArgument,
    ReserveCommand,
    decode_ata_untrusted,
    decode_header_untrusted,
    decode_mask_untrusted,
    decode_reserve_untrusted,
    encode,
    encode_header,
)
from aoefs.softtarget.access import MAX_MACS, Access
from aoefs.softtarget.export import Export
from tests.memorystore import MemoryStore, answer_at_once
from tests.softtarget.exports import (
    OURS,
    READ,
    SECTORS,
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

STRANGER = bytes.fromhex("020000000003")
ADD, DELETE = MaskDirective.ADD, MaskDirective.DELETE


def mac_of(number: int) -> bytes:
    return b"\x02\xff" + number.to_bytes(4, "big")


def mask(export: Export, *directives: tuple[int, bytes]) -> MaskArgument:
    """The answer to an edit, or without directives to a read."""
    command = MaskCommand.EDIT if directives else MaskCommand.READ
    answer = ask(export, encode(header(AoeCommand.MASK), MaskArgument(command, directives)))
    assert aoe_error(answer) == 0
    found = decode_mask_untrusted(answer)
    assert found.command == command
    assert all(directive == MaskDirective.NONE for directive, _ in found.directives)
    return found


def masked(export: Export) -> list[bytes]:
    return [mac for _, mac in mask(export).directives]


def reserve(export: Export, command: int, *macs: bytes) -> tuple[int, tuple[bytes, ...]]:
    """The AoE error and the list in the answer."""
    answer = ask(export, encode(header(AoeCommand.RESERVE), ReserveArgument(command, macs)))
    found = decode_reserve_untrusted(answer)
    assert found.command == command
    return aoe_error(answer), found.macs


def from_stranger(command: int = AoeCommand.ATA) -> Header:
    return header(command, source=STRANGER)


def answer_to_stranger(export: Export, frame: bytes) -> bytes | None:
    return answer_at_once(export, frame, mac=OURS, max_sectors=2)


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
    export = make()
    assert masked(export) == []
    assert len(mask(export, (ADD, THEIRS), (ADD, STRANGER), (ADD, mac_of(1)), (ADD, mac_of(2))).directives) == 4
    mask(export, (ADD, STRANGER))  # a second time: no error, no second entry
    assert masked(export) == [THEIRS, STRANGER, mac_of(1), mac_of(2)]  # vblade: the third add overwrites the second
    mask(export, (DELETE, STRANGER), (DELETE, mac_of(9)), (MaskDirective.NONE, mac_of(8)))  # vblade: it dies
    assert masked(export) == [THEIRS, mac_of(1), mac_of(2)]


def test_a_host_that_is_not_on_the_mask_list_gets_no_answer_not_even_an_error() -> None:
    export = make()
    mask(export, (ADD, THEIRS))
    for frame in (
        encode(from_stranger(AoeCommand.CONFIG), ConfigArgument()),
        encode(from_stranger(), IDENTIFY_REGISTERS),
        encode(from_stranger(), READ),
        encode(from_stranger(AoeCommand.MASK), MaskArgument()),
        encode(from_stranger(AoeCommand.RESERVE), ReserveArgument()),
        encode_header(header(0x80, source=STRANGER)),
        encode(header(source=STRANGER, version=2), READ),
    ):
        assert is_silent(export, frame)
    assert registers(ask(export, encode(header(), READ))) == (Status.DRDY, 0, 0)
    mask(export, (DELETE, THEIRS))  # empty again: everybody
    assert answer_to_stranger(export, encode(from_stranger(), READ)) is not None


def test_an_edit_that_shuts_its_sender_out_is_still_answered() -> None:
    export = make()
    assert [mac for _, mac in mask(export, (ADD, STRANGER)).directives] == [STRANGER]
    assert is_silent(export, encode(header(AoeCommand.MASK), MaskArgument()))


def test_a_bad_directive_is_named_and_what_came_before_it_holds() -> None:
    export = make()
    answer = mask(export, (ADD, THEIRS), (ADD, STRANGER), (3, mac_of(1)), (ADD, mac_of(2)))
    assert (answer.error, answer.count) == (MaskError.BAD_DIRECTIVE, 2)
    assert masked(export) == [THEIRS, STRANGER]


def test_a_full_mask_list_says_so_and_takes_what_it_has_already() -> None:
    export = make()
    mask(export, (ADD, THEIRS), *((ADD, mac_of(number)) for number in range(MAX_MACS - 1)))
    answer = mask(export, (ADD, THEIRS), (ADD, STRANGER))
    assert (answer.error, answer.count) == (MaskError.LIST_FULL, 1)
    mask(export, (DELETE, mac_of(5)), (ADD, STRANGER))
    assert len(masked(export)) == MAX_MACS
    smallest_frame = 14 + 36 + 512  # the smallest MTU that carries a sector
    assert len(ask(export, encode(header(AoeCommand.MASK), MaskArgument()))) <= smallest_frame


@pytest.mark.parametrize("count", [2, 3, 255])
def test_a_directive_count_beyond_the_frame_is_a_bad_argument_and_void_in_a_read(count: int) -> None:
    export = make()
    for command, expected in ((MaskCommand.EDIT, ErrorCode.BAD_ARGUMENT), (MaskCommand.READ, 0)):
        frame = bytearray(encode(header(AoeCommand.MASK), MaskArgument(command, ((ADD, STRANGER),), count=count)))
        assert aoe_error(ask(export, bytes(frame[:36]))) == expected
    assert masked(export) == []


@pytest.mark.parametrize("argument", [MaskArgument(2), MaskArgument(255), MaskArgument(MaskCommand.EDIT, (), error=2)])
def test_an_unknown_mask_command_and_an_edit_with_an_error_are_bad_arguments(argument: MaskArgument) -> None:
    answer = ask(make(), encode(header(AoeCommand.MASK), argument))
    assert aoe_error(answer) == ErrorCode.BAD_ARGUMENT


def test_an_export_is_announced_to_its_allow_list_only_which_the_wire_cannot_widen() -> None:
    export = make(access=Access([THEIRS, mac_of(1)]))
    announced = [decode_header_untrusted(frame) for frame in export.announcements(mac=OURS, max_sectors=2)]
    assert [head.destination for head in announced] == [THEIRS, mac_of(1)]
    assert is_silent(export, encode(from_stranger(), IDENTIFY_REGISTERS))
    assert masked(export) == []
    mask(export, (ADD, THEIRS), (ADD, STRANGER))
    assert is_silent(export, encode(from_stranger(), IDENTIFY_REGISTERS))
    assert [decode_header_untrusted(frame).destination for frame in export.announcements(mac=OURS, max_sectors=2)] == [
        THEIRS
    ]
    mask(export, (DELETE, THEIRS), (DELETE, STRANGER))
    assert is_silent(export, encode(from_stranger(), IDENTIFY_REGISTERS))
    assert registers(ask(export, encode(header(), READ))) == (Status.DRDY, 0, 0)


def test_a_reserved_export_answers_every_ata_command_of_others_but_identify_with_an_error() -> None:
    export = make()
    assert isinstance(export.store, MemoryStore)
    before = bytes(export.store.data)
    assert reserve(export, ReserveCommand.SET, THEIRS) == (0, (THEIRS,))
    for ata in (READ, WRITE, flush_registers(Opcode.FLUSH_EXT), smart_registers(Feature.RETURN_STATUS)):
        answer = answer_to_stranger(export, encode(from_stranger(), ata, b"x" * 1024))
        assert answer is not None
        assert aoe_error(answer) == ErrorCode.TARGET_IS_RESERVED
        assert decode_ata_untrusted(answer) == ata
    assert export.store.data == before
    answer = answer_to_stranger(export, encode(from_stranger(), IDENTIFY_REGISTERS))
    assert answer is not None
    assert decode_identify_untrusted(answer[36:]).sectors == SECTORS
    for frame in (
        encode(from_stranger(AoeCommand.CONFIG), ConfigArgument(ConfigCommand.SET, b"x")),
        encode(from_stranger(AoeCommand.MASK), MaskArgument()),
        encode(from_stranger(AoeCommand.RESERVE), ReserveArgument()),
    ):
        answer = answer_to_stranger(export, frame)
        assert answer is not None
        assert aoe_error(answer) == 0
    assert registers(ask(export, encode(header(), WRITE, b"x" * 1024))) == (Status.DRDY, 0, 0)


def test_a_reservation_is_changed_by_its_holders_and_by_force_only() -> None:
    export = make()
    assert reserve(export, ReserveCommand.READ) == (0, ())
    assert reserve(export, ReserveCommand.SET, STRANGER, STRANGER) == (0, (STRANGER,))  # for another host: allowed
    assert reserve(export, ReserveCommand.SET, THEIRS) == (ErrorCode.TARGET_IS_RESERVED, (STRANGER,))
    assert reserve(export, ReserveCommand.SET) == (ErrorCode.TARGET_IS_RESERVED, (STRANGER,))
    assert reserve(export, ReserveCommand.FORCE_SET, THEIRS, mac_of(1)) == (0, (THEIRS, mac_of(1)))
    assert reserve(export, ReserveCommand.SET, THEIRS) == (0, (THEIRS,))
    assert reserve(export, ReserveCommand.SET) == (0, ())
    assert reserve(export, ReserveCommand.SET) == (0, ())  # as when the first answer was lost
    reserve(export, ReserveCommand.SET, STRANGER)
    assert reserve(export, ReserveCommand.FORCE_SET) == (0, ())


@pytest.mark.parametrize("command", [ReserveCommand.SET, ReserveCommand.FORCE_SET])
def test_a_count_beyond_the_frame_or_the_list_is_a_bad_argument_and_changes_nothing(command: int) -> None:
    export = make()
    reserve(export, ReserveCommand.SET, THEIRS)
    frame = encode(header(AoeCommand.RESERVE), ReserveArgument(command, (STRANGER,)))[:32]
    assert aoe_error(ask(export, frame[:25] + b"\x02" + frame[26:])) == ErrorCode.BAD_ARGUMENT
    many = ReserveArgument(command, tuple(mac_of(number) for number in range(MAX_MACS + 1)))
    assert aoe_error(ask(export, encode(header(AoeCommand.RESERVE), many))) == ErrorCode.BAD_ARGUMENT
    assert reserve(export, ReserveCommand.READ) == (0, (THEIRS,))
    read_with_count = frame[:24] + b"\x00\xff"
    assert aoe_error(ask(export, read_with_count)) == 0


@pytest.mark.parametrize("command", [3, 4, 255])
def test_an_unknown_reserve_command_is_a_bad_argument(command: int) -> None:
    answer = ask(make(), encode(header(AoeCommand.RESERVE), ReserveArgument(command)))
    assert aoe_error(answer) == ErrorCode.BAD_ARGUMENT


def test_mask_and_reserve_commands_shorter_than_their_header_are_ignored() -> None:
    export = make()
    assert is_silent(export, encode(header(AoeCommand.MASK), MaskArgument())[:27])
    assert is_silent(export, encode(header(AoeCommand.RESERVE), ReserveArgument())[:25])


# ── any bytes ─────────────────────────────────────────────────────────────────────────────────────────────────────


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
    export = make(64, access=Access(allow))
    access = export.access
    for frame in frames:
        before = (access.mask, access.holders)
        heard = access.hears(THEIRS)
        answer = answer_at_once(export, frame, mac=OURS, max_sectors=2)
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
