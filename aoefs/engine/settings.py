"""What an engine is told at its start, and what it tells its owner: settings, and changes of its disks."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum

from aoefs.core.target import DEFAULT_DEADSECS, DEFAULT_MAXOUT
from aoefs.engine.disk import Disk


class Change(Enum):
    """What happened to a target, as told to ``Settings.on_change``.

    REVALIDATED: somebody else may have changed its data.  The file system adds what it did itself: REWRITTEN, the
    whole disk was open for writing until now; REPARTITIONED, its partitions are others.
    """

    APPEARED = "appeared"
    RESIZED = "resized"
    RETURNED = "returned"
    REPLACED = "replaced"
    FORGOTTEN = "forgotten"
    DOWN = "down"
    REVALIDATED = "revalidated"
    REWRITTEN = "rewritten"
    REPARTITIONED = "repartitioned"


def _usable_cpus() -> int:
    return len(os.sched_getaffinity(0))


def _ignore_change(_disk: Disk, _change: Change) -> None:
    """Nobody listens."""


@dataclass(frozen=True)
class Settings:
    """``shards`` completion queues, ``deadsecs`` seconds a request may wait (0: for ever), ``maxout`` commands in
    flight per target, ``allow_mac`` the only MACs to talk to (empty: all), ``max_targets`` at once.
    """

    shards: int = field(default_factory=_usable_cpus)
    deadsecs: float = DEFAULT_DEADSECS
    maxout: int = DEFAULT_MAXOUT
    allow_mac: frozenset[bytes] = frozenset()
    max_targets: int = 1024
    on_change: Callable[[Disk, Change], object] = _ignore_change
