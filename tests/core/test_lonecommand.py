"""Lone commands: the frames of each sending, and what counts as an answer."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from typing import cast

import pytest

from aoefs.core.link import Endpoint, Link
from aoefs.core.lonecommand import Answer, LoneCommand
from aoefs.core.request import Run
from aoefs.core.tags import BLOCK_TAGS, TagTable
from aoefs.errors import AtaError, FrameError, TargetError
from aoefs.protocol.ata import IDENTIFY_REGISTERS, Status
from aoefs.protocol.wire import (
    BROADCAST_MAC,
    Address,
    AoeCommand,
    AtaArgument,
    ConfigArgument,
    Flag,
    Header,
    decode_header_untrusted,
    encode,
)

OURS, THEIRS, OTHER = (bytes.fromhex("0200000000") + bytes([number]) for number in (1, 2, 3))


class FakeLink:
    mac = OURS


LINK, OTHER_LINK = (cast(Link, FakeLink()) for _ in range(2))
ENDPOINT = Endpoint(LINK, THEIRS, Address(3, 4))
GOOD, ABORTED = (AtaArgument(0, error, 0, status, 0) for error, status in ((0, Status.DRDY), (4, 0x41)))


def from_endpoint(answering: Endpoint) -> bool:
    return answering == ENDPOINT


def config_query(expects: Callable[[Endpoint], bool] = from_endpoint) -> LoneCommand:
    command = LoneCommand(ConfigArgument(), expects)
    TagTable[Run | LoneCommand](random.Random(5).randbytes).open(command)
    return command


def identify(
    *, data_bytes: int = 0, good_only: bool = False, on_answer: Callable[[Answer], object] | None = None
) -> LoneCommand:
    command = LoneCommand(
        IDENTIFY_REGISTERS,
        from_endpoint,
        data_bytes=data_bytes,
        good_only=good_only,
        on_answer=on_answer,
    )
    TagTable[Run | LoneCommand](random.Random(5).randbytes).open(command)
    command.frames([ENDPOINT], 0.0)
    return command


def answer_head(command: LoneCommand, sending: int = 0) -> Header:
    """The header of a good answer."""
    return Header(OURS, THEIRS, ENDPOINT.address, command.command, command.tag ^ sending, Flag.RESPONSE)


def config_answer(head: Header) -> bytes:
    return encode(head, ConfigArgument(0, b"string", 16, 0, 2, 1))


# ── sending ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_sending_has_a_frame_for_each_endpoint_and_a_tag_of_its_own() -> None:
    command = config_query()
    endpoints = [ENDPOINT, Endpoint(LINK, BROADCAST_MAC, Address(5, 6))]
    for sending in range(2):
        headers = [decode_header_untrusted(frame) for frame in command.frames(endpoints, 0.0)]
        assert [(header.destination, header.source, header.address) for header in headers] == [
            (THEIRS, OURS, ENDPOINT.address),
            (BROADCAST_MAC, OURS, Address(5, 6)),
        ]
        assert {(header.command, header.tag) for header in headers} == {(AoeCommand.CONFIG, command.tag ^ sending)}


def test_the_65th_sending_takes_the_first_tag_again() -> None:
    command = config_query()
    tags = [
        decode_header_untrusted(frame).tag
        for sending in range(BLOCK_TAGS + 1)
        for frame in command.frames([ENDPOINT], float(sending))
    ]
    assert tags == [command.tag ^ index for index in (*range(BLOCK_TAGS), 0)]
    command.receive_untrusted(LINK, config_answer(answer_head(command)), BLOCK_TAGS + 0.5)
    command.receive_untrusted(LINK, config_answer(answer_head(command, sending=1)), BLOCK_TAGS + 0.5)
    assert [answer.seconds for answer in command.answers] == [0.5, BLOCK_TAGS - 0.5]


# ── answers ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_an_answer_is_measured_from_the_sending_that_it_answers() -> None:
    command = config_query()
    for at in (1.0, 2.0, 4.0):
        command.frames([ENDPOINT], at)
    command.receive_untrusted(LINK, config_answer(answer_head(command, sending=1)), 5.0)
    (answer,) = command.answers
    assert (answer.endpoint, answer.seconds, answer.error) == (ENDPOINT, 3.0, None)
    assert isinstance(answer.argument, ConfigArgument)
    assert answer.argument.string == b"string"


LIES: dict[str, dict[str, object]] = {
    "no response": {"flags": 0},
    "version 0": {"version": 0},
    "another command": {"command": AoeCommand.ATA},
    "another MAC": {"source": OTHER},
    "another address": {"address": Address(3, 5)},
}


@pytest.mark.parametrize("lie", LIES)
def test_a_frame_with_another_header_is_no_answer(lie: str) -> None:
    command = config_query()
    command.frames([ENDPOINT], 0.0)
    frame = config_answer(replace(answer_head(command), **LIES[lie]))  # type: ignore[arg-type]
    with pytest.raises(FrameError):
        command.receive_untrusted(LINK, frame, 1.0)
    assert not command.answers


def test_a_frame_on_another_link_is_no_answer() -> None:
    command = config_query()
    command.frames([ENDPOINT], 0.0)
    with pytest.raises(FrameError):
        command.receive_untrusted(OTHER_LINK, config_answer(answer_head(command)), 1.0)


@pytest.mark.parametrize("source", [BROADCAST_MAC, bytes.fromhex("010000000002")])
def test_a_frame_from_a_multicast_address_is_no_answer_even_if_it_is_expected(source: bytes) -> None:
    command = config_query(expects=lambda _endpoint: True)
    command.frames([ENDPOINT], 0.0)
    with pytest.raises(FrameError):
        command.receive_untrusted(LINK, config_answer(replace(answer_head(command), source=source)), 1.0)
    command.receive_untrusted(LINK, config_answer(answer_head(command)), 1.0)


@pytest.mark.parametrize("sending", [1, BLOCK_TAGS - 1])
def test_a_tag_of_the_block_that_was_never_sent_is_no_answer(sending: int) -> None:
    command = config_query()
    command.frames([ENDPOINT], 0.0)
    with pytest.raises(FrameError):
        command.receive_untrusted(LINK, config_answer(answer_head(command, sending)), 1.0)
    assert not command.answers


def test_a_sending_that_did_not_go_out_does_not_count() -> None:
    command = config_query()
    command.frames([ENDPOINT], 1.0)
    command.frames([ENDPOINT], 2.0)
    command.unsent()
    assert (command.sendings, command.last_sent_at) == (1, 1.0)
    with pytest.raises(FrameError):
        command.receive_untrusted(LINK, config_answer(answer_head(command, 1)), 3.0)
    (frame,) = command.frames([ENDPOINT], 4.0)
    assert decode_header_untrusted(frame).tag == command.tag ^ 1
    assert command.last_sent_at == 4.0


def test_an_argument_that_cannot_be_decoded_is_no_answer() -> None:
    command = config_query()
    command.frames([ENDPOINT], 0.0)
    with pytest.raises(FrameError):
        command.receive_untrusted(LINK, config_answer(answer_head(command))[:30], 1.0)
    assert not command.answers


def test_an_aoe_error_is_an_answer_even_without_an_argument() -> None:
    command = identify(data_bytes=512)
    head = replace(answer_head(command), flags=Flag.RESPONSE | Flag.ERROR, error=3)
    command.receive_untrusted(LINK, encode(head, GOOD)[:24], 1.0)
    (answer,) = command.answers
    assert answer.argument is None
    assert isinstance(answer.error, TargetError)
    assert answer.error.code == 3


def test_a_failed_ata_command_is_an_answer_even_without_data() -> None:
    command = identify(data_bytes=512)
    command.receive_untrusted(LINK, encode(answer_head(command), ABORTED), 1.0)
    (answer,) = command.answers
    assert answer.argument == ABORTED
    assert isinstance(answer.error, AtaError)


def test_a_good_answer_with_too_few_data_is_none() -> None:
    command = identify(data_bytes=512)
    frame = encode(answer_head(command), GOOD, bytes(range(256)) * 2)
    with pytest.raises(FrameError, match="too few data"):
        command.receive_untrusted(LINK, frame[:-1], 1.0)
    assert not command.answers
    command.receive_untrusted(LINK, frame, 1.0)
    assert command.answers[0].data == bytes(range(256)) * 2


def test_each_answer_is_kept_and_reported() -> None:
    reported: list[Answer] = []
    command = identify(on_answer=reported.append)
    for _ in range(2):  # two disks behind one endpoint
        command.receive_untrusted(LINK, encode(answer_head(command), GOOD), 1.0)
    assert len(reported) == 2
    assert reported == command.answers


def test_with_good_only_refusals_are_kept_apart_and_are_no_answers() -> None:
    reported: list[Answer] = []
    command = identify(good_only=True, on_answer=reported.append)
    head = answer_head(command)
    command.receive_untrusted(LINK, encode(replace(head, flags=Flag.RESPONSE | Flag.ERROR, error=6), GOOD), 1.0)
    command.receive_untrusted(LINK, encode(head, ABORTED), 1.0)
    assert [type(refusal) for refusal in command.refusals] == [TargetError, AtaError]
    assert command.answers == reported == []
    command.receive_untrusted(LINK, encode(head, GOOD), 1.0)
    assert command.answers == reported
    assert len(reported) == 1
    assert len(command.refusals) == 2
