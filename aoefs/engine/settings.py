"""The settings of an engine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from aoefs.core.memory import DEFAULT_SECTORS
from aoefs.core.target import DEFAULT_DEADSECS, DEFAULT_MAXOUT
from aoefs.protocol.wire import ALL, Address, Share


@dataclass(frozen=True)
class Settings:
    """``shards`` completion queues (None: one per usable CPU); ``deadsecs`` seconds that a request may wait (0: no
    limit); ``maxout`` commands in flight per target; ``allow_mac`` the only MACs to talk to (empty: all);
    ``max_targets`` at once; ``serials`` says which disk is meant where several answer for one address;
    ``fixed_paths``: a target has those found in its first second; ``busy_poll`` seconds for which the worker loop
    polls before it sleeps (0: never, None: adapts); ``slow`` seconds after which a call is logged when it ends
    (None: never); ``share``: the only targets that there are; ``read_sectors`` of all reads under way together.
    """

    shards: int | None = None
    deadsecs: float = DEFAULT_DEADSECS
    maxout: int = DEFAULT_MAXOUT
    allow_mac: frozenset[bytes] = frozenset()
    serials: Mapping[Address, str] = field(default_factory=dict)
    max_targets: int = 1024
    fixed_paths: bool = False
    busy_poll: float | None = None
    slow: float | None = None
    share: Share = ALL
    read_sectors: int = DEFAULT_SECTORS
