"""What the tables of a mount show: the columns of targets, paths, shards, links and events.

Each table is a function of ``live``: a live screen has rates and graphs, a single printout has totals in their place,
since a rate needs two statuses.  Rows are the JSON records of ``.aoefs/status.json``, with their past (``Trend``) where
a column needs it; a mount of an older version may lack some fields.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from aoefs.status.history import Record, Trend
from aoefs.status.layout import BAD, GOOD, NOTE, QUIET, Cell, Column
from aoefs.status.text import format_count, format_size, format_us, sparkline

READ, WRITE = "cyan", "magenta"


# ── cells ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def _text(name: str, style: str = "") -> Callable[[Trend, int], Cell]:
    return lambda trend, _width: (str(trend.record.get(name) or ""), style)


def _count(count: int, style: str = "") -> Cell:
    """A count, in ``style`` unless it is zero."""
    return format_count(count), style if count else QUIET


def _counter(name: str, style: str = "") -> Callable[[Trend, int], Cell]:
    return lambda trend, _width: _count(trend.record.get(name, 0), style)


def _rate(*names: str) -> Callable[[Trend, int], Cell]:
    """How fast the sum of these counters grows, per second."""

    def cell(trend: Trend, _width: int) -> Cell:
        rate = trend.per_second(*names)
        return ("-", QUIET) if rate is None else (format_count(rate), "" if rate else QUIET)

    return cell


def _latency(share: float, *kinds: str) -> Callable[[Trend, int], Cell]:
    def cell(trend: Trend, _width: int) -> Cell:
        latency = trend.latency_us(share, *kinds)
        return format_us(latency), QUIET if latency is None else ""

    return cell


def _graph(rates: Sequence[float], width: int, style: str) -> Cell:
    return sparkline(rates, width), style if any(list(rates)[-width:]) else QUIET


def degraded_paths(target: Record) -> int:
    return sum(not path.get("healthy", True) for path in target["paths"])


def _lost(path: Record) -> bool:
    """Whether a retransmitted command was not answered late after all: then a frame was lost."""
    return bool(path.get("retransmits", 0) > path.get("late", 0))


# ── targets ───────────────────────────────────────────────────────────────────────────────────────────────────────


def targets(live: bool) -> Sequence[Column[Trend]]:
    return [
        Column("TARGET", _text("name", "bold"), width=7, most=10, rank=0, left=True),
        Column("STATE", _target_state, width=6, most=8, rank=1, left=True),
        Column("SIZE", lambda trend, _: (format_size(trend.record["size"]), ""), width=8, rank=10),
        Column("MODEL", _text("model"), width=24, most=40, rank=16, left=True),
        Column("SERIAL", _text("serial"), width=10, most=20, rank=20, left=True),
        *_bytes("READ", "read_bytes", lambda trend: trend.read_rates, READ, live=live, rank=2),
        *_bytes("WRITE", "write_bytes", lambda trend: trend.write_rates, WRITE, live=live, rank=3),
        *([Column("IOPS", _rate("reads", "writes"), width=5, rank=5)] if live else []),
        Column("p50", _latency(0.5, "read", "write"), width=6, rank=7),
        Column("p99", _latency(0.99, "read", "write"), width=6, rank=6),
        Column("r-p99", _latency(0.99, "read"), width=6, rank=18),
        Column("w-p99", _latency(0.99, "write"), width=6, rank=19),
        Column("FLIGHT", _target_flight, width=7, rank=12),
        Column("QUEUE", _counter("queued"), width=5, rank=17),
        Column("RTT", lambda trend, _: (format_us(trend.record.get("rtt_us")), ""), width=6, rank=13),
        Column("RESENT", _target_resent, width=6, rank=11),
        Column("ERR", _counter("errors", BAD), width=4, rank=4),
    ]


def _target_state(trend: Trend, _width: int) -> Cell:
    target = trend.record
    if target["state"] != "up":
        return target["state"], BAD
    paths, degraded = len(target["paths"]), degraded_paths(target)
    return (f"up {paths - degraded}/{paths}", NOTE) if degraded else ("up", GOOD)


def _bytes(
    title: str, counter: str, past: Callable[[Trend], Sequence[float]], style: str, *, live: bool, rank: int
) -> Sequence[Column[Trend]]:
    """The bytes that were read or written: their rate and its past, or their total."""
    if not live:
        return [Column(title, lambda trend, _: (format_size(trend.record.get(counter, 0)), ""), width=8, rank=rank)]

    def rate(trend: Trend, _width: int) -> Cell:
        rate = trend.per_second(counter)
        return ("-", QUIET) if rate is None else (format_size(round(rate)), style if rate else QUIET)

    return [
        Column(f"{title}/s", rate, width=8, rank=rank),
        Column("", lambda trend, width: _graph(past(trend), width, style), width=6, most=24, rank=rank + 6),
    ]


def _target_flight(trend: Trend, _width: int) -> Cell:
    window = sum(path.get("window", 0) for path in trend.record["paths"])
    count = trend.record.get("in_flight", 0)
    return f"{format_count(count)}/{format_count(window)}", "" if count else QUIET


def _target_resent(trend: Trend, _width: int) -> Cell:
    return _count(trend.record.get("retransmits", 0), NOTE if any(map(_lost, trend.record["paths"])) else "")


# ── paths, shards, links, events ──────────────────────────────────────────────────────────────────────────────────


class PathRow(NamedTuple):
    target: Record
    path: Record

    @property
    def ok(self) -> bool:
        return self.target["state"] == "up" and bool(self.path.get("healthy", True))


def path_rows(target: Record) -> list[PathRow]:
    return [PathRow(target, path) for path in target["paths"]]


def paths() -> Sequence[Column[PathRow]]:
    def count(name: str) -> Callable[[PathRow, int], Cell]:
        return lambda row, _width: _count(row.path.get(name, 0))

    def time_of(name: str) -> Callable[[PathRow, int], Cell]:
        return lambda row, _width: (format_us(row.path.get(name)), "")

    return [
        Column("PATH", lambda row, _: (row.target["name"], "bold"), width=6, most=10, rank=0, left=True),
        Column("STATE", lambda row, _: ("ok", GOOD) if row.ok else ("silent", BAD), width=6, most=8, rank=1, left=True),
        Column("OVER", lambda row, _: (row.path["interface"], ""), width=8, most=15, rank=2, left=True),
        Column("MAC", lambda row, _: (row.path["mac"], ""), width=17, rank=3, left=True),
        Column("PAYLOAD", lambda row, _: (str(512 * row.path["sectors"]), ""), width=7, rank=9),
        Column("FLIGHT", _path_flight, width=7, rank=5),
        Column("RTT", time_of("rtt_us"), width=6, rank=4),
        Column("RTO", time_of("rto_us"), width=6, rank=7),
        Column("SENT", count("sent"), width=5, rank=10),
        Column("ANSWERED", count("answered"), width=8, rank=11),
        Column("RESENT", _path_resent, width=6, rank=6),
        Column("LATE", count("late"), width=5, rank=8),
    ]


def _path_flight(row: PathRow, _width: int) -> Cell:
    count = row.path.get("in_flight", 0)
    return f"{count}/{row.path.get('window', 0)}", "" if count else QUIET


def _path_resent(row: PathRow, _width: int) -> Cell:
    return _count(row.path.get("retransmits", 0), NOTE if _lost(row.path) else "")


def shards(live: bool) -> Sequence[Column[Trend]]:
    return [
        Column("SHARD", lambda trend, _: (str(trend.record["id"]), "bold"), width=6, rank=0, left=True),
        Column("STATE", _shard_state, width=6, most=8, rank=1, left=True),
        *([Column("DONE/s", _rate("completed"), width=6, rank=3)] if live else []),
        Column("COMPLETED", _counter("completed"), width=9, rank=2),
        Column("BATCHES", _counter("batches"), width=7, rank=6),
        Column("QUEUE", _counter("queued"), width=5, rank=4),
        Column("LONGEST", _counter("longest_queue"), width=7, rank=5),
    ]


def _shard_state(trend: Trend, _width: int) -> Cell:
    return ("active", GOOD) if trend.record["active"] else ("idle", QUIET)


def links(live: bool) -> Sequence[Column[Trend]]:
    rates = [
        Column("RX/s", _rate("rx_frames"), width=5, rank=2),
        Column("TX/s", _rate("tx_frames"), width=5, rank=3),
    ]
    return [
        Column("LINK", _text("interface", "bold"), width=6, most=15, rank=0, left=True),
        Column("STATE", _link_state, width=6, most=8, rank=1, left=True),
        Column("MAC", _text("mac"), width=17, rank=8, left=True),
        Column("MTU", lambda trend, _: (str(trend.record.get("mtu", "")), ""), width=5, rank=6),
        *(rates if live else []),
        Column("RX", _counter("rx_frames"), width=5, rank=9),
        Column("TX", _counter("tx_frames"), width=5, rank=10),
        Column("DROPPED", _counter("rx_dropped", BAD), width=7, rank=4),
        Column("FULL", _counter("tx_full", NOTE), width=5, rank=7),
        Column("UNKNOWN", _counter("rx_unknown", NOTE), width=7, rank=5),
    ]


def _link_state(trend: Trend, _width: int) -> Cell:
    return ("up", GOOD) if trend.record.get("up", True) else ("down", BAD)


_LEVELS = {"error": BAD, "warning": NOTE}


def events() -> Sequence[Column[Record]]:
    def field(name: str) -> Callable[[Record, int], Cell]:
        return lambda event, _width: (event[name], _LEVELS.get(event["level"], ""))

    return [
        Column("EVENT", _event_time, width=8, most=15, rank=0, left=True),
        Column("LEVEL", field("level"), width=7, rank=2, left=True),
        Column("", field("text"), width=20, most=1000, rank=1, left=True),
    ]


def _event_time(event: Record, width: int) -> Cell:
    form = "%H:%M:%S" if width < 15 else "%b %d %H:%M:%S"
    return time.strftime(form, time.localtime(event["time"])), QUIET
