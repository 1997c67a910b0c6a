"""Estimator, window and reordering window: arithmetic with times that the test chooses."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aoefs.core.recovery import (
    INITIAL_RTO,
    MAX_BACKOFF,
    MAX_RTO,
    MIN_REORDER,
    MIN_RTO,
    REORDER_DECAY,
    RESTART_WINDOW,
    CongestionWindow,
    ReorderWindow,
    RttEstimator,
)

# ── round trip ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_before_the_first_sample_the_rto_has_its_start_value() -> None:
    rtt = RttEstimator()
    assert (rtt.srtt, rtt.rto, rtt.longest) == (0.0, INITIAL_RTO, 0.0)


def test_the_first_sample_sets_srtt_and_half_of_it_as_variation() -> None:
    rtt = RttEstimator()
    rtt.sample(0.5)
    assert (rtt.srtt, rtt.rttvar, rtt.rto) == (0.5, 0.25, 1.5)


def test_later_samples_move_the_estimate_as_rfc_6298_says() -> None:
    rtt = RttEstimator()
    rtt.sample(0.5)
    rtt.sample(1.0)
    assert rtt.rttvar == 0.25 + (0.5 - 0.25) / 4  # with the old SRTT
    assert rtt.srtt == 0.5 + 0.5 / 8
    assert rtt.rto == rtt.srtt + 4 * rtt.rttvar


def test_the_rto_of_a_lan_is_the_floor_and_never_less() -> None:
    rtt = RttEstimator()
    for _ in range(100):
        rtt.sample(0.0001)
    assert rtt.rto == MIN_RTO


@given(st.lists(st.floats(0.0, 100.0), min_size=1))
def test_the_rto_stays_within_its_bounds_whatever_the_samples(samples: list[float]) -> None:
    rtt = RttEstimator()
    for sample in samples:
        rtt.sample(sample)
        assert MIN_RTO <= rtt.rto <= MAX_RTO
    assert rtt.longest == max(samples)


def test_each_timeout_doubles_the_rto_up_to_the_bound_and_a_sample_ends_that() -> None:
    rtt = RttEstimator()
    rtt.sample(0.0001)
    seen = []
    for _ in range(11):
        rtt.on_timeout()
        seen.append(rtt.rto)
    assert seen == [min(MIN_RTO * 2**power, MAX_BACKOFF) for power in range(1, 12)]
    assert rtt.backoff == 11
    rtt.sample(0.0001)
    assert (rtt.backoff, rtt.rto) == (0, MIN_RTO)


def test_a_slow_disk_backs_off_to_eight_times_its_own_rto() -> None:
    rtt = RttEstimator()
    rtt.sample(0.05)
    base = rtt.rto
    for _ in range(11):
        rtt.on_timeout()
    assert rtt.rto == 8 * base > MAX_BACKOFF


def test_an_estimator_with_a_bound_of_its_own_never_waits_longer() -> None:
    rtt = RttEstimator(1.0)
    rtt.late(60.0)
    rtt.on_timeout()
    assert (rtt.longest, rtt.rto) == (60.0, 1.0)


def test_ending_a_backoff_goes_back_to_the_rto_of_the_samples() -> None:
    rtt = RttEstimator()
    rtt.sample(0.5)
    rtt.on_timeout()
    assert rtt.rto == 3.0
    rtt.end_backoff()
    assert (rtt.backoff, rtt.rto) == (0, 1.5)


def test_an_rto_that_nothing_confirms_comes_down_to_the_initial_one_by_halves() -> None:
    rtt = estimator(0.75)
    rtt.late(30.0)
    seen = [rtt.rto]
    while rtt.rto > INITIAL_RTO:
        rtt.rest()
        seen.append(rtt.rto)
    assert seen == pytest.approx([4.0, 2.0, 1.0, 0.5, 0.25, INITIAL_RTO])
    rtt.rest()
    assert rtt.rto == INITIAL_RTO


def test_an_rto_below_the_initial_one_stays() -> None:
    rtt = estimator(0.001)
    before = (rtt.srtt, rtt.rttvar, rtt.rto)
    rtt.rest()
    assert (rtt.srtt, rtt.rttvar, rtt.rto) == before


def test_a_late_answer_is_evidence_of_a_long_life_and_a_bounded_sample() -> None:
    rtt = RttEstimator()
    rtt.sample(0.0001)
    rtt.on_timeout()
    rtt.late(60.0)
    assert rtt.longest == 60.0
    assert rtt.srtt < MAX_RTO
    assert (rtt.backoff, rtt.rto) == (0, MAX_RTO)


# ── congestion window ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_window_begins_with_half_the_limit_and_is_never_zero() -> None:
    assert CongestionWindow(16).size == 8
    assert CongestionWindow(1).size == CongestionWindow(0).size == 1


def test_slow_start_grows_by_what_is_answered_up_to_the_limit() -> None:
    window = CongestionWindow(16)
    window.on_answered(3)
    assert window.size == 11
    window.on_answered(100)
    assert window.size == 16


def test_after_a_reduction_the_window_grows_by_an_eighth_of_its_limit_per_window_answered() -> None:
    window = CongestionWindow(16)
    window.on_loss(sent_at=1.0, now=2.0)
    assert window.size == window.ssthresh == 4
    window.on_answered(3)
    assert window.size == 4
    window.on_answered(1)
    assert window.size == 6


def test_a_round_trip_costs_one_reduction_however_much_of_it_is_lost() -> None:
    window = CongestionWindow(64)
    assert window.on_loss(sent_at=1.0, now=2.0)
    assert not window.on_loss(sent_at=1.5, now=2.1)
    assert not window.on_loss(sent_at=2.0, now=2.1)
    assert window.size == 16
    assert window.on_loss(sent_at=2.05, now=3.0)
    assert (window.size, window.reductions) == (8, 2)


def test_a_collapse_leaves_a_few_commands() -> None:
    window = CongestionWindow(64)
    window.collapse(1.0)
    assert window.size == RESTART_WINDOW
    window.on_answered(1)
    assert window.size == RESTART_WINDOW + 1  # slow start again, up to ssthresh


def test_a_loss_that_was_none_is_taken_back() -> None:
    window = CongestionWindow(64)
    window.on_loss(sent_at=1.0, now=2.0)
    window.undo(sent_at=1.0)
    assert (window.size, window.ssthresh) == (32, 64)


def test_what_was_sent_after_the_reduction_takes_nothing_back() -> None:
    window = CongestionWindow(64)
    window.on_loss(sent_at=1.0, now=2.0)
    window.undo(sent_at=2.5)
    assert window.size == 16


def test_a_larger_limit_may_be_grown_into_and_a_smaller_one_holds_at_once() -> None:
    window = CongestionWindow(8)
    window.set_limit(32)
    window.on_answered(100)
    assert window.size == 32
    window.set_limit(4)
    assert window.size == 4
    window.set_limit(0)
    assert window.size == 1


@given(
    st.integers(0, 100),
    st.lists(
        st.one_of(
            st.tuples(st.just("answered"), st.integers(1, 64)),
            st.tuples(st.just("loss"), st.integers(0, 5)),
            st.tuples(st.just("collapse"), st.just(0)),
            st.tuples(st.just("undo"), st.integers(0, 5)),
            st.tuples(st.just("limit"), st.integers(0, 100)),
        )
    ),
)
def test_the_window_stays_between_one_and_the_limit_whatever_happens(limit: int, events: list[tuple[str, int]]) -> None:
    window = CongestionWindow(limit)
    for now, (event, value) in enumerate(events):
        if event == "answered":
            window.on_answered(value)
        elif event == "loss":
            window.on_loss(now - value, now)
        elif event == "collapse":
            window.collapse(now)
        elif event == "undo":
            window.undo(now - value)
        else:
            window.set_limit(value)
        assert 1 <= window.size <= window.limit


# ── reordering ────────────────────────────────────────────────────────────────────────────────────────────────────────


def estimator(srtt: float) -> RttEstimator:
    rtt = RttEstimator()
    for _ in range(200):
        rtt.sample(srtt)
    return rtt


def test_the_reordering_window_begins_with_a_quarter_of_the_round_trip() -> None:
    assert ReorderWindow().duration(estimator(0.5)) == pytest.approx(0.125)


def test_it_is_never_shorter_than_what_can_be_observed() -> None:
    assert ReorderWindow().duration(estimator(0.0001)) == MIN_REORDER


def test_each_late_answer_doubles_it_up_to_the_rto() -> None:
    reorder, rtt = ReorderWindow(), estimator(0.5)
    reorder.widen(0.0)
    assert reorder.duration(rtt) == pytest.approx(0.25)
    for _ in range(20):
        reorder.widen(0.0)
    assert reorder.duration(rtt) == rtt.rto


def test_it_halves_after_each_ten_quiet_seconds_down_to_its_start() -> None:
    reorder = ReorderWindow()
    reorder.widen(0.0)
    reorder.widen(0.0)
    now, seen = 0.0, []
    for _ in range(4):
        seen.append(reorder.factor)
        now += REORDER_DECAY + 0.1
        reorder.rest(now)
    assert seen == [1.0, 0.5, 0.25, 0.25]
