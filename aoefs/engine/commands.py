"""Lone commands to one target that was identified: over all its paths, for as long as the target may take.

Owns the waiting for their answers.  A command counts as something that waits for the target, so silence suspends the
target and deadsecs ends the command.  While the target is suspended nothing is sent; a command that waits is sent as
soon as the target is back.

A FLUSH is different: a disk may take half a minute for it, a target that does one thing at a time answers nothing else
meanwhile, and each copy is carried out.  So it never suspends a target, and it is sent again soon only if commands to
this target were lost lately; else after ``FLUSH_PAUSE``.  After silence the target is identified before it gets a
copy, or another disk could answer it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Final

from aoefs.core.life import SERVED, State
from aoefs.core.link import Endpoint
from aoefs.core.lonecommand import Answer, LoneCommand
from aoefs.core.target import Target
from aoefs.engine.conversation import converse
from aoefs.engine.driver import Driver
from aoefs.engine.timer import ROUNDING
from aoefs.engine.waits import Wait, WaitGroup
from aoefs.errors import TargetError, TargetLost
from aoefs.protocol.wire import (
    AoeCommand,
    AtaArgument,
    ConfigArgument,
    ConfigCommand,
    Header,
    MaskArgument,
    MaskDirective,
    ReserveArgument,
    encode_ata,
    encode_config,
    encode_mask,
    encode_reserve,
)

FIRST_PAUSE: Final = 1.0  # seconds until a command is sent again, then doubling
MAX_PAUSE: Final = 8.0  # seconds
FLUSH_LOOK: Final = 0.25  # seconds after which it is asked whether a FLUSH is to be sent again
FLUSH_PAUSE: Final = 32.0  # seconds until a FLUSH is sent again for no reason; a quarter of deadsecs if that is less
LAST_FLUSH_PAUSE: Final = 2.5  # the same for the last one, whose time is short (fuse.mount.FLUSH_GRACE)


class Commands:
    """See the module.  Each raises TargetError for an AoE error and TargetLost without an answer."""

    def __init__(self, driver: Driver, target: Target, waits: WaitGroup) -> None:
        self._driver = driver
        self._target = target
        self._waits = waits

    async def ata(self, registers: AtaArgument, data: bytes = b"") -> Answer:
        """One ATA command; ``error`` of the answer may be an AtaError."""
        return await self._carry_out(AoeCommand.ATA, lambda header: encode_ata(header, registers, data))

    async def flush(self, registers: AtaArgument) -> Answer:
        """The ATA command that makes durable what was acknowledged."""
        return await self._carry_out(AoeCommand.ATA, lambda header: encode_ata(header, registers), flush=True)

    async def reserve(self, argument: ReserveArgument) -> tuple[bytes, ...]:
        """Ask for or change the MACs of the initiators that alone may use the disk (AoEr11 section 3.4); the list then.

        TargetError 6 if another host holds it, 1 if the target knows no reservations.
        """
        answer = await self._carry_out(AoeCommand.RESERVE, lambda header: encode_reserve(header, argument))
        assert isinstance(answer.argument, ReserveArgument)
        return answer.argument.macs

    async def holders(self) -> tuple[bytes, ...]:
        """The MACs that hold its reservation; none if it is free."""
        return await self.reserve(ReserveArgument())

    async def mask(self) -> tuple[bytes, ...]:
        """The only MACs that the target listens to; none if it listens to all (AoEr11 section 3.3)."""
        answer = await self._carry_out(AoeCommand.MASK, lambda header: encode_mask(header, MaskArgument()))
        assert isinstance(answer.argument, MaskArgument)
        return tuple(mac for kind, mac in answer.argument.directives if kind != MaskDirective.DELETE)

    async def set_config(self, string: bytes) -> None:
        """Store the config string (0 to 1024 bytes), whatever was there."""
        argument = ConfigArgument(ConfigCommand.FORCE_SET, string)
        answer = await self._carry_out(AoeCommand.CONFIG, lambda header: encode_config(header, argument))
        assert isinstance(answer.argument, ConfigArgument)
        self._target.config = answer.argument.string

    async def _carry_out(
        self, command: AoeCommand, encode: Callable[[Header], bytes], *, flush: bool = False
    ) -> Answer:
        """Send it again after max(1 s, RTO), doubling, on each path in turn; a ``flush`` see above."""
        target, driver = self._target, self._driver
        lone = LoneCommand(command, encode, target.answers_from)
        wait = self._waits.begin()
        now = driver.now()
        begin, end = (target.begin_lone_command, target.end_lone_command)
        endpoint, pauses = partial(self._next_endpoint, lone), self._pauses()
        if flush:
            begin, end = (target.begin_flush, target.end_flush)
            endpoint, pauses = partial(self._next_endpoint_of_flush, lone, wait), self._flush_pauses()
        begin(now)
        driver.timer.arm(target, now)
        try:
            answers = await converse(driver, lone, endpoint, pauses, wait=wait)
        finally:
            end()
            self._waits.end(wait)
        if not answers:
            raise wait.error or TargetLost(f"{target.name} did not answer {command.name}")
        target.heard(driver.now())
        answer = answers[0]
        if isinstance(answer.error, TargetError):
            raise answer.error
        return answer

    def _next_endpoint(self, lone: LoneCommand) -> Sequence[Endpoint]:
        target = self._target
        renews = target.life.state is State.HELD and lone.command is AoeCommand.RESERVE
        if target.life.state is not State.UP and not renews:
            return ()
        paths = target.usable_paths()
        if not paths:
            return ()
        path = paths[lone.sendings % len(paths)]
        return (Endpoint(path.link, path.mac, target.address),)

    def _next_endpoint_of_flush(self, flush: LoneCommand, wait: Wait) -> Sequence[Endpoint]:
        target, now = self._target, self._driver.now()
        if flush.sendings and not wait.woken:
            pause, most = min(FLUSH_PAUSE, target.deadsecs / 4 or FLUSH_PAUSE), math.inf
            if target.life.ending:
                pause = min(pause, LAST_FLUSH_PAUSE)
            if target.has_losses(now):
                pause, most = max(FIRST_PAUSE, self._rto()), MAX_PAUSE
            if now - flush.last_sent_at < min(pause * 2.0 ** (flush.sendings - 1), most) - ROUNDING:
                return ()
            target.doubt(now)
        return self._next_endpoint(flush)

    def _rto(self) -> float:
        return max((path.rtt.rto for path in self._target.paths), default=0.0)

    def _pauses(self) -> Iterator[float]:
        """While the target is up, and deadsecs are not over."""
        pause = FIRST_PAUSE
        for left in self._seconds_left():
            if self._target.life.state is State.UP:
                pause = max(pause, self._rto())
            yield min(pause, left)
            pause = min(pause * 2, MAX_PAUSE)

    def _flush_pauses(self) -> Iterator[float]:
        """Those after which it may be time to send it again."""
        for left in self._seconds_left():
            yield min(FLUSH_LOOK, left)

    def _seconds_left(self) -> Iterator[float]:
        until = self._driver.now() + (self._target.deadsecs or math.inf)
        while self._target.life.state in SERVED and (left := until - self._driver.now()) > 0:
            yield left
