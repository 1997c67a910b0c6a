"""What an engine is told at its start."""

from __future__ import annotations

import os
from dataclasses import dataclass, field

from aoefs.core.target import DEFAULT_DEADSECS, DEFAULT_MAXOUT


def _usable_cpus() -> int:
    return len(os.sched_getaffinity(0))


@dataclass(frozen=True)
class Settings:
    """``shards`` completion queues, ``deadsecs`` seconds that a request may wait (0: for ever), ``maxout`` commands in
    flight per target, ``allow_mac`` the only MACs to talk to (empty: all), ``max_targets`` at once.
    """

    shards: int = field(default_factory=_usable_cpus)
    deadsecs: float = DEFAULT_DEADSECS
    maxout: int = DEFAULT_MAXOUT
    allow_mac: frozenset[bytes] = frozenset()
    max_targets: int = 1024
