"""A snapshot of an engine, made by hand: one target over two paths, one shard, one link, two strangers."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

from aoefs.core.latency import BUCKETS, bucket_of
from aoefs.core.link import Endpoint, Link, LinkStatistics
from aoefs.core.statistics import PathStatistics, TargetStatistics
from aoefs.engine.engine import EngineStatistics
from aoefs.engine.shards import ShardStatistics
from aoefs.engine.strangers import NO_ANSWER, Stranger
from aoefs.protocol.ata import Identity
from aoefs.protocol.wire import Address, ConfigArgument

OURS, THEIRS = bytes.fromhex("02ae00000100"), bytes.fromhex("02ae00000200")


def histogram(*latencies_us: int) -> tuple[int, ...]:
    counts = [0] * BUCKETS
    for latency in latencies_us:
        counts[bucket_of(latency)] += 1
    return tuple(counts)


def path(interface: str, **changes: Any) -> PathStatistics:
    fields: dict[str, Any] = {
        "sectors": 17,
        "in_flight": 1,
        "window": 16,
        "rtt_us": 250.0,
        "rttvar_us": 10.0,
        "rto_us": 5000.0,
        "sent": 100,
        "answered": 95,
        "retransmits": 4,
        "late": 3,
        "reductions": 2,
        "healthy": True,
    }
    return PathStatistics(interface=interface, mac=THEIRS, **(fields | changes))


def target(**changes: Any) -> TargetStatistics:
    fields: dict[str, Any] = {
        "name": "e7.1",
        "address": Address(7, 1),
        "state": "up",
        "identity": Identity(sectors=2048, serial="S1", model="a\x1b[2Jmodel", firmware="1.0"),
        "config": b"any \xff",
        "bufcnt": 16,
        "in_flight": 2,
        "queued": 3,
        "waiting": 1,
        "quarantined": 0,
        "reads": 3,
        "writes": 1,
        "read_bytes": 12288,
        "write_bytes": 512,
        "flushes": 5,
        "errors": 6,
        "busy_seconds": 0.25,
        "retransmits": 8,
        "rtt_us": 250.0,
        "dirty": True,
        "flush_supported": True,
        "conflict": "",
        "read_latency": histogram(100, 100, 40_000_000),
        "write_latency": histogram(2000),
        "paths": (path("eth0"), path("eth1", healthy=False)),
    }
    return TargetStatistics(**(fields | changes))


def stranger(address: Address, interface: str, reason: str = "it does not answer IDENTIFY") -> Stranger:
    link = cast(Link, SimpleNamespace(interface=interface))
    config = ConfigArgument(string=b"who", buffer_count=4, sectors=2)
    return Stranger(Endpoint(link, THEIRS, address), config, NO_ANSWER, reason)


def engine_statistics() -> EngineStatistics:
    return EngineStatistics(
        targets=(target(),),
        shards=(
            ShardStatistics(id=0, active=True, completed=99, batches=50, queued=1, longest_queue=7, started_at=1.5),
        ),
        links=(
            LinkStatistics(
                interface="eth0",
                mac=OURS,
                mtu=9000,
                up=True,
                rx_frames=95,
                rx_dropped=2,
                rx_unknown=1,
                tx_frames=100,
                tx_full=3,
            ),
        ),
        strangers=(stranger(Address(9, 9), "eth0"),),
        hints=11,
        hints_dropped=12,
        candidates_dropped=13,
        refused_identities=14,
        stopped_seconds=0.5,
    )
