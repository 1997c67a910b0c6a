"""What the tables of a mount show: the columns of targets, paths, shards, links and events.

Where a live screen has rates and graphs, a single printout has totals or nothing, since a rate needs two statuses: so
tables are functions of ``live``.  The records are those of ``.aoefs/status.json``; an older mount may lack fields.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from operator import attrgetter
from typing import Any, NamedTuple, Protocol

from aoefs.core.latency import lower_bound_us
from aoefs.protocol.units import format_size, three_digits
from aoefs.status.health import degraded_paths
from aoefs.status.history import History, Record, Trend, histogram
from aoefs.status.layout import BAD, GOOD, NOTE, QUIET, Cell, Column
from aoefs.status.text import format_count, format_us, sparkline

# Each title, for the help of the screen and for the manual.
MEANINGS = {
    "TARGET": "shelf and slot of the disk",
    "STATE": "up (1/2: one of its two paths works), suspended, stalled, flushing, held, down, conflict; of a path: ok, "
    "or silent; of a link: up or down",
    "SIZE": "size of the disk",
    "MODEL, SERIAL": "from the identity data of the disk",
    "READ/s, WRITE/s": "bytes a second, and their past as bars; one scale for the whole column",
    "IOPS": "reads and writes a second",
    "p50, p99": "half of the requests, or 99 of 100, were not slower in the last second; r- of reads, w- of writes",
    "UTIL": "share of the last second in which something was in flight",
    "AVGQ": "requests under way, on average of the last second",
    "QUEUE": "commands that wait for the window (of a target), or answers that wait for a shard",
    "RTT, RTO": "measured round-trip time, and the silence after which a command is sent again",
    "RESENT": "commands that were sent again; yellow: some were lost, else they were only late",
    "ERR": "requests that failed",
    "PATH": "a target over one interface and one MAC address",
    "OVER": "the interface of this host",
    "DATA/s": "bytes a second that a path carried: its share of the target's",
    "RESENT/s": "commands that were sent again, a second",
    "PAYLOAD": "bytes of data in a frame",
    "FLIGHT": "commands under way at this moment / how many may be",
    "SENT, ANSWERED, LATE": "commands, answers in time, and answers to what had been sent again already",
    "LINK": "an interface that aoefs speaks on",
    "RX, TX": "frames received and sent; /s: in the last second",
    "DROPPED": "frames that the kernel dropped, since the daemon was too slow",
    "FULL": "how often the interface took no more frames for a moment",
    "UNKNOWN": "frames that answer nothing of ours",
    "SHARD": "a task that completes requests; DONE/s, COMPLETED: answers, BATCHES: turns, LONGEST: its longest queue",
    "WORKER": "a process that serves a share of the targets (--workers); 0 is the main process",
    "PID, CPU": "of a worker; CPU: of one processor in the last second, or seconds since its start",
    "TARGETS": "how many a worker serves, and which",
    "RESTARTS": "how often a worker ended by itself and was started again",
    "cpu": "in the title: how much of one processor the daemon used, with all its workers",
}

READ, WRITE = "color(31)", "color(133)"


class Row(Protocol):
    @property
    def record(self) -> Record: ...


class Lane(NamedTuple):
    """A target, or one of its paths with its ``share`` of the target's answers in the last interval."""

    target: Trend
    path: Trend | None = None
    share: float = 1.0

    @property
    def record(self) -> Record:
        return (self.path or self.target).record

    @property
    def ok(self) -> bool:
        return self.target.record["state"] == "up" and bool(self.record.get("healthy", True))


OfRow = Callable[[Row, int], Cell]
OfTrend = Callable[[Trend, int], Cell]
OfLane = Callable[[Lane, int], Cell]


def lanes(history: History, target: Trend) -> list[Lane]:
    """The paths of a target."""
    name = target.record["name"]
    paths = [history.paths[name, path["interface"], path["mac"]] for path in target.record["paths"]]
    answers = [path.per_second("answered") or 0.0 for path in paths]
    whole = sum(answers)
    return [Lane(target, path, one / whole if whole else 0.0) for path, one in zip(paths, answers, strict=True)]


