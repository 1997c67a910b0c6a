"""A target that does not answer: suspended, down, and back."""

from __future__ import annotations

import pytest

from aoefs.core.life import State
from aoefs.core.recovery import MIN_RTO
from aoefs.core.target import SILENCE
from aoefs.errors import TargetLost
from tests.core.targets import Losing, pair
from tests.pair import RTT, Operation
from tests.segment import Faults, lba_of


@pytest.mark.parametrize("deadsecs", [0.7, 1.3, 1.9])
@pytest.mark.parametrize("start", [0.0, 0.1, 12345.3])
def test_a_request_fails_exactly_deadsecs_after_its_first_sending(deadsecs: float, start: float) -> None:
    made = pair(warm=False, deadsecs=deadsecs)
    made.now = start
    made.wires[0].segment.lose = lambda frame: True
    read = made.read(0, 4)
    made.run(start + 100, done=[read])
    assert read.ended_at == start + deadsecs
    assert isinstance(read.error, TargetLost)
    assert made.target.life.state is State.DOWN


def test_with_deadsecs_0_a_request_never_expires() -> None:
    made = pair(deadsecs=0.0)
    made.wires[0].segment.schedule = [(5000.0, Faults(loss=1.0))]
    read = made.read(0, 4)
    made.run(5000.0)
    assert read.ended_at is None
    assert made.target.life.is_served
    made.finish(read)
    assert made.now < 5002.0


@pytest.mark.parametrize("bufcnt", [1, 16])
def test_one_request_may_expire_while_the_target_answers_others(bufcnt: int) -> None:
    made = pair(deadsecs=1.0, bufcnt=bufcnt)
    made.wires[0].segment.lose = lambda frame: lba_of(frame) == 6
    stuck = made.read(6, 1)
    for number in range(20):
        made.call(1.0 + number * 0.1, lambda: made.read(0, 1))
    made.run(10.0)
    assert stuck.ended_at == 2.0
    assert made.target.statistics().state == "up"
    assert all(operation.good for operation in made.operations[0] if operation is not stuck)


def test_after_late_answers_a_lost_frame_is_sent_again_before_deadsecs() -> None:
    made = pair(deadsecs=4.0)
    made.target.paths[0].rtt.late(30.0)
    made.wires[0].segment.lose = Losing(lambda frame: True)
    made.finish(made.read(0, 2))
    assert made.now <= 1.0 + 4.0 / 2


def test_a_silent_target_goes_down_and_all_that_waits_fails_in_order() -> None:
    made = pair(deadsecs=1.0, bufcnt=2)
    made.wires[0].segment.lose = lambda frame: True
    operations = [made.read(number, 4) for number in range(5)]
    made.run(100, done=operations)
    assert [operation.ended_at for operation in operations] == [2.0] * 5
    assert all(isinstance(operation.error, TargetLost) for operation in operations)


@pytest.mark.parametrize("abandoned", [False, True])
def test_a_silent_target_goes_down_though_nothing_waits_any_more(abandoned: bool) -> None:
    """An answer that came just after the last request was sent ends its silence later than that request ends."""
    made = pair(deadsecs=4.0)
    made.wires[0].segment.lose = lambda frame: lba_of(frame) == 8
    lost = made.read(8, 1)
    made.finish(made.read(0, 1))
    made.wires[0].segment.lose = lambda frame: True
    if abandoned:
        made.run(2.5)
        assert made.target.is_silent
        made.abandon(lost)
    made.run(1.0 + RTT + 4.0)
    assert not made.target.requests()
    assert made.target.life.state is State.DOWN


def test_a_target_that_was_idle_is_suspended_for_deadsecs_before_it_is_down() -> None:
    made = pair(deadsecs=4.0)
    made.run(1000.0)
    made.wires[0].segment.lose = lambda frame: True
    made.target.suspend(made.now)
    made.run(1003.9)
    made.target.suspend(made.now)
    assert made.target.life.is_served
    made.run(1004.0)
    assert made.target.life.state is State.DOWN


def test_a_target_that_is_down_fails_new_requests_at_once_and_sends_nothing() -> None:
    made = pair(deadsecs=1.0)
    made.target.give_up(TargetLost("down"))
    read = made.read(0, 1)
    assert read.ended_at == 1.0
    assert isinstance(read.error, TargetLost)
    assert not made.sent


def test_an_idle_target_is_not_silent() -> None:
    made = pair(deadsecs=1.0)
    made.run(1000.0)
    read = made.read(0, 1)
    made.finish(read)
    assert read.ended_at == 1000.0 + RTT


def test_a_silent_target_gets_nothing_until_it_is_identified() -> None:
    made = pair()
    made.wires[0].segment.lose = lambda frame: True
    read = made.read(0, 1)
    made.run(10.0)
    assert made.target.life.state is State.STALLED
    assert max(sent.at for sent in made.sent) <= 1.0 + 2 * SILENCE
    made.wires[0].segment.lose = None
    made.finish(read, within=1.1)
    assert made.target.statistics().state == "up"
    assert made.target.paths[0].rtt.rto == MIN_RTO


def test_the_neighbours_of_a_silent_target_behind_the_same_mac_never_notice() -> None:
    made = pair(targets=3, deadsecs=1.0)
    made.wires[0].segment.lose = lambda frame: frame[18] == 1  # slot 1
    dead = [made.read(number, 8, 1) for number in range(20)]
    alive: list[Operation] = []

    def read() -> None:
        alive.append(made.read(len(alive) % 100, 8, len(alive) % 2 * 2))

    for number in range(300):
        made.call(1.0 + number * 0.01, read)
    made.run(1.0 + 0.01 * 300)
    assert all(isinstance(operation.error, TargetLost) for operation in dead)
    assert len(alive) == 300
    waits = [
        operation.ended_at - operation.asked_at for operation in alive if operation.ended_at and operation.asked_at
    ]
    assert waits == pytest.approx([RTT] * 300)
