"""Frozen snapshots: the records of a target and of its paths, and how a record is filled."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from aoefs.protocol.ata import Identity
from aoefs.protocol.wire import Address

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Record = TypeVar("Record", bound="DataclassInstance")


def snapshot(record: type[Record], source: object, **computed: object) -> Record:
    """A ``record`` of now: each field has the value of the attribute of that name, but for those that are computed."""
    same = {name: getattr(source, name) for name in record.__dataclass_fields__ if name not in computed}
    return record(**same, **computed)


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
    busy_seconds: float  # in which a read or write was in flight
    retransmits: int
    rtt_us: float
    dirty: bool
    flush_supported: bool
    conflict: str  # why it takes no writes, if it takes none
    read_latency: tuple[int, ...]  # requests per bucket of core.latency, from submission to the last answer
    write_latency: tuple[int, ...]
    paths: tuple[PathStatistics, ...]
