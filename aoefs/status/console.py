"""What ``aoefs status`` draws of a mount: its history in, lines of exactly the terminal's width out.

Pure: no terminal, no clock, no mount.  :func:`draw` makes a screen or a single printout, :func:`plain` tables for a
pipe; a :class:`View` is what a person chose by keys.  What is in the tables is in ``status.columns``, how they are laid
out in ``status.layout``.

What always holds: a degraded path, a target that is down and a dropped frame are never hidden by a lack of room.
Degraded paths come first, the state of a target counts its good paths, and the title counts the targets that are down.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from rich.console import Group
from rich.text import Text

from aoefs.status import columns
from aoefs.status.health import degraded_paths
from aoefs.status.history import History, Trend
from aoefs.status.layout import BAD, MORE, QUIET, Column, Section, allot, blank_line, fit, row_line
from aoefs.status.text import format_size, printable, sparkline

ROOMY = 30  # lines: then blank lines part the sections
TITLE, KEY = "bold white on blue", "bold yellow"
ALARM = f"{BAD} on white"


# ── what a person chose ───────────────────────────────────────────────────────────────────────────────────────────


class Sort(NamedTuple):
    """An order of the targets.  ``word`` is shown with its key in capitals, an arrow at the column with this title."""

    word: str
    title: str
    value: Callable[[Trend], Any]
    descending: bool = True


def _rate(*counters: str) -> Callable[[Trend], float]:
    return lambda trend: trend.per_second(*counters) or 0.0


_STATES = {"down": 2, "replaced": 1}
SORTS = {
    "n": Sort("Name", "TARGET", lambda trend: (trend.record.get("shelf", 0), trend.record.get("slot", 0)), False),
    "s": Sort("State", "STATE", lambda trend: (_STATES.get(trend.record["state"], 0), degraded_paths(trend.record))),
    "z": Sort("siZe", "SIZE", lambda trend: trend.record["size"]),
    "r": Sort("Read", "READ/s", _rate("read_bytes")),
    "w": Sort("Write", "WRITE/s", _rate("write_bytes")),
    "i": Sort("Iops", "IOPS", _rate("reads", "writes")),
    "l": Sort("Latency", "p99", lambda trend: trend.latency_us(0.99, "read", "write") or 0.0),
    "e": Sort("Errors", "ERR", lambda trend: (trend.record.get("errors", 0), trend.record.get("retransmits", 0))),
}


@dataclass(slots=True)
class View:
    """The order of the targets and the first one that is shown; keys change them."""

    sort: str = "n"  # a key of SORTS
    reverse: bool = False  # against the order's own direction
    offset: int = 0
    page: int = field(default=1, init=False)  # targets that the last screen had room for
    ends_mount: bool = False  # leaving the screen does so

    def press(self, key: str) -> None:
        """One key, by its letter or its name (``up``, ``down``, ``page up``, ``page down``, ``home``, ``end``)."""
        if key.lower() in SORTS:
            self.reverse = key.lower() == self.sort and not self.reverse
            self.sort, self.offset = key.lower(), 0
            return
        far = 1 << 30
        steps = {"up": -1, "down": 1, "page up": -self.page, "page down": self.page, "home": -far, "end": far}
        self.offset = max(0, self.offset + steps.get(key, 0))

    @property
    def descending(self) -> bool:
        return SORTS[self.sort].descending != self.reverse

    @property
    def arrow(self) -> str:
        return "▼" if self.descending else "▲"

    def order(self, trends: Sequence[Trend]) -> list[Trend]:
        """The targets in this order, equal ones by name."""
        by_name = sorted(trends, key=SORTS["n"].value)
        return sorted(by_name, key=SORTS[self.sort].value, reverse=self.descending)


# ── the whole ─────────────────────────────────────────────────────────────────────────────────────────────────────


def draw(history: History, view: View, width: int, height: int | None = None, *, notice: str = "") -> Group:
    """A screen of ``height`` lines of ``width`` cells, or for None a single printout with all rows.

    ``notice`` is something that a person must not overlook.  Keeps the view's offset within the targets.
    """
    footer = height is not None and height > 1
    lines = [_title(history, width, notice)]
    sections = _sections(history, view, live=height is not None)
    targets = sections[0]
    room = 1 << 30 if height is None else height - 1 - footer
    gaps = (len(sections) - 1) * (room >= ROOMY)
    allot(sections, room - gaps)
    view.page = max(1, targets.size - 1)
    targets.offset = view.offset = max(0, min(view.offset, len(targets.rows) - view.page))
    if len(targets.rows) <= targets.size:
        targets.offset = view.offset = 0
    for section in sections:
        if not section.size:
            continue
        if gaps and section is not targets:
            lines.append(blank_line(width))
        lines.extend(section.lines(width, {SORTS[view.sort].title: view.arrow} if section is targets else {}))
    if height is not None:
        del lines[max(1, height - footer) :]
        lines.extend(blank_line(width) for _ in range(height - footer - len(lines)))
    if footer:
        lines.append(_footer(view, width))
    for line in lines[:-1]:
        line.end = "\n"
    return Group(*lines)


def plain(history: History) -> Iterator[tuple[list[str], list[list[str]]]]:
    """The same for a pipe: the titles and the rows of each table that is not empty."""
    for section in _sections(history, View(), live=False):
        if section.rows:
            cells = zip(*(column.texts(section.rows) for column in section.columns), strict=True)
            yield [column.title.lower() for column in section.columns], [list(row) for row in cells]


def _sections(history: History, view: View, *, live: bool) -> list[Section[Any]]:
    """From top to bottom.  Paths in the order of their targets, the first one on the screen first."""
    ordered = view.order(list(history.targets.values()))
    shown_first = ordered[view.offset :] + ordered[: view.offset]
    paths = [columns.PathRow(path, trend.record) for trend in shown_first for path in trend.record["paths"]]
    paths.sort(key=lambda path: path.ok)
    shards, links = list(history.shards.values()), list(history.links.values())
    events = history.status.get("events", ())[::-1]
    return [
        Section(columns.targets(live), ordered, least=6, rank=0, none="no target answers yet", offset=view.offset),
        Section(columns.paths(), paths, least=2, rank=2),
        Section(columns.shards(live), shards, least=2, rank=4),
        Section(columns.links(live), links, least=2, rank=3),
        Section(columns.events(), events, least=3, rank=1),
    ]


def _title(history: History, width: int, notice: str) -> Text:
    states = [trend.record["state"] for trend in history.targets.values()]
    down, stalled = states.count("down"), states.count("stalled")
    count = f"{len(states)} target{'s' * (len(states) != 1)}"
    count += (f", {down} down" if down else "") + (f", {stalled} stalled" if stalled else "")
    path = printable(history.status.get("mountpoint", ""))
    cells: list[Column[History]] = [
        Column("", lambda _h, _w: (" aoefs", ""), width=6, rank=0, left=True),
        Column("", lambda _h, room: (_end(path, room), ""), width=8, most=120, rank=2, left=True),
    ]
    if notice:
        cells.append(Column("", lambda _h, _w: (notice, ALARM), width=len(notice), rank=0))
    else:
        read, written = history.read_rates, history.write_rates
        cells += [
            Column("", lambda _h, _w: (count, ALARM if down or stalled else ""), width=len(count), rank=1),
            Column("", lambda _h, _w: (_now("read", read), ""), width=15, rank=3),
            Column("", lambda _h, room: (sparkline(read, room), ""), width=6, most=20, rank=5),
            Column("", lambda _h, _w: (_now("write", written), ""), width=16, rank=4),
            Column("", lambda _h, room: (sparkline(written, room), ""), width=6, most=20, rank=6),
            Column("", lambda _h, _w: ("", ""), width=1, rank=7),
        ]
    return row_line(fit(cells, width), history, width, TITLE)


def _now(word: str, rates: Sequence[float]) -> str:
    return f"{word} {format_size(rates[-1])}/s" if rates else ""


def _end(text: str, width: int) -> str:
    """The last ``width`` characters, which say most of a path."""
    return text if len(text) <= width else MORE + text[len(text) - width + 1 :]


def _footer(view: View, width: int) -> Text:
    line = Text(no_wrap=True, overflow="crop", end="")
    line.append(" q", KEY)
    line.append(" ends the mount" if view.ends_mount else " quits", BAD if view.ends_mount else "")
    line.append("  sort by", QUIET)
    for key, sort in SORTS.items():
        chosen = view.arrow if key == view.sort else ""
        line.append(" ")
        for letter in sort.word:
            style = KEY + " underline" if letter.isupper() else ""
            line.append(letter, f"{style} reverse" if chosen else style)
        line.append(chosen, "reverse")
    if line.cell_len + len("  ↑↓ scroll") <= width:
        line.append("  ↑↓", KEY)
        line.append(" scroll")
    line.truncate(width, pad=True)
    return line