# ── cells ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def _show(name: str, form: Callable[[Any], str] = lambda value: str(value or ""), style: str = "") -> OfRow:
    """A field of the record, ``form`` of 0 if it is missing."""
    return lambda row, _: (form(row.record.get(name) or 0), style)


def _counter(name: str, style: str = "") -> OfRow:
    return lambda row, _: _count(row.record.get(name, 0), style)


def _count(count: int, style: str) -> Cell:
    """In ``style`` unless it is zero."""
    return format_count(count), style if count else QUIET


def _measured(value: Callable[[Trend], float | None], form: Callable[[float], str], style: str = "") -> OfTrend:
    """What follows from two statuses; None and zero are quiet."""

    def cell(trend: Trend, _width: int) -> Cell:
        found = value(trend)
        return ("-", QUIET) if found is None else (form(found), style if found else QUIET)

    return cell


def _rate(*names: str, form: Callable[[float], str] = format_count, style: str = "") -> OfTrend:
    """How fast the sum of these counters grows, per second."""
    return _measured(lambda trend: trend.per_second(*names), form, style)


def _latency(share: float, *kinds: str) -> OfTrend:
    return _measured(lambda trend: trend.latency_us(share, *kinds), format_us)


_queue = _measured(
    lambda trend: trend.average_queue("read", "write"), lambda count: three_digits(count) if count else "0"
)


_busy = _measured(lambda trend: trend.per_second("busy_seconds"), lambda share: f"{100 * min(1.0, share):.0f}%")


def _graph(history: History, past: Callable[[Trend], Sequence[float]], style: str) -> OfTrend:
    """Bars of one scale for the whole column, so that rows can be compared."""
    tops: dict[int, float] = {}

    def cell(trend: Trend, width: int) -> Cell:
        if width not in tops:
            tops[width] = max(rate for each in history.targets.values() for rate in (0.0, *past(each))[-width:])
        rates = list(past(trend))[-width:]
        return sparkline(rates, width, tops[width]), style if any(rates) else QUIET

    return cell


def _flag(name: str, yes: Cell, no: Cell) -> OfRow:
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


def targets(history: History, live: bool) -> Sequence[Column[Trend]]:
    latencies = "read", "write"
    load: list[Column[Trend]] = [Column("FLIGHT", _flight, width=7, rank=12)]
    if live:
        load = [Column("UTIL", _busy, width=4, rank=10), Column("AVGQ", _queue, width=4, rank=8)]
    return [
        Column("TARGET", _show("name", style="bold"), width=7, most=10, rank=0, left=True),
        Column("STATE", _target_state, width=6, most=8, rank=1, left=True),
        Column("SIZE", _show("size", format_size), width=8, rank=10),
        Column("MODEL", _show("model"), width=24, most=40, rank=16, left=True),
        Column("SERIAL", _show("serial"), width=20, most=40, rank=20, left=True),
        *_traffic("read", history, live, READ, rank=2),
        *_traffic("write", history, live, WRITE, rank=3),
        *([Column("IOPS", _rate("reads", "writes"), width=5, rank=5)] if live else []),
        Column("p50", _latency(0.5, *latencies), width=6, rank=7),
        Column("p99", _latency(0.99, *latencies), width=6, rank=6),
        Column("r-p99", _latency(0.99, "read"), width=6, rank=18),
        Column("w-p99", _latency(0.99, "write"), width=6, rank=19),
        *load,
        Column("QUEUE", _counter("queued"), width=5, rank=17),
        Column("RTT", _show("rtt_us", format_us), width=6, rank=13),
        Column("RESENT", _resent, width=6, rank=11),
        Column("ERR", _counter("errors", BAD), width=4, rank=4),
    ]


def _traffic(kind: str, history: History, live: bool, style: str, rank: int) -> Sequence[Column[Trend]]:
    """The rate and its past; not ``live`` the sum."""
    title, counter = kind.upper(), f"{kind}_bytes"
    if not live:
        return [Column(title, _show(counter, format_size), width=8, rank=rank)]
    return [
        Column(f"{title}/s", _rate(counter, form=format_size, style=style), width=8, rank=rank),
        Column("", _graph(history, attrgetter(f"{kind}_rates"), style), width=6, most=24, rank=rank + 6),
    ]


