"""``aoefs discover``: list the targets that answer, without mounting anything.

Also owns how targets are shown in a table, which ``aoefs status`` uses too.

What holds always: text that came from the network (config string, model, serial number) reaches a terminal only with
its control characters made visible.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from aoefs import interfaces
from aoefs.options import add_interface_argument, seconds

Target = Mapping[str, Any]

_COLUMNS = ("name", "size", "model", "serial", "interfaces", "payload", "state", "config")
_FOLDED = ("model", "serial", "config")  # on a narrow terminal


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_interface_argument(parser)
    parser.add_argument("--json", action="store_true", help="print a JSON list instead of a table")
    parser.add_argument(
        "--timeout", type=seconds, default=1.0, metavar="SECONDS", help="wait for answers this long (default 1)"
    )
    parser.add_argument("-v", "--verbose", action="count", default=0, help="say more")


def run(arguments: argparse.Namespace) -> int:
    interfaces.require_packet_socket()
    names = [interface.name for interface in interfaces.choose(arguments.interface or ())]
    from aoefs.report import discover_once

    targets = discover_once(names, arguments.timeout)
    if arguments.json:
        print(json.dumps(targets, indent=2))
    elif targets:
        print_table(_COLUMNS, [target_row(target) for target in targets])
    if not targets:
        where = ", ".join(names)
        print(
            f"aoefs: no target answered on {where} within {arguments.timeout:g} s: "
            "check the cable and VLAN, and that a target runs there and allows this host",
            file=sys.stderr,
        )
    return 0 if targets else 1


# ── tables ────────────────────────────────────────────────────────────────────────────────────────────────────────


def format_size(size: int) -> str:
    """Bytes with a binary unit and three significant digits: ``1.00 GiB``."""
    value, units = float(size), ["B", "KiB", "MiB", "GiB", "TiB", "PiB"]
    while value >= 999.5 and len(units) > 1:
        value /= 1024
        units.pop(0)
    if units[0] == "B":
        return f"{size} B"
    return f"{value:.{max(0, 3 - len(str(int(value))))}f} {units[0]}"


def printable(value: object) -> str:
    """Text from the network without anything that a terminal would obey."""
    return "".join(char if char.isprintable() else f"\\x{ord(char):02x}" for char in str(value))


def target_row(target: Target) -> list[str]:
    """The cells of one target (a JSON object of ``discover`` or ``status``) under the columns of ``discover``."""
    paths = target["paths"]
    names = dict.fromkeys(str(path["interface"]) for path in paths)
    sectors = sorted({int(path["sectors"]) for path in paths})
    cells = (
        target["name"],
        format_size(target["size"]),
        target["model"],
        target["serial"],
        ",".join(names),
        "/".join(str(512 * count) for count in sectors),
        target["state"],
        target["config"] or "",
    )
    return [printable(cell) for cell in cells]


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table for a person; aligned plain text without any decoration when the output is not a terminal."""
    if not sys.stdout.isatty():
        widths = [max(map(len, cells)) for cells in zip(columns, *rows, strict=True)]
        for row in (columns, *rows):
            print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold", no_wrap=column not in _FOLDED)
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    Console().print(table)
