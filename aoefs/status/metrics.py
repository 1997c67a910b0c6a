"""The counters of a mount as Prometheus metrics, over HTTP.

Owns the names of the metrics, their text and the server.  Tasks: one that accepts connections and one for each of
them, all in trio's thread; the process metrics are those of ``prometheus_client``.

What always holds:

- A snapshot (``engine.statistics()``) is of one moment.  One is made at most once in ``SECONDS_OF_A_SNAPSHOT``, however
  many ask; without a scrape none is.
- Text is made of it in slices of a millisecond, with the requests of the mount between them, and only for targets that
  changed since the last one.  Answers are sent in such slices too, and at most ``ANSWERS_PER_SECOND``.
- There are at most ``MAX_CONNECTIONS``, each for at most ``CONNECTION_SECONDS``.  One more takes the place of the
  oldest that has not asked yet.  If all have asked, it waits until one is answered.
- A descriptor that cannot be had is asked for again after a pause.

Rejected, all for the time that they take from the mount: a thread (it holds the interpreter lock for 5 ms each time),
the text of ``prometheus_client`` (a second for a thousand targets, 30 ms here), compression (as much again), and its
counters (a lock and a lookup for each request).  The latency histograms have no ``_sum``, since the engine keeps none
(``core.latency``).
"""

from __future__ import annotations

import contextlib
import itertools
import math
from collections import defaultdict
from collections.abc import Callable, Sequence

import trio
from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest

from aoefs.core.latency import BUCKETS, lower_bound_us
from aoefs.core.target import TargetStatistics
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


# ── the server ────────────────────────────────────────────────────────────────────────────────────────────────────


async def listen(address: str, port: int) -> list[trio.SocketListener]:
    """Listen for scrapes.  UserError when the address cannot be used."""
    try:
        return await trio.open_tcp_listeners(port, host=address, backlog=_BACKLOG)
    except OSError as error:
        raise UserError(f"metrics at {address} port {port}: {error.strerror or error}") from None


class Server:
    """Answers every GET at the ``listeners`` while :meth:`run` runs, which also closes them."""

    def __init__(
        self,
        listeners: Sequence[trio.abc.Listener[trio.SocketStream]],
        statistics: Callable[[], EngineStatistics],
        *,
        version: str,
    ) -> None:
        self._listeners = listeners
        self._statistics = statistics
        self._exposition = Exposition(version)
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
                self._text = await self._exposition.text(self._statistics())
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


class _Families(dict[str, str]):
    """The samples of each metric family, by the lines that describe it, in the order of their first sample."""

    def _add(self, kind: str, name: str, what: str, samples: str) -> None:
        head = f"# HELP aoefs_{name} {what}\n# TYPE aoefs_{name} {kind}\n"
        self[head] = self.get(head, "") + samples

    def counter(self, name: str, what: str, value: float, **labels: str) -> None:
        self._add("counter", f"{name}_total", what, f"aoefs_{name}_total{_labels(labels)} {_number(value)}\n")

    def gauge(self, name: str, what: str, value: float, **labels: str) -> None:
        self._add("gauge", name, what, f"aoefs_{name}{_labels(labels)} {_number(value)}\n")

    def info(self, name: str, what: str, **labels: str) -> None:
        self.gauge(name, what, 1, **labels)

    def histogram(self, name: str, what: str, counts: Sequence[int], **labels: str) -> None:
        start = f'aoefs_{name}_bucket{_labels(labels)[:-1]},le="'
        below = list(itertools.accumulate(counts, initial=0))
        buckets = [f'{start}{bound}"}} {below[edge]}\n' for bound, edge in zip(_BOUNDS, _EDGES, strict=True)]
        self._add("histogram", name, what, "".join(buckets) + f'{start}+Inf"}} {below[-1]}\n')


def _labels(labels: dict[str, str]) -> str:
    if not labels:
        return ""
    texts = (printable(value).replace("\\", "\\\\").replace('"', '\\"') for value in labels.values())
    return "{" + ",".join(f'{name}="{text}"' for name, text in zip(labels, texts, strict=True)) + "}"


def _number(value: float) -> str:
    return repr(value) if isinstance(value, float) else f"{value:d}"  # of a bool, too


