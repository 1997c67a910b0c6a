"""Strangers: endpoints that answer config queries and are no disk of ours."""

from __future__ import annotations

from unittest.mock import Mock

import pytest
import trio
from trio.testing import MockClock

from aoefs.core.link import Endpoint
from aoefs.engine.discovery import (
    QUERY_PERIOD,
)
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
from aoefs.protocol.wire import (
    Address,
    AoeCommand,
    ConfigArgument,
)
from tests.engine.queries import ZERO
from tests.scene import Announce, Scene, open_scene, target_mac


def strangers(scene: Scene) -> list[tuple[str, str]]:
    return [(str(one.endpoint.address), one.state) for one in scene.engine.statistics().strangers]


async def test_who_answers_but_is_not_identified_is_known_as_a_stranger_until_he_is_or_is_gone(
    autojump_clock: MockClock,
) -> None:
    async with open_scene() as scene:
        target = scene.add_target()
        target.answer = lambda frame, reply: [(0.0, reply)] if frame[19] == AoeCommand.CONFIG else []
        await trio.sleep(0.1)
        assert strangers(scene) == [("e0.0", NO_ANSWER)], "before it is given up"
        await trio.sleep(10)
        assert strangers(scene) == [("e0.0", NO_ANSWER)]
        target.answer = lambda _frame, reply: [(0.0, reply)]
        target.announce()
        await scene.disk()
        assert strangers(scene) == []
        target.silent = True
        with trio.move_on_after(10):
            await scene.engine.disks[ZERO].read(0, 512)
        assert strangers(scene) == [], "a path that falls silent is none"
        other = scene.add_target(0, 1)
        other.answer = lambda frame, reply: [(0.0, reply)] if frame[19] == AoeCommand.CONFIG else []
        other.announce()
        await trio.sleep(10)
        assert strangers(scene) == [("e0.1", NO_ANSWER)]
        other.silent = True
        await trio.sleep(REMEMBERED + QUERY_PERIOD)
        assert strangers(scene) == []


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
        assert strangers(scene) == [("e0.0", state)]
        assert len(caplog.records) == 1


async def test_however_many_strangers_there_are_few_are_remembered() -> None:
    book = Strangers()
    config = ConfigArgument()
    link = Mock(interface="seg0")
    for number in range(2 * MAX_STRANGERS):
        endpoint = Endpoint(link, target_mac(number), Address(number, 0))
        book.note(Stranger(endpoint, config, NO_ANSWER, SILENT), float(number))
    assert len(book.present(0.0)) == MAX_STRANGERS
    assert book.present(2.0 * MAX_STRANGERS + REMEMBERED) == []
