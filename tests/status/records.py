"""Statuses of a mount for tests of what shows them: real statistics of a real engine on a simulated segment.

:func:`statuses` plays ten seconds under the virtual clock and takes a snapshot after each: e0.0 is read, more every
second; e0.1 is written over two paths of which one falls silent; e0.2 dies; e5.14 idles.  The same every time.
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
from typing import Any

import trio
from trio.testing import MockClock

from aoefs.engine.disk import Disk
from aoefs.engine.engine import Engine
from aoefs.engine.settings import Settings
from aoefs.errors import RequestError
from aoefs.status.report import status_report
from tests.scene import SimulatedTarget, open_scene, target_mac

DEADSECS = 3.0
BEGAN = 1_700_000_000.0
SNAPSHOTS = 11
SILENT_AFTER = 5  # snapshots: then e0.2 is dead, and one path of e0.1


class _Events(logging.Handler):
    """The log of the play, and nothing of it anywhere else."""

    def __init__(self) -> None:
        super().__init__()
        self.events: list[dict[str, Any]] = []

    def emit(self, record: logging.LogRecord) -> None:
        time = BEGAN + trio.current_time()
        self.events.append({"time": time, "level": record.levelname.lower(), "text": record.getMessage()})

    def __enter__(self) -> _Events:
        log = logging.getLogger("aoefs")
        log.addHandler(self)
        log.propagate = False
        return self

    def __exit__(self, *_: object) -> None:
        log = logging.getLogger("aoefs")
        log.removeHandler(self)
        log.propagate = True


def _snapshot(engine: Engine, events: _Events) -> dict[str, Any]:
    """What a program reads from ``.aoefs/status.json``."""
    status = status_report(engine.statistics(), mountpoint="/mnt/aoe", pid=4711, version="1.0")
    copy: dict[str, Any] = json.loads(json.dumps({**status, "events": events.events}))
    return copy


@functools.cache
def statuses() -> tuple[dict[str, Any], ...]:
    """One snapshot a second; treat them as frozen."""
    with _Events() as events:
        return tuple(trio.run(_play, events, clock=MockClock(autojump_threshold=0)))


async def _play(events: _Events) -> list[dict[str, Any]]:
    async with open_scene(Settings(deadsecs=DEADSECS, shards=2)) as scene:
        targets = [scene.add_target(shelf, slot, sectors=512) for shelf, slot in ((0, 0), (0, 1), (0, 2), (5, 14))]
        wire, _ = scene.add_wire()
        backup = SimulatedTarget(wire, targets[1].export, mac=target_mac(99))
        await trio.sleep(1.0)
        disks = [await scene.disk(0, slot) for slot in range(3)]
        found = [_snapshot(scene.engine, events)]
        for second in range(1, SNAPSHOTS):
            scene.nursery.start_soon(_read, disks[0], second, 128)
            scene.nursery.start_soon(_write, disks[1], second)
            scene.nursery.start_soon(_read, disks[2], 1, 1)
            await trio.sleep(1.0)
            backup.silent = targets[2].silent = second >= SILENT_AFTER
            found.append(_snapshot(scene.engine, events))
        return found


async def _read(disk: Disk, count: int, sectors: int) -> None:
    with contextlib.suppress(RequestError):
        for _ in range(count):
            await disk.read(0, sectors * 512)


async def _write(disk: Disk, count: int) -> None:
    for _ in range(count):
        await disk.write(0, bytes(64 * 512))
