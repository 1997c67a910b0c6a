"""The leak check: what an engine holds after very many requests, and after a target went down and came back very often.

``python -m tests.engine.leaks`` makes a million requests and a thousand cycles, in some minutes; ``test_leaks`` makes
fewer.  Some frames are lost, and some come twice.

Rejected: ``tracemalloc`` (a million requests take an hour under it).  The allocator counts its blocks anyway, and what
is larger than those shows in the resident memory.
"""

from __future__ import annotations

import gc
import logging
import os
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import trio
from trio.testing import MockClock

from aoefs.core.life import State
from aoefs.engine.disk import Disk
from aoefs.engine.settings import Settings
from aoefs.errors import RequestError
from tests.scene import DELAY, Deliveries, Scene, SimulatedTarget, open_scene

SETTLED = 200.0  # seconds after which no late copy and no closed query is remembered any more
SLACK_BLOCKS = 500  # of a Python process at rest
SLACK_BYTES = 4 << 20
MAX_SECTORS = 8  # in one frame


@dataclass(frozen=True)
class Held:
    """What is held at rest: ``blocks`` of Python's allocator (most objects are one or two), ``resident`` bytes."""

    tasks: int
    tags: int
    descriptors: int
    waiters: int
    blocks: int
    resident: int

    def exceeds(self, before: Held) -> bool:
        """It is more than before, beyond the slack of memory."""
        same = replace(before, blocks=self.blocks, resident=self.resident)
        more_memory = self.blocks > before.blocks + SLACK_BLOCKS or self.resident > before.resident + SLACK_BYTES
        return self != same or more_memory


async def held(scene: Scene, disk: Disk) -> Held:
    await trio.sleep(SETTLED)
    scene.wire.log.clear()
    for _ in range(3):
        gc.collect()
    return Held(
        tasks=trio.lowlevel.current_statistics().tasks_living,
        tags=len(scene.engine.driver.tags),
        descriptors=len(os.listdir("/proc/self/fd")),
        waiters=disk.exempt_calls() + disk.target.waiting + scene.engine.driver.callers.asleep,
        blocks=sys.getallocatedblocks(),
        resident=_resident_bytes(),
    )


def _resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


class Faults:
    """Every 199th frame is lost, every 211th comes twice."""

    def __init__(self) -> None:
        self._frames = 0

    def route(self, frame: bytes) -> Deliveries:
        self._frames += 1
        copies = 0 if not self._frames % 199 else 2 if not self._frames % 211 else 1
        return [(DELAY, frame)] * copies


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
    async with open_scene(Settings(deadsecs=3), MAX_SECTORS) as scene:
        target = scene.add_target(max_sectors=MAX_SECTORS)
        disk = await scene.disk()
        scene.wire.route = Faults().route
        await make_requests(scene, target, disk, 4000)
        await go_down_and_up(scene, target, disk, 3)
        before = await held(scene, disk)
        await make_requests(scene, target, disk, requests)
        await go_down_and_up(scene, target, disk, cycles)
        return before, await held(scene, disk)


if __name__ == "__main__":
    logging.getLogger("aoefs").setLevel(logging.CRITICAL)
    began = time.monotonic()
    first, last = trio.run(check, 1_000_000, 1000, clock=MockClock(autojump_threshold=0))
    print(first, last, f"{time.monotonic() - began:.0f} s", sep="\n")
    sys.exit(last.exceeds(first))
