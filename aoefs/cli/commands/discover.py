"""``aoefs discover``: list the targets that answer, also those that cannot be used, without mounting anything."""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from aoefs.cli.options import add_interface_argument, seconds
from aoefs.errors import RequestError
from aoefs.host import interfaces
from aoefs.protocol.units import format_size
from aoefs.protocol.wire import Address, format_mac
from aoefs.status.tables import print_table
from aoefs.status.text import to_stderr

if TYPE_CHECKING:
    from aoefs.engine.disk import Disk
    from aoefs.engine.engine import Engine

ACCESS_SECONDS = 0.5  # some targets know no mask lists and no reservations, and do not answer when asked for them

_COLUMNS = ("name", "size", "model", "serial", "interfaces", "payload", "state", "config")

Report = dict[str, Any]  # one target, as a JSON object


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_interface_argument(parser)
    parser.add_argument("--json", action="store_true", help="print a JSON list instead of a table")
    what = "wait for answers this long, also when some came: frames may be lost, and targets slow (default 1)"
    parser.add_argument("--timeout", type=seconds, default=1.0, metavar="SECONDS", help=what)


def run(arguments: argparse.Namespace) -> int:
    names = interfaces.speakable(arguments.interface)
    targets = discover_once(names, arguments.timeout)
    if arguments.json:
        print(json.dumps(targets, indent=2))
    elif targets:
        print_table(_COLUMNS, [table_row(target) for target in targets])
    for target in targets:
        if target.get("reason"):
            where = ", ".join(f"{path['mac']} on {path['interface']}" for path in target["paths"])
            to_stderr(f"{target['name']} ({where}): {target['reason']}")
    if not targets:
        to_stderr(
            f"no target answered on {', '.join(names)} within {arguments.timeout:g} s: "
            "check the cable and VLAN, and that a target runs there and allows this host"
        )
    return 0 if targets else 1


def table_row(target: Mapping[str, Any]) -> list[str]:
    paths = target["paths"]
    sectors = sorted({int(path["sectors"]) for path in paths})
    return [
        target["name"],
        "" if target["size"] is None else format_size(target["size"]),
        target["model"],
        target["serial"],
        ",".join(_interfaces(paths)),
        "/".join(str(512 * count) for count in sectors),
        target["state"],
        target["config"] or "",
    ]


def _interfaces(paths: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """``aoe0``; ``aoe0(dead)`` when all paths over it are degraded, ``aoe0(1 of 2 dead)`` when some are."""
    healthy: dict[str, list[bool]] = {}
    for path in paths:
        healthy.setdefault(path["interface"], []).append(path.get("healthy", True))
    for name, states in healthy.items():
        dead = states.count(False)
        share = f"{dead} of {len(states)} " if dead < len(states) else ""
        yield f"{name}({share}dead)" if dead else name


def discover_once(names: Sequence[str], wait: float) -> list[Report]:
    """The targets that answer on these interfaces, by address; it takes ``wait`` seconds.

    A target that cannot be used is among them: its ``reason`` says why, and ``size`` is None if it is not known.
    """
    import trio

    from aoefs.engine.engine import open_engine
    from aoefs.status.report import stranger_report, target_report

    async def run() -> list[Report]:
        async with open_engine(names) as engine:
            await trio.sleep(wait)  # not first_discovery: it ends soon after the last target that is new
            access = await _explain_access(engine)
            statistics = engine.statistics()
        found = []
        for target in statistics.targets:
            state, reason = access.get(target.address, (None, None))
            found.append({**target_report(target), "state": state or target.state, "reason": reason})
        strangers: dict[tuple[Address, str], Report] = {}
        for stranger in statistics.strangers:
            report = stranger_report(stranger)
            known = strangers.setdefault((stranger.endpoint.address, stranger.reason), report)
            if known is not report:
                known["paths"] += report["paths"]
        return sorted([*found, *strangers.values()], key=lambda one: (one["shelf"], one["slot"]))

    log = logging.getLogger("aoefs.strangers")
    log.disabled = True  # their reasons are in the list
    try:
        return trio.run(run)
    finally:
        log.disabled = False


async def _explain_access(engine: Engine) -> dict[Address, tuple[str | None, str]]:
    """The targets whose reservation or mask list shuts out this host or a link of it.

    For each its state, if that is another one for this host, and the reason.
    """
    import trio

    from aoefs.engine.strangers import RESERVED

    found: dict[Address, tuple[str | None, str]] = {}
    ours = set(engine.driver.macs())

    async def explain(disk: Disk) -> None:
        address = disk.target.address
        with suppress(RequestError):
            holders = await disk.commands.holders()
            if holders and not ours.intersection(holders):
                names = ", ".join(map(format_mac, holders[:4])) + ", ..." * (len(holders) > 4)
                found[address] = RESERVED, f"{names} has reserved it: its I/O fails (EBUSY)"
        with suppress(RequestError):
            mask = await disk.commands.mask()
            used = {path.interface for path in disk.target.paths}
            left_out = [link for link in engine.links.values() if link.mac not in mask and link.interface not in used]
            if mask and left_out and address not in found:
                names = ", ".join(f"{link.interface} ({format_mac(link.mac)})" for link in left_out)
                found[address] = None, f"its MAC mask leaves out {names}"

    with trio.move_on_after(ACCESS_SECONDS):
        async with trio.open_nursery() as nursery:
            for disk in engine.disks.values():
                nursery.start_soon(explain, disk)
    return found
