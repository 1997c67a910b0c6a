"""Statistics as JSON objects: the fields that ``discover --json`` and ``status --json`` promise (design, section 5).

Frozen records in, plain dicts out; nothing else reads the engine for a person.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import trio

from aoefs.engine import EngineStatistics, open_engine
from aoefs.events import Event
from aoefs.initiator import TargetStatistics
from aoefs.latency import percentile_us
from aoefs.link import LinkStatistics
from aoefs.path import PathStatistics
from aoefs.wire import format_mac

STATUS_EVENTS = 50


def _fields(record: Any) -> dict[str, object]:
    """A flat record with slots as a dict; asdict copies deeply, and takes 20 times as long for a thousand paths."""
    return {name: getattr(record, name) for name in record.__slots__}


def path_report(path: PathStatistics, bufcnt: int) -> dict[str, object]:
    return {**_fields(path), "mac": format_mac(path.mac), "bufcnt": bufcnt}


def _latency_report(counts: Sequence[int]) -> dict[str, object]:
    """Percentiles since the mount, and the histogram itself (aoefs.latency) for whoever wants those of an interval."""
    size = len(counts) if any(counts) else 0
    while size and not counts[size - 1]:
        size -= 1
    counts = counts[:size]
    return {"p50": percentile_us(counts, 0.5), "p99": percentile_us(counts, 0.99), "histogram": list(counts)}


def target_report(target: TargetStatistics) -> dict[str, object]:
    """One target: who it is, how to reach it, and its counters since the mount (bytes, microseconds)."""
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
        "paths": [path_report(path, target.bufcnt) for path in target.paths],
        "reads": target.reads,
        "writes": target.writes,
        "read_bytes": target.read_bytes,
        "write_bytes": target.write_bytes,
        "flushes": target.flushes,
        "errors": target.errors,
        "retransmits": target.retransmits,
        "in_flight": target.in_flight,
        "queued": target.queued,
        "rtt_us": target.rtt_us,
        "read_latency_us": _latency_report(target.read_latency),
        "write_latency_us": _latency_report(target.write_latency),
        "dirty": target.dirty,
        "flush_supported": target.flush_supported,
    }


def link_report(link: LinkStatistics) -> dict[str, object]:
    return {**_fields(link), "mac": format_mac(link.mac)}


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
        "links": [link_report(link) for link in statistics.links],
        "hints": statistics.hints,
        "refused_identities": statistics.refused_identities,
        "events": [asdict(event) for event in events[-STATUS_EVENTS:]],
    }


def discover_once(interfaces: Sequence[str], seconds: float) -> list[dict[str, object]]:
    """What answers within ``seconds`` on these interfaces, as the JSON objects of ``aoefs discover --json``."""

    async def run() -> list[dict[str, object]]:
        async with open_engine(interfaces) as engine:
            await engine.first_discovery(seconds)
            return [target_report(target) for target in engine.statistics().targets]

    return trio.run(run)
