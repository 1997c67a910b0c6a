"""The picture that ``aoefs status`` draws: a mount's history in, lines of exactly the terminal's width out.

Pure: no terminal, no clock, no mount.  :func:`picture` draws, a :class:`View` is what a person chose by keys.

What holds always:

- No line is wider than asked for and none is ever wrapped: cells have fixed widths, so that figures do not jump about;
  what does not fit loses its least important columns, sections their last rows, and a mark says that there is more.
- A dead path, a silent target, a dropped frame are never hidden by that: paths in trouble come first, and the target's
  state counts its good paths.
- Text from the network is shown only through ``printable``.

Rejected: rich tables (they share out the width anew for each picture: everything would jump, and on narrow terminals
wrap), panels with borders (at 24 lines a third of the screen).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Generic, NamedTuple, TypeVar

from rich.cells import cell_len, set_cell_size
from rich.console import Group
from rich.text import Text

from aoefs.status.history import History, Record, Trend
from aoefs.status.tables import format_size, printable, three_digits

Row = TypeVar("Row")
Cell = tuple[str, str]  # text and its rich style

BARS = "▁▂▃▄▅▆▇█"
MORE = "…"
ROOMY = 30  # lines: then the sections are set apart
GOOD, BAD, NOTE, QUIET = "green", "bold red", "yellow", "bright_black"
READ, WRITE = "cyan", "magenta"
TITLE, HEADING, KEY = "bold white on blue", "bold white on grey23", "bold yellow"


# ── figures ───────────────────────────────────────────────────────────────────────────────────────────────────────


def format_count(count: float) -> str:
    """At most five characters: ``0``, ``9999``, ``12.3k``, ``456M``."""
    if count < 9999.5:
        return f"{count:.0f}"
    power = 1
    while count >= 999.5 * 1000**power and power < 4:
        power += 1
    count /= 1000**power
    return f"{count:.{1 if count < 99.95 else 0}f}{'kMGT'[power - 1]}"


def format_us(microseconds: float | None) -> str:
    """At most six characters: ``85µs``, ``1.23ms``, ``12.3s``, and ``-`` for what was not measured."""
    if not microseconds:
        return "-"
    if microseconds < 999.5:
        return f"{microseconds:.0f}µs"
    value, unit = (microseconds / 1e3, "ms") if microseconds < 999.5e3 else (microseconds / 1e6, "s")
    return f"{three_digits(value)}{unit}"


def sparkline(values: Sequence[float], width: int) -> str:
    """The last ``width`` values as bars: the largest is full, zero is the lowest, and nothing else is either."""
    shown = list(values)[-width:] if width > 0 else []
    top = max(shown, default=0.0)
    bars = (BARS[max(1, round(value / top * (len(BARS) - 1)))] if value > 0 else BARS[0] for value in shown)
    return "".join(bars).rjust(width)


# ── lines of cells ────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True, kw_only=True)
class Column(Generic[Row]):
    """A column of at least ``width`` cells, growing to ``most`` where there is room.

    Those of high ``rank`` go first where there is none; 0 never goes.  ``cell`` gets the width too.
    """

    title: str
    width: int
    rank: int
    cell: Callable[[Row, int], Cell]
    most: int = 0
    left: bool = False
    sort: str = ""  # the key of Sort that this column shows
    live: bool = False  # has nothing to show in a single picture
    once: Callable[[Row, int], Cell] | None = None  # the cell of a single picture, where it is another one

    def cells(self, rows: Sequence[Row]) -> list[str]:
        """The texts of all rows, where there is room enough."""
        return [self.cell(row, self.most or self.width)[0] for row in rows]


def _single(columns: Sequence[Column[Row]]) -> list[Column[Row]]:
    """The columns of a single picture, which knows totals and no rates."""
    return [
        replace(column, title=column.title.removesuffix("/s"), cell=column.once or column.cell)
        for column in columns
        if not column.live
    ]


def _fit(columns: Sequence[Column[Row]], width: int) -> list[tuple[Column[Row], int]]:
    """The columns that have room, each with its width."""
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


def _sized(text: str, width: int, *, left: bool) -> str:
    length = cell_len(text)
    if length > width:
        return set_cell_size(text, max(0, width - 1)) + MORE if width else ""
    return text + " " * (width - length) if left else " " * (width - length) + text


def _end(text: str, width: int) -> str:
    """The last ``width`` characters, which say most of a path."""
    return text if len(text) <= width else MORE + text[len(text) - width + 1 :]


def _line(cells: Sequence[tuple[Cell, int, bool]], width: int, style: str = "") -> Text:
    """Cells with their widths side by side, cut and filled to ``width``."""
    line = Text(style=style, no_wrap=True, overflow="crop", end="")
    for number, ((text, text_style), room, left) in enumerate(cells):
        line.append((" " if number else "") + _sized(text, room, left=left), text_style)
    line.truncate(width, pad=True)
    return line


@dataclass(slots=True)
class _Section(Generic[Row]):
    """A heading and its rows; ``least`` rows are shown before other sections get more than theirs."""

    columns: Sequence[Column[Row]]
    rows: Sequence[Row]
    least: int
    none: str = ""  # said in place of rows
    offset: int = 0
    size: int = 0  # rows that it was given

    @property
    def wanted(self) -> int:
        return len(self.rows) or bool(self.none)

    def lines(self, width: int, mark: Callable[[str], str] = lambda sort: "") -> Iterator[Text]:
        """The heading and ``size`` lines; ``mark(sort)`` is the arrow of the column that sorts."""
        fitted = _fit(self.columns, width)
        titles = []
        for column, room in fitted:
            arrow = mark(column.sort)
            titles.append(((column.title + arrow, "bold yellow" if arrow else ""), room, column.left))
        yield _line(titles, width, HEADING)
        if not self.rows:
            yield _line([((self.none, QUIET), width, True)], width)
            return
        whole = len(self.rows) <= self.size
        shown = self.size - (not whole)
        for row in self.rows[self.offset : self.offset + shown]:
            yield _line([(column.cell(row, room), room, column.left) for column, room in fitted], width)
        if not whole:
            above = f" ({self.offset} above)" if self.offset else ""
            yield _line([((f"{MORE} and {len(self.rows) - shown} more{above}", QUIET), width, True)], width)


def _allot(sections: Sequence[_Section[Any]], room: int) -> None:
    """Give each section its least, the most important first, then what is left from top to bottom."""
    targets, paths, shards, links, events = sections
    left = room
    for number, section in enumerate((targets, events, paths, links, shards)):
        size = min(section.wanted, section.least)
        if not number:
            size = min(size, left - 1)
        if size > 0 and size + 1 <= left:
            section.size = size
            left -= size + 1
    for section in sections:
        if section.size:
            more = min(section.wanted - section.size, left)
            section.size += more
            left -= more


# ── what a person chose ───────────────────────────────────────────────────────────────────────────────────────────


class Sort(NamedTuple):
    """An order of the targets; ``word`` is shown with its key in capitals."""

    word: str
    value: Callable[[Trend], Any]
    descending: bool = True


def _rate(*counters: str) -> Callable[[Trend], float]:
    return lambda trend: trend.per_second(*counters) or 0.0


_STATES = {"down": 2, "replaced": 1}
SORTS = {
    "n": Sort("Name", lambda trend: (trend.record.get("shelf", 0), trend.record.get("slot", 0)), descending=False),
    "s": Sort("State", lambda trend: (_STATES.get(trend.record["state"], 0), _silent_paths(trend.record))),
    "z": Sort("siZe", lambda trend: trend.record["size"]),
    "r": Sort("Read", _rate("read_bytes")),
    "w": Sort("Write", _rate("write_bytes")),
    "i": Sort("Iops", _rate("reads", "writes")),
    "l": Sort("Latency", lambda trend: trend.latency_us(0.99, "read", "write") or 0.0),
    "e": Sort("Errors", lambda trend: (trend.record.get("errors", 0), trend.record.get("retransmits", 0))),
}


@dataclass(slots=True)
class View:
    """The order of the targets, the first one that is seen, and what the keys do."""

    sort: str = "n"
    reverse: bool = False  # against the order's own direction
    offset: int = 0
    page: int = field(default=1, init=False)  # targets that the last picture had room for
    ends_mount: bool = False

    def press(self, key: str) -> None:
        """One key, by its letter or its name (``up``, ``down``, ``page up``, ``page down``, ``home``, ``end``)."""
        if key.lower() in SORTS:
            self.reverse = key.lower() == self.sort and not self.reverse
            self.sort, self.offset = key.lower(), 0
            return
        far = 1 << 30
        steps = {"up": -1, "down": 1, "page up": -self.page, "page down": self.page, "home": -far, "end": far}
        self.offset = max(0, self.offset + steps.get(key, 0))

    def order(self, trends: Sequence[Trend]) -> list[Trend]:
        """The targets in this order, equal ones by name."""
        sort = SORTS[self.sort]
        by_name = sorted(trends, key=SORTS["n"].value)
        return sorted(by_name, key=sort.value, reverse=sort.descending != self.reverse)

    def mark(self, sort: str) -> str:
        """The arrow at the heading of the column that sorts."""
        return "" if sort != self.sort else "▼" if SORTS[sort].descending != self.reverse else "▲"


# ── targets ───────────────────────────────────────────────────────────────────────────────────────────────────────


def _silent_paths(record: Record) -> int:
    return sum(not path.get("healthy", True) for path in record["paths"])


def _state(trend: Trend, _width: int) -> Cell:
    record = trend.record
    paths, silent = len(record["paths"]), _silent_paths(record)
    if record["state"] != "up":
        return printable(record["state"]), BAD
    return (f"up {paths - silent}/{paths}", NOTE) if silent else ("up", GOOD)


def _text(name: str, style: str = "") -> Callable[[Trend, int], Cell]:
    return lambda trend, _width: (printable(trend.record.get(name) or ""), style)


def _byte_rate(name: str, style: str) -> Callable[[Trend, int], Cell]:
    def cell(trend: Trend, _width: int) -> Cell:
        rate = trend.per_second(name)
        return ("-", QUIET) if rate is None else (format_size(round(rate)), style if rate else QUIET)

    return cell


def _total(name: str) -> Callable[[Trend, int], Cell]:
    return lambda trend, _width: (format_size(trend.record.get(name, 0)), "")


def _graph(name: str, style: str) -> Callable[[Trend | History, int], Cell]:
    def cell(source: Trend | History, width: int) -> Cell:
        rates: Sequence[float] = getattr(source, name)
        return sparkline(rates, width), style if any(list(rates)[-width:]) else QUIET

    return cell


def _count_rate(*names: str) -> Callable[[Trend, int], Cell]:
    def cell(trend: Trend, _width: int) -> Cell:
        rate = trend.per_second(*names)
        return ("-", QUIET) if rate is None else (format_count(rate), "" if rate else QUIET)

    return cell


def _latency(share: float, *kinds: str) -> Callable[[Trend, int], Cell]:
    def cell(trend: Trend, _width: int) -> Cell:
        latency = trend.latency_us(share, *kinds)
        return format_us(latency), QUIET if latency is None else ""

    return cell


def _counter(name: str, style: str = "") -> Callable[[Trend, int], Cell]:
    """A count, in ``style`` unless it is zero."""

    def cell(trend: Trend, _width: int) -> Cell:
        count = trend.record.get(name, 0)
        return format_count(count), style if count else QUIET

    return cell


def _flight(trend: Trend, _width: int) -> Cell:
    window = sum(path.get("window", 0) for path in trend.record["paths"])
    count = trend.record.get("in_flight", 0)
    return f"{format_count(count)}/{format_count(window)}", "" if count else QUIET


def _rtt(trend: Trend, _width: int) -> Cell:
    return format_us(trend.record.get("rtt_us")), ""


def _lost(path: Record) -> bool:
    """Whether anything was sent again that was not answered after all."""
    return bool(path.get("retransmits", 0) > path.get("late", 0))


def _resent(trend: Trend, width: int) -> Cell:
    return _counter("retransmits", NOTE if any(map(_lost, trend.record["paths"])) else "")(trend, width)


TARGETS: Sequence[Column[Trend]] = (
    Column(title="TARGET", width=7, most=10, rank=0, cell=_text("name", "bold"), left=True, sort="n"),
    Column(title="STATE", width=6, most=8, rank=1, cell=_state, left=True, sort="s"),
    Column(title="SIZE", width=8, rank=10, cell=lambda t, _: (format_size(t.record["size"]), ""), sort="z"),
    Column(title="MODEL", width=24, most=40, rank=16, cell=_text("model"), left=True),
    Column(title="SERIAL", width=10, most=20, rank=20, cell=_text("serial"), left=True),
    Column(title="READ/s", width=8, rank=2, cell=_byte_rate("read_bytes", READ), once=_total("read_bytes"), sort="r"),
    Column(title="", width=6, most=24, rank=8, cell=_graph("read_rates", READ), live=True),
    Column(
        title="WRITE/s", width=8, rank=3, cell=_byte_rate("write_bytes", WRITE), once=_total("write_bytes"), sort="w"
    ),
    Column(title="", width=6, most=24, rank=9, cell=_graph("write_rates", WRITE), live=True),
    Column(title="IOPS", width=5, rank=5, cell=_count_rate("reads", "writes"), sort="i", live=True),
    Column(title="p50", width=6, rank=7, cell=_latency(0.5, "read", "write")),
    Column(title="p99", width=6, rank=6, cell=_latency(0.99, "read", "write"), sort="l"),
    Column(title="r-p99", width=6, rank=18, cell=_latency(0.99, "read")),
    Column(title="w-p99", width=6, rank=19, cell=_latency(0.99, "write")),
    Column(title="FLIGHT", width=7, rank=12, cell=_flight),
    Column(title="QUEUE", width=5, rank=17, cell=_counter("queued")),
    Column(title="RTT", width=6, rank=13, cell=_rtt),
    Column(title="RESENT", width=6, rank=11, cell=_resent),
    Column(title="ERR", width=4, rank=4, cell=_counter("errors", BAD), sort="e"),
)


# ── paths, shards, links, events ──────────────────────────────────────────────────────────────────────────────────


class _Path(NamedTuple):
    target: Record
    record: Record

    @property
    def ok(self) -> bool:
        return self.target["state"] == "up" and bool(self.record.get("healthy", True))

    def cell(self, name: str, style: str = "") -> Cell:
        count = self.record.get(name, 0)
        return format_count(count), style if count else QUIET


def _health(path: _Path, _width: int) -> Cell:
    return ("ok", GOOD) if path.ok else ("silent", BAD)


def _path_flight(path: _Path, _width: int) -> Cell:
    count = path.record.get("in_flight", 0)
    return f"{count}/{path.record.get('window', 0)}", "" if count else QUIET


PATHS: Sequence[Column[_Path]] = (
    Column(title="PATH", width=6, most=10, rank=0, cell=lambda p, _: (printable(p.target["name"]), "bold"), left=True),
    Column(title="STATE", width=6, most=8, rank=1, cell=_health, left=True),
    Column(title="OVER", width=8, most=15, rank=2, cell=lambda p, _: (printable(p.record["interface"]), ""), left=True),
    Column(title="MAC", width=17, rank=3, cell=lambda p, _: (printable(p.record["mac"]), ""), left=True),
    Column(title="PAYLOAD", width=7, rank=9, cell=lambda p, _: (str(512 * p.record["sectors"]), "")),
    Column(title="FLIGHT", width=7, rank=5, cell=_path_flight),
    Column(title="RTT", width=6, rank=4, cell=lambda p, _: (format_us(p.record.get("rtt_us")), "")),
    Column(title="RTO", width=6, rank=7, cell=lambda p, _: (format_us(p.record.get("rto_us")), "")),
    Column(title="SENT", width=5, rank=10, cell=lambda p, _: p.cell("sent")),
    Column(title="ANSWERED", width=8, rank=11, cell=lambda p, _: p.cell("answered")),
    Column(title="RESENT", width=6, rank=6, cell=lambda p, _: p.cell("retransmits", NOTE if _lost(p.record) else "")),
    Column(title="LATE", width=5, rank=8, cell=lambda p, _: p.cell("late")),
)


def _shard_state(trend: Trend, _width: int) -> Cell:
    return ("active", GOOD) if trend.record["active"] else ("idle", QUIET)


SHARDS: Sequence[Column[Trend]] = (
    Column(title="SHARD", width=6, rank=0, cell=lambda t, _: (str(t.record["id"]), "bold"), left=True),
    Column(title="STATE", width=6, most=8, rank=1, cell=_shard_state, left=True),
    Column(title="DONE/s", width=6, rank=3, cell=_count_rate("completed"), live=True),
    Column(title="COMPLETED", width=9, rank=2, cell=_counter("completed")),
    Column(title="BATCHES", width=7, rank=6, cell=_counter("batches")),
    Column(title="QUEUE", width=5, rank=4, cell=_counter("queued")),
    Column(title="LONGEST", width=7, rank=5, cell=_counter("longest_queue")),
)


def _link_state(trend: Trend, _width: int) -> Cell:
    return ("up", GOOD) if trend.record.get("up", True) else ("down", BAD)


LINKS: Sequence[Column[Trend]] = (
    Column(title="LINK", width=6, most=15, rank=0, cell=_text("interface", "bold"), left=True),
    Column(title="STATE", width=6, most=8, rank=1, cell=_link_state, left=True),
    Column(title="MAC", width=17, rank=8, cell=_text("mac"), left=True),
    Column(title="MTU", width=5, rank=6, cell=lambda t, _: (str(t.record.get("mtu", "")), "")),
    Column(title="RX/s", width=5, rank=2, cell=_count_rate("rx_frames"), live=True),
    Column(title="TX/s", width=5, rank=3, cell=_count_rate("tx_frames"), live=True),
    Column(title="RX", width=5, rank=9, cell=_counter("rx_frames")),
    Column(title="TX", width=5, rank=10, cell=_counter("tx_frames")),
    Column(title="DROPPED", width=7, rank=4, cell=_counter("rx_dropped", BAD)),
    Column(title="FULL", width=5, rank=7, cell=_counter("tx_full", NOTE)),
    Column(title="UNKNOWN", width=7, rank=5, cell=_counter("rx_unknown", NOTE)),
)

_LEVELS = {"error": BAD, "warning": NOTE}


def _event_time(event: Record, width: int) -> Cell:
    form = "%H:%M:%S" if width < 15 else "%b %d %H:%M:%S"
    return time.strftime(form, time.localtime(event["time"])), QUIET


EVENTS: Sequence[Column[Record]] = (
    Column(title="EVENT", width=8, most=15, rank=0, cell=_event_time, left=True),
    Column(title="LEVEL", width=7, rank=2, cell=lambda e, _: (e["level"], _LEVELS.get(e["level"], "")), left=True),
    Column(
        title="",
        width=20,
        most=1000,
        rank=1,
        cell=lambda e, _: (printable(e["text"]), _LEVELS.get(e["level"], "")),
        left=True,
    ),
)


# ── the whole ─────────────────────────────────────────────────────────────────────────────────────────────────────


def picture(history: History, view: View, width: int, height: int | None = None, *, notice: str = "") -> Group:
    """The mount as ``height`` lines of ``width`` cells; for None a single picture, with all that there is to tell.

    ``notice`` is something that a person must not overlook.  Keeps the view's offset within the targets.
    """
    footer = height is not None and height > 1
    lines = [_title(history, width, notice)]
    sections = _sections(history, view, live=height is not None)
    targets = sections[0]
    room = 1 << 30 if height is None else height - 1 - footer
    gaps = (len(sections) - 1) * (room >= ROOMY)
    _allot(sections, room - gaps)
    view.page = max(1, targets.size - 1)
    targets.offset = view.offset = max(0, min(view.offset, len(targets.rows) - view.page))
    if len(targets.rows) <= targets.size:
        targets.offset = view.offset = 0
    for section in sections:
        if not section.size:
            continue
        if gaps and section is not targets:
            lines.append(Text(" " * width, end=""))
        lines.extend(section.lines(width, view.mark))
    if height is not None:
        del lines[max(1, height - footer) :]
        lines.extend(Text(" " * width, end="") for _ in range(height - footer - len(lines)))
    if footer:
        lines.append(_footer(view, width))
    for line in lines[:-1]:
        line.end = "\n"
    return Group(*lines)


def plain(history: History) -> Iterator[tuple[list[str], list[list[str]]]]:
    """The same for a pipe: a table for each kind of thing, as its titles and rows."""
    for section in _sections(history, View(), live=False):
        if section.rows:
            cells = zip(*(column.cells(section.rows) for column in section.columns), strict=True)
            yield [column.title.lower() for column in section.columns], [list(row) for row in cells]


def _sections(history: History, view: View, *, live: bool) -> list[_Section[Any]]:
    """From top to bottom."""
    ordered = view.order(list(history.targets.values()))
    seen_first = ordered[view.offset :] + ordered[: view.offset]
    paths = [_Path(trend.record, path) for trend in seen_first for path in trend.record["paths"]]
    paths.sort(key=lambda path: path.ok)
    events = history.status.get("events", ())[::-1]
    sections: list[_Section[Any]] = [
        _Section(TARGETS, ordered, 6, none="no target answers yet", offset=view.offset),
        _Section(PATHS, paths, 2),
        _Section(SHARDS, list(history.shards.values()), 2),
        _Section(LINKS, list(history.links.values()), 2),
        _Section(EVENTS, events, 3),
    ]
    if not live:
        for section in sections:
            section.columns = _single(section.columns)
    return sections


def _title(history: History, width: int, notice: str) -> Text:
    states = [trend.record["state"] for trend in history.targets.values()]
    count = f"{len(states)} target{'s' * (len(states) != 1)}"
    trouble = len(states) - states.count("up")
    if trouble:
        count += f", {trouble} down"
    reading, writing = (
        f"{word} {format_size(round(rates[-1]))}/s" if rates else ""
        for word, rates in (("read", history.read_rates), ("write", history.write_rates))
    )
    columns: list[Column[History]] = [
        Column(title="", width=6, rank=0, cell=lambda _h, _w: (" aoefs", ""), left=True),
        Column(
            title="",
            width=8,
            most=120,
            rank=2,
            cell=lambda h, room: (_end(printable(h.status.get("mountpoint", "")), room), ""),
            left=True,
        ),
        Column(title="", width=len(count), rank=1, cell=lambda _h, _w: (count, BAD + " on white" if trouble else "")),
        Column(title="", width=15, rank=3, cell=lambda _h, _w: (reading, "")),
        Column(title="", width=6, most=20, rank=5, cell=lambda h, w: (sparkline(h.read_rates, w), "")),
        Column(title="", width=16, rank=4, cell=lambda _h, _w: (writing, "")),
        Column(title="", width=6, most=20, rank=6, cell=lambda h, w: (sparkline(h.write_rates, w), "")),
        Column(title="", width=1, rank=7, cell=lambda _h, _w: ("", "")),
    ]
    if notice:
        columns[2:] = [Column(title="", width=len(notice), rank=0, cell=lambda _h, _w: (notice, BAD + " on white"))]
    return _line(
        [(column.cell(history, room), room, column.left) for column, room in _fit(columns, width)], width, TITLE
    )


def _footer(view: View, width: int) -> Text:
    line = Text(no_wrap=True, overflow="crop", end="")
    line.append(" q", KEY)
    line.append(" ends the mount" if view.ends_mount else " quits", "bold red" if view.ends_mount else "")
    line.append("  sort by", QUIET)
    for key, sort in SORTS.items():
        chosen = view.mark(key)
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
