"""Running time: while the process is stopped, the time of no target runs."""

from __future__ import annotations

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from aoefs.core.life import State
from aoefs.engine.clock import LATE, PERIOD, RunningClock
from aoefs.engine.settings import Settings
from tests.scene import Scene, nothing_is_left, open_scene


def make_time(at: list[float]) -> RunningClock:
    return RunningClock(lambda: at[0])


def test_while_it_beats_it_is_the_clock() -> None:
    at = [100.0]
    time = make_time(at)
    for step in range(50):
        at[0] = 100 + step * PERIOD
        assert time.now() == at[0]
        time.beat()
        at[0] += LATE
        assert time.now() == at[0]
    assert time.lost == 0


@pytest.mark.parametrize("stop", [3.0, 1000.0])
def test_little_of_a_stop_is_counted(stop: float) -> None:
    at = [100.0]
    time = make_time(at)
    at[0] += stop
    assert time.now() == pytest.approx(100 + PERIOD + LATE)
    assert time.lost == pytest.approx(stop - PERIOD - LATE)
    at[0] += 0.25
    assert time.now() == pytest.approx(100.25 + PERIOD + LATE), "then it goes on"


@given(st.lists(st.tuples(st.floats(0, 100), st.booleans())))
def test_it_never_goes_back_nor_faster_than_the_clock(steps: list[tuple[float, bool]]) -> None:
    at = [0.0]
    time = make_time(at)
    before = time.now()
    for seconds, beats in steps:
        at[0] += seconds
        now = time.now()
        assert before <= now <= before + seconds + 1e-6
        before = now
        if beats:
            time.beat()


# ── the engine ────────────────────────────────────────────────────────────────────────────────────────────────────────


async def stop_process(scene: Scene, clock: MockClock, seconds: float = 1000.0) -> None:
    """As a SIGSTOP in the middle of what runs: all that was on its way has arrived when it goes on."""
    await trio.sleep(0.00005)
    clock.jump(seconds)


@pytest.mark.parametrize("lost", [False, True])
@pytest.mark.parametrize("stops", [1, 3])
async def test_io_that_was_under_way_when_the_process_was_stopped_ends_well(
    autojump_clock: MockClock, lost: bool, stops: int
) -> None:
    async with open_scene(Settings(deadsecs=5)) as scene:
        target = scene.add_target()
        disk = await scene.disk()
        await disk.write(0, b"x" * 512)
        longest = disk.target.paths[0].rtt.longest
        for _ in range(stops):
            target.silent = lost
            async with trio.open_nursery() as nursery:
                nursery.start_soon(disk.read, 0, 4096)
                nursery.start_soon(disk.write, 8192, bytes(4096))
                nursery.start_soon(disk.flush)
                await stop_process(scene, autojump_clock)
                target.silent = False
        assert disk.target.life.state is State.UP
        assert disk.target.errors == 0
        assert disk.target.paths[0].rtt.longest <= longest + PERIOD + LATE
        await trio.sleep(10)
        assert nothing_is_left(disk.target)


async def test_a_target_that_was_silent_before_the_stop_has_the_rest_of_its_time_after_it(
    autojump_clock: MockClock,
) -> None:
    async with open_scene(Settings(deadsecs=20)) as scene:
        target = scene.add_target()
        disk = await scene.disk()
        target.silent = True
        async with trio.open_nursery() as nursery:
            nursery.start_soon(disk.read, 0, 4096)
            nursery.start_soon(disk.flush)
            await trio.sleep(5)
            assert disk.target.life.state is State.FLUSHING
            await stop_process(scene, autojump_clock)
            await trio.sleep(2)
            assert scene.engine.statistics().targets[0].state == "flushing"
            target.silent = False
        assert disk.target.errors == 0
