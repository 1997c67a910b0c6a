"""What the companions share, the commands for one target: arguments, the engine that they run in, finding the target.

A companion is one async function, its face, which gets a :class:`Session`: an engine without discovery, and what can be
asked with it (``engine.conversation``).  One more task waits for Ctrl-C, since a KeyboardInterrupt that is raised
anywhere may be lost (in the callback of a weak reference, for example).

What always holds: no disk or several disks behind an address are one clear error line.  Every MAC in a message answered
on this wire.  After a second of waiting a terminal shows for what.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, TypeVar

from aoefs.cli.options import add_interface_argument, address_type, seconds
from aoefs.errors import FrameError, TargetError, UserError
from aoefs.host import interfaces
from aoefs.protocol.wire import (
    Address,
    AtaArgument,
    ConfigArgument,
    MaskArgument,
    ReserveArgument,
    command_of,
    format_mac,
)

if TYPE_CHECKING:
    from aoefs.core.link import Endpoint
    from aoefs.core.lonecommand import Answer
    from aoefs.engine.engine import Engine
    from aoefs.protocol.ata import Identity

_Argument = TypeVar("_Argument", ConfigArgument, MaskArgument, ReserveArgument)

PATIENCE = 1.0  # seconds; then a terminal shows what this waits for


def add_target_argument(parser: argparse.ArgumentParser, actions: Sequence[str] = (), what: str = "") -> None:
    """The target, and after it what to do: one of the ``actions``, which ``what`` explains, by default ``get``."""

    def parse(text: str) -> Address:
        if text in actions:
            raise argparse.ArgumentTypeError(f"the target comes first: {parser.prog} X.Y {text} ...")
        return address_type(text)

    parser.add_argument("target", type=parse, metavar="X.Y", help="shelf and slot: 0.1 or e0.1")
    if actions:
        parser.add_argument("action", nargs="?", choices=actions, default="get", help=what)


def add_wire_arguments(parser: argparse.ArgumentParser, *, wait: float = 2.0, json: bool = True) -> None:
    """``--json``, ``-i`` and ``-W``."""
    if json:
        parser.add_argument("--json", action="store_true", help="print JSON")
    add_interface_argument(parser)
    what = f"wait for an answer this long (default {wait:g})"
    parser.add_argument("-W", "--timeout", type=seconds, default=wait, metavar="SECONDS", help=what)


def run(arguments: argparse.Namespace, face: Callable[[Session], Awaitable[int]]) -> int:
    """Run ``face(session)`` on the interfaces that were asked for; its exit code."""
    if not arguments.timeout:
        raise UserError("--timeout 0 waits for no answer: give some seconds", exit_code=2)
    names = interfaces.speakable(arguments.interface)

    import trio

    import aoefs.engine.conversation  # noqa: F401 (now, not while the engine runs)
    from aoefs.engine.engine import open_engine

    async def main() -> int:
        async with contextlib.AsyncExitStack() as stack:
            signals = stack.enter_context(trio.open_signal_receiver(signal.SIGINT))
            try:
                engine = await stack.enter_async_context(open_engine(names, discover=False))
            except OSError as error:
                raise UserError(f"cannot use {', '.join(names)}: {error.strerror}") from error
            async with trio.open_nursery() as nursery:

                async def until_signal() -> None:
                    async for _ in signals:
                        raise KeyboardInterrupt

                nursery.start_soon(until_signal)
                code = await face(Session(engine, arguments))
                nursery.cancel_scope.cancel()
            return code

    try:
        return trio.run(main)
    except BaseExceptionGroup as group:  # of a task: UserError, Ctrl-C, or the reader of our output is gone
        first: BaseException = group
        while isinstance(first, BaseExceptionGroup):
            first = first.exceptions[0]
        raise first from None


@contextlib.asynccontextmanager
async def patience(text: str) -> AsyncIterator[None]:
    """Show on a terminal what this waits for, once the block takes longer than ``PATIENCE`` seconds."""
    import trio

    async def say() -> None:
        await trio.sleep(PATIENCE)
        from rich.console import Console

        with Console(stderr=True).status(text):
            await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        if sys.stderr.isatty():
            nursery.start_soon(say)
        yield
        nursery.cancel_scope.cancel()


def place(endpoint: Endpoint) -> str:
    return f"{format_mac(endpoint.mac)} on {endpoint.link.interface}"


@dataclass(frozen=True, slots=True)
class Found:
    """One disk: its endpoints, in the order of their answers, and its config answer."""

    endpoints: tuple[Endpoint, ...]
    config: ConfigArgument

    @property
    def endpoint(self) -> Endpoint:
        return self.endpoints[0]


class Session:
    """An ``engine`` and the ``arguments`` of a command.  Each question is sent again until it is answered, by default
    for as long as ``--timeout`` says.
    """

    def __init__(self, engine: Engine, arguments: argparse.Namespace) -> None:
        self.engine = engine
        self.arguments = arguments

    def show(self, field: str, value: object, text: str) -> None:
        """Print what the target has now: with ``--json`` a field of an object, after ``get`` a text."""
        if self.arguments.json:
            print(json.dumps({"name": str(self.arguments.target), field: value}))
        elif self.arguments.action == "get":
            print(text)

    def _pauses(self) -> Iterator[float]:
        from aoefs.engine import conversation

        return conversation.pauses_within(self.arguments.timeout)

    async def look_for(self, address: Address, pauses: Iterable[float] | None = None) -> list[Answer]:
        """The config answers of ``address``, which may be the broadcast address, on all interfaces."""
        from aoefs.engine import conversation

        return await conversation.find(self.engine.driver, address, pauses or self._pauses())

    def no_answer(self, address: Address) -> UserError:
        where, wait = ", ".join(self.engine.links), self.arguments.timeout
        return UserError(
            f"{address} did not answer on {where} within {wait:g} s: "
            "see 'aoefs discover', and that its mask list lets this host in"
        )

    async def find(self) -> Found:
        """The one disk behind the address that was asked for; UserError when there is none or more than one."""
        address = self.arguments.target
        async with patience(f"asking for {address}"):
            answers = await self.look_for(address)
            if not answers:
                raise self.no_answer(address)
            endpoints = tuple(dict.fromkeys(answer.endpoint for answer in answers))
            if len(answers) > 1:
                await self._require_one_disk(endpoints, len(answers) > len(endpoints))
        config = answers[0].argument
        assert isinstance(config, ConfigArgument)  # noqa: S101 (for mypy: its decoder makes no other)
        return Found(endpoints, config)

    async def _require_one_disk(self, endpoints: Sequence[Endpoint], doubled: bool) -> None:
        """UserError unless all answers to IDENTIFY at these endpoints come from one disk."""
        disks: dict[tuple[str, str, int], Endpoint] = {}
        address = endpoints[0].address
        for endpoint in endpoints:
            identities = await self.identify(endpoint)
            if not identities and (doubled or len(endpoints) > 1):
                places = ", ".join(map(place, endpoints))
                raise UserError(
                    f"{address} answers more than once ({places}) and does not identify itself: choose with -i"
                )
            for identity in identities:
                disks.setdefault((identity.model, identity.serial, identity.sectors), endpoint)
        if len(disks) > 1:
            known = ", ".join(f"serial {serial} at {place(endpoint)}" for (_, serial, _), endpoint in disks.items())
            raise UserError(f"{address} is {len(disks)} different disks ({known}): choose with -i, or move one away")

    async def identify(self, endpoint: Endpoint, pauses: Iterable[float] | None = None) -> list[Identity]:
        """What IDENTIFY says at one endpoint: of all answers, but for invalid ones."""
        from aoefs.protocol.ata import IDENTIFY_BYTES, IDENTIFY_REGISTERS, decode_identify_untrusted

        found = []
        for answer in await self.ask_ata(endpoint, IDENTIFY_REGISTERS, pauses, data_bytes=IDENTIFY_BYTES):
            if answer.error is None:
                with contextlib.suppress(FrameError):
                    found.append(decode_identify_untrusted(answer.data))
        return found

    async def ask_ata(
        self,
        endpoint: Endpoint,
        registers: AtaArgument,
        pauses: Iterable[float] | None = None,
        data: bytes = b"",
        *,
        data_bytes: int = 0,
    ) -> list[Answer]:
        """All answers to an ATA command at one endpoint; a good one has ``data_bytes`` of data."""
        from aoefs.engine import conversation

        driver, pauses = self.engine.driver, pauses or self._pauses()
        return await conversation.ask(driver, [endpoint], registers, pauses, data, data_bytes=data_bytes)

    async def command(
        self,
        endpoint: Endpoint,
        argument: _Argument,
        what: str,
        refusals: Mapping[int, str] = MappingProxyType({}),
    ) -> _Argument:
        """Send one command; the argument of its answer.

        UserError when there is none, or when it is an AoE error: with the text of its code in ``refusals``, or else
        that the target refuses ``what``.
        """
        from aoefs.engine import conversation

        async with patience(f"waiting for {endpoint.address}"):
            answers = await conversation.ask(self.engine.driver, [endpoint], argument, self._pauses())
        if not answers:
            kind = command_of(argument).name.lower()
            raise UserError(
                f"{endpoint.address} answers, but no {kind} command within {self.arguments.timeout:g} s: "
                "not every target knows it (kvblade and qaoed know no mask and no reserve)"
            )
        error, reply = answers[0].error, answers[0].argument
        if isinstance(error, TargetError):
            raise UserError(refusals.get(error.code, f"{endpoint.address} refuses {what}: {error}"))
        assert isinstance(reply, type(argument))  # noqa: S101 (for mypy: its decoder makes no other)
        return reply
