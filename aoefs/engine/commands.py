"""Lone commands to one target that was identified: over all its paths, for as long as the target may take.

Owns the waiting for their answers.  A command counts as something that waits for the target, so silence suspends the
target and deadsecs ends the command.  While the target is suspended nothing is sent; a command that waits is sent as
soon as the target is back.  What did not go out, or was lost with its link, is sent again at once.

A FLUSH is different: a disk may take half a minute for it, a target that does one thing at a time answers nothing else
meanwhile, and each copy is carried out.  So it never suspends a target, and it is sent again soon only if commands to
this target were lost lately; else after ``FLUSH_PAUSE``.  After silence the target is identified before it gets a
copy, or another disk could answer it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Final

from aoefs.core.life import SERVED, State
from aoefs.core.link import Endpoint
from aoefs.core.lonecommand import Answer, LoneCommand
from aoefs.core.path import Path
from aoefs.core.target import Target
from aoefs.engine.conversation import converse
from aoefs.engine.driver import Driver
from aoefs.engine.timer import ROUNDING
from aoefs.engine.waits import Wait, WaitGroup
from aoefs.errors import TargetError, TargetLost
from aoefs.protocol import wire

FIRST_PAUSE: Final = 1.0  # seconds until a command is sent again, then doubling
MAX_PAUSE: Final = 8.0  # seconds
MAX_DOUBLINGS: Final = 16
LOOK: Final = 0.25  # seconds between two looks whether a command is to be sent
FLUSH_PAUSE: Final = 32.0  # seconds until a FLUSH is sent again for no reason; a quarter of deadsecs if that is less
LAST_FLUSH_PAUSE: Final = 2.5  # the same for the last one, whose time is short (fuse.mount.FLUSH_GRACE)


class Commands:
    """See the module.  Each raises TargetError for an AoE error and TargetLost without an answer."""

    def __init__(self, driver: Driver, target: Target, waits: WaitGroup) -> None:
        self._driver = driver
        self._target = target
        self._waits = waits

    async def ata(self, registers: wire.AtaArgument) -> Answer:
        """One ATA command; ``error`` of the answer may be an AtaError."""
        return await self._carry_out(registers)

    async def flush(self, registers: wire.AtaArgument) -> Answer:
        """The ATA command that makes durable what was acknowledged."""
        return await self._carry_out(registers, flush=True)

    async def reserve(self, argument: wire.ReserveArgument) -> tuple[bytes, ...]:
        """Ask for or change the MACs of the initiators that alone may use the disk (AoEr11 section 3.4); the list then.

        TargetError 6 if another host holds it, 1 if the target knows no reservations.
        """
        answer = await self._carry_out(argument)
        assert isinstance(answer.argument, wire.ReserveArgument)  # noqa: S101 (for mypy: its decoder makes no other)
        return answer.argument.macs

    async def holders(self) -> tuple[bytes, ...]:
        """The MACs that hold its reservation; none if it is free."""
        return await self.reserve(wire.ReserveArgument())

    async def mask(self) -> tuple[bytes, ...]:
        """The only MACs that the target listens to; none if it listens to all (AoEr11 section 3.3)."""
        answer = await self._carry_out(wire.MaskArgument())
        assert isinstance(answer.argument, wire.MaskArgument)  # noqa: S101 (for mypy: its decoder makes no other)
        return tuple(mac for kind, mac in answer.argument.directives if kind != wire.MaskDirective.DELETE)

    async def set_config(self, string: bytes) -> None:
        """Store the config string (0 to 1024 bytes), whatever was there."""
        answer = await self._carry_out(wire.ConfigArgument(wire.ConfigCommand.FORCE_SET, string))
        assert isinstance(answer.argument, wire.ConfigArgument)  # noqa: S101 (for mypy: its decoder makes no other)
        self._target.config = answer.argument.string

    async def _carry_out(self, argument: wire.Argument, *, flush: bool = False) -> Answer:
        """Send it until it is answered, or deadsecs are over; a ``flush`` see above."""
        target, driver = self._target, self._driver
        lone = LoneCommand(argument, target.answers_from)
        wait = self._waits.begin()
        schedule = (_FlushSchedule if flush else _Schedule)(driver, target, lone, wait)
        begin, end = (target.begin_lone_command, target.end_lone_command)
        if flush:
            begin, end = (target.begin_flush, target.end_flush)
        now = driver.now()
        begin(now)
        driver.timer.arm(target, now)
        try:
            answers = await converse(driver, lone, schedule.endpoints, self._looks(), wait=wait)
        finally:
            end()
            self._waits.end(wait)
        if not answers:
            raise wait.error or TargetLost(f"{target.name} did not answer {lone.command.name}")
        target.heard(driver.now())
        answer = answers[0]
        if isinstance(answer.error, TargetError):
            raise answer.error
        return answer

    def _looks(self) -> Iterator[float]:
        """Seconds until each look whether the command is to be sent."""
        until = self._driver.now() + (self._target.deadsecs or math.inf)
        while self._target.life.state in SERVED and (left := until - self._driver.now()) > 0:
            yield min(LOOK, left)


class _Schedule:
    """When a lone command goes out, and where: on each path in turn, when its pause is over, when it is woken, or when
    the path of its last sending was cut.  What did not go out does not count.
    """

    def __init__(self, driver: Driver, target: Target, lone: LoneCommand, wait: Wait) -> None:
        self._driver = driver
        self._target = target
        self._lone = lone
        self._wait = wait
        self._woken = False  # since it went out last
        self._counted = 0  # sendings until then
        self._tries = 0
        self._sent_on: tuple[Path, int] | None = None  # the path of the last one, and how often it had been cut

    def endpoints(self) -> Sequence[Endpoint]:
        """Where it is to go now; nowhere if it is not due, or the target must be identified first."""
        target, lone = self._target, self._lone
        if lone.sendings > self._counted:
            self._counted, self._woken = lone.sendings, False
        self._woken |= self._wait.woken
        if not self._is_due():
            return ()
        renews = target.life.state is State.HELD and lone.command is wire.AoeCommand.RESERVE
        paths = target.usable_paths()
        if not paths or not (target.life.state is State.UP or renews):
            return ()
        path = paths[self._tries % len(paths)]
        self._tries += 1
        self._sent_on = path, path.cuts
        return (Endpoint(path.link, path.mac, target.address),)

    def _is_due(self) -> bool:
        lone = self._lone
        if not lone.sendings or self._woken or (self._sent_on and self._sent_on[0].cuts > self._sent_on[1]):
            return True
        return self._driver.now() >= lone.last_sent_at + self._pause() - ROUNDING

    def _pause(self) -> float:
        """From the last sending to the next one: a second or the RTO, doubling."""
        longest_rto = max((path.rtt.rto for path in self._target.paths), default=0.0)
        return min(max(FIRST_PAUSE, longest_rto) * self._doubled(), MAX_PAUSE)

    def _doubled(self) -> float:
        return 2.0 ** min(self._lone.sendings - 1, MAX_DOUBLINGS)


class _FlushSchedule(_Schedule):
    """That of a FLUSH, of which each copy is carried out."""

    def _is_due(self) -> bool:
        due = super()._is_due()
        if due and self._lone.sendings and not self._woken:
            self._target.doubt(self._driver.now())
        return due

    def _pause(self) -> float:
        target = self._target
        if target.has_losses(self._driver.now()):
            return super()._pause()
        pause = min(FLUSH_PAUSE, target.deadsecs / 4 or FLUSH_PAUSE)
        return (min(pause, LAST_FLUSH_PAUSE) if target.life.ending else pause) * self._doubled()
