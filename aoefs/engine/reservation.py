"""The reservation of one disk (AoEr11 section 3.4): held with all our MACs while there are writers, else by nobody.

What holds always: it is taken before the first writer's open returns; taking, renewing and giving back never overtake
each other; of a reservation that somebody else holds nothing is changed.  When the list at the target may no longer
be what it has to be (the target was restarted, an interface of ours came, went or got another MAC, giving it back
failed), :meth:`Reservation.settle` puts it right; ``engine.engine`` calls it, and lets nothing else be sent on a new
path before it is done: the target would refuse it.

Rejected: renewing by a timer (a target that has forgotten it would be open to others until then, and the engine knows
when it was away).
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import trio

from aoefs.core.target import State
from aoefs.errors import RequestError, TargetError, TargetLost
from aoefs.protocol.wire import ErrorCode, ReserveArgument, ReserveCommand

if TYPE_CHECKING:
    from aoefs.engine.disk import Disk

log = logging.getLogger("aoefs")


class Reservation:
    """See the module.  ``writers`` counts those for whom it is held."""

    def __init__(self, disk: Disk) -> None:
        self.writers = 0
        self._disk = disk
        self._macs: tuple[bytes, ...] = ()  # the list that we put there last
        self._lock = trio.Lock()

    @property
    def is_due(self) -> bool:
        """It is held, or still has to be given back."""
        return bool(self.writers or self._macs)

    async def take(self) -> None:
        """For one writer more.  TargetError 6 when somebody else holds it, 1 when the target knows none; TargetLost."""
        async with self._lock:
            if not self.writers:
                await self._put(self._disk.our_macs())
            self.writers += 1

    async def give_back(self) -> None:
        """One writer less, once nothing is pending: what the kernel writes for a mapping comes without a later flush.

        RequestError when the target cannot be told (then it is, when it is back).
        """
        await self._disk.write_behind.settle()
        async with self._lock:
            self.writers = max(0, self.writers - 1)
            if not self.writers and self._disk.target.state is not State.REPLACED:  # it has taken its list with it
                await self._put(())

    async def end(self) -> None:
        """No writers any more; RequestError as above."""
        self.writers = 0
        await self.give_back()

    async def settle(self) -> bool:
        """Bring the target's list up to date; False when it did not answer.

        A refusal is logged, and no more: the I/O itself will fail.
        """
        async with self._lock:
            if self.is_due:
                try:
                    await self._put(self._disk.our_macs() if self.writers else ())
                except TargetLost:
                    return False
                except RequestError as error:
                    log.error("%s: renewing the reservation failed: %s", self._disk.target.name, error)
        return True

    async def _put(self, macs: tuple[bytes, ...]) -> None:
        try:
            await self._disk.reserve(ReserveArgument(ReserveCommand.SET, macs))
        except TargetError as error:
            # Refused to a MAC that is not on the list: a new one of ours, if nobody else is on it.
            if error.code != ErrorCode.TARGET_RESERVED or set(await self._disk.holders()) - set(self._macs):
                raise
            await self._disk.reserve(ReserveArgument(ReserveCommand.FORCE_SET, macs))
        self._macs = macs
