"""The leak check: what an engine holds after very many requests, and after a target went down and came back very often.

``python -m tests.engine.leaks`` makes a million requests and a thousand cycles; ``test_leaks`` makes fewer.
"""

from __future__ import annotations

import gc
import os
import sys
import tracemalloc
from dataclasses import dataclass

import trio
from trio.testing import MockClock

from aoefs.core.life import State
from aoefs.engine.disk import Disk
from aoefs.engine.settings import Settings
from aoefs.errors import RequestError
from tests.scene import Scene, SimulatedTarget, open_scene

SETTLED = 200.0  # seconds after which no late copy and no closed query is remembered any more
SLACK_BYTES = 64 << 10  # of a Python process at rest


@dataclass(frozen=True)
class Held:
    """What is held at rest."""

    tasks: int
    tags: int
    descriptors: int
    waiters: int
    memory: int  # bytes


async def held(scene: Scene, disk: Disk) -> Held:
    await trio.sleep(SETTLED)
    scene.wire.log.clear()
    for _ in range(3):
        gc.collect()
    return Held(
        tasks=trio.lowlevel.current_statistics().tasks_living,
        tags=len(scene.engine.driver.tags),
        descriptors=len(os.listdir("/proc/self/fd")),
        waiters=disk.exempt_calls() + disk.target.waiting + scene.engine.driver.sleepers.asleep,
        memory=tracemalloc.get_traced_memory()[0],
    )


async def make_requests(scene: Scene, target: SimulatedTarget, disk: Disk, count: int) -> None:
    """Reads, writes and flushes, alone and beside each other."""
    for start in range(0, count, 40):
        async with trio.open_nursery() as nursery:
            for number in range(start, start + 40, 2):
                nursery.start_soon(disk.write, number % 64 * 512, bytes(512))
                nursery.start_soon(disk.read, number % 32 * 512, 4096)
        if start % 4000 == 0:
            await disk.flush()
            scene.wire.log.clear()
            target.heard.clear()


async def go_down_and_up(scene: Scene, target: SimulatedTarget, disk: Disk, cycles: int) -> None:
    for _ in range(cycles):
        target.silent = True
        async with trio.open_nursery() as nursery:
            for call in (disk.flush, lambda: disk.read(0, 4096), lambda: disk.write(0, bytes(512)), disk.flush):
                nursery.start_soon(_expect_failure, call)
        assert scene.engine.statistics().targets[0].state == "down"
        target.silent = False
        while disk.target.life.state is not State.UP:  # noqa: ASYNC110 (virtual time costs nothing)
            await trio.sleep(0.5)
        scene.wire.log.clear()
        target.heard.clear()


async def _expect_failure(call: object) -> None:
    try:
        await call()  # type: ignore[operator]
    except RequestError:
        return
    raise AssertionError("a target that is silent answered")


async def check(requests: int, cycles: int) -> tuple[Held, Held]:
    """What is held before and after."""
    async with open_scene(Settings(deadsecs=3)) as scene:
        target = scene.add_target()
        disk = await scene.disk()
        await make_requests(scene, target, disk, 4000)
        await go_down_and_up(scene, target, disk, 3)
        tracemalloc.start()
        try:
            before = await held(scene, disk)
            await make_requests(scene, target, disk, requests)
            await go_down_and_up(scene, target, disk, cycles)
            target.heard.clear()
            return before, await held(scene, disk)
        finally:
            tracemalloc.stop()


if __name__ == "__main__":
    first, last = trio.run(check, 1_000_000, 1000, clock=MockClock(autojump_threshold=0))
    print(first, last, sep="\n")
    sys.exit(last.memory > first.memory + SLACK_BYTES or last != Held(**{**vars(first), "memory": last.memory}))
