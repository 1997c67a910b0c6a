"""The counters of a mount as Prometheus metrics, over HTTP.

Owns the names of the metrics, their text and the server.  Tasks: one that accepts connections and one for each of
them, all in trio's thread; the process metrics are those of ``prometheus_client``, of all processes
of the mount together.

What always holds:

- A snapshot (``engine.statistics()``) is of one moment.  One is made at most once in ``SECONDS_OF_A_SNAPSHOT``, however
  many ask; without a scrape none is.
- Text is made of it in slices of a millisecond, with the requests of the mount between them, and only for targets that
  changed since the last one.  Answers are sent in such slices too, and at most ``ANSWERS_PER_SECOND``.
- There are at most ``MAX_CONNECTIONS``, each for at most ``CONNECTION_SECONDS``.  One more takes the place of the
  oldest that has not asked yet.  If all have asked, it waits until one is answered.
- A descriptor that cannot be had is asked for again after a pause.

Rejected, all for the time that they take from the mount: a thread (it holds the interpreter lock for 5 ms each time),
the text of ``prometheus_client`` (a second for a thousand targets; 20 to 60 ms here) and its counters (a lock and a
lookup for each request), and compression.  The latency histograms have no ``_sum``, since the engine keeps none
(``core.latency``).
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import math
import resource
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import trio
from prometheus_client import CollectorRegistry, Metric, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector

from aoefs.core.latency import BUCKETS, lower_bound_us
from aoefs.core.statistics import TargetStatistics
from aoefs.engine.engine import EngineStatistics
from aoefs.errors import UserError
from aoefs.protocol.wire import format_mac
from aoefs.status.sparing import PerTarget
from aoefs.status.text import printable

MAX_CONNECTIONS = 8
CONNECTION_SECONDS = 5.0  # from its acceptance to the end of the answer
SECONDS_OF_A_SNAPSHOT = 1.0
ANSWERS_PER_SECOND = 5
ACCEPT_PAUSE = 0.02  # seconds between two connections
DESCRIPTOR_PAUSE = 1.0  # seconds until accept is tried again when this process or the system has no descriptor

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_NO_MORE = b"Content-Length: 0\r\nConnection: close\r\n\r\n"
_BACKLOG = 128  # connections that wait to be accepted, which takes 2.5 s
_MAX_REQUEST = 8192  # bytes
_SLICE_BYTES = 64 << 10
_SLICE_TARGETS = 16

# One bucket per octave, from 64 us to 67 s, instead of four: each bucket is a time series per target, and a dashboard
# does not show the difference.
_EDGES = [bucket for bucket in range(BUCKETS) if (1 << 6) <= lower_bound_us(bucket) <= 1 << 26 and bucket % 4 == 0]
_BOUNDS = [str(lower_bound_us(edge) / 1e6) for edge in _EDGES]


Processes = Callable[[], Mapping[int, str]]  # the pids of those that run, by number; 0 is the main process


# ── the server ────────────────────────────────────────────────────────────────────────────────────────────────────


async def listen(address: str, port: int) -> list[trio.SocketListener]:
    """Listen for scrapes.  UserError when the address cannot be used."""
    try:
        return await trio.open_tcp_listeners(port, host=address, backlog=_BACKLOG)
    except OSError as error:
        taken = ": each mount needs a port of its own" if error.errno == errno.EADDRINUSE else ""
        raise UserError(f"metrics at {address} port {port}: {error.strerror or error}{taken}") from None


class Server:
    """Answers every GET at the ``listeners`` while :meth:`run` runs, which also closes them."""

    def __init__(
        self,
        listeners: Sequence[trio.abc.Listener[trio.SocketStream]],
        statistics: Callable[[], EngineStatistics | Awaitable[EngineStatistics]],
        processes: Processes = lambda: {0: "self"},
        *,
        version: str,
    ) -> None:
        self._listeners = listeners
        self._statistics = statistics
        self._exposition = Exposition(version, processes)
        self._text = b""
        self._stale_at = self._next_answer = -math.inf
        self._making = trio.Lock()
        self._places = trio.Semaphore(MAX_CONNECTIONS)
        self._silent: dict[trio.CancelScope, None] = {}  # connections that have not asked yet, the oldest first

    async def run(self) -> None:
        async with trio.open_nursery() as nursery:
            for listener in self._listeners:
                nursery.start_soon(self._accept, listener, nursery, name="metrics")

    async def _accept(self, listener: trio.abc.Listener[trio.SocketStream], nursery: trio.Nursery) -> None:
        async with listener:
            while True:
                try:
                    stream = await listener.accept()
                except OSError:
                    await trio.sleep(DESCRIPTOR_PAUSE)
                    continue
                if self._places.value == 0 and self._silent:
                    oldest = next(iter(self._silent))
                    del self._silent[oldest]
                    oldest.cancel()
                await nursery.start(self._converse, stream, name="metrics connection")
                await trio.sleep(ACCEPT_PAUSE)

    async def _converse(self, stream: trio.SocketStream, *, task_status: trio.TaskStatus[None]) -> None:
        """Receive a request and answer it; started when there is a place for it."""
        async with stream, self._places:
            with contextlib.suppress(trio.BrokenResourceError), trio.move_on_after(CONNECTION_SECONDS) as scope:
                self._silent[scope] = None
                task_status.started()
                try:
                    method = await _receive_request(stream)
                finally:
                    self._silent.pop(scope, None)
                if method in ("GET", "HEAD"):
                    await self._answer(stream, with_text=method == "GET")
                elif method:
                    await stream.send_all(b"HTTP/1.1 405 Method Not Allowed\r\nAllow: GET, HEAD\r\n" + _NO_MORE)

    async def _answer(self, stream: trio.SocketStream, *, with_text: bool) -> None:
        at = max(trio.current_time(), self._next_answer)
        self._next_answer = at + 1 / ANSWERS_PER_SECOND
        await trio.sleep_until(at)
        async with self._making:
            if trio.current_time() >= self._stale_at:
                statistics = self._statistics()
                if not isinstance(statistics, EngineStatistics):
                    statistics = await statistics
                self._text = await self._exposition.text(statistics)
                self._stale_at = trio.current_time() + SECONDS_OF_A_SNAPSHOT
            text = memoryview(self._text)
        start = f"HTTP/1.1 200 OK\r\nContent-Type: {CONTENT_TYPE}\r\nContent-Length: {len(text)}\r\n"
        await stream.send_all(start.encode() + b"Connection: close\r\n\r\n")
        for position in range(0, len(text) if with_text else 0, _SLICE_BYTES):
            await stream.send_all(text[position : position + _SLICE_BYTES])


async def _receive_request(stream: trio.SocketStream) -> str:
    """The method of a request when all of it is here; empty if it ends early or is too long."""
    request = bytearray()
    while b"\r\n\r\n" not in request:
        more = await stream.receive_some(_MAX_REQUEST)
        request += more
        if not more or len(request) > _MAX_REQUEST:
            return ""
    return request.split(b" ", 1)[0].decode("ascii", "replace")


# ── the text ──────────────────────────────────────────────────────────────────────────────────────────────────────

# The families of a kind of record: type, name, what it is, and the value of a record.
_Table = Sequence[tuple[str, str, str, Callable[[Any], float]]]

_TARGET: _Table = (
    ("gauge", "target_up", "1 while the target answers", lambda it: it.state == "up"),
    ("gauge", "target_stalled", "1 while requests wait and it does not answer", lambda it: it.state == "stalled"),
    ("gauge", "target_flushing", "1 while it flushes and answers nothing else", lambda it: it.state == "flushing"),
    ("gauge", "target_size_bytes", "Capacity of a target", lambda it: it.identity.size_bytes),
    ("gauge", "target_dirty", "1 while acknowledged writes wait for a flush", lambda it: it.dirty),
    ("gauge", "target_in_flight_commands", "Commands sent and not answered yet", lambda it: it.in_flight),
    ("gauge", "target_queued_commands", "Commands that wait for a window", lambda it: it.queued),
    ("gauge", "target_rtt_seconds", "Smoothed round-trip time", lambda it: it.rtt_us / 1e6),
    ("counter", "target_errors_total", "Requests that failed", lambda it: it.errors),
    ("counter", "target_retransmits_total", "Commands sent again", lambda it: it.retransmits),
    ("counter", "target_flushes_total", "Flushes of the write cache", lambda it: it.flushes),
)
# Of reads and of writes of a target: how many there were, bytes, and the histogram of core.latency.
_OPERATION: _Table = (
    ("counter", "target_requests_total", "Requests that ended well", lambda it: it[0]),
    ("counter", "target_bytes_total", "Bytes that they moved", lambda it: it[1]),
)
_PATH: _Table = (
    ("gauge", "path_healthy", "1 while the path is used", lambda it: it.healthy),
    ("gauge", "path_window_commands", "Commands that may be in flight", lambda it: it.window),
    ("gauge", "path_rtt_seconds", "Smoothed round-trip time", lambda it: it.rtt_us / 1e6),
    ("counter", "path_sent_total", "Commands sent", lambda it: it.sent),
    ("counter", "path_answered_total", "Commands answered", lambda it: it.answered),
    ("counter", "path_retransmits_total", "Commands given up and sent again", lambda it: it.retransmits),
    ("counter", "path_late_total", "Of these, answered after all", lambda it: it.late),
)
_SHARD: _Table = (
    ("counter", "shard_completed_total", "Commands completed by a shard", lambda it: it.completed),
    ("gauge", "shard_queued_runs", "Runs of answers that wait", lambda it: it.queued),
    ("gauge", "shard_longest_queue_runs", "The longest queue so far", lambda it: it.longest_queue),
)
_LINK: _Table = (
    ("gauge", "link_up", "1 while the interface is up", lambda it: it.up),
    ("gauge", "link_mtu_bytes", "MTU of the interface", lambda it: it.mtu),
    ("counter", "link_received_frames_total", "Frames received", lambda it: it.rx_frames),
    ("counter", "link_sent_frames_total", "Frames sent", lambda it: it.tx_frames),
    ("counter", "link_dropped_frames_total", "Lost here for want of buffer", lambda it: it.rx_dropped),
    ("counter", "link_unknown_frames_total", "Answers to nothing we know", lambda it: it.rx_unknown),
)
_ENGINE: _Table = (
    ("counter", "hints_total", "Announcements that were asked about", lambda it: it.hints),
    ("counter", "refused_identities_total", "Disks refused under another's address", lambda it: it.refused_identities),
)


def _head(kind: str, name: str, what: str, *_: object) -> str:
    return f"# HELP aoefs_{name} {what}\n# TYPE aoefs_{name} {kind}\n"


def _heads(table: _Table) -> list[str]:
    return [_head(*row) for row in table]


_TARGET_HEADS = (
    _head("gauge", "target_info", "Who a target says it is"),
    *_heads(_TARGET),
    *_heads(_OPERATION),
    _head("histogram", "target_latency_seconds", "From a request to its last answer"),
    *_heads(_PATH),
)


def _labels(**labels: str) -> str:
    """The labels of a sample; names of interfaces and texts of targets may have any character."""
    texts = (printable(value).replace("\\", "\\\\").replace('"', '\\"') for value in labels.values())
    return "{" + ",".join([f'{name}="{text}"' for name, text in zip(labels, texts, strict=True)]) + "}"


def _samples(table: _Table, record: object, labels: str = "") -> list[str]:
    """One line for each family of a table."""
    return [f"aoefs_{name}{labels} {+value(record)}\n" for _, name, _, value in table]


def _histogram(counts: Sequence[int], labels: str) -> str:
    start = f'aoefs_target_latency_seconds_bucket{labels[:-1]},le="'
    below = list(itertools.accumulate(counts, initial=0))
    buckets = [f'{start}{bound}"}} {below[edge]}\n' for bound, edge in zip(_BOUNDS, _EDGES, strict=True)]
    return f'{"".join(buckets)}{start}+Inf"}} {below[-1]}\n'


def _merge(samples: Iterable[Sequence[str]]) -> list[str]:
    """The lines of each family, from those of each record."""
    return ["".join(lines) for lines in zip(*samples, strict=True)]


def _target_samples(target: TargetStatistics) -> Sequence[str]:
    """What a target adds to each family of ``_TARGET_HEADS``."""
    name, identity = target.name, target.identity
    info = _labels(target=name, model=identity.model, serial=identity.serial, firmware=identity.firmware)
    operations = []
    for operation, count, size, latency in (
        ("read", target.reads, target.read_bytes, target.read_latency),
        ("write", target.writes, target.write_bytes, target.write_latency),
    ):
        labels = _labels(target=name, operation=operation)
        operations.append([*_samples(_OPERATION, (count, size), labels), _histogram(latency, labels)])
    paths = [
        _samples(_PATH, path, _labels(target=name, interface=path.interface, mac=format_mac(path.mac)))
        for path in target.paths
    ]
    return (
        f"aoefs_target_info{info} 1\n",
        *_samples(_TARGET, target, _labels(target=name)),
        *_merge(operations),
        *(_merge(paths) or [""] * len(_PATH)),
    )


class _AllProcesses(Collector):
    """The metrics of the main process, in which counts of processes, and what those that ended used, are added up."""

    def __init__(self, processes: Processes) -> None:
        self._processes = processes

    def collect(self) -> Iterable[Metric]:
        found = {
            number: {metric.name: metric for metric in ProcessCollector(pid=partial(str, pid), registry=None).collect()}
            for number, pid in self._processes().items()
        }
        seconds = CounterMetricFamily(
            "aoefs_worker_cpu_seconds", "Processor time of a process that serves a share", labels=["worker"]
        )
        for number, metrics in found.items():
            if used := metrics.get("process_cpu_seconds"):
                seconds.add_metric([str(number)], used.samples[0].value)
        ended = resource.getrusage(resource.RUSAGE_CHILDREN)
        others = [metrics for number, metrics in found.items() if number]
        for name, metric in found[0].items():
            if name not in ("process_start_time_seconds", "process_max_fds"):
                more = sum(other[name].samples[0].value for other in others if name in other)
                if name == "process_cpu_seconds":
                    more += ended.ru_utime + ended.ru_stime
                metric.samples = [sample._replace(value=sample.value + more) for sample in metric.samples]
            yield metric
        if others:
            yield seconds


class Exposition:
    """Makes the text of snapshots, in base units (bytes, seconds), with the labels named as in ``status --json``."""

    def __init__(self, version: str, processes: Processes = lambda: {0: "self"}) -> None:
        self._program = f"aoefs_info{_labels(version=version)} 1\n"
        self._targets = PerTarget(_target_samples)
        self._process = CollectorRegistry()
        self._process.register(_AllProcesses(processes))

    async def text(self, statistics: EngineStatistics) -> bytes:
        of_targets = []
        for number, samples in enumerate(self._targets.of(statistics.targets)):
            of_targets.append(samples)
            if number % _SLICE_TARGETS == 0:
                await trio.lowlevel.checkpoint()
        shards = _merge(_samples(_SHARD, shard, _labels(shard=str(shard.id))) for shard in statistics.shards)
        links = _merge(_samples(_LINK, link, _labels(interface=link.interface)) for link in statistics.links)
        families = [
            (_head("gauge", "info", "The program that mounts"), self._program),
            *zip(_TARGET_HEADS, _merge(of_targets), strict=False),  # no target, no family; and so of the others
            *zip(_heads(_SHARD), shards, strict=False),
            *zip(_heads(_LINK), links, strict=False),
            *zip(_heads(_ENGINE), _samples(_ENGINE, statistics), strict=True),
        ]
        text = "".join(itertools.chain.from_iterable(families))
        return text.encode() + generate_latest(self._process)
