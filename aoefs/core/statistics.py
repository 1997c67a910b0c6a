"""Frozen snapshots of a target and of its paths."""

from __future__ import annotations

from dataclasses import dataclass

from aoefs.protocol.ata import Identity
from aoefs.protocol.wire import Address


@dataclass(frozen=True, slots=True)
class PathStatistics:
    """A frozen snapshot of one path; times in microseconds, windows in commands."""

    interface: str
    mac: bytes
    sectors: int
    in_flight: int
    window: int
    rtt_us: float
    rttvar_us: float
    rto_us: float
    sent: int
    answered: int
    retransmits: int  # commands given up and sent again
    late: int  # of these, answered after all: they were not lost
    reductions: int  # of the window
    healthy: bool


@dataclass(frozen=True, slots=True)
class TargetStatistics:
    """A frozen snapshot of one target."""

    name: str
    address: Address
    state: str
    identity: Identity
    config: bytes
    bufcnt: int
    in_flight: int
    queued: int
    waiting: int  # requests of which something was sent
    quarantined: int  # ended writes of which a copy may still travel
    reads: int
    writes: int
    read_bytes: int
    write_bytes: int
    flushes: int
    errors: int
    retransmits: int
    rtt_us: float
    dirty: bool
    flush_supported: bool
    conflict: str  # why it takes no writes, if it takes none
    read_latency: tuple[int, ...]  # requests per bucket of core.latency, from submission to the last answer
    write_latency: tuple[int, ...]
    paths: tuple[PathStatistics, ...]
