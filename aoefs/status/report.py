"""Statistics as JSON objects: the fields that ``discover --json`` and ``status --json`` promise (design, section 5).

Frozen records in, plain dicts out; nothing else reads the engine for a person.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from typing import Any

import trio

from aoefs.core.latency import percentile_us
from aoefs.core.path import PathStatistics
from aoefs.core.target import TargetStatistics
from aoefs.engine.disk import Disk
from aoefs.engine.engine import Engine, EngineStatistics, open_engine
from aoefs.engine.strangers import RESERVED, Stranger
from aoefs.errors import RequestError
from aoefs.net.packetsocket import LinkStatistics
from aoefs.protocol.wire import Address, format_mac
from aoefs.status.events import Event

ACCESS_PATIENCE = 0.5  # seconds: some targets know no masks and reservations, and say nothing when they are asked

STATUS_EVENTS = 50


def _fields(record: Any) -> dict[str, object]:
    """A flat record as a dict; asdict copies deeply, and takes 20 times as long for a thousand paths."""
    return {name: getattr(record, name) for name in record.__dataclass_fields__}


def path_report(path: PathStatistics, bufcnt: int) -> dict[str, object]:
    return {**_fields(path), "mac": format_mac(path.mac), "bufcnt": bufcnt}


def _latency_report(counts: Sequence[int]) -> dict[str, object]:
    """Percentiles since the mount, and the histogram itself (core.latency) for whoever wants those of an interval."""
    size = len(counts) if any(counts) else 0
    while size and not counts[size - 1]:
        size -= 1
    counts = counts[:size]
    return {"p50": percentile_us(counts, 0.5), "p99": percentile_us(counts, 0.99), "histogram": list(counts)}


def target_report(target: TargetStatistics) -> dict[str, Any]:
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


def stranger_report(stranger: Stranger) -> dict[str, Any]:
    """Somebody who answers and is no disk of ours: the same fields as far as they are known, and the reason."""
    config = stranger.config
    path = {
        "interface": stranger.interface,
        "mac": format_mac(stranger.mac),
        "bufcnt": config.buffer_count,
        "sectors": config.sectors,
    }
    return {
        "name": str(stranger.address),
        "shelf": stranger.address.shelf,
        "slot": stranger.address.slot,
        "size": None,
        "model": "",
        "serial": "",
        "firmware": "",
        "config": config.string.decode("utf-8", "backslashreplace"),
        "state": stranger.state,
        "reason": stranger.reason,
        "paths": [path],
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
        "strangers": [stranger_report(stranger) for stranger in statistics.strangers],
        "hints": statistics.hints,
        "hints_dropped": statistics.hints_dropped,
        "candidates_dropped": statistics.candidates_dropped,
        "refused_identities": statistics.refused_identities,
        "stopped_seconds": statistics.stopped_seconds,
        "events": [asdict(event) for event in events[-STATUS_EVENTS:]],
    }


async def _explain_access(engine: Engine) -> dict[Address, tuple[str | None, str]]:
    """What reservations and MAC masks mean to this host, by target: (another state than its own, the reason)."""
    found: dict[Address, tuple[str | None, str]] = {}
    ours = set(engine.macs())

    async def explain(disk: Disk) -> None:
        with suppress(RequestError):
            holders = await disk.holders()
            if holders and not ours.intersection(holders):
                found[disk.target.address] = RESERVED, f"{_list(holders)} has reserved it: its I/O fails (EBUSY)"
        with suppress(RequestError):
            mask = await disk.mask()
            used = {path.interface for path in disk.target.paths}
            left_out = [link for link in engine.links.values() if link.mac not in mask and link.interface not in used]
            if mask and left_out and disk.target.address not in found:
                names = ", ".join(f"{link.interface} ({format_mac(link.mac)})" for link in left_out)
                found[disk.target.address] = None, f"its MAC mask leaves out {names}"

    with trio.move_on_after(ACCESS_PATIENCE):
        async with trio.open_nursery() as nursery:
            for disk in engine.disks.values():
                nursery.start_soon(explain, disk)
    return found


def _list(macs: Sequence[bytes]) -> str:
    return ", ".join(map(format_mac, macs[:4])) + (", ..." if len(macs) > 4 else "")


def discover_once(interfaces: Sequence[str], seconds: float) -> list[dict[str, Any]]:
    """What answers within ``seconds`` on these interfaces, as the JSON objects of ``aoefs discover --json``.

    Also who answers and does not let itself be used: ``size`` is then null, and ``reason`` says why.
    """

    async def run() -> list[dict[str, Any]]:
        async with open_engine(interfaces) as engine:
            await engine.first_discovery(seconds)
            access = await _explain_access(engine)
            statistics = engine.statistics()
            found = []
            for target in statistics.targets:
                state, reason = access.get(target.address, (None, None))
                report = {**target_report(target), "reason": reason}
                found.append(report if state is None else {**report, "state": state})
            strangers: dict[tuple[Address, str], dict[str, Any]] = {}
            for stranger in statistics.strangers:
                report = stranger_report(stranger)
                known = strangers.setdefault((stranger.address, stranger.reason), report)
                if known is not report:
                    known["paths"] += report["paths"]
            return sorted([*found, *strangers.values()], key=lambda one: (one["shelf"], one["slot"]))

    strangers_log = logging.getLogger("aoefs.strangers")
    strangers_log.disabled = True  # their reasons are in the answer
    try:
        return trio.run(run)
    finally:
        strangers_log.disabled = False
