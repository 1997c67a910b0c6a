"""How targets are shown in a table, for every command that lists some.

What holds always: text that came from the network (config string, model, serial number) reaches a terminal only with
its control characters made visible.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

Target = Mapping[str, Any]

_FOLDED = ("model", "serial", "config")  # on a narrow terminal


def format_size(size: int) -> str:
    """Bytes with a binary unit and three significant digits: ``1.00 GiB``."""
    value, units = float(size), ["B", "KiB", "MiB", "GiB", "TiB", "PiB"]
    while value >= 999.5 and len(units) > 1:
        value /= 1024
        units.pop(0)
    if units[0] == "B":
        return f"{size} B"
    return f"{three_digits(value)} {units[0]}"


def three_digits(value: float) -> str:
    """A number below 999.5 with three significant digits, in at most four characters: ``1.00``, ``10.0``, ``999``."""
    return f"{value:.{2 if value < 9.995 else 1 if value < 99.95 else 0}f}"


def printable(value: object) -> str:
    """Text from the network without anything that a terminal would obey."""
    return "".join(char if char.isprintable() else f"\\x{ord(char):02x}" for char in str(value))


def target_row(target: Target) -> list[str]:
    """The cells of one target (a JSON object of ``discover`` or ``status``) under the columns of ``discover``."""
    paths = target["paths"]
    sectors = sorted({int(path["sectors"]) for path in paths})
    cells = (
        target["name"],
        "" if target["size"] is None else format_size(target["size"]),
        target["model"],
        target["serial"],
        ",".join(_interfaces(paths)),
        "/".join(str(512 * count) for count in sectors),
        target["state"],
        target["config"] or "",
    )
    return [printable(cell) for cell in cells]


def _interfaces(paths: Sequence[Target]) -> Iterator[str]:
    """``aoe0``, or ``aoe0(dead)`` when nothing gets through there, or how many of its paths are dead."""
    healthy: dict[str, list[bool]] = {}
    for path in paths:
        healthy.setdefault(str(path["interface"]), []).append(path.get("healthy", True))
    for name, ways in healthy.items():
        dead = ways.count(False)
        share = f"{dead} of {len(ways)} " if dead < len(ways) else ""
        yield f"{name}({share}dead)" if dead else name


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
