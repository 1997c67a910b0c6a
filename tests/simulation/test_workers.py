"""Workers on a virtual clock: processes that start slowly, hang, die and stop at random, from one seed."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import pytest
import trio
from trio.testing import MockClock

from aoefs.fuse.keeper import Keeper, Signal
from aoefs.host.workerlife import MOST_PAUSE, START_SECONDS, Input, State


class Machine:
    """One worker, and the processes that it has."""

    def __init__(self, dice: random.Random, *, broken: bool = False) -> None:
        self.dice = dice
        self.broken = broken  # it dies at once, each time
        self.running = 0
        self.begun: list[float] = []
        self.deaths: list[tuple[float, float]] = []  # when, and the pause after it
        self.killed = trio.Event()
        self.warnings: set[str] = set()  # that are right
        self.changed = Signal()
        self.keeper = Keeper(self.changed, self.run, self.kill, self.on_death)

    def kill(self) -> None:
        self.warnings.add("fails unexpectedly" if self.keeper.state is not State.STUCK else "does not become ready")
        self.killed.set()

    def on_death(self, _how: str, pause: float) -> None:
        self.deaths.append((trio.current_time(), pause))

    async def run(self) -> int:
        self.running += 1
        assert self.running == 1, "one process at a time"
        self.begun.append(trio.current_time())
        self.killed = trio.Event()
        try:
            if not self.broken and self.dice.random() < 0.1:
                raise OSError("no memory for a process")
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self.keeper.become_ready, self.become_ready)
                nursery.start_soon(self.end_if_killed, nursery)
                nursery.start_soon(self.end_if_stopped, nursery)
                lives = 0.01 if self.broken else self.dice.choice([0.0, 1.0, 50.0, 500.0, math.inf])
                await trio.sleep(lives * self.dice.random() if lives < math.inf else math.inf)
                nursery.cancel_scope.cancel()
            return 0 if self.keeper.state is State.STOPPING else self.dice.choice([1, -9, 0])
        finally:
            self.running -= 1

    async def become_ready(self) -> bool:
        await trio.sleep(self.dice.choice([0.3, 5.0, 1000.0]) * self.dice.random())
        return self.dice.random() < 0.9

    async def end_if_killed(self, nursery: trio.Nursery) -> None:
        await self.killed.wait()
        nursery.cancel_scope.cancel()

    async def end_if_stopped(self, nursery: trio.Nursery) -> None:
        await self.changed.until(lambda: self.keeper.state is State.STOPPING)
        await trio.sleep(10 * self.dice.random())
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("seed", range(60))
async def test_a_worker_runs_or_will_soon_until_the_mount_ends(
    autojump_clock: MockClock, seed: int, announce: Callable[[str], None]
) -> None:
    machine = Machine(random.Random(seed))
    keeper = machine.keeper
    stops_at = machine.dice.uniform(0, 3600)
    async with trio.open_nursery() as nursery:
        await trio.sleep(machine.dice.uniform(0, 5))
        assert not machine.begun
        keeper.take(Input.WANTED)
        nursery.start_soon(keeper.keep)
        await trio.sleep_until(stops_at)
        assert keeper.is_running or keeper.state is State.WAITING
        keeper.take(Input.STOP)
        stopped_at = trio.current_time()
    for warning in machine.warnings:
        announce(warning)
    assert keeper.state is State.ENDED
    assert not machine.running
    assert trio.current_time() <= stopped_at + max(10, START_SECONDS)
    assert all(at <= stopped_at for at in machine.begun)
    for (died_at, pause), again in zip(machine.deaths, machine.begun[1:], strict=False):
        assert again == pytest.approx(died_at + pause)
        assert pause == pytest.approx(min(pause, MOST_PAUSE))


async def test_a_worker_that_never_stays_costs_a_start_a_minute(autojump_clock: MockClock) -> None:
    machine = Machine(random.Random(1), broken=True)
    with trio.move_on_after(3600):
        machine.keeper.take(Input.WANTED)
        await machine.keeper.keep()
    assert 60 <= len(machine.begun) <= 70
    assert machine.begun[2] - machine.begun[0] < 2, "after two deaths it is back within two seconds"
