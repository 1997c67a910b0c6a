"""What ``aoefs status`` draws of a mount: its history in, lines of exactly the terminal's width out.

Pure: no terminal, no clock, no mount.  :func:`draw` makes a screen or a single printout, :func:`plain` tables for a
pipe; a :class:`View` is what a person chose by keys.  What is in the tables is in ``status.columns``, how they are laid
out in ``status.layout``.

What always holds: a degraded path, a target that is down and a dropped frame are never hidden by a lack of room.
Degraded paths come first, the state of a target counts its good paths, and the title counts the targets that are down.
"""

from __future__ import annotations

import re
import textwrap
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

from rich.console import Group
from rich.text import Text

from aoefs.protocol.units import format_size
from aoefs.status import columns
from aoefs.status.health import degraded_paths
from aoefs.status.history import History, Trend
from aoefs.status.layout import ACCENT, BAD, MORE, QUIET, Cell, Column, Section, allot, blank_line, fit, row_line
from aoefs.status.text import printable, sparkline

ROOMY = 30  # lines: then blank lines part the sections
_WORD = 21  # cells of the first column of words
TITLE, ALARM = "bold color(231) on color(25)", "bold color(231) on color(160)"


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


KEYS = {
    "n s z r w i l e": "sort by name, state, size, read, write, IOPS, latency, errors; once more turns the order round",
    "arrows, PgUp, PgDn": "scroll; Home and End go to the first and the last target",
    "Enter": "one target: identity, paths, latencies, its events; arrows go to the next one, Enter goes back",
    "Space": "pause, and go on",
    "?": "this help; arrows scroll it, any other key ends it",
    "q, Ctrl-C": "quit",
}


@dataclass(slots=True)
class View:
    """The order of the targets and the first one that is shown; keys change them."""

    sort: str = "n"  # a key of SORTS
    reverse: bool = False  # against the order's own direction
    offset: int = 0
    page: int = field(default=1, init=False)  # targets that the last screen had room for
    ends_mount: bool = False  # leaving the screen does so
    paused: bool = False
    help: bool = False
    help_offset: int = 0
    alone: bool = False  # only the target at the offset is shown

    def press(self, key: str) -> None:
        """One key, by its letter or its name (``up``, ``down``, ``page up``, ``page down``, ``home``, ``end``)."""
        far = 1 << 30
        steps = {"up": -1, "down": 1, "page up": -self.page, "page down": self.page, "home": -far, "end": far}
        if self.help or key == "?":
            self.help = not self.help or key in steps  # any other key ends the help
            self.help_offset = max(0, self.help_offset + steps.get(key, 0)) if self.help else 0
            return
        self.paused ^= key == " "
        self.alone ^= key in ("\n", "\r")
        if key.lower() in SORTS:
            self.reverse = key.lower() == self.sort and not self.reverse
            self.sort, self.offset = key.lower(), 0
            return
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
    lines = [_title(history, width, notice or ("paused: the space bar goes on" if view.paused else ""))]
    trends = view.order(list(history.targets.values()))
    view.alone = view.alone and bool(trends) and height is not None
    if view.alone:
        view.offset = min(view.offset, len(trends) - 1)
    sections = [_help(width)] if view.help else _sections(history, trends, view, live=height is not None)
    targets = sections[0]
    room = 1 << 30 if height is None else height - 1 - footer
    gaps = (len(sections) - 1) * (room >= ROOMY)
    allot(sections, room - gaps)
    view.page = 1 if view.alone and not view.help else max(1, targets.size - 1)
    last = len(targets.rows) - view.page if len(targets.rows) > targets.size else 0
    if view.help:
        targets.offset = view.help_offset = min(view.help_offset, last)
    elif not view.alone:
        targets.offset = view.offset = min(view.offset, last)
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
    for section in _sections(history, View().order(list(history.targets.values())), View(), live=False):
        if section.rows:
            cells = zip(*(column.texts(section.rows) for column in section.columns), strict=True)
            yield [column.title.lower() for column in section.columns], [list(row) for row in cells]


def _sections(history: History, trends: Sequence[Trend], view: View, *, live: bool) -> list[Section[Any]]:
    """From top to bottom.  Paths in the order of their targets, the first one on the screen first."""
    events = history.status.get("events", ())[::-1]
    if view.alone:
        return list(_alone(history, trends[view.offset], events))
    shown_first = [*trends[view.offset :], *trends[: view.offset]]
    paths = [lane for trend in shown_first for lane in columns.lanes(history, trend)]
    paths.sort(key=lambda path: path.ok)
    shards, links = list(history.shards.values()), list(history.links.values())
    workers = list(history.workers.values()) if len(history.workers) > 1 else []
    processes = [Section(columns.workers(live), workers, least=3, rank=4)] if workers else []
    none = "no target answers yet"
    return [
        Section(columns.targets(history, live), trends, least=6, rank=0, none=none, offset=view.offset),
        Section(columns.paths(live), paths, least=2, rank=2),
        *processes,
        Section(columns.shards(live, bool(workers)), shards, least=0 if live else 2, rank=5),
        Section(columns.links(live), links, least=2, rank=3),
        Section(columns.events(), events, least=3, rank=1),
    ]


