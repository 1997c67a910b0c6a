"""Statistics as JSON objects, with the fields of ``discover --json``, ``status --json`` and ``.aoefs/status.json``.

Pure: frozen records in, plain dicts or their text out.  The names of the fields are public; fields are added, never
renamed.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from typing import Any

from aoefs.core.latency import percentile_us
from aoefs.core.link import LinkStatistics
from aoefs.core.statistics import PathStatistics, TargetStatistics
from aoefs.engine.engine import EngineStatistics
from aoefs.engine.strangers import Stranger
from aoefs.protocol.wire import format_mac
from aoefs.status.events import Event
from aoefs.status.sparing import PerTarget, Sparing

_TOTALS = ("reads", "writes", "read_bytes", "write_bytes", "flushes", "errors", "busy_seconds", "retransmits")
_PRESENT = ("in_flight", "queued", "rtt_us")
_OF_ENGINE = ("hints", "hints_dropped", "candidates_dropped", "refused_identities", "stopped_seconds")
STATUS_EVENTS = 50  # the last ones; ``aoefs events`` shows all that are remembered


def _fields(record: PathStatistics | LinkStatistics) -> dict[str, object]:
    """A flat record as a dict.  asdict copies deeply, and takes 20 times as long for a thousand paths."""
    return {name: getattr(record, name) for name in record.__dataclass_fields__} | {"mac": format_mac(record.mac)}


def _latency_report(counts: Sequence[int]) -> dict[str, object]:
    """Percentiles since the mount, and the histogram (``core.latency``), from which those of an interval follow."""
    size = len(counts) if any(counts) else 0
    while size and not counts[size - 1]:
        size -= 1
    counts = counts[:size]
    return {"p50": percentile_us(counts, 0.5), "p99": percentile_us(counts, 0.99), "histogram": list(counts)}


def target_report(target: TargetStatistics) -> dict[str, Any]:
    """One target: its identity, its paths, and its counters since the mount (bytes, microseconds)."""
    identity = target.identity
    return {
        "name": target.name,
        "shelf": target.address.shelf,
        "slot": target.address.slot,
        "size": identity.size_bytes,
        "model": identity.model,
        "serial": identity.serial,
        "firmware": identity.firmware,
        "config": target.config.decode("utf-8", "backslashreplace"),
        "state": target.state,
        "conflict": target.conflict,
        "paths": [{**_fields(path), "bufcnt": target.bufcnt} for path in target.paths],
        **{name: getattr(target, name) for name in (*_TOTALS, *_PRESENT)},
        "read_latency_us": _latency_report(target.read_latency),
        "write_latency_us": _latency_report(target.write_latency),
        "dirty": target.dirty,
        "flush_supported": target.flush_supported,
    }


def stranger_report(stranger: Stranger) -> dict[str, Any]:
    """Something that answers and is not used: the fields of a target as far as they are known, and the reason."""
    config, (link, mac, address) = stranger.config, stranger.endpoint
    path = {
        "interface": link.interface,
        "mac": format_mac(mac),
        "bufcnt": config.buffer_count,
        "sectors": config.sectors,
    }
    return {
        "name": str(address),
        "shelf": address.shelf,
        "slot": address.slot,
        "size": None,
        "model": "",
        "serial": stranger.serial,
        "firmware": "",
        "config": config.string.decode("utf-8", "backslashreplace"),
        "state": stranger.state,
        "reason": stranger.reason,
        "paths": [path],
    }


def status_report(
    statistics: EngineStatistics, events: Sequence[Event] = (), *, mountpoint: str, pid: int, version: str
) -> dict[str, object]:
    """The object of ``status --json``, with the last ``STATUS_EVENTS`` events."""
    return {
        "mountpoint": mountpoint,
        "pid": pid,
        "version": version,
        "targets": [target_report(target) for target in statistics.targets],
        "shards": [asdict(shard) for shard in statistics.shards],
        "links": [_fields(link) for link in statistics.links],
        "strangers": [stranger_report(stranger) for stranger in statistics.strangers],
        **{name: getattr(statistics, name) for name in _OF_ENGINE},
        "events": [asdict(event) for event in events[-STATUS_EVENTS:]],
    }


class StatusText:
    """The text of ``.aoefs/status.json``: :meth:`read`, which gives an older one only to a program that asks in a loop
    (``status.sparing``).  ``clock`` is in seconds.
    """

    def __init__(
        self,
        statistics: Callable[[], EngineStatistics],
        events: Callable[[], Sequence[Event]],
        clock: Callable[[], float],
        *,
        mountpoint: str,
        pid: int,
        version: str,
    ) -> None:
        self._statistics = statistics
        self._events = events
        self._mount: dict[str, Any] = {"mountpoint": mountpoint, "pid": pid, "version": version}
        self._began = time.time()
        self._targets = PerTarget(lambda target: json.dumps(target_report(target)))
        self.read = Sparing(self._make, clock)

    def _make(self) -> bytes:
        statistics = self._statistics()
        now = time.time()
        process = {"time": now, "uptime_seconds": now - self._began, "cpu_seconds": time.process_time()}
        report = status_report(replace(statistics, targets=()), self._events(), **self._mount)
        text = json.dumps({**report, **process})
        targets = ", ".join(self._targets.of(statistics.targets))
        # In JSON a quotation mark within a string has a backslash, so this is found nowhere else.
        return text.replace('"targets": []', f'"targets": [{targets}]', 1).encode() + b"\n"
