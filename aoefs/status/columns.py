"""What the tables of a mount show: the columns of targets, paths, shards, links and events.

Where a live screen has rates and graphs, a single printout has totals or nothing, since a rate needs two statuses: so
tables are functions of ``live``.  The records are those of ``.aoefs/status.json``; an older mount may lack fields.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, Protocol

from aoefs.status.health import degraded_paths
from aoefs.status.history import History, Record, Trend
from aoefs.status.layout import BAD, GOOD, NOTE, QUIET, Cell, Column
from aoefs.status.text import format_count, format_size, format_us, sparkline

READ, WRITE = "cyan", "magenta"


class Row(Protocol):
    @property
    def record(self) -> Record: ...


class PathRow(NamedTuple):
    record: Record
    target: Record

    @property
    def ok(self) -> bool:
        return self.target["state"] == "up" and bool(self.record.get("healthy", True))


# ── cells ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def _text(name: str, style: str = "") -> Callable[[Row, int], Cell]:
    return lambda row, _: (str(row.record.get(name) or ""), style)


def _size(name: str) -> Callable[[Row, int], Cell]:
    return lambda row, _: (format_size(row.record.get(name, 0)), "")


def _duration(name: str) -> Callable[[Row, int], Cell]:
    return lambda row, _: (format_us(row.record.get(name)), "")


def _counter(name: str, style: str = "") -> Callable[[Row, int], Cell]:
    return lambda row, _: _count(row.record.get(name, 0), style)


def _count(count: int, style: str) -> Cell:
    """In ``style`` unless it is zero."""
    return format_count(count), style if count else QUIET


def _rate(*names: str, form: Callable[[float], str] = format_count, style: str = "") -> Callable[[Trend, int], Cell]:
    """How fast the sum of these counters grows, per second."""

    def cell(trend: Trend, _width: int) -> Cell:
        rate = trend.per_second(*names)
        return ("-", QUIET) if rate is None else (form(rate), style if rate else QUIET)

    return cell


def _graph(past: Callable[[Trend], Sequence[float]], style: str) -> Callable[[Trend, int], Cell]:
    def cell(trend: Trend, width: int) -> Cell:
        rates = list(past(trend))
        return sparkline(rates, width), style if any(rates[-width:]) else QUIET

    return cell


def _latency(share: float, *kinds: str) -> Callable[[Trend, int], Cell]:
    def cell(trend: Trend, _width: int) -> Cell:
        latency = trend.latency_us(share, *kinds)
        return format_us(latency), QUIET if latency is None else ""

    return cell


def _flag(name: str, yes: Cell, no: Cell) -> Callable[[Row, int], Cell]:
    return lambda row, _: yes if row.record.get(name, True) else no


def _resent(row: Row, _width: int) -> Cell:
    """The retransmits of a path or of a target.  If some were not answered late after all, frames were lost."""
    paths = row.record.get("paths", [row.record])
    lost = any(path.get("retransmits", 0) > path.get("late", 0) for path in paths)
    return _count(row.record.get("retransmits", 0), NOTE if lost else "")


def _flight(row: Row, _width: int) -> Cell:
    """Commands in flight of a path or of a target, and how many may be."""
    window = sum(path.get("window", 0) for path in row.record.get("paths", [row.record]))
    count = row.record.get("in_flight", 0)
    return f"{format_count(count)}/{format_count(window)}", "" if count else QUIET


# ── targets ───────────────────────────────────────────────────────────────────────────────────────────────────────


def targets(live: bool) -> Sequence[Column[Trend]]:
    latencies = "read", "write"
    return [
        Column("TARGET", _text("name", "bold"), width=7, most=10, rank=0, left=True),
        Column("STATE", _target_state, width=6, most=8, rank=1, left=True),
        Column("SIZE", _size("size"), width=8, rank=10),
        Column("MODEL", _text("model"), width=24, most=40, rank=16, left=True),
        Column("SERIAL", _text("serial"), width=10, most=20, rank=20, left=True),
        *_traffic("READ", "read_bytes", lambda trend: trend.read_rates, READ, live=live, rank=2),
        *_traffic("WRITE", "write_bytes", lambda trend: trend.write_rates, WRITE, live=live, rank=3),
        *([Column("IOPS", _rate("reads", "writes"), width=5, rank=5)] if live else []),
        Column("p50", _latency(0.5, *latencies), width=6, rank=7),
        Column("p99", _latency(0.99, *latencies), width=6, rank=6),
        Column("r-p99", _latency(0.99, "read"), width=6, rank=18),
        Column("w-p99", _latency(0.99, "write"), width=6, rank=19),
        Column("FLIGHT", _flight, width=7, rank=12),
        Column("QUEUE", _counter("queued"), width=5, rank=17),
        Column("RTT", _duration("rtt_us"), width=6, rank=13),
        Column("RESENT", _resent, width=6, rank=11),
        Column("ERR", _counter("errors", BAD), width=4, rank=4),
    ]


def _traffic(
    title: str, counter: str, past: Callable[[Trend], Sequence[float]], style: str, *, live: bool, rank: int
) -> Sequence[Column[Trend]]:
    if not live:
        return [Column(title, _size(counter), width=8, rank=rank)]
    return [
        Column(f"{title}/s", _rate(counter, form=format_size, style=style), width=8, rank=rank),
        Column("", _graph(past, style), width=6, most=24, rank=rank + 6),
    ]


def _target_state(trend: Trend, _width: int) -> Cell:
    target = trend.record
    if target["state"] != "up":
        return target["state"], NOTE if target["state"] == "flushing" else BAD
    if target.get("conflict"):
        return "conflict", BAD
    paths, degraded = len(target["paths"]), degraded_paths(target)
    return (f"up {paths - degraded}/{paths}", NOTE) if degraded else ("up", GOOD)


# ── paths, shards, links, events ──────────────────────────────────────────────────────────────────────────────────


def _path_state(row: PathRow, _width: int) -> Cell:
    return ("ok", GOOD) if row.ok else ("silent", BAD)


def paths() -> Sequence[Column[PathRow]]:
    return [
        Column("PATH", lambda row, _: (row.target["name"], "bold"), width=6, most=10, rank=0, left=True),
        Column("STATE", _path_state, width=6, most=8, rank=1, left=True),
        Column("OVER", _text("interface"), width=8, most=15, rank=2, left=True),
        Column("MAC", _text("mac"), width=17, rank=3, left=True),
        Column("PAYLOAD", lambda row, _: (str(512 * row.record["sectors"]), ""), width=7, rank=9),
        Column("FLIGHT", _flight, width=7, rank=5),
        Column("RTT", _duration("rtt_us"), width=6, rank=4),
        Column("RTO", _duration("rto_us"), width=6, rank=7),
        Column("SENT", _counter("sent"), width=5, rank=10),
        Column("ANSWERED", _counter("answered"), width=8, rank=11),
        Column("RESENT", _resent, width=6, rank=6),
        Column("LATE", _counter("late"), width=5, rank=8),
    ]


class Lane(NamedTuple):
    """A line of ``--interval``: a target, or one of its paths with its share of the target's answers."""

    target: Trend
    path: Trend | None = None
    share: float = 1.0

    @property
    def record(self) -> Record:
        return (self.path or self.target).record


