"""The last flush: what a mount does when no user is left, for all targets at the same time."""

from __future__ import annotations

import logging

import trio

from aoefs.engine.disk import Disk
from aoefs.engine.engine import Engine
from aoefs.errors import RequestError

log = logging.getLogger("aoefs")


async def last_flush(engine: Engine, seconds: float, scope: trio.CancelScope | None = None) -> bool:
    """Flush all that is dirty and give back what is reserved, within ``seconds``; what is not done then is logged.

    ``scope`` is a new one, of which an earlier deadline ends the flush sooner, also one that is set while it runs.
    True if all that was ever acknowledged is durable now.
    """
    waiting = [disk for disk in engine.disks.values() if disk.target.dirty or disk.reservation.is_due]
    failed = [disk.target.name for disk in waiting if disk.target.dirty]

    async def end(disk: Disk) -> None:
        disk.target.life.end()
        try:
            if disk.target.dirty:
                await disk.flush()
                failed.remove(disk.target.name)
        except RequestError as error:
            log.error("%s: the last flush failed: %s", disk.target.name, error)
        try:
            if disk.reservation.is_due:
                await disk.reservation.end()
        except RequestError as error:
            log.error("%s: giving back the reservation failed: %s", disk.target.name, error)

    began = trio.current_time()
    scope = scope or trio.CancelScope()
    scope.deadline = min(scope.deadline, began + seconds)
    with scope:
        async with trio.open_nursery() as nursery:
            for disk in waiting:
                nursery.start_soon(end, disk)
    if scope.cancelled_caught:
        late = [disk.target.name for disk in waiting if disk.target.name in failed or disk.reservation.is_due]
        lasted = round(trio.current_time() - began, 1)
        log.error("%s: the last flush was not answered within %g s", ", ".join(late), lasted)
    unreported = any(disk.write_behind.lost > disk.write_behind.reported for disk in engine.disks.values())
    return not (failed or unreported or engine.roster.dirty_lost)
