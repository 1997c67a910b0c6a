"""What one process of a mount may use: the bounds of the whole mount, shared out among its processes.

Pure.  Workers start on demand, so each process always keeps to its part of what all of them together may use, whether
the others run or not.  A part is never less than what a process needs to work, so with many workers the whole may have
more memory than one process would.  What a user sets is kept to: the parts of ``--max-targets`` add up to it.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from aoefs.core.memory import DEFAULT_SECTORS
from aoefs.fuse import readahead, tuning
from aoefs.fuse.options import MountOptions
from aoefs.protocol.wire import SECTOR_BYTES, Share
from aoefs.status.events import MAX_EVENTS

LEAST_READ_SECTORS = (4 << 20) // SECTOR_BYTES
LEAST_BACKGROUND = 12  # the kernel's default
LEAST_MOST_BACKGROUND = 64  # what one target takes at once (--maxout)
LEAST_KEPT_BYTES = 2 << 20  # one write of 1 MiB and what is beside it
LEAST_EVENTS = 100


@dataclass(frozen=True, slots=True)
class Bounds:
    """``shards`` completion queues; ``read_sectors`` of all reads under way; ``read_ahead_chunks`` of all open files;
    ``background`` requests of the kernel at once, ``most_background`` with those that cost no memory; ``kept_bytes`` of
    freed memory; ``events`` that are remembered.
    """

    max_targets: int
    shards: int
    read_sectors: int
    read_ahead_chunks: int
    background: int
    most_background: int
    kept_bytes: int
    events: int


def bounds(options: MountOptions, share: Share) -> Bounds:
    """Those of the process that has this share."""

    def part(whole: int, least: int = 1) -> int:
        return whole if share.of == 1 else max(least, whole // share.of)

    return Bounds(
        max_targets=(options.max_targets + share.of - 1 - share.number) // share.of,
        shards=part(options.shards or len(os.sched_getaffinity(0))),
        read_sectors=part(DEFAULT_SECTORS, LEAST_READ_SECTORS),
        read_ahead_chunks=part(readahead.MAX_CHUNKS, readahead.DEPTH),
        background=part(tuning.MAX_BACKGROUND, LEAST_BACKGROUND),
        most_background=part(tuning.MOST_BACKGROUND, LEAST_MOST_BACKGROUND),
        kept_bytes=part(tuning.KEPT_BYTES, LEAST_KEPT_BYTES),
        events=part(MAX_EVENTS, LEAST_EVENTS),
    )