def _alone(history: History, trend: Trend, events: Sequence[Mapping[str, Any]]) -> Iterator[Section[Any]]:
    """One target: its line, its identity, its paths, how long its requests took, and what happened to it."""
    name = re.compile(rf"\b{re.escape(trend.record['name'])}\b")
    mine = [event for event in events if name.search(event["text"])]
    yield Section(columns.targets(history, True), [trend], least=1, rank=0)
    yield Section(_words("DISK"), list(columns.identity(trend.record)), least=6, rank=1)
    yield Section(columns.paths(True), columns.lanes(history, trend), least=2, rank=2)
    yield Section(columns.latencies(), columns.octaves(trend.record), least=6, rank=3)
    yield Section(columns.events(), mine, least=3, rank=4)


def _words(title: str) -> Sequence[Column[tuple[str, str]]]:
    return [
        Column(title, lambda row, _: (row[0], "bold"), width=_WORD, rank=0, left=True),
        Column("", lambda row, _: (row[1], ""), width=20, most=1000, rank=1, left=True),
    ]


def _help(width: int) -> Section[Any]:
    """What keys do and columns mean, in lines that fit."""
    rows = []
    for word, text in (*KEYS.items(), ("", ""), *columns.MEANINGS.items()):
        first, *more = textwrap.wrap(text, max(20, width - _WORD - 1)) or [""]
        rows += [(word, first), *(("", line) for line in more)]
    return Section(_words("HELP"), rows, least=3, rank=0)


def _title(history: History, width: int, notice: str) -> Text:
    records = [trend.record for trend in history.targets.values()]
    states = [record["state"] for record in records]
    down, stalled = states.count("down"), states.count("stalled")
    degraded = sum(record["state"] != "down" and degraded_paths(record) > 0 for record in records)
    count = f"{len(states)} target{'s' * (len(states) != 1)}"
    for number, word in ((down, "down"), (stalled, "stalled"), (degraded, "degraded")):
        count += f", {number} {word}" if number else ""
    path = printable(history.status.get("mountpoint", ""))
    parts = [_words_of(" aoefs", 0), _words_of(path, 2, width=min(len(path), max(14, width // 6)))]
    if notice:
        parts.append(_words_of(notice, 0, ALARM))
    else:
        cpu = "" if history.cpu_share is None else f"cpu {100 * history.cpu_share:3.0f} % "
        parts.append(_words_of(count, 1, ALARM if down or stalled else ""))
        for rank, word, rates in ((3, "read", history.read_rates), (4, "write", history.write_rates)):
            now = f"{word} {format_size(rates[-1])}/s" if rates else ""
            parts.append(_words_of(now.rjust(len(word) + 11), rank))
            parts.append(Column("", partial(_sparkline, rates), width=6, most=20, rank=rank + 4))
        parts += [_words_of(cpu, 5), _words_of(_clock(history.status), 6), _words_of(" ", 9)]
    return row_line(fit(parts, width), history, width, TITLE)


def _words_of(text: str, rank: int, style: str = "", width: int = 0) -> Column[History]:
    """A part of the title; one of which ``width`` is enough keeps its end, which says most of a path."""

    def cell(_: History, room: int) -> Cell:
        return text if len(text) <= room else MORE + text[len(text) - room + 1 :], style

    return Column("", cell, width=width or len(text), most=len(text), rank=rank)


def _sparkline(rates: Sequence[float], _: History, room: int) -> Cell:
    return sparkline(rates, room), ""


def _clock(status: Mapping[str, Any]) -> str:
    """How long the daemon runs, and the time of the status; nothing of an older mount."""
    if "time" not in status:
        return ""
    minutes = int(status["uptime_seconds"] // 60)
    days, hours = minutes // 1440, minutes // 60 % 24
    uptime = f"{days} d {hours} h" if days else f"{hours}:{minutes % 60:02d} h"
    return f"up {uptime}  {time.strftime('%H:%M:%S', time.localtime(status['time']))}"


def _footer(view: View, width: int) -> Text:
    line = Text(no_wrap=True, overflow="crop", end="")
    line.append(" q", ACCENT)
    line.append(" ends the mount" if view.ends_mount else " quits", BAD if view.ends_mount else "")
    line.append("  sort by", QUIET)
    for key, sort in SORTS.items():
        chosen = view.arrow if key == view.sort else ""
        line.append(" ")
        for letter in sort.word:
            style = ACCENT + " underline" if letter.isupper() else ""
            line.append(letter, f"{style} reverse" if chosen else style)
        line.append(chosen, "reverse")
    for key, what in (("?", "help"), ("↑↓", "scroll"), ("Enter", "one target"), ("Space", "pause")):
        if line.cell_len + len(f"  {key} {what}") <= width:
            line.append(f"  {key}", ACCENT)
            line.append(f" {what}")
    line.truncate(width, pad=True)
    return line