class Exposition:
    """Makes the text of snapshots, in base units (bytes, seconds), with the labels named as in ``status --json``."""

    def __init__(self, version: str) -> None:
        self._version = version
        self._targets = PerTarget(_target_families)
        self._process = CollectorRegistry()
        ProcessCollector(registry=self._process)

    async def text(self, statistics: EngineStatistics) -> bytes:
        made = _Families()
        made.info("info", "The program that mounts", version=self._version)
        families: defaultdict[str, list[str]] = defaultdict(list)
        for number, of_target in enumerate(self._targets.of(statistics.targets)):
            for head, samples in of_target.items():
                families[head].append(samples)
            if number % _SLICE_TARGETS == 0:
                await trio.lowlevel.checkpoint()
        _add_others(made, statistics)
        parts = [*made.items(), *((head, "".join(samples)) for head, samples in families.items())]
        return "".join(itertools.chain.from_iterable(parts)).encode() + generate_latest(self._process)


def _target_families(target: TargetStatistics) -> _Families:
    made = _Families()
    name, identity = target.name, target.identity
    texts = {field: getattr(identity, field) for field in ("model", "serial", "firmware")}
    made.info("target_info", "Who a target says it is", target=name, **texts)
    state = target.state
    made.gauge("target_up", "1 while the target answers", state == "up", target=name)
    made.gauge("target_stalled", "1 while requests wait and it does not answer", state == "stalled", target=name)
    made.gauge("target_flushing", "1 while it flushes and answers nothing else", state == "flushing", target=name)
    made.gauge("target_size_bytes", "Capacity of a target", identity.size_bytes, target=name)
    made.gauge("target_dirty", "1 while acknowledged writes wait for a flush", target.dirty, target=name)
    made.gauge("target_in_flight_commands", "Commands sent and not answered yet", target.in_flight, target=name)
    made.gauge("target_queued_commands", "Commands that wait for a window", target.queued, target=name)
    made.gauge("target_rtt_seconds", "Smoothed round-trip time", target.rtt_us / 1e6, target=name)
    made.counter("target_errors", "Requests that failed", target.errors, target=name)
    made.counter("target_retransmits", "Commands sent again", target.retransmits, target=name)
    made.counter("target_flushes", "Flushes of the write cache", target.flushes, target=name)
    for operation, count, size, latency in (
        ("read", target.reads, target.read_bytes, target.read_latency),
        ("write", target.writes, target.write_bytes, target.write_latency),
    ):
        labels = {"target": name, "operation": operation}
        made.counter("target_requests", "Requests that ended well", count, **labels)
        made.counter("target_bytes", "Bytes that they moved", size, **labels)
        made.histogram("target_latency_seconds", "From a request to its last answer", latency, **labels)
    for path in target.paths:
        labels = {"target": name, "interface": path.interface, "mac": format_mac(path.mac)}
        made.gauge("path_healthy", "1 while the path is used", path.healthy, **labels)
        made.gauge("path_window_commands", "Commands that may be in flight", path.window, **labels)
        made.gauge("path_rtt_seconds", "Smoothed round-trip time", path.rtt_us / 1e6, **labels)
        made.counter("path_sent", "Commands sent", path.sent, **labels)
        made.counter("path_answered", "Commands answered", path.answered, **labels)
        made.counter("path_retransmits", "Commands given up and sent again", path.retransmits, **labels)
        made.counter("path_late", "Of these, answered after all", path.late, **labels)
    return made


def _add_others(made: _Families, statistics: EngineStatistics) -> None:
    for shard in statistics.shards:
        made.counter("shard_completed", "Commands completed by a shard", shard.completed, shard=str(shard.id))
        made.gauge("shard_queued_runs", "Runs of answers that wait", shard.queued, shard=str(shard.id))
        made.gauge("shard_longest_queue_runs", "The longest queue so far", shard.longest_queue, shard=str(shard.id))
    for link in statistics.links:
        made.gauge("link_up", "1 while the interface is up", link.up, interface=link.interface)
        made.gauge("link_mtu_bytes", "MTU of the interface", link.mtu, interface=link.interface)
        made.counter("link_received_frames", "Frames received", link.rx_frames, interface=link.interface)
        made.counter("link_sent_frames", "Frames sent", link.tx_frames, interface=link.interface)
        made.counter("link_dropped_frames", "Lost here for want of buffer", link.rx_dropped, interface=link.interface)
        made.counter("link_unknown_frames", "Answers to nothing we know", link.rx_unknown, interface=link.interface)
    made.counter("hints", "Announcements that were asked about", statistics.hints)
    made.counter("refused_identities", "Disks refused under another's address", statistics.refused_identities)
