"""Lost commands: when a loss is seen, what is retransmitted, and what a late answer changes."""

from __future__ import annotations

import itertools

import pytest

from aoefs.core.health import Health
from aoefs.core.life import State
from aoefs.core.recovery import INITIAL_RTO, MIN_REORDER, MIN_RTO
from aoefs.core.target import SILENCE, SUSPEND_BACKOFF
from tests.core.targets import Losing, answer, ask, drain, pair, segments
from tests.pair import LATENCY, RTT, Operation, check_at_rest
from tests.segment import Faults, Segment, is_answer, is_request, lba_of


def test_a_lost_tail_costs_one_rto() -> None:
    made = pair()
    made.wires[0].segment.lose = Losing(lambda frame: is_request(frame) and lba_of(frame) == 6)
    read = made.read(0, 8)
    made.finish(read)
    first, again = (sent for sent in made.sent if sent.lba == 6)
    assert again.at == 1.0 + RTT + MIN_RTO  # an RTO after the last answer
    assert read.ended_at == again.at + RTT
    assert again.tag != first.tag
    assert len(made.sent) == 5


def test_a_lone_lost_command_costs_one_rto() -> None:
    made = pair()
    made.wires[0].segment.lose = Losing(is_answer)
    made.finish(made.read(0, 1))
    assert [sent.at for sent in made.sent] == [1.0, 1.0 + MIN_RTO]


def test_a_hole_is_seen_by_order_in_about_a_round_trip() -> None:
    made = pair()
    made.wires[0].segment.lose = Losing(lambda frame: is_answer(frame) and lba_of(frame) == 2)
    read = made.read(0, 8)
    made.finish(read)
    again = made.sent[-1]
    assert (again.lba, again.at) == (2, 1.0 + RTT + MIN_REORDER)
    assert read.ended_at == again.at + RTT
    assert made.target.paths[0].rtt.backoff == 0


def test_a_hole_across_requests_is_seen_by_order_too() -> None:
    made = pair()
    made.wires[0].segment.lose = Losing(is_request)
    lost, other = made.read(0, 1), made.read(9, 1)
    made.finish(lost, other)
    assert other.ended_at == 1.0 + RTT
    assert lost.ended_at == 1.0 + 2 * RTT + MIN_REORDER


def test_a_command_that_is_lost_repeatedly_backs_off() -> None:
    made = pair()
    made.wires[0].segment.lose = Losing(is_request, 4)
    made.finish(made.read(0, 1))
    times = [sent.at for sent in made.sent]
    assert [later - earlier for earlier, later in itertools.pairwise(times)] == pytest.approx(
        [MIN_RTO, 2 * MIN_RTO, 4 * MIN_RTO, 8 * MIN_RTO]
    )
    assert len({sent.tag for sent in made.sent}) == 5


def test_after_five_timeouts_in_a_row_nothing_is_sent_before_the_target_is_identified_again() -> None:
    made = pair()
    request, ended = ask(8)
    made.target.submit(request, 1.0)
    sendings = 0
    while made.target.life.state is not State.SUSPENDED:
        sendings += len(drain(made.target, 1.0))
        due = made.target.next_timeout()
        assert due is not None
        assert due < 1.0 + SILENCE
        made.target.handle_timeout(due)
    assert sendings == SUSPEND_BACKOFF
    assert not drain(made.target, 1.0)
    made.target.come_up(2.0)
    assert drain(made.target, 2.0)
    assert not ended


def test_before_the_first_answer_the_initial_rto_holds() -> None:
    made = pair(warm=False)
    made.wires[0].segment.lose = Losing(is_request)
    made.finish(made.read(0, 1))
    assert [sent.at for sent in made.sent] == [0.0, INITIAL_RTO]


def test_a_short_blackout_costs_about_an_rto_however_many_requests_wait() -> None:
    made = pair(bufcnt=64)
    made.wires[0].segment.schedule = [(1.02, Faults(loss=1.0))]
    reads: list[Operation] = []

    def read() -> None:
        reads.append(made.read(2 * len(reads), 2))

    for number in range(30):
        made.call(1.0 + number * 0.0003, read)
    made.run(1.02)
    made.finish(*reads)
    assert len(reads) == 30
    assert made.now < 1.02 + 4 * MIN_RTO


def test_one_lost_frame_in_a_large_read_costs_less_than_20_ms() -> None:
    def seconds(lost: int | None) -> float:
        made = pair(Segment(latency=0.0001), sectors=2048, bufcnt=64)
        made.wires[0].segment.lose = Losing(lambda frame: is_answer(frame) and lba_of(frame) == lost)
        made.finish(made.read(0, 2048))
        assert made.wires[0].segment.injected.lost == (lost is not None)
        return made.now

    clean = seconds(None)
    assert all(seconds(lost) < clean + 0.02 for lost in [*range(0, 2048, 98), 2046])


def test_a_late_answer_completes_the_command_and_takes_the_loss_back() -> None:
    made = pair()
    made.wires[0].segment.hold = lambda frame: 1.5 * MIN_RTO if is_answer(frame) and made.now < 1.001 else 0.0
    read = made.read(0, 1)
    made.wires[0].segment.lose = Losing(lambda frame: made.now > 1.001, 1)  # the retransmission is lost
    made.finish(read)
    path = made.target.paths[0]
    assert read.ended_at == 1.0 + RTT + 1.5 * MIN_RTO
    assert (path.retransmits, path.late, path.losses) == (1, 1, 0)
    assert len(made.sent) == 2
    made.run()
    check_at_rest(made)


def test_a_request_whose_every_copy_is_answered_ends_once() -> None:
    made = pair()
    target = made.target
    request, ended = ask(2, write=True)
    target.submit(request, 1.0)
    (first,) = drain(target, 1.0)
    target.handle_timeout(1.0 + MIN_RTO)
    (second,) = drain(target, 1.0 + MIN_RTO)
    assert second.tag != first.tag
    answer(target, first, 1.0 + 2 * MIN_RTO)
    answer(target, second, 1.0 + 2 * MIN_RTO)
    assert ended == [request]
    assert target.writes == 1
    assert len(made.tags) == 0


def test_what_a_late_answer_brought_is_not_retransmitted() -> None:
    made = pair()
    target = made.target
    request, ended = ask(10)
    target.submit(request, 1.0)
    (run,) = drain(target, 1.0)
    target.handle_timeout(1.0 + MIN_RTO)  # all five commands are given up
    answer(target, run, 1.0 + MIN_RTO, 1, 2)
    again = drain(target, 1.0 + MIN_RTO)
    assert [each.sectors_of(0, each.count) for each in again] == [(0, 2), (6, 4)]
    for each in again:
        answer(target, each, 1.0 + MIN_RTO + RTT)
    assert ended == [request]


def test_reordering_within_the_window_causes_no_retransmission() -> None:
    made = pair(Segment(Faults(reorder=0.3, reorder_by=MIN_REORDER / 2), latency=LATENCY))
    made.finish(made.read(0, 256))
    assert len(made.sent) == 128


def test_a_resent_piece_is_cut_to_the_payload_of_its_new_path() -> None:
    made = pair(*segments(2), payload=8)
    slow, fast = made.target.paths
    fast.sectors = 3
    made.wires[0].segment.lose = lambda frame: True
    assert slow.health is Health.GOOD
    read = made.read(0, 8)
    if made.sent[0].wire is made.wires[1]:
        read = made.read(8, 8)
    made.finish(read)
    assert {sent.sectors for sent in made.sent if sent.wire is made.wires[1]} <= {1, 2, 3}