def lanes(history: History) -> Iterator[Lane]:
    """All targets, each with its paths below it."""
    for name, target in history.targets.items():
        yield Lane(target)
        paths = [trend for (owner, *_), trend in history.paths.items() if owner == name]
        answers = [path.per_second("answered") or 0.0 for path in paths]
        for path, answered in zip(paths, answers, strict=True):
            yield Lane(target, path, answered / sum(answers) if any(answers) else 0.0)


def intervals() -> Sequence[Column[Lane]]:
    """What happened in the last interval.  A path has its share of the target's bytes, and its RTT as latency."""

    def traffic(counter: str, style: str) -> Callable[[Lane, int], Cell]:
        def cell(lane: Lane, _width: int) -> Cell:
            rate = (lane.target.per_second(counter) or 0.0) * lane.share
            return f"{format_size(rate)}/s", style if rate else QUIET

        return cell

    def of_target(cell: Callable[[Trend, int], Cell]) -> Callable[[Lane, int], Cell]:
        return lambda lane, width: ("", "") if lane.path else cell(lane.target, width)

    def name(lane: Lane, _width: int) -> Cell:
        record = lane.record
        return (f"  {record['interface']} {record['mac']}", "") if lane.path else (record["name"], "bold")

    def state(lane: Lane, width: int) -> Cell:
        return (
            _path_state(PathRow(lane.record, lane.target.record), width)
            if lane.path
            else _target_state(lane.target, width)
        )

    def iops(lane: Lane, width: int) -> Cell:
        return _rate("answered")(lane.path, width) if lane.path else _rate("reads", "writes")(lane.target, width)

    def latency(lane: Lane, width: int) -> Cell:
        return _duration("rtt_us")(lane, width) if lane.path else _latency(0.5, "read", "write")(lane.target, width)

    return [
        Column("TARGET", name, width=24, most=34, rank=0, left=True),
        Column("STATE", state, width=6, most=8, rank=1, left=True),
        Column("IOPS", iops, width=5, rank=2),
        Column("READ", traffic("read_bytes", READ), width=10, rank=3),
        Column("WRITE", traffic("write_bytes", WRITE), width=10, rank=4),
        Column("p50", latency, width=6, rank=6),
        Column("p99", of_target(_latency(0.99, "read", "write")), width=6, rank=5),
        Column("FLIGHT", _flight, width=7, rank=9),
        Column("QUEUE", of_target(_counter("queued")), width=5, rank=8),
        Column(
            "RESENT/s",
            lambda lane, width: _rate("retransmits", style=NOTE)(lane.path or lane.target, width),
            width=8,
            rank=7,
        ),
    ]


