"""The reservation of one disk (AoEr11 section 3.4): held with all our MACs while there are writers.

What always holds: it is taken before the open of the first writer returns.  Taking, renewing and giving back never
overtake each other.  A reservation that another host holds is never changed.  When the list at the target may no
longer be right (the target was restarted, an interface of ours came, went or got another MAC, giving back failed),
:meth:`Reservation.renew` corrects it; the roster calls it, and lets nothing else be sent on a new path before it is
done, since the target would refuse it.

Rejected: renewing by a timer (a target that has forgotten the reservation would be open to others until then).
"""

from __future__ import annotations

import logging

import trio

from aoefs.core.life import State
from aoefs.core.target import Target
from aoefs.engine.commands import Commands
from aoefs.engine.driver import Driver
from aoefs.engine.writebehind import WriteBehind
from aoefs.errors import RequestError, TargetError, TargetLost
from aoefs.protocol.wire import ErrorCode, ReserveArgument, ReserveCommand

log = logging.getLogger("aoefs")


class Reservation:
    """See the module.  ``writers`` counts those for which it is held."""

    def __init__(self, driver: Driver, target: Target, commands: Commands, write_behind: WriteBehind) -> None:
        self.writers = 0
        self._driver = driver
        self._target = target
        self._commands = commands
        self._write_behind = write_behind
        self._lock = trio.Lock()
        self._key = target.address, target.identity.serial

    @property
    def _macs(self) -> tuple[bytes, ...]:
        """Those of ours that may be on the target's list; kept when the disk is forgotten before it gave them back."""
        return self._driver.reserved.get(self._key, ())

    def _note(self, *macs: bytes) -> None:
        self._driver.reserved[self._key] = tuple(dict.fromkeys(macs))
        if not macs:
            del self._driver.reserved[self._key]

    @property
    def is_due(self) -> bool:
        """It is held, or still has to be given back."""
        return bool(self.writers or self._macs)

    async def take(self) -> None:
        """For one more writer.  TargetError 6 if another host holds it, 1 if the target knows none; TargetLost."""
        async with self._lock:
            if not self.writers:
                await self._put_ours()
            self.writers += 1

    async def give_back(self) -> None:
        """One writer less, once no write is unacknowledged: no flush follows what the kernel writes for a mapping.

        RequestError if the target does not answer; it is given back when the target returns.
        """
        await self._write_behind.wait_acknowledged()
        async with self._lock:
            self.writers = max(0, self.writers - 1)
            if not self.writers and self._target.life.state is not State.REPLACED:  # its list went with it
                await self._put(())

    async def give_back_left(self) -> None:
        """Give back what a process before this one held when it was killed: no writer of its time lives on."""
        async with self._lock:
            try:
                macs = () if self.is_due else await self._commands.holders()
                if macs and set(macs) <= set(self._driver.macs()):
                    await self._put(())
            except RequestError as error:
                log.error("%s: a reservation of before is not given back: %s", self._target.name, error)

    async def end(self) -> None:
        """No writers any more; RequestError as above."""
        self.writers = 0
        await self.give_back()

    async def renew(self) -> bool:
        """Bring the target's list up to date; False if it did not answer.

        A refusal is logged, and no more: the I/O itself will fail.
        """
        async with self._lock:
            if self.is_due:
                try:
                    await (self._put_ours() if self.writers else self._put(()))
                except TargetLost:
                    return False
                except RequestError as error:
                    log.error("%s: renewing the reservation failed: %s", self._target.name, error)
        return True

    async def _put_ours(self) -> None:
        """All our MACs, also those that came while the target took its time to answer."""
        while True:
            macs = self._driver.macs()
            await self._put(macs)
            if macs == self._driver.macs():
                return

    async def _put(self, macs: tuple[bytes, ...]) -> None:
        self._note(*self._macs, *macs)  # before it is sent: the answer may be lost
        try:
            await self._commands.reserve(ReserveArgument(ReserveCommand.SET, macs))
        except TargetError as error:
            # Refused to a MAC that is not on the list: a new one of ours, if no other host is on it.
            if error.code != ErrorCode.TARGET_IS_RESERVED or set(await self._commands.holders()) - set(self._macs):
                self._note()
                raise
            await self._commands.reserve(ReserveArgument(ReserveCommand.FORCE_SET, macs))
        self._note(*macs)
