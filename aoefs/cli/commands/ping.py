"""``aoefs ping``: send probes to a target repeatedly, as ping(8) does with a host, and time the answers.

A probe is a config query, or with ``--read`` a READ of sector 0, to each path of the target (a MAC on an interface).
The paths are found by a broadcast config query, in the first round and after each round without any answer; without
``--read`` this query is the probe of that round.

What always holds: a probe is counted when it has an answer or has timed out, so that Ctrl-C does not count what is
under way as lost.  A second answer to one probe counts as a duplicate only.
"""

from __future__ import annotations

import argparse
import math
import signal
from dataclasses import dataclass
from typing import TYPE_CHECKING

from aoefs.cli import companion
from aoefs.cli.companion import Session
from aoefs.cli.options import seconds, whole
from aoefs.protocol.wire import SECTOR_BYTES, ConfigArgument
from aoefs.status.text import to_stdout

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aoefs.core.link import Endpoint
    from aoefs.core.lonecommand import Answer


def add_arguments(parser: argparse.ArgumentParser) -> None:
    companion.add_target_argument(parser)
    parser.add_argument("-c", "--count", type=whole(1, 1 << 31), metavar="N", help="stop after N rounds")
    what = "between two rounds (default 1; 0: no pause)"
    parser.add_argument("--interval", type=seconds, default=1.0, metavar="SECONDS", help=what)
    parser.add_argument("--read", action="store_true", help="read a sector each time instead of asking who is there")
    companion.add_wire_arguments(parser, wait=1.0, json=False)


def run(arguments: argparse.Namespace) -> int:
    return companion.run(arguments, _face)


async def _face(session: Session) -> int:
    import trio

    arguments = session.arguments
    what = "reads of a sector" if arguments.read else "config queries"
    to_stdout(f"PING {arguments.target} on {', '.join(session.engine.links)}: {what}")
    pinger = _Pinger(session)
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with trio.open_nursery() as nursery:

            async def until_signal() -> None:
                async for _ in signals:
                    nursery.cancel_scope.cancel()

            nursery.start_soon(until_signal)
            await pinger.rounds()
            nursery.cancel_scope.cancel()
    to_stdout(pinger.tally.summary(str(arguments.target)))
    return 0 if pinger.tally.answered else 1


@dataclass
class Tally:
    """The results of the probes.

    The times of the good answers (seconds) are kept as running figures, so that an endless ping needs no more memory:
    ``least``, ``most``, their ``mean``, and the sum of their ``squares`` of distance from it, updated by Welford's
    method.
    """

    sent: int = 0
    errors: int = 0
    duplicates: int = 0
    answered: int = 0
    least: float = math.inf
    most: float = 0.0
    mean: float = 0.0
    squares: float = 0.0

    def add(self, seconds: float) -> None:
        """Count a good answer that took so long."""
        self.answered += 1
        self.least = min(self.least, seconds)
        self.most = max(self.most, seconds)
        distance = seconds - self.mean
        self.mean += distance / self.answered
        self.squares += distance * (seconds - self.mean)

    def summary(self, name: str) -> str:
        """The last two lines of ping(8); one when nothing answered."""
        lost = 100 * (1 - (self.answered + self.errors) / self.sent) if self.sent else 0
        more = f", {self.errors} refused" if self.errors else ""
        more += f", {self.duplicates} duplicate" if self.duplicates else ""
        text = f"--- {name} ---\n{self.sent} sent, {self.answered} answered{more}, {lost:.3g}% lost"
        if not self.answered:
            return text
        figures = (self.least, self.mean, self.most, math.sqrt(self.squares / self.answered))
        return f"{text}\nmin/avg/max/stddev = {'/'.join(f'{1000 * figure:.3f}' for figure in figures)} ms"


class _Pinger:
    def __init__(self, session: Session) -> None:
        self.tally = Tally()
        self._session = session
        self._arguments = session.arguments
        self._endpoints: tuple[Endpoint, ...] = ()
        self._last_heard = 0  # the newest round that was answered

    async def rounds(self) -> None:
        import trio

        arguments = self._arguments
        async with trio.open_nursery() as nursery:
            number = 0
            while arguments.count is None or number < arguments.count:
                number += 1
                if not arguments.interval:
                    await self._round(number)
                    continue
                nursery.start_soon(self._round, number)
                if number != arguments.count:
                    await trio.sleep(arguments.interval)

    async def _round(self, number: int) -> None:
        import trio

        endpoints = self._endpoints
        if not endpoints:
            answers = await self._session.look_for(self._arguments.target, (self._arguments.timeout,))
            endpoints = self._endpoints = tuple(dict.fromkeys(answer.endpoint for answer in answers))
            if not (self._arguments.read and endpoints):
                for endpoint in endpoints or (None,):
                    self._account(number, endpoint, [answer for answer in answers if answer.endpoint == endpoint])
                return
        async with trio.open_nursery() as nursery:
            for endpoint in endpoints:
                nursery.start_soon(self._probe, number, endpoint)
        if self._last_heard < number and self._endpoints == endpoints:
            self._endpoints = ()  # it may have another MAC now

    async def _probe(self, number: int, endpoint: Endpoint) -> None:
        from aoefs.engine import conversation
        from aoefs.protocol.ata import transfer_registers

        wait = (self._arguments.timeout,)
        if self._arguments.read:
            registers = transfer_registers(0, 1, write=False, lba48=False)  # LBA28: every target knows it
            answers = await self._session.ask_ata(endpoint, registers, wait, data_bytes=SECTOR_BYTES)
        else:
            answers = await conversation.ask(self._session.engine.driver, [endpoint], ConfigArgument(), wait)
        self._account(number, endpoint, answers)

    def _account(self, number: int, endpoint: Endpoint | None, answers: Sequence[Answer]) -> None:
        """One probe to one endpoint is over; None is a probe to all, which nothing answered."""
        tally = self.tally
        tally.sent += 1
        if not answers:
            where = f" from {companion.place(endpoint)}" if endpoint else ""
            to_stdout(f"{self._arguments.target}{where}: seq={number} no answer within {self._arguments.timeout:g} s")
        for index, answer in enumerate(answers):
            self._last_heard = max(self._last_heard, number)
            failure = answer.error
            if index:
                tally.duplicates += 1
            elif failure is not None:
                tally.errors += 1
            else:
                tally.add(answer.seconds)
            end = f"time={1000 * answer.seconds:.3f} ms" if failure is None else str(failure)
            where = f"{answer.header.address} from {companion.place(answer.endpoint)}"
            to_stdout(f"{where}: seq={number} {end}{' (DUP!)' if index else ''}")
