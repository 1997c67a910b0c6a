"""How long requests take: a histogram per target, from which percentiles are read.

Pure.  A bucket is a quarter of an octave of whole microseconds, so a percentile is right to an eighth.  Counts only
grow, so the difference of two snapshots is the histogram of the time between them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

BUCKETS: Final = 112  # the last one begins at 2**29 us, about nine minutes, and takes all that is longer


def bucket_of(latency_us: int) -> int:
    """The bucket of a latency in whole microseconds: 0 to 3 have one each, then four to an octave."""
    if latency_us < 4:
        return max(0, latency_us)
    shift = latency_us.bit_length() - 3
    return min((shift << 2) + (latency_us >> shift), BUCKETS - 1)


def lower_bound_us(bucket: int) -> int:
    """The least latency of a bucket (microseconds)."""
    if bucket < 8:
        return bucket
    shift = (bucket >> 2) - 1
    return (4 + (bucket & 3)) << shift


def percentile_us(counts: Sequence[int], share: float) -> float:
    """The latency (microseconds) that ``share`` (0 to 1) of all requests do not exceed: the middle of its bucket.

    0.0 without any request.
    """
    wanted = share * sum(counts)
    seen = 0
    for bucket, count in enumerate(counts):
        seen += count
        if seen >= wanted > 0:
            return (lower_bound_us(bucket) + lower_bound_us(bucket + 1)) / 2
    return 0.0
