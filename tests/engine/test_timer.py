"""One timer for all targets: which is due when; and answers that have arrived are taken before anything is given up."""

from __future__ import annotations

import errno
from typing import cast

import pytest
import trio
from trio.testing import MockClock

from aoefs.core.target import Target
from aoefs.engine.clock import PERIOD, RunningClock
from aoefs.engine.timer import Timer
from aoefs.protocol.ata import Opcode
from tests.scene import open_scene
from tests.source import from_source


class FakeTarget:
    """Has something to do at ``timeout`` (seconds; None: never)."""

    def __init__(self, timeout: float | None) -> None:
        self.timeout = timeout
        self.may_wait = False
        self.looks = 0

    def next_timeout(self) -> float | None:
        self.looks += 1
        return self.timeout

    def may_wait_until(self, _at: float, _now: float) -> bool:
        return self.may_wait


class Bench:
    """A timer and the targets that it was armed for; the engine's clock is trio's."""

    def __init__(self) -> None:
        self.clock = RunningClock(trio.current_time)
        self.timer: Timer = from_source("engine.timer").Timer(self.clock)

    def arm(self, target: FakeTarget) -> None:
        self.timer.arm(cast(Target, target), self.clock.now())

    async def due(self) -> tuple[float, list[object]]:
        """When targets were due, and which."""
        due: list[object] = [*await self.timer.due()]
        return trio.current_time(), due

    async def is_silent(self) -> bool:
        """Nothing is due for a second."""
        with trio.move_on_after(1) as scope:
            await self.due()
        return scope.cancelled_caught


async def test_a_target_is_due_at_its_timeout_and_once(autojump_clock: MockClock) -> None:
    bench = Bench()
    target = FakeTarget(0.5)
    bench.arm(target)
    assert await bench.due() == (0.5, [target])
    assert await bench.is_silent()


async def test_targets_are_due_in_the_order_of_their_timeouts(autojump_clock: MockClock) -> None:
    bench = Bench()
    late, early, together = FakeTarget(0.75), FakeTarget(0.25), FakeTarget(0.75)
    for target in (late, early, together):
        bench.arm(target)
    assert await bench.due() == (0.25, [early])
    assert await bench.due() == (0.75, [late, together])


async def test_a_target_without_a_timeout_is_never_due(autojump_clock: MockClock) -> None:
    bench = Bench()
    bench.arm(FakeTarget(None))
    assert await bench.is_silent()


async def test_a_target_that_is_due_earlier_shortens_the_waiting_under_way(autojump_clock: MockClock) -> None:
    bench = Bench()
    late, early = FakeTarget(1.0), FakeTarget(0.5)
    bench.arm(late)
    found: list[tuple[float, list[object]]] = []

    async def wait() -> None:
        found.append(await bench.due())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        await trio.sleep(0.25)
        bench.arm(early)
    assert found == [(0.5, [early])]
    late.timeout = 0.75
    bench.arm(late)
    assert await bench.due() == (0.75, [late])


async def test_a_timeout_that_moves_later_is_looked_at_when_the_old_one_has_come(autojump_clock: MockClock) -> None:
    bench = Bench()
    target = FakeTarget(0.5)
    bench.arm(target)
    target.timeout = 0.75
    bench.arm(target)
    assert await bench.due() == (0.5, [target])
    bench.arm(target)
    assert await bench.due() == (0.75, [target])


async def test_a_target_that_may_wait_is_not_asked_for_its_timeout_again(autojump_clock: MockClock) -> None:
    bench = Bench()
    target = FakeTarget(0.5)
    target.may_wait = True
    for _ in range(10):
        bench.arm(target)
    assert target.looks == 1
    assert await bench.due() == (0.5, [target])


async def test_after_a_stop_of_the_process_a_target_has_the_rest_of_its_time(autojump_clock: MockClock) -> None:
    bench = Bench()
    target = FakeTarget(PERIOD + 1)
    bench.arm(target)
    autojump_clock.jump(1000)
    assert await bench.due() == (1000, [])
    at, due = await bench.due()
    assert due == [target]
    assert at == pytest.approx(bench.clock.lost + PERIOD + 1)
    assert bench.clock.lost > 900


# ── with an engine ────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_answers_that_wait_in_the_socket_are_taken_before_anything_is_given_up(autojump_clock: MockClock) -> None:
    """The loop was held up for longer than the RTO, and the timer has its turn first."""
    async with open_scene() as scene:
        scene.add_target()
        disk = await scene.disk()
        for _ in range(10):
            await disk.read(0, 4096)
        link = scene.link
        original = link.wait_readable
        link.wait_readable = trio.sleep_forever  # type: ignore[method-assign]
        link.fail_next_receive(OSError(errno.ENETDOWN, "down"))  # wakes the receiver, which then sleeps
        await trio.sleep(0.01)
        await disk.read(0, 4096)
        assert disk.target.statistics().retransmits == 0
        link.wait_readable = original  # type: ignore[method-assign]
        assert len(scene.wire.ata(Opcode.READ_EXT)) >= 11
