"""``aoefs path-test``: how large frames may be between this host and its targets, per path and direction.

A path is a MAC of a target on one of our interfaces.  *To* the target go IDENTIFY commands with data behind them, which
a target ignores; *from* the target come READs from sector 0 on.  Sizes are in sectors of 512 bytes.  The size that both
ends claim to support is tried first; if it is lost, bisection finds the largest size that passes.

What always holds: nothing is written, and at most one frame of a path is under way.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from aoefs.cli import companion
from aoefs.cli.companion import Session
from aoefs.cli.options import address_type
from aoefs.errors import UserError
from aoefs.protocol import wire
from aoefs.status.tables import print_table
from aoefs.status.text import to_stdout

if TYPE_CHECKING:
    from aoefs.core.lonecommand import Answer

PAUSES = (0.05, 0.1, 0.2, 0.4)  # seconds after each try with one size
_JUMBO_MTU = 9000
_COLUMNS = ("name", "interface", "mac", "mtu", "limit", "to target", "from target")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    what = "shelf and slot: 0.1 or e0.1 (default: all that answer)"
    parser.add_argument("targets", nargs="*", type=address_type, metavar="X.Y", help=what)
    companion.add_wire_arguments(parser, wait=1.0)


def run(arguments: argparse.Namespace) -> int:
    return companion.run(arguments, _face)


@dataclass(frozen=True, slots=True)
class PathResult:
    """One path.  ``mtu`` is that of our interface; the rest is payload per frame in sectors: what our MTU allows, what
    the target says that it takes, and what passed (None: could not be measured, since the target refuses READs).
    """

    name: str
    interface: str
    mac: str
    mtu: int
    local_sectors: int
    target_sectors: int
    to_target: int
    from_target: int | None

    @property
    def limit(self) -> int:
        return min(self.local_sectors, self.target_sectors)

    @property
    def passes(self) -> bool:
        """All that both ends can does pass, as far as could be measured."""
        return self.to_target >= self.limit and (self.from_target is None or self.from_target >= self.limit)


async def _face(session: Session) -> int:
    arguments = session.arguments
    found: list[Answer] = []
    async with companion.patience("looking for targets"):
        for address in dict.fromkeys(arguments.targets) or [wire.BROADCAST_ADDRESS]:
            answers = await session.look_for(address)
            if not answers and address != wire.BROADCAST_ADDRESS:
                raise session.no_answer(address)
            found += {answer.endpoint: answer for answer in answers}.values()
    if not found:
        raise UserError(f"no target answered on {', '.join(session.engine.links)} within {arguments.timeout:g} s")
    found.sort(key=lambda answer: (answer.endpoint.address, answer.endpoint.link.interface, answer.endpoint.mac))
    with ExitStack() as stack:
        paths: Iterable[Answer] = found
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import Progress

            bar = stack.enter_context(Progress(console=Console(stderr=True), transient=True))
            paths = bar.track(found, description="measuring paths")
        results = [await _measure(session, answer) for answer in paths]
    sentences = advice(results)
    if arguments.json:
        print(json.dumps([{**asdict(result), "advice": sentences[result]} for result in results], indent=2))
    else:
        print_table(_COLUMNS, [_row(result) for result in results])
        for result in results:
            for line in sentences[result]:
                to_stdout(f"{result.name} on {result.interface}: {line}")
    return 0 if all(result.passes for result in results) else 1


def _row(result: PathResult) -> list[str]:
    def payload(sectors: int | None) -> str:
        return "?" if sectors is None else str(_bytes(sectors))

    sizes = (payload(result.limit), payload(result.to_target), payload(result.from_target))
    return [result.name, result.interface, result.mac, str(result.mtu), *sizes]


# ── measuring ─────────────────────────────────────────────────────────────────────────────────────────────────────


async def largest(passes: Callable[[int], Awaitable[bool]], limit: int) -> int:
    """The largest size up to ``limit`` that ``passes``, if every smaller one does too; 0 if none does."""
    if await passes(limit):
        return limit
    low, high = 0, limit
    while high - low > 1:
        # A single sector first: if even that is lost, size is not what is wrong.
        middle = 1 if low == 0 else (low + high) // 2
        if await passes(middle):
            low = middle
        elif low == 0:
            return 0
        else:
            high = middle
    return low


async def _measure(session: Session, answer: Answer) -> PathResult:
    from aoefs.protocol.ata import IDENTIFY_REGISTERS, transfer_registers

    endpoint = answer.endpoint
    identities = await session.identify(endpoint, PAUSES)
    assert isinstance(answer.argument, wire.ConfigArgument)  # noqa: S101 (for mypy: its decoder makes no other)
    target_sectors = answer.argument.sectors or 2  # 0 means 2 (AoEr11 section 3.2)
    local_sectors = endpoint.link.max_sectors
    limit = min(local_sectors, target_sectors)
    refused = False

    async def reaches(sectors: int) -> bool:
        data = bytes(_bytes(sectors))
        return bool(await session.ask_ata(endpoint, IDENTIFY_REGISTERS, PAUSES, data))

    async def comes_back(sectors: int) -> bool:
        nonlocal refused
        registers = transfer_registers(0, sectors, write=False, lba48=False)
        answers = await session.ask_ata(endpoint, registers, PAUSES, data_bytes=_bytes(sectors))
        refused = any(each.error is not None for each in answers)
        return bool(answers) and not refused

    to_target = await largest(reaches, limit)
    sectors = identities[0].sectors if identities else limit
    from_target = await largest(comes_back, min(limit, sectors))
    if from_target == min(limit, sectors):
        from_target = limit  # a disk of a few sectors
    statistics = endpoint.link.statistics()
    return PathResult(
        name=str(endpoint.address),
        interface=endpoint.link.interface,
        mac=wire.format_mac(endpoint.mac),
        mtu=statistics.mtu,
        local_sectors=local_sectors,
        target_sectors=target_sectors,
        to_target=to_target,
        from_target=None if refused and not from_target else from_target,
    )


# ── advice ────────────────────────────────────────────────────────────────────────────────────────────────────────


def _bytes(sectors: int) -> int:
    return sectors * wire.SECTOR_BYTES


def mtu_for(sectors: int) -> int:
    """The smallest MTU (bytes) whose frames hold so many sectors."""
    return wire.ATA_BYTES + _bytes(sectors)


def advice(results: Sequence[PathResult]) -> dict[PathResult, list[str]]:
    """What to do about each path, in sentences; none when all is as it should be."""
    sentences: dict[PathResult, list[str]] = {}
    for result in results:
        lines = sentences[result] = []
        for direction, passed in (("to", result.to_target), ("from", result.from_target)):
            if passed == 0:
                lines.append(f"nothing with data in it passes {direction} the target")
            elif passed is not None and passed < result.limit:
                lines.append(
                    f"frames {direction} the target are lost above {_bytes(passed)} bytes of data; both ends "
                    f"can {_bytes(result.limit)}: raise the MTU of every switch between to "
                    f"{mtu_for(result.limit)} or more"
                )
        if result.from_target is None:
            lines.append("the target refuses READs (reserved?): what passes from it is not known")
        if result.local_sectors < result.target_sectors:
            wanted = mtu_for(result.target_sectors)
            if wire.payload_sectors(_JUMBO_MTU) == result.target_sectors:
                wanted = _JUMBO_MTU
            lines.append(
                f"the target takes {_bytes(result.target_sectors)} bytes a frame: "
                f"'ip link set {result.interface} mtu {wanted}', if the switches carry that"
            )
        elif result.local_sectors > result.target_sectors:
            lines.append(f"the target takes {_bytes(result.target_sectors)} bytes a frame only: raise its MTU")
    by_name: dict[str, list[PathResult]] = {}
    for result in results:
        by_name.setdefault(result.name, []).append(result)
    for paths in by_name.values():
        best = max(min(path.to_target, path.limit if path.from_target is None else path.from_target) for path in paths)
        for path in paths:
            if path.passes and path.limit < best:
                sentences[path].append(f"another path of {path.name} carries {_bytes(best)} bytes a frame")
    return sentences
