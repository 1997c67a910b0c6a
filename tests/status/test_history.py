"""Rates, latencies and sameness from the statuses of a real engine."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from aoefs.core.latency import bucket_of, lower_bound_us, percentile_us
from aoefs.status.history import LENGTH, History
from tests.status.records import SNAPSHOTS, statuses


def history_of(*snapshots: dict[str, Any], seconds: float = 1.0) -> History:
    history = History()
    for number, status in enumerate(snapshots):
        history.add(status, 100.0 + number * seconds)
    return history


def changed(status: dict[str, Any], **fields: Any) -> dict[str, Any]:
    """The same status with other values in the record of e0.0."""
    copied = copy.deepcopy(status)
    copied["targets"][0] |= fields
    return copied


def test_a_rate_is_what_a_counter_grew_by_in_the_time_between_two_statuses() -> None:
    before, now = statuses()[3:5]
    trend = history_of(before, now, seconds=2.0).targets["e0.0"]
    assert trend.per_second("read_bytes") == 4 * 128 * 512 / 2
    assert trend.per_second("reads", "writes") == 4 / 2
    assert list(trend.read_rates) == [4 * 128 * 512 / 2]


def test_one_status_has_no_rates_and_the_latencies_since_the_mount() -> None:
    trend = history_of(statuses()[4]).targets["e0.0"]
    assert trend.per_second("reads") is None
    assert not trend.read_rates
    assert trend.latency_us(0.99, "read") == trend.record["read_latency_us"]["p99"]


def test_latencies_are_those_of_the_last_interval_only() -> None:
    slow, fast = bucket_of(500_000), bucket_of(100)
    before, now = [0] * (slow + 1), [0] * (slow + 1)
    before[slow] = now[slow] = 1000
    now[fast] = 3
    history = history_of(
        changed(statuses()[4], reads=1000, read_latency_us={"histogram": before}),
        changed(statuses()[4], reads=1003, read_latency_us={"histogram": now}),
    )
    for share in (0.5, 0.99):
        latency = history.targets["e0.0"].latency_us(share, "read", "write")
        assert latency is not None
        assert lower_bound_us(fast) <= latency < lower_bound_us(fast + 1)


def test_reads_and_writes_count_together_for_a_latency_of_both() -> None:
    snapshots = statuses()
    trend = history_of(snapshots[3], snapshots[4]).targets["e0.1"]
    assert trend.latency_us(0.5, "read") is None
    both = trend.latency_us(0.5, "read", "write")
    assert both is not None
    assert both == trend.latency_us(0.5, "write")
    last = history_of(snapshots[-1]).targets["e0.1"].record["write_latency_us"]
    assert percentile_us(last["histogram"], 0.99) == last["p99"]


def test_an_interval_without_requests_has_no_latency() -> None:
    status = statuses()[4]
    assert history_of(status, status).targets["e0.0"].latency_us(0.5, "read", "write") is None


@pytest.mark.parametrize("fields", [{"serial": "another disk"}, {"reads": 0}, {"read_bytes": 1}])
def test_another_disk_or_another_counting_begins_again(fields: dict[str, Any]) -> None:
    before, now = statuses()[3:5]
    trend = history_of(before, changed(now, **fields)).targets["e0.0"]
    assert trend.per_second("read_bytes") is None


def test_a_target_that_goes_is_forgotten_and_one_that_comes_begins() -> None:
    before, now = statuses()[3:5]
    less = {**before, "targets": before["targets"][1:]}
    history = history_of(before, less, now)
    assert list(history.targets) == [target["name"] for target in now["targets"]]
    assert history.targets["e0.0"].per_second("reads") is None
    assert history.targets["e0.1"].per_second("writes") is not None


def test_the_rates_of_the_mount_are_those_of_all_its_targets() -> None:
    history = history_of(*statuses())
    assert list(history.read_rates)[:5] == [number * 128 * 512 + 512 for number in range(1, 6)]
    assert list(history.write_rates)[:5] == [number * 64 * 512 for number in range(1, 6)]
    assert len(history.read_rates) == SNAPSHOTS - 1


def test_the_past_is_bounded() -> None:
    status = statuses()[4]
    history = history_of(*[status] * (LENGTH + 10))
    assert len(history.read_rates) == len(history.targets["e0.0"].read_rates) == LENGTH


def test_links_and_shards_have_rates_too() -> None:
    before, now = statuses()[3:5]
    history = history_of(before, now)
    grown = now["links"][0]["rx_frames"] - before["links"][0]["rx_frames"]
    assert history.links["seg0"].per_second("rx_frames") == grown > 0
    assert (history.shards[0].per_second("completed") or 0) > 0


def test_a_status_of_an_older_mount_without_a_field_is_no_failure() -> None:
    status = {"pid": 1, "targets": [{"name": "e0.0", "size": 1, "state": "up", "paths": []}]}
    trend = history_of(status, status).targets["e0.0"]
    assert trend.per_second("read_bytes") == 0
    assert trend.latency_us(0.5, "read") is None