def shards(live: bool) -> Sequence[Column[Trend]]:
    return [
        Column("SHARD", lambda trend, _: (str(trend.record["id"]), "bold"), width=6, rank=0, left=True),
        Column("STATE", _flag("active", ("active", GOOD), ("idle", QUIET)), width=6, most=8, rank=1, left=True),
        *([Column("DONE/s", _rate("completed"), width=6, rank=3)] if live else []),
        Column("COMPLETED", _counter("completed"), width=9, rank=2),
        Column("BATCHES", _counter("batches"), width=7, rank=6),
        Column("QUEUE", _counter("queued"), width=5, rank=4),
        Column("LONGEST", _counter("longest_queue"), width=7, rank=5),
    ]


def links(live: bool) -> Sequence[Column[Trend]]:
    rates = [Column("RX/s", _rate("rx_frames"), width=5, rank=2), Column("TX/s", _rate("tx_frames"), width=5, rank=3)]
    return [
        Column("LINK", _text("interface", "bold"), width=6, most=15, rank=0, left=True),
        Column("STATE", _flag("up", ("up", GOOD), ("down", BAD)), width=6, most=8, rank=1, left=True),
        Column("MAC", _text("mac"), width=17, rank=8, left=True),
        Column("MTU", _text("mtu"), width=5, rank=6),
        *(rates if live else []),
        Column("RX", _counter("rx_frames"), width=5, rank=9),
        Column("TX", _counter("tx_frames"), width=5, rank=10),
        Column("DROPPED", _counter("rx_dropped", BAD), width=7, rank=4),
        Column("FULL", _counter("tx_full", NOTE), width=5, rank=7),
        Column("UNKNOWN", _counter("rx_unknown", NOTE), width=7, rank=5),
    ]


def events() -> Sequence[Column[Record]]:
    styles = {"error": BAD, "warning": NOTE}

    def field(name: str) -> Callable[[Record, int], Cell]:
        return lambda event, _: (event[name], styles.get(event["level"], ""))

    return [
        Column("EVENT", _event_time, width=8, most=15, rank=0, left=True),
        Column("LEVEL", field("level"), width=7, rank=2, left=True),
        Column("", field("text"), width=20, most=1000, rank=1, left=True),
    ]


def _event_time(event: Record, width: int) -> Cell:
    form = "%H:%M:%S" if width < 15 else "%b %d %H:%M:%S"
    return time.strftime(form, time.localtime(event["time"])), QUIET
