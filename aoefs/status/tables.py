"""The table of every command that lists something.  Cells are made printable here."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from aoefs.status.text import printable

_FOLDED = ("model", "serial", "config")  # on a narrow terminal


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table for a person.  When stdout is no terminal: aligned plain text without any decoration."""
    rows = [[printable(cell) for cell in row] for row in rows]
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
