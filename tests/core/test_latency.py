"""Latency histograms: buckets that cover everything, percentiles within an eighth."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from aoefs.core.latency import BUCKETS, bucket_of, lower_bound_us, percentile_us

latencies = st.integers(0, 2**40)


@given(st.integers(0, 2**29 - 1))
def test_a_latency_lies_in_its_bucket(latency_us: int) -> None:
    bucket = bucket_of(latency_us)
    assert lower_bound_us(bucket) <= latency_us < lower_bound_us(bucket + 1)


def test_buckets_follow_one_another_without_a_gap() -> None:
    bounds = [lower_bound_us(bucket) for bucket in range(BUCKETS)]
    assert bounds == sorted(set(bounds))
    assert [bucket_of(bound) for bound in bounds] == list(range(BUCKETS))


@given(latencies)
def test_whatever_takes_very_long_has_a_bucket_too(latency_us: int) -> None:
    assert 0 <= bucket_of(latency_us) < BUCKETS


@given(st.lists(st.integers(8, 2**29 - 1), min_size=1, max_size=50), st.sampled_from((0.5, 0.99)))
def test_a_percentile_is_right_to_an_eighth(samples: list[int], share: float) -> None:
    counts = [0] * BUCKETS
    for sample in samples:
        counts[bucket_of(sample)] += 1
    ranked = sorted(samples)
    rank = next(index for index in range(len(ranked)) if index + 1 >= share * len(ranked))
    assert abs(percentile_us(counts, share) - ranked[rank]) <= ranked[rank] / 8


def test_nothing_measured_has_the_percentile_zero() -> None:
    assert percentile_us([0] * BUCKETS, 0.5) == 0.0
