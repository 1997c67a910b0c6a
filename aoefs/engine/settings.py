"""The settings of an engine."""

from __future__ import annotations

from dataclasses import dataclass

from aoefs.core.target import DEFAULT_DEADSECS, DEFAULT_MAXOUT


@dataclass(frozen=True)
class Settings:
    """``shards`` completion queues (None: one per usable CPU); ``deadsecs`` seconds that a request may wait (0: no
    limit); ``maxout`` commands in flight per target; ``allow_mac`` the only MACs to talk to (empty: all);
    ``max_targets`` at once.
    """

    shards: int | None = None
    deadsecs: float = DEFAULT_DEADSECS
    maxout: int = DEFAULT_MAXOUT
    allow_mac: frozenset[bytes] = frozenset()
    max_targets: int = 1024
