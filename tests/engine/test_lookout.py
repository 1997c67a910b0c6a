"""The lookout: the first discovery, and asking again."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from aoefs.protocol.wire import (
    AoeCommand,
)
from tests.engine.queries import broadcasts
from tests.scene import open_scene


async def test_on_demand_the_schedule_begins_anew(autojump_clock: MockClock) -> None:
    async with open_scene() as scene:
        await trio.sleep(10)
        seen = len(broadcasts(scene))
        scene.engine.lookout.discover()
        await trio.sleep(100)
        times = broadcasts(scene)[seen:]
        assert times == pytest.approx([10, 10.1, 10.3, 10.7, 70.7])


# ── the first discovery ───────────────────────────────────────────────────────────────────────────────────────────────


async def test_the_first_discovery_ends_150_ms_after_the_last_new_target(autojump_clock: MockClock) -> None:
    appeared: list[float] = []
    async with open_scene(on_change=lambda _disk, _change: appeared.append(trio.current_time())) as scene:
        began = trio.current_time()
        for slot in range(3):
            target = scene.add_target(0, slot)
            target.answer = lambda frame, reply, wait=slot * 0.1: [  # type: ignore[misc]
                (wait if frame[19] == AoeCommand.CONFIG else 0.0, reply)
            ]
        await scene.engine.first_discovery()
        assert len(appeared) == 3
        assert trio.current_time() == pytest.approx(appeared[-1] + 0.15)
        assert trio.current_time() - began < 1


async def test_the_first_discovery_ends_after_a_second_when_nobody_answers(autojump_clock: MockClock) -> None:
    async with open_scene() as scene:
        began = trio.current_time()
        await scene.engine.first_discovery()
        assert trio.current_time() - began == pytest.approx(1.0)
        await scene.engine.first_discovery()
        assert trio.current_time() - began == pytest.approx(1.0), "later it is over already"


async def test_the_first_discovery_ends_after_a_second_when_targets_keep_coming(autojump_clock: MockClock) -> None:
    async with open_scene() as scene:

        async def come() -> None:
            for slot in range(40):
                scene.add_target(0, slot, sectors=8).announce()
                await trio.sleep(0.1)

        began = trio.current_time()
        scene.nursery.start_soon(come)
        await scene.engine.first_discovery()
        assert trio.current_time() - began == pytest.approx(1.0)
