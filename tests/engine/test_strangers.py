"""Strangers: endpoints that answer config queries and are no disk of ours."""

from __future__ import annotations

import logging
from unittest.mock import Mock

import pytest
import trio
from trio.testing import MockClock

from aoefs.core.link import Endpoint
from aoefs.engine.discovery import QUERY_PERIOD
from aoefs.engine.strangers import (
    MAX_STRANGERS,
    NO_ANSWER,
    REFUSED,
    REMEMBERED,
    RESERVED,
    SILENT,
    Stranger,
    Strangers,
)
from aoefs.protocol.wire import Address, AoeCommand, ConfigArgument
from tests.engine.queries import ZERO
from tests.scene import Announce, Scene, open_scene, target_mac

LINK = Mock(interface="seg0")


def strangers_of(scene: Scene) -> list[tuple[str, str]]:
    return [(str(one.endpoint.address), one.state) for one in scene.engine.statistics().strangers]


async def test_an_endpoint_that_answers_config_queries_only_is_a_stranger_until_it_is_identified_or_gone(
    autojump_clock: MockClock,
    announce: Announce,
) -> None:
    announce(r"does not answer: \d+ request")
    announce("e0.0 is down")
    async with open_scene() as scene:
        target = scene.add_target()
        target.answer = lambda frame, reply: [(0.0, reply)] if frame[19] == AoeCommand.CONFIG else []
        await trio.sleep(0.1)
        assert strangers_of(scene) == [("e0.0", NO_ANSWER)], "before it is given up"
        await trio.sleep(10)
        assert strangers_of(scene) == [("e0.0", NO_ANSWER)]
        target.answer = lambda _frame, reply: [(0.0, reply)]
        target.announce()
        await scene.disk()
        assert strangers_of(scene) == []
        target.silent = True
        with trio.move_on_after(10):
            await scene.engine.disks[ZERO].read(0, 512)
        assert strangers_of(scene) == [], "a path that falls silent is none"
        other = scene.add_target(0, 1)
        other.answer = lambda frame, reply: [(0.0, reply)] if frame[19] == AoeCommand.CONFIG else []
        other.announce()
        await trio.sleep(10)
        assert strangers_of(scene) == [("e0.1", NO_ANSWER)]
        other.silent = True
        await trio.sleep(REMEMBERED + QUERY_PERIOD)
        assert strangers_of(scene) == []


@pytest.mark.parametrize(("code", "state"), [(6, RESERVED), (3, REFUSED)])
async def test_an_aoe_error_to_identify_says_why_and_is_logged_once(
    autojump_clock: MockClock, announce: Announce, caplog: pytest.LogCaptureFixture, code: int, state: str
) -> None:
    announce(f"e0.0: .*AoE error {code}")

    def answer(frame: bytes, reply: bytes) -> list[tuple[float, bytes]]:
        if frame[19] == AoeCommand.ATA:
            reply = reply[:14] + b"\x1c" + bytes([code]) + reply[16:]
        return [(0.0, reply)]

    async with open_scene() as scene:
        target = scene.add_target()
        target.answer = answer
        await trio.sleep(3 * QUERY_PERIOD)
        assert strangers_of(scene) == [("e0.0", state)]
        assert len(caplog.records) == 1


def stranger(number: int, state: str = NO_ANSWER, reason: str = SILENT) -> Stranger:
    return Stranger(Endpoint(LINK, target_mac(number), Address(number, 0)), ConfigArgument(), state, reason)


@pytest.mark.parametrize(
    ("state", "level", "line"),
    [
        (NO_ANSWER, logging.INFO, "e7.0: 02:aa:00:00:00:07 on seg0 is not used: first"),
        (RESERVED, logging.WARNING, "e7.0: 02:aa:00:00:00:07 on seg0 is not used: first"),
        (REFUSED, logging.WARNING, "e7.0: 02:aa:00:00:00:07 on seg0 is refused: first"),
    ],
)
def test_a_reason_is_logged_when_it_is_new(
    announce: Announce, caplog: pytest.LogCaptureFixture, state: str, level: int, line: str
) -> None:
    if level == logging.WARNING:
        announce("first")
        announce("second")
    caplog.set_level(logging.INFO, "aoefs.strangers")
    strangers = Strangers()
    for _ in range(3):
        strangers.note(stranger(7, state, "first"), 0.0)
    assert [(record.levelno, record.getMessage()) for record in caplog.records] == [(level, line)]
    strangers.note(stranger(7, state, "second"), 0.0)
    assert len(caplog.records) == 2


def test_an_endpoint_that_became_a_path_is_forgotten() -> None:
    strangers = Strangers()
    for number in (1, 2):
        strangers.note(stranger(number), 0.0)
    strangers.forget(stranger(1).endpoint)
    strangers.forget(stranger(3).endpoint)  # never seen: nothing happens
    assert strangers.present(0.0) == [stranger(2)]


def test_the_last_ones_are_remembered_and_not_for_long() -> None:
    strangers = Strangers()
    for number in range(MAX_STRANGERS + 5):
        strangers.note(stranger(number), 100.0)
    strangers.note(stranger(5), 200.0)  # seen again
    present = strangers.present(100.0 + REMEMBERED)
    assert [one.endpoint.address.shelf for one in present] == [*range(6, MAX_STRANGERS + 5), 5]
    assert strangers.present(100.1 + REMEMBERED) == [stranger(5)]
    assert strangers.present(200.1 + REMEMBERED) == []
