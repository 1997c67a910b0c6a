"""What changed between two pictures of a mount: rates, latencies of the last interval, and a short past of both.

Pure: statuses (the objects of ``.aoefs/status.json``) and times in, numbers out.  Counters only grow, so a difference
is what happened between two looks.  What is compared is the same thing: a disk that was exchanged, a link that was
opened anew, or a shard of another mount begins a trend of its own.  Percentiles are worked out only when asked for,
since of a thousand targets a screen shows forty.

Rejected: rates made by the mount itself (each reader wants its own interval, and nobody may be reading).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import Any

from aoefs.core.latency import percentile_us

LENGTH = 120  # intervals that are remembered

Record = Mapping[str, Any]

_COUNTERS = ("reads", "writes", "read_bytes", "write_bytes", "completed", "rx_frames", "tx_frames")


class Trend:
    """One target, path, shard or link over time: its last ``record`` and how that differs from the one before."""

    def __init__(self, record: Record) -> None:
        self.record = record
        self.read_rates: deque[float] = deque(maxlen=LENGTH)  # bytes per second, the newest last
        self.write_rates: deque[float] = deque(maxlen=LENGTH)
        self._before: Record | None = None
        self._seconds = 0.0

    def add(self, record: Record, seconds: float) -> None:
        """What it is ``seconds`` (more than 0) after the last record."""
        self._before, self.record, self._seconds = self.record, record, seconds
        if "read_bytes" in record:
            self.read_rates.append(self.per_second("read_bytes") or 0.0)
            self.write_rates.append(self.per_second("write_bytes") or 0.0)

    def per_second(self, *counters: str) -> float | None:
        """How fast the sum of these counters grew in the last interval; None with nothing to compare."""
        if self._before is None:
            return None
        grown: int = sum(self.record.get(name, 0) - self._before.get(name, 0) for name in counters)
        return grown / self._seconds

    def latency_us(self, share: float, *kinds: str) -> float | None:
        """The latency (microseconds) that ``share`` of the requests of the last interval did not exceed.

        ``kinds`` are "read", "write" or both; before a second record came it is over all requests since the mount.
        None if there were none.
        """
        counts: list[int] = []
        for kind in kinds:
            if self._before is None or self._before.get(f"{kind}s") != self.record.get(f"{kind}s"):
                counts = _plus(counts, self._new(f"{kind}_latency_us"))
        return percentile_us(counts, share) if any(counts) else None

    def _new(self, name: str) -> list[int]:
        now = _histogram(self.record, name)
        before = () if self._before is None else _histogram(self._before, name)
        return _plus(now, [-count for count in before])


def _histogram(record: Record, name: str) -> Sequence[int]:
    counts: Sequence[int] = record.get(name, {}).get("histogram", ())
    return counts


def _plus(one: Sequence[int], other: Sequence[int]) -> list[int]:
    return [left + right for left, right in zip_longest(one, other, fillvalue=0)]


def _is_same(one: Record, other: Record) -> bool:
    """Whether both are about the same thing, with counters that went on."""
    same = all(one.get(name) == other.get(name) for name in ("serial", "model", "mac"))
    return same and all(one.get(name, 0) <= other.get(name, 0) for name in _COUNTERS)


class History:
    """All trends of one mount, in the order of the last status."""

    def __init__(self) -> None:
        self.status: Record = {}
        self.targets: dict[str, Trend] = {}
        self.shards: dict[int, Trend] = {}
        self.links: dict[str, Trend] = {}
        self.read_rates: deque[float] = deque(maxlen=LENGTH)  # of all targets
        self.write_rates: deque[float] = deque(maxlen=LENGTH)
        self._at = 0.0

    def add(self, status: Record, now: float) -> None:
        """A new picture, taken at ``now`` (seconds, later than the one before)."""
        seconds = now - self._at if self.status else 0.0
        self.targets = _follow(self.targets, status.get("targets", ()), "name", seconds)
        self.shards = _follow(self.shards, status.get("shards", ()), "id", seconds)
        self.links = _follow(self.links, status.get("links", ()), "interface", seconds)
        if seconds > 0:
            self.read_rates.append(sum(trend.per_second("read_bytes") or 0.0 for trend in self.targets.values()))
            self.write_rates.append(sum(trend.per_second("write_bytes") or 0.0 for trend in self.targets.values()))
        self.status, self._at = status, now


def _follow(old: Mapping[Any, Trend], records: Sequence[Record], key: str, seconds: float) -> dict[Any, Trend]:
    trends = {}
    for record in records:
        trend = old.get(record[key])
        if trend is None or seconds <= 0 or not _is_same(trend.record, record):
            trend = Trend(record)
        else:
            trend.add(record, seconds)
        trends[record[key]] = trend
    return trends