def _target_state(trend: Trend, _width: int) -> Cell:
    target = trend.record
    if target["state"] != "up":
        return target["state"], NOTE if target["state"] == "flushing" else BAD
    if target.get("conflict"):
        return "conflict", BAD
    paths, degraded = len(target["paths"]), degraded_paths(target)
    return (f"up {paths - degraded}/{paths}", NOTE) if degraded else ("up", GOOD)


# ── paths, and both for --interval ──────────────────────────────────────────────────────────────────────────────────


def _path_state(lane: Lane, _width: int) -> Cell:
    return ("ok", GOOD) if lane.ok else ("silent", BAD)


def _bytes_of_lane(*counters: str, style: str = "") -> OfLane:
    """The rate of a target's bytes; of a path its share of them."""

    def cell(lane: Lane, _width: int) -> Cell:
        rate = (lane.target.per_second(*counters) or 0.0) * lane.share
        return f"{format_size(rate)}/s", style if rate else QUIET

    return cell


def _resent_rate(lane: Lane, width: int) -> Cell:
    return _rate("retransmits", style=NOTE)(lane.path or lane.target, width)


def paths(live: bool) -> Sequence[Column[Lane]]:
    rates: list[Column[Lane]] = [
        Column("DATA/s", _bytes_of_lane("read_bytes", "write_bytes"), width=10, rank=5),
        Column("RESENT/s", _resent_rate, width=8, rank=6),
    ]
    return [
        Column("PATH", lambda lane, _: (lane.target.record["name"], "bold"), width=6, most=10, rank=0, left=True),
        Column("STATE", _path_state, width=6, most=8, rank=1, left=True),
        Column("OVER", _show("interface"), width=8, most=15, rank=2, left=True),
        Column("MAC", _show("mac"), width=17, rank=3, left=True),
        *(rates if live else []),
        Column("PAYLOAD", lambda lane, _: (str(512 * lane.record["sectors"]), ""), width=7, rank=9),
        Column("FLIGHT", _flight, width=7, rank=8),
        Column("RTT", _show("rtt_us", format_us), width=6, rank=4),
        Column("RTO", _show("rto_us", format_us), width=6, rank=10),
        Column("SENT", _counter("sent"), width=5, rank=11),
        Column("ANSWERED", _counter("answered"), width=8, rank=12),
        Column("RESENT", _resent, width=6, rank=7),
        Column("LATE", _counter("late"), width=5, rank=13),
    ]


def intervals() -> Sequence[Column[Lane]]:
    """What happened in the last interval, for targets and paths.  The latency of a path is its round-trip time."""

    def of_target(cell: OfTrend) -> OfLane:
        return lambda lane, width: ("", "") if lane.path else cell(lane.target, width)

    def either(path: OfLane, target: OfTrend) -> OfLane:
        return lambda lane, width: path(lane, width) if lane.path else target(lane.target, width)

    def place(lane: Lane, _width: int) -> Cell:
        return f"  {lane.record['interface']} {lane.record['mac']}", ""

    def answers(lane: Lane, width: int) -> Cell:
        return _rate("answered")(lane.path or lane.target, width)

    return [
        Column("TARGET", either(place, _show("name", style="bold")), width=24, most=34, rank=0, left=True),
        Column("STATE", either(_path_state, _target_state), width=6, most=8, rank=1, left=True),
        Column("IOPS", either(answers, _rate("reads", "writes")), width=5, rank=2),
        Column("READ", _bytes_of_lane("read_bytes", style=READ), width=10, rank=3),
        Column("WRITE", _bytes_of_lane("write_bytes", style=WRITE), width=10, rank=4),
        Column("p50", either(_show("rtt_us", format_us), _latency(0.5, "read", "write")), width=6, rank=6),
        Column("p99", of_target(_latency(0.99, "read", "write")), width=6, rank=5),
        Column("UTIL", of_target(_busy), width=4, rank=10),
        Column("AVGQ", of_target(_queue), width=4, rank=9),
        Column("QUEUE", of_target(_counter("queued")), width=5, rank=8),
        Column("RESENT/s", _resent_rate, width=8, rank=7),
    ]


