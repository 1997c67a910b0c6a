"""Late duplicates: how long the sectors of a retransmitted write stay claimed."""

from __future__ import annotations

import pytest

from aoefs.core.path import FRAME_LIFETIME
from aoefs.core.recovery import MIN_RTO
from aoefs.errors import TargetLost
from tests.core.targets import Losing, drop_link, pair, segments
from tests.pair import RTT, check_at_rest, stamp
from tests.segment import Faults, is_write


def test_a_write_that_was_sent_once_holds_nothing_back() -> None:
    made = pair()
    first, second = made.write(0, stamp(1)), made.write(0, stamp(2))
    made.finish(first, second)
    assert second.started_at == first.ended_at == 1.0 + RTT


def test_after_a_resent_write_overlapping_writes_wait_for_the_lifetime_of_a_frame() -> None:
    made = pair()
    made.wires[0].segment.lose = Losing(is_write)
    first, second, read, elsewhere = made.write(0, stamp(1)), made.write(0, stamp(2)), None, None
    made.finish(first)
    read, elsewhere = made.read(0, 1), made.write(1, stamp(3))
    made.finish(read, elsewhere)
    assert read.ended_at == elsewhere.ended_at == made.now  # neither reads nor neighbours wait
    made.finish(second)
    assert second.started_at == 1.0 + FRAME_LIFETIME  # from the sending of the copy that was never answered
    made.run()
    check_at_rest(made)


def test_a_range_is_free_when_each_copy_of_its_write_was_answered() -> None:
    made = pair()
    segment = made.wires[0].segment
    segment.hold = lambda frame: 3 * MIN_RTO if is_write(frame) and made.now == 1.0 else 0.0
    first, second = made.write(0, stamp(1)), made.write(0, stamp(2))
    made.finish(first, second)
    assert first.ended_at == 1.0 + MIN_RTO + RTT
    assert second.started_at == pytest.approx(1.0 + 3 * MIN_RTO + RTT, abs=1e-9)


@pytest.mark.parametrize("how", ["fails", "is abandoned"])
def test_a_write_that_ends_early_holds_back_overlapping_ones(how: str) -> None:
    made = pair()
    target = made.target
    write = made.write(0, stamp(1, 4))
    request = write.request
    assert request is not None
    if how == "fails":
        target.fail(request, TargetLost("no time"))
    else:
        target.abandon(request)
        write.ended_at = made.now
        claim = target.order.granted[0]
        target.release(claim, [request])
    second = made.write(0, stamp(2, 4))
    assert second.started_at is None
    made.finish(second)
    assert second.started_at == 1.0 + RTT  # all of its commands were answered
    assert made.stores[0].data[: 4 * 512] == stamp(2, 4)


def test_the_longest_delay_seen_on_a_path_prolongs_the_quarantine() -> None:
    made = pair()
    made.target.paths[0].rtt.longest = 1.5
    made.wires[0].segment.lose = Losing(is_write)
    first, second = made.write(0, stamp(1)), made.write(0, stamp(2))
    made.finish(first, second)
    assert second.started_at == 1.0 + 1.5


def test_a_delay_seen_only_meanwhile_prolongs_the_quarantine_too() -> None:
    made = pair()
    made.wires[0].segment.lose = Losing(is_write)
    first, second = made.write(0, stamp(1)), made.write(0, stamp(2))
    made.finish(first)
    made.run(1.3)
    made.target.paths[0].rtt.longest = 0.75
    made.finish(second)
    assert second.started_at == 1.0 + 0.75


def test_a_write_moved_from_a_lost_link_holds_back_overlapping_ones() -> None:
    made = pair(*segments(2))
    made.wires[0].segment.lose = made.wires[1].segment.lose = lambda frame: made.now == 1.0
    first, second = made.write(0, stamp(1)), made.write(0, stamp(2))
    drop_link(made.target, made.sent[0].wire)
    made.pump()
    made.finish(first)
    assert first.ended_at is not None
    made.finish(second)
    assert second.started_at is not None
    assert second.started_at >= 1.0 + FRAME_LIFETIME


def test_a_backed_off_rto_holds_nothing_back_any_more_when_the_target_is_back() -> None:
    made = pair(deadsecs=8.0)
    for _ in range(60):
        made.target.paths[0].rtt.sample(0.5)
    made.wires[0].segment.schedule = [(9.5, Faults(loss=1.0))]
    first = made.write(0, stamp(1))
    made.run(9.5, done=[first])
    assert isinstance(first.error, TargetLost)
    assert made.target.paths[0].rtt.rto >= 2.0
    made.run(10.25)
    second = made.write(0, stamp(2))
    made.finish(second)
    assert second.started_at == 10.25
