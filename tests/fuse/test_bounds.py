"""The bounds of a mount, shared out among its processes."""

from __future__ import annotations

from dataclasses import fields

import pytest

from aoefs.core.memory import DEFAULT_SECTORS
from aoefs.fuse import bounds, readahead, tuning
from aoefs.fuse.bounds import Bounds
from aoefs.fuse.options import MountOptions
from aoefs.protocol.wire import ALL, Share
from aoefs.status.events import MAX_EVENTS

LEAST = {
    "shards": 1,
    "read_sectors": bounds.LEAST_READ_SECTORS,
    "read_ahead_chunks": readahead.DEPTH,
    "background": bounds.LEAST_BACKGROUND,
    "most_background": bounds.LEAST_MOST_BACKGROUND,
    "kept_bytes": bounds.LEAST_KEPT_BYTES,
    "events": bounds.LEAST_EVENTS,
}


def bounds_of(share: Share) -> Bounds:
    options = MountOptions(mountpoint="/mnt/aoe", uid=0, gid=0, shards=8, max_targets=1001)
    return bounds.bounds(options, share)


def test_one_process_has_all() -> None:
    assert bounds_of(ALL) == Bounds(
        max_targets=1001,
        shards=8,
        read_sectors=DEFAULT_SECTORS,
        read_ahead_chunks=readahead.MAX_CHUNKS,
        background=tuning.MAX_BACKGROUND,
        most_background=tuning.MOST_BACKGROUND,
        kept_bytes=tuning.KEPT_BYTES,
        events=MAX_EVENTS,
    )


@pytest.mark.parametrize("count", [2, 3, 4, 8, 64])
def test_all_processes_together_have_no_more_unless_it_is_the_least(count: int) -> None:
    parts = [bounds_of(Share(number, count)) for number in range(count)]
    assert sum(part.max_targets for part in parts) == 1001
    assert max(part.max_targets for part in parts) - min(part.max_targets for part in parts) <= 1
    assert {field.name for field in fields(Bounds)} == {"max_targets", *LEAST}
    for name, least in LEAST.items():
        whole, shares = getattr(bounds_of(ALL), name), [getattr(part, name) for part in parts]
        assert min(shares) >= least
        assert sum(shares) <= whole or set(shares) == {least}
