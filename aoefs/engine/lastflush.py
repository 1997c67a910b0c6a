"""The last flush: what a mount does when no user is left, for all targets at the same time."""

from __future__ import annotations

import logging

import trio

from aoefs.engine.disk import Disk
from aoefs.engine.engine import Engine
from aoefs.errors import RequestError

log = logging.getLogger("aoefs")


async def last_flush(engine: Engine, seconds: float) -> bool:
    """Flush all that is dirty and give back what is reserved, within ``seconds``; what is not done then is logged.

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

    with trio.move_on_after(seconds) as scope:
        async with trio.open_nursery() as nursery:
            for disk in waiting:
                nursery.start_soon(end, disk)
    if scope.cancelled_caught:
        late = [disk.target.name for disk in waiting if disk.target.name in failed or disk.reservation.is_due]
        log.error("%s: the last flush was not answered within %g s", ", ".join(late), seconds)
    unreported = any(disk.write_behind.lost > disk.write_behind.reported for disk in engine.disks.values())
    return not (failed or unreported or engine.roster.dirty_lost)