# ── one target ────────────────────────────────────────────────────────────────────────────────────────────────────


def identity(target: Record) -> Iterator[tuple[str, str]]:
    """What is known of a target beside its figures."""
    yield "size", f"{format_size(target['size'])} ({target['size']} bytes)"
    for name in ("model", "serial", "firmware", "config", "conflict"):
        if target.get(name):
            yield name, str(target[name])


class Octave(NamedTuple):
    """Latencies from ``least_us`` to twice that: how many reads and writes took so long since the mount, and the most
    that one line has.
    """

    least_us: int
    reads: int
    writes: int
    most: int


def octaves(target: Record) -> list[Octave]:
    counts: dict[int, list[int]] = {}
    for number, kind in enumerate(("read", "write")):
        for bucket, count in enumerate(histogram(target, kind)):
            if count:
                least = 1 << max(0, lower_bound_us(bucket).bit_length() - 1)
                counts.setdefault(least, [0, 0])[number] += count
    most = max((count for both in counts.values() for count in both), default=0)
    return [Octave(least, *counts[least], most) for least in sorted(counts)]  # type: ignore[call-arg]  # both, then most


def latencies() -> Sequence[Column[Octave]]:
    def bar(count: Callable[[Octave], int]) -> Callable[[Octave, int], Cell]:
        return lambda octave, width: ("▇" * max(bool(count(octave)), round(count(octave) / octave.most * width)), "")

    return [
        Column("LATENCY", lambda octave, _: (f"< {format_us(2 * octave.least_us)}", ""), width=9, rank=0),
        Column("READS", lambda octave, _: (format_count(octave.reads), READ), width=6, rank=1),
        Column("", bar(lambda octave: octave.reads), width=10, most=50, rank=3, left=True),
        Column("WRITES", lambda octave, _: (format_count(octave.writes), WRITE), width=6, rank=2),
        Column("", bar(lambda octave: octave.writes), width=10, most=50, rank=4, left=True),
    ]


# ── shards, links, events ─────────────────────────────────────────────────────────────────────────────────────────


def workers(live: bool) -> Sequence[Column[Trend]]:
    """Of more than one process."""
    seconds = _show("cpu_seconds", lambda value: f"{value:.1f}s")

    def names(trend: Trend, _width: int) -> Cell:
        return " ".join(trend.record["targets"]), ""

    return [
        Column("WORKER", _show("id", str, "bold"), width=6, rank=0, left=True),
        Column("PID", _show("pid", lambda pid: str(pid or "-")), width=7, rank=4),
        Column(
            "CPU", _rate("cpu_seconds", form=lambda share: f"{100 * share:.0f}%") if live else seconds, width=8, rank=1
        ),
        Column("RESTARTS", _counter("restarts", NOTE), width=8, rank=2),
        Column("TARGETS", lambda trend, _: (str(len(trend.record["targets"])), ""), width=7, rank=3),
        Column("", names, width=10, most=1000, rank=5, left=True),
    ]


def shards(live: bool, workers: bool = False) -> Sequence[Column[Trend]]:
    """With the process that each belongs to, if there are ``workers``."""
    of: list[Column[Trend]] = [Column("WORKER", _show("worker", str), width=6, rank=1)] if workers else []
    return [
        Column("SHARD", lambda trend, _: (str(trend.record["id"]), "bold"), width=6, rank=0, left=True),
        *of,
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
        Column("LINK", _show("interface", style="bold"), width=6, most=15, rank=0, left=True),
        Column("STATE", _flag("up", ("up", GOOD), ("down", BAD)), width=6, most=8, rank=1, left=True),
        Column("MAC", _show("mac"), width=17, rank=8, left=True),
        Column("MTU", _show("mtu"), width=5, rank=6),
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
