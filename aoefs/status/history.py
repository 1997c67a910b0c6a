"""What changed from one status of a mount to the next: rates, latencies of the last interval, and their recent past.

Pure: statuses (the objects of ``.aoefs/status.json``) and times in, numbers out.  Counters only grow, so their
difference is what happened in the interval.  A disk that was replaced, a link that was opened again and a shard of
another mount begin a trend of their own.  Percentiles are computed only on request, since a screen shows forty of a
thousand targets.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Mapping, Sequence
from itertools import zip_longest
from typing import Any, TypeVar

from aoefs.core.latency import lower_bound_us, percentile_us

LENGTH = 120  # intervals that are kept

Record = Mapping[str, Any]

_COUNTERS = ("reads", "writes", "read_bytes", "write_bytes", "completed", "rx_frames", "tx_frames", "sent", "answered")

Key = TypeVar("Key", bound=Hashable)


class Trend:
    """One target, shard or link over time: its last ``record`` and how that differs from the one before."""

    def __init__(self, record: Record) -> None:
        self.record = record
        self.read_rates: deque[float] = deque(maxlen=LENGTH)  # bytes per second, the newest last
        self.write_rates: deque[float] = deque(maxlen=LENGTH)
        self._before: Record | None = None
        self._seconds = 0.0

    def add(self, record: Record, seconds: float) -> None:
        """The next record, ``seconds`` (more than 0) after the last one."""
        self._before, self.record, self._seconds = self.record, record, seconds
        if "read_bytes" in record:
            self.read_rates.append(self.per_second("read_bytes") or 0.0)
            self.write_rates.append(self.per_second("write_bytes") or 0.0)

    def per_second(self, *counters: str) -> float | None:
        """How fast the sum of these counters grew in the last interval; None after the first record."""
        if self._before is None:
            return None
        grown: int = sum(self.record.get(name, 0) - self._before.get(name, 0) for name in counters)
        return grown / self._seconds

    def average_queue(self, *kinds: str) -> float | None:
        """How many requests were under way on average in the last interval: the sum of their latencies, by its time."""
        if self._before is None:
            return None
        counts = enumerate(self._latencies(*kinds))
        return sum(count * (lower_bound_us(i) + lower_bound_us(i + 1)) / 2 for i, count in counts) / self._seconds / 1e6

    def _latencies(self, *kinds: str) -> Sequence[int]:
        """The histogram of the last interval, or after the first record that since the mount."""
        before: Record = self._before or {}
        counts: list[int] = []
        for kind in kinds:
            if before.get(f"{kind}s") != self.record.get(f"{kind}s"):
                old = [-count for count in histogram(before, kind)]
                counts = _plus(counts, _plus(histogram(self.record, kind), old))
        return counts

    def latency_us(self, share: float, *kinds: str) -> float | None:
        """The latency (microseconds) that ``share`` of the requests of the last interval did not exceed.

        ``kinds`` are "read", "write" or both.  After the first record: of all requests since the mount.  None if there
        were no requests.
        """
        counts = self._latencies(*kinds)
        return percentile_us(counts, share) if any(counts) else None


def histogram(record: Record, kind: str) -> Sequence[int]:
    counts: Sequence[int] = record.get(f"{kind}_latency_us", {}).get("histogram", ())
    return counts


def _plus(one: Sequence[int], other: Sequence[int]) -> list[int]:
    return [left + right for left, right in zip_longest(one, other, fillvalue=0)]


def _is_same(one: Record, other: Record) -> bool:
    """Whether the second record continues the counters of the first."""
    same = all(one.get(name) == other.get(name) for name in ("serial", "model", "mac", "pid"))
    return same and all(one.get(name, 0) <= other.get(name, 0) for name in _COUNTERS)


class History:
    """All trends of one mount, in the order of the last status."""

    def __init__(self) -> None:
        self.status: Record = {}
        self.targets: dict[str, Trend] = {}
        self.shards: dict[int, Trend] = {}
        self.links: dict[str, Trend] = {}
        self.workers: dict[int, Trend] = {}
        self.paths: dict[tuple[str, str, str], Trend] = {}  # by target, interface and MAC
        self.read_rates: deque[float] = deque(maxlen=LENGTH)  # of all targets
        self.write_rates: deque[float] = deque(maxlen=LENGTH)
        self.cpu_share: float | None = None  # of one processor, in the last interval
        self._at = 0.0

    def add(self, status: Record, now: float) -> None:
        """The next status, read at ``now`` (seconds, later than the one before)."""
        seconds = now - self._at if self.status else 0.0
        targets = {target["name"]: target for target in status.get("targets", ())}
        self.targets = _follow(self.targets, targets, seconds)
        paths = {(name, path["interface"], path["mac"]): path for name in targets for path in targets[name]["paths"]}
        self.paths = _follow(self.paths, paths, seconds)
        self.shards = _follow(self.shards, {shard["id"]: shard for shard in status.get("shards", ())}, seconds)
        self.links = _follow(self.links, {link["interface"]: link for link in status.get("links", ())}, seconds)
        self.workers = _follow(self.workers, {one["id"]: one for one in status.get("workers", ())}, seconds)
        if seconds > 0:
            self.read_rates.append(sum(trend.per_second("read_bytes") or 0.0 for trend in self.targets.values()))
            self.write_rates.append(sum(trend.per_second("write_bytes") or 0.0 for trend in self.targets.values()))
            if "cpu_seconds" in status and "cpu_seconds" in self.status:
                self.cpu_share = (status["cpu_seconds"] - self.status["cpu_seconds"]) / seconds
        self.status, self._at = status, now


def _follow(old: Mapping[Key, Trend], records: Mapping[Key, Record], seconds: float) -> dict[Key, Trend]:
    trends = {}
    for key, record in records.items():
        trend = old.get(key)
        if trend is None or seconds <= 0 or not _is_same(trend.record, record):
            trend = Trend(record)
        else:
            trend.add(record, seconds)
        trends[key] = trend
    return trends
