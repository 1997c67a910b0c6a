"""Tables on a terminal: columns with fixed widths, and sections that share the lines of a screen.

What always holds: no line is wider than asked for, and none is ever wrapped.  Columns do not depend on the figures in
them, so that figures stay in their place from one drawing to the next.  What does not fit loses its least important
columns, a section its last rows, and a mark says that there is more.  Cells are made printable here.

Rejected: the tables of rich (they compute the widths for each drawing: everything would jump, and wrap on narrow
terminals), panels with borders (a third of a screen of 24 lines).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, Generic, TypeVar

from rich.cells import cell_len, set_cell_size
from rich.text import Text

from aoefs.status.text import printable

Row = TypeVar("Row")
Cell = tuple[str, str]  # text and its rich style

MORE = "…"
# Colours of the table of 256, which no theme changes, of a brightness that is legible on white and on black.
GOOD, BAD, NOTE, QUIET, ACCENT = "color(28)", "bold color(160)", "color(130)", "color(243)", "bold color(31)"
HEADING, MARK = "bold color(231) on color(237)", "bold color(220) on color(237)"


@dataclass(frozen=True, slots=True)
class Column(Generic[Row]):
    """A column of at least ``width`` cells, which grows up to ``most`` where there is room.

    Where there is none, the columns of high ``rank`` are left out first; those of rank 0 stay.  ``cell`` makes the cell
    of a row, for a width.
    """

    title: str
    cell: Callable[[Row, int], Cell]
    _: KW_ONLY
    width: int
    rank: int
    most: int = 0
    left: bool = False  # aligned, as text is; figures are not

    def texts(self, rows: Sequence[Row]) -> list[str]:
        """The cells of all rows, where there is room enough."""
        return [self.cell(row, self.most or self.width)[0] for row in rows]


def fit(columns: Sequence[Column[Row]], width: int) -> list[tuple[Column[Row], int]]:
    """The columns for which a line of this width has room, each with the width that it gets."""
    chosen = list(columns)
    while (spare := width - sum(column.width + 1 for column in chosen) + 1) < 0:
        victim = max(chosen, key=lambda column: column.rank)
        if not victim.rank:
            break
        chosen.remove(victim)
    growing = sum(column.most > column.width for column in chosen)
    fitted = []
    for column in chosen:
        room = column.width
        if column.most > column.width:
            more = min(column.most - column.width, max(0, spare) // growing)
            room, spare, growing = room + more, spare - more, growing - 1
        fitted.append((column, room))
    return fitted


def row_line(fitted: Sequence[tuple[Column[Row], int]], row: Row, width: int, style: str = "") -> Text:
    """The cells of one row side by side."""
    return _line([(column.cell(row, room), room, column.left) for column, room in fitted], width, style)


def blank_line(width: int) -> Text:
    return Text(" " * width, end="")


def _line(cells: Sequence[tuple[Cell, int, bool]], width: int, style: str = "") -> Text:
    """Cells, each with its width and whether it is left-aligned, cut and filled to ``width``."""
    line = Text(style=style, no_wrap=True, overflow="crop", end="")
    for number, ((text, text_style), room, left) in enumerate(cells):
        line.append((" " if number else "") + _sized(printable(text), room, left=left), text_style)
    line.truncate(width, pad=True)
    return line


def _sized(text: str, width: int, *, left: bool) -> str:
    length = cell_len(text)
    if length > width:
        return set_cell_size(text, max(0, width - 1)) + MORE if width else ""
    return text + " " * (width - length) if left else " " * (width - length) + text


@dataclass(slots=True)
class Section(Generic[Row]):
    """A heading and its rows.

    ``least`` rows are shown before other sections get more than theirs, in the order of ``rank``.  One of which the
    least is 0 is shown whole, if there is room when those above it have all their rows.
    """

    columns: Sequence[Column[Row]]
    rows: Sequence[Row]
    _: KW_ONLY
    least: int
    rank: int
    none: str = ""  # shown in place of rows when there are none
    offset: int = 0  # of the first row that is shown
    size: int = 0  # lines below the heading, as :func:`allot` sets it; with 0 there is no heading either

    @property
    def wanted(self) -> int:
        return len(self.rows) or bool(self.none)

    def lines(self, width: int, marks: Mapping[str, str]) -> Iterator[Text]:
        """The heading and ``size`` lines; ``marks`` are appended to the titles that they name."""
        fitted = fit(self.columns, width)
        titles = []
        for column, room in fitted:
            mark = marks.get(column.title, "")
            titles.append(((column.title + mark, MARK if mark else ""), room, column.left))
        yield _line(titles, width, HEADING)
        if not self.rows:
            yield _line([((self.none, QUIET), width, True)], width)
            return
        whole = len(self.rows) <= self.size
        shown = self.size - (not whole)
        for row in self.rows[self.offset : self.offset + shown]:
            yield row_line(fitted, row, width)
        if not whole:
            above = f" ({self.offset} above)" if self.offset else ""
            yield _line([((f"{MORE} and {len(self.rows) - shown} more{above}", QUIET), width, True)], width)


def allot(sections: Sequence[Section[Any]], room: int) -> None:
    """Share ``room`` lines: each section gets its least in the order of rank, then what is left from top to bottom."""
    for section in sorted(sections, key=lambda section: section.rank):
        size = min(section.wanted, section.least)
        if not section.rank:
            size = min(size, room - 1)
        if size > 0 and size + 1 <= room:
            section.size = size
            room -= size + 1
    for section in sections:
        if section.size:
            more = min(section.wanted - section.size, room)
            section.size += more
            room -= more
        elif not section.least and 0 < section.wanted < room:
            section.size = section.wanted
            room -= section.size + 1
