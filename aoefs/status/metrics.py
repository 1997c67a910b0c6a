"""The counters of a mount as Prometheus metrics, over HTTP.

Owns the names of the metrics and the server.  No tasks: ``prometheus_client`` serves each scrape in a thread of its
own.  That thread asks the trio thread for a snapshot (``engine.statistics()``) and makes text of it.

What always holds: a snapshot is of one moment, since the trio thread takes it between two tasks.  Without a scrape
nothing is computed or kept.  A scrape while the mount ends gets what does not need the engine.

Rejected: a snapshot that a task keeps up to date (work without a reader, old figures for a reader), reading the
engine's records in the thread of the server (they change meanwhile), and the counters of ``prometheus_client`` (a lock
and a lookup for each request).  The latency histograms have no ``_sum``, since the engine keeps none
(``core.latency``).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import trio
from prometheus_client import CollectorRegistry, ProcessCollector, start_http_server
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from aoefs.core.latency import BUCKETS, lower_bound_us
from aoefs.engine.engine import EngineStatistics
from aoefs.errors import UserError
from aoefs.protocol.wire import format_mac
from aoefs.status.text import printable

# One bucket per octave, from 64 us to 67 s, instead of four: each bucket is a time series per target, and a dashboard
# does not show the difference.
_EDGES = [bucket for bucket in range(BUCKETS) if (1 << 6) <= lower_bound_us(bucket) <= 1 << 26 and bucket % 4 == 0]


@contextlib.contextmanager
def serve(address: str, port: int, statistics: Callable[[], EngineStatistics], *, version: str) -> Iterator[None]:
    """Serve ``/metrics`` inside this block, which a trio task enters.  UserError when the address cannot be used."""
    registry = CollectorRegistry()
    registry.register(_Mount(statistics, version))
    ProcessCollector(registry=registry)
    try:
        server, thread = start_http_server(port, address, registry)
    except OSError as error:
        raise UserError(f"metrics at {address} port {port}: {error.strerror or error}") from None
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Mount(Collector):
    """Collects the metrics of one scrape, in the thread that serves it."""

    def __init__(self, statistics: Callable[[], EngineStatistics], version: str) -> None:
        self._statistics = statistics
        self._version = version
        self._trio = trio.lowlevel.current_trio_token()

    def collect(self) -> Iterator[Metric]:
        yield InfoMetricFamily("aoefs", "The program that mounts", {"version": self._version})
        try:
            statistics = trio.from_thread.run_sync(self._statistics, trio_token=self._trio)
        except trio.RunFinishedError:
            return
        yield from families(statistics)


class _Families:
    """Metric families by name, in the order of their first sample."""

    def __init__(self) -> None:
        self.by_name: dict[str, Any] = {}

    def _add(self, kind: Any, name: str, what: str, labels: dict[str, str], *values: object) -> None:
        family = self.by_name.get(name)
        if family is None:
            family = self.by_name[name] = kind(f"aoefs_{name}", what, labels=list(labels))
        family.add_metric(list(labels.values()), *values)

    def counter(self, name: str, what: str, value: float, **labels: str) -> None:
        self._add(CounterMetricFamily, name, what, labels, value)

    def gauge(self, name: str, what: str, value: float, **labels: str) -> None:
        self._add(GaugeMetricFamily, name, what, labels, value)

    def info(self, name: str, what: str, value: dict[str, str], **labels: str) -> None:
        self._add(InfoMetricFamily, name, what, labels, value)

    def histogram(self, name: str, what: str, counts: Sequence[int], **labels: str) -> None:
        buckets: list[tuple[str, float]] = [(str(lower_bound_us(edge) / 1e6), sum(counts[:edge])) for edge in _EDGES]
        self._add(HistogramMetricFamily, name, what, labels, [*buckets, ("+Inf", sum(counts))], None)


def families(statistics: EngineStatistics) -> Iterator[Metric]:
    """The metrics of a snapshot, in base units (bytes, seconds), with the labels named as in ``status --json``."""
    made = _Families()
    for target in statistics.targets:
        name, identity = target.name, target.identity
        texts = {field: printable(getattr(identity, field)) for field in ("model", "serial", "firmware")}
        made.info("target", "Who a target says it is", texts, target=name)
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
    yield from made.by_name.values()
