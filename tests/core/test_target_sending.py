"""The machine of one target: what it sends when, what becomes of every answer, and what it never does.

Most tests drive it through :class:`tests.pair.Pair`, so that times are those of a network of ``RTT``; latencies are
powers of two, and times are compared exactly.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable
from typing import cast

import pytest

from aoefs.core.link import Endpoint, Link
from aoefs.core.lonecommand import LoneCommand
from aoefs.core.path import FRAME_LIFETIME
from aoefs.core.recovery import INITIAL_RTO, MIN_REORDER, MIN_RTO
from aoefs.core.request import NOTHING, Memory, Request, Run
from aoefs.core.tags import BLOCK_TAGS, TagTable
from aoefs.core.target import SILENCE, SUSPEND_BACKOFF, State, Target
from aoefs.errors import AtaError, IdentityChanged, TargetError, TargetLost
from aoefs.protocol.ata import Identity
from aoefs.protocol.wire import Address
from tests.pair import LATENCY, RTT, Operation, Pair, as_link, check_at_rest, check_history, check_invariants, stamp
from tests.segment import Faults, Segment, is_answer, is_request, is_write, lba_of


def drop_link(target: Target, link: object) -> None:
    """As the engine does when an interface is gone."""
    for path in [path for path in target.paths if path.link is link]:
        target.drop_path(path)


def pair(*segments: Segment, warm: bool = True, **options: int | float | bool) -> Pair:
    """A pair whose path has seen a round trip, at a time that is a power of two."""
    made = Pair(*(segments or (Segment(latency=LATENCY),)), **options)  # type: ignore[arg-type]
    if warm:
        for _ in range(2 * len(made.wires)):
            made.finish(*(made.read(0, 1, target) for target in range(len(made.targets))))
        made.run(1.0)
        made.sent.clear()
    return made


def segments(count: int) -> list[Segment]:
    return [Segment(latency=LATENCY, seed=number) for number in range(count)]


class Losing:
    """Loses the first ``times`` frames of the kind that ``chosen`` names."""

    def __init__(self, chosen: Callable[[bytes], bool], times: int = 1) -> None:
        self.chosen = chosen
        self.times = times

    def __call__(self, frame: bytes) -> bool:
        if self.times and self.chosen(frame):
            self.times -= 1
            return True
        return False


def ask(sectors: int = 8, lba: int = 0, *, write: bool = False) -> tuple[Request, list[Request]]:
    """A request, and the list that it is put into at its end."""
    ended: list[Request] = []
    buffer = memoryview(bytearray(sectors * 512))
    return Request(lba, sectors, buffer, write=write, on_end=ended.append), ended


def drain(target: Target, now: float) -> list[Run]:
    runs = []
    while (run := target.next_run(now)) is not None:
        runs.append(run)
        check_invariants(target)
    return runs


def answer(target: Target, run: Run, now: float, first: int = 0, count: int | None = None) -> None:
    count = run.count - first if count is None else count
    if target.receive(run, first, count, now):
        target.complete(run, first, count)
    check_invariants(target)


# ── sending ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_request_is_cut_into_commands_of_the_payload_with_consecutive_tags() -> None:
    made = pair()
    made.finish(made.read(3, 7))
    assert [(sent.lba, sent.sectors) for sent in made.sent] == [(3, 2), (5, 2), (7, 2), (9, 1)]
    assert [sent.tag - made.sent[0].tag for sent in made.sent] == [0, 1, 2, 3]
    assert {sent.at for sent in made.sent} == {1.0}
    assert made.now == 1.0 + RTT


def test_what_is_written_is_what_is_read() -> None:
    made = pair()
    write = made.write(5, stamp(1, 33))
    made.finish(write)
    read = made.read(5, 33)
    made.finish(read)
    assert read.data == write.data
    assert made.target.writes == 1
    assert made.target.write_bytes == len(write.data)
    check_at_rest(made)


@pytest.mark.parametrize("bufcnt", [0, 1, 2, 7, 16, 100])
@pytest.mark.parametrize("paths", [1, 2])
def test_what_is_in_flight_never_exceeds_the_buffer_count_over_all_paths(bufcnt: int, paths: int) -> None:
    made = pair(*segments(paths), bufcnt=bufcnt)
    most = 0
    operations = [made.read(number, 32) for number in range(12)]
    while not all(operation.ended_at for operation in operations):
        made.step()
        most = max(most, made.target.in_flight)
    assert most == min(max(1, bufcnt), 64)  # 64: our own bound, --maxout
    assert all(operation.good for operation in operations)


def test_a_run_has_no_more_commands_than_a_block_has_tags() -> None:
    made = Pair(bufcnt=1000, maxout=1000)
    made.target.set_bufcnt(1000)
    made.target.paths[0].window.size = 1000
    request, _ = ask(sectors=400)
    made.target.submit(request, 0.0)
    assert [run.count for run in drain(made.target, 0.0)] == [BLOCK_TAGS] * 3 + [200 - 3 * BLOCK_TAGS]


def test_a_smaller_buffer_count_holds_for_what_is_sent_next() -> None:
    made = pair(bufcnt=16)
    made.read(0, 64)
    made.target.set_bufcnt(1)
    read = made.read(100, 20)
    made.run(1.0 + 1.5 * RTT)
    assert made.target.in_flight <= 1
    made.finish(read)


def test_two_paths_are_used_by_turns() -> None:
    made = pair(*segments(2), bufcnt=16)
    made.finish(*(made.read(number, 2) for number in range(8)))
    assert [sent.wire.name for sent in made.sent] == ["eth0", "eth1"] * 4 or [sent.wire.name for sent in made.sent] == [
        "eth1",
        "eth0",
    ] * 4


def test_what_the_socket_did_not_take_goes_out_first_with_other_tags() -> None:
    made = pair()
    target = made.target
    request, ended = ask(8)
    target.submit(request, 1.0)
    (run,) = drain(target, 1.0)
    target.unsent(run, 1)
    check_invariants(target)
    assert target.in_flight == 1
    (rest,) = drain(target, 1.0)
    assert rest.sectors_of(0, rest.count) == (2, 6)
    assert rest.tag != run.tag
    answer(target, rest, 1.0 + RTT)
    answer(target, run, 1.0 + RTT, 0, 1)
    assert ended == [request]
    assert len(made.tags) == 0


def test_a_run_of_which_nothing_left_leaves_no_tag_behind() -> None:
    made = pair()
    request, _ = ask(8)
    made.target.submit(request, 1.0)
    (run,) = drain(made.target, 1.0)
    made.target.unsent(run, 0)
    assert made.target.in_flight == len(made.tags) == 0
    assert made.target.next_timeout() == 1.0 + SILENCE, "only the silence is watched"
    made.target.unsent(run, run.count)  # nothing more to take back


# ── answers ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_answers_may_come_in_any_order_and_in_batches() -> None:
    made = pair()
    request, ended = ask(12)
    made.target.submit(request, 1.0)
    (run,) = drain(made.target, 1.0)
    answer(made.target, run, 1.1, 3, 3)
    answer(made.target, run, 1.1, 0, 2)
    assert not ended
    answer(made.target, run, 1.1, 2, 1)
    assert ended == [request]
    assert len(made.tags) == 0


def test_an_answer_that_comes_twice_counts_once() -> None:
    made = pair()
    request, ended = ask(4)
    made.target.submit(request, 1.0)
    (run,) = drain(made.target, 1.0)
    answer(made.target, run, 1.0 + RTT, 0, 1)
    answered = run.path.answered
    assert not made.target.receive(run, 0, 1, 1.0 + 2 * RTT)
    assert run.path.answered == answered
    assert not ended


def test_an_ended_request_lets_go_its_buffer() -> None:
    made = pair(deadsecs=1.0)
    good = made.read(0, 4)
    made.finish(good)
    refused, _ = ask(4)
    made.target.submit(refused, made.now)
    (run,) = drain(made.target, made.now)
    made.target.receive(run, 0, 1, made.now)
    made.target.fail_command(run, 0, TargetError(1))
    made.target.go_down(State.DOWN, TargetLost("down"))
    late, ended = ask(4)
    made.target.submit(late, made.now)
    assert ended == [late]
    assert good.request is not None
    assert good.request.buffer is refused.buffer is late.buffer is NOTHING


def test_an_error_answer_fails_the_request_at_once_and_once() -> None:
    made = pair()
    request, ended = ask(8)
    made.target.submit(request, 1.0)
    (run,) = drain(made.target, 1.0)
    error = AtaError(0x41, 0x40, 2)
    made.target.receive(run, 1, 1, 1.1)
    made.target.fail_command(run, 1, error)
    assert ended == [request]
    assert request.error is error
    answer(made.target, run, 1.2, 0, 1)
    answer(made.target, run, 1.2, 2)
    made.target.fail(request, TargetLost("again"))
    assert ended == [request]
    assert made.target.errors == 1
    assert len(made.tags) == 0


def test_aoe_error_2_is_answered_with_a_smaller_payload() -> None:
    made = pair(payload=16)
    made.wires[0].max_sectors = 5
    read = made.read(0, 40)
    made.finish(read)
    assert made.target.paths[0].sectors == 4
    assert made.target.errors == 0
    assert {sent.sectors for sent in made.sent if sent.at >= 1.0 + RTT} == {4}
    check_at_rest(made)


def test_aoe_error_2_to_one_sector_fails_the_request_and_leaves_the_payload_alone() -> None:
    made = pair(payload=16)
    request, ended = ask(1)
    made.target.submit(request, 1.0)
    (run,) = drain(made.target, 1.0)
    made.target.receive(run, 0, 1, 1.1)
    made.target.fail_command(run, 0, TargetError(2))
    assert ended == [request]
    assert isinstance(request.error, TargetError)
    assert made.target.paths[0].sectors == 16


def test_other_aoe_errors_leave_the_payload_alone() -> None:
    made = pair()
    request, ended = ask(8)
    made.target.submit(request, 1.0)
    (run,) = drain(made.target, 1.0)
    made.target.receive(run, 0, 1, 1.1)
    made.target.fail_command(run, 0, TargetError(3))
    assert ended == [request]
    assert made.target.paths[0].sectors == 2


# ── losses ────────────────────────────────────────────────────────────────────────────────────────────────────────────


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


def test_a_command_that_is_lost_again_and_again_backs_off() -> None:
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
    while not made.target.suspended:
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


def test_a_late_answer_completes_the_command_and_uncounts_the_loss() -> None:
    made = pair()
    made.wires[0].segment.hold = lambda frame: 1.5 * MIN_RTO if is_answer(frame) and made.now < 1.001 else 0.0
    read = made.read(0, 1)
    made.wires[0].segment.lose = Losing(lambda frame: made.now > 1.001, 1)  # what is sent again is lost
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


def test_what_a_late_answer_brought_is_not_sent_again() -> None:
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
    slow.degraded = False
    read = made.read(0, 8)
    if made.sent[0].wire is made.wires[1]:
        read = made.read(8, 8)
    made.finish(read)
    assert {sent.sectors for sent in made.sent if sent.wire is made.wires[1]} <= {1, 2, 3}


# ── late duplicates ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_write_that_was_sent_once_holds_nobody_back() -> None:
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


def test_they_wait_no_longer_than_until_each_copy_was_answered() -> None:
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


# ── silence ───────────────────────────────────────────────────────────────────────────────────────────────────────────


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
    assert made.target.state is State.DOWN


def test_with_deadsecs_0_a_request_never_expires() -> None:
    made = pair(deadsecs=0.0)
    made.wires[0].segment.schedule = [(5000.0, Faults(loss=1.0))]
    read = made.read(0, 4)
    made.run(5000.0)
    assert read.ended_at is None
    assert made.target.state is State.UP
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
    assert made.target.state is State.UP
    assert all(operation.good for operation in made.operations[0] if operation is not stuck)


def test_a_silent_target_goes_down_and_all_that_waits_fails_in_order() -> None:
    made = pair(deadsecs=1.0, bufcnt=2)
    made.wires[0].segment.lose = lambda frame: True
    operations = [made.read(number, 4) for number in range(5)]
    made.run(100, done=operations)
    assert [operation.ended_at for operation in operations] == [2.0] * 5
    assert all(isinstance(operation.error, TargetLost) for operation in operations)


def test_a_target_that_is_down_fails_new_requests_at_once_and_sends_nothing() -> None:
    made = pair(deadsecs=1.0)
    made.target.go_down(State.DOWN, TargetLost("down"))
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


def test_a_silent_target_gets_nothing_until_it_is_identified_again() -> None:
    made = pair()
    made.wires[0].segment.lose = lambda frame: True
    read = made.read(0, 1)
    made.run(10.0)
    assert made.target.suspended
    assert max(sent.at for sent in made.sent) <= 1.0 + 2 * SILENCE
    made.wires[0].segment.lose = None
    made.finish(read, within=1.1)
    assert not made.target.suspended
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


# ── paths ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_commands_move_to_the_other_path_when_a_link_goes() -> None:
    made = pair(*segments(2))
    made.wires[0].segment.lose = lambda frame: True
    read = made.read(0, 32)
    drop_link(made.target, made.wires[0])
    check_invariants(made.target)
    made.pump()
    made.finish(read)
    assert read.ended_at is not None
    assert read.ended_at < 1.0 + MIN_RTO  # no timeout had to pass
    assert made.target.find_path(as_link(made.wires[0]), made.wires[0].remote) is None


def test_with_the_last_link_gone_requests_wait_for_another_one() -> None:
    made = pair(deadsecs=10.0)
    wire = made.wires[0]
    read = made.read(0, 8)
    drop_link(made.target, wire)
    made.run(3.0)
    assert read.ended_at is None
    assert made.target.is_silent
    made.target.add_path(as_link(wire), wire.name, (wire.mac, wire.remote), 2)
    made.target.come_up(made.now)
    made.pump()
    made.finish(read)


def test_an_answer_from_a_path_that_is_gone_still_counts_for_its_command() -> None:
    made = pair(*segments(2))
    request, ended = ask(2)
    made.target.submit(request, 1.0)
    (run,) = drain(made.target, 1.0)
    drop_link(made.target, run.path.link)
    answer(made.target, run, 1.1)
    assert ended == [request]
    assert made.target.next_run(1.1) is None  # and is not sent again


def test_a_failing_path_is_left_alone_and_costs_no_error() -> None:
    made = pair(*segments(2))
    made.wires[0].segment.lose = lambda frame: True
    for _ in range(20):
        made.finish(*(made.read(number * 8, 8) for number in range(8)))
    assert made.target.paths[0].degraded
    made.sent.clear()
    made.finish(*(made.read(number * 8, 8) for number in range(8)))
    assert {sent.wire.name for sent in made.sent} == {"eth1"}


def test_a_failing_path_is_used_when_no_other_one_is_left() -> None:
    made = pair(*segments(2))
    for path in made.target.paths:
        path.degraded = True
    made.finish(made.read(0, 8))
    assert not all(path.degraded for path in made.target.paths)


def test_only_the_verified_paths_of_a_target_answer_for_it() -> None:
    made = pair(*segments(2))
    first, second = made.wires
    address = made.target.address
    assert made.target.answers_from(Endpoint(as_link(first), first.remote, address))
    assert not made.target.answers_from(Endpoint(as_link(second), first.remote, address)), "right MAC, wrong link"
    assert not made.target.answers_from(Endpoint(as_link(first), second.remote, address))
    for other in (Address(address.shelf + 1, address.slot), Address(address.shelf, address.slot + 1)):
        assert not made.target.answers_from(Endpoint(as_link(first), first.remote, other))


# ── giving up ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("when", ["queued", "in flight", "lost"])
def test_an_abandoned_request_leaves_no_tag_and_no_queue_entry_behind(when: str) -> None:
    made = pair(bufcnt=4)
    target = made.target
    if when == "queued":
        made.read(0, 100)
    if when == "lost":
        made.wires[0].segment.lose = Losing(is_request, 4)
    read = made.read(100, 60)
    if when == "lost":
        made.run(1.0 + MIN_RTO + RTT / 2)
    before = len(made.sent)
    made.abandon(read)
    assert read.request is not None
    assert read.request.buffer is NOTHING
    assert read.request not in target.requests()
    made.run()
    assert read.ended_at is None  # nobody is told
    assert not any(sent.lba >= 100 for sent in made.sent[before:])
    check_at_rest(made)
    made.finish(made.read(0, 1))
    assert target.statistics().queued == 0
    assert not made.tags.live


def test_abandoning_what_has_ended_changes_nothing() -> None:
    made = pair()
    read = made.read(0, 4)
    made.finish(read)
    made.abandon(read)
    assert read.good
    assert made.target.errors == 0


# ── every state, every input ──────────────────────────────────────────────────────────────────────────────────────────


class Situation:
    """An target with a request in flight and one queued, brought into a state."""

    def __init__(self, state: State) -> None:
        self.pair = pair(*segments(2), deadsecs=5.0)
        self.target = self.pair.target
        self.now = 1.0
        self.flying, self.flying_ended = ask(64)
        self.queued, self.queued_ended = ask(64)
        self.fresh, self.fresh_ended = ask(4)
        for request in (self.flying, self.queued):
            self.target.submit(request, self.now)
        self.run = drain(self.target, self.now)[0]
        if state is not State.UP:
            self.target.go_down(state, TargetLost(state.value))
        assert self.target.state is state

    def later(self, seconds: float) -> None:
        self.now += seconds
        self.target.handle_timeout(self.now)

    def go(self, state: State) -> None:
        self.target.go_down(state, TargetLost("told"))

    def refuse(self, code: int) -> None:
        self.target.receive(self.run, 0, 1, self.now)
        self.target.fail_command(self.run, 0, TargetError(code))

    def drop_links(self) -> None:
        for wire in self.pair.wires:
            drop_link(self.target, wire)


INPUTS: dict[str, tuple[Callable[[Situation], object], State | None]] = {
    "submit": (lambda at: at.target.submit(at.fresh, at.now), None),
    "next_run": (lambda at: at.target.next_run(at.now), None),
    "receive": (lambda at: at.target.receive(at.run, 0, 1, at.now), None),
    "answer": (lambda at: answer(at.target, at.run, at.now), None),
    "refuse": (lambda at: at.refuse(6), None),
    "too long": (lambda at: at.refuse(2), None),
    "unsent": (lambda at: at.target.unsent(at.run, 0), None),
    "abandon": (lambda at: at.target.abandon(at.flying), None),
    "fail": (lambda at: at.target.fail(at.flying, TargetLost("no")), None),
    "a timeout": (lambda at: at.later(0.5), None),
    "silence": (lambda at: at.later(3.0), None),
    "death": (lambda at: at.later(5.0), State.DOWN),
    "heard": (lambda at: at.target.heard(at.now), None),
    "set_bufcnt": (lambda at: at.target.set_bufcnt(0), None),
    "leave_link": (lambda at: at.target.leave_link(as_link(at.pair.wires[0])), None),
    "drop_link": (lambda at: at.drop_links(), None),
    "down": (lambda at: at.go(State.DOWN), State.DOWN),
    "replaced": (lambda at: at.go(State.REPLACED), State.REPLACED),
    "come_up": (lambda at: at.target.come_up(at.now), State.UP),
}


@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize("name", INPUTS)
def test_every_input_in_every_state_leads_to_a_legal_state_and_breaks_nothing(state: State, name: str) -> None:
    at = Situation(state)
    action, leads_to = INPUTS[name]
    action(at)
    check_invariants(at.target)
    expected = state if leads_to is None or state is State.REPLACED else leads_to
    assert at.target.state is expected, f"{state.value} and {name}"
    for request, ended in ((at.flying, at.flying_ended), (at.queued, at.queued_ended), (at.fresh, at.fresh_ended)):
        assert len(ended) <= 1
        assert not ended or request.buffer is NOTHING
        if at.target.state is not State.UP and (request is not at.fresh or name == "submit"):
            assert ended, "nobody waits for a target that is not up"
    if at.target.state is not State.UP:
        assert at.target.next_run(at.now) is None
        assert not at.target.requests()
    statistics = at.target.statistics()
    assert (statistics.state, statistics.in_flight) == (at.target.state.value, at.target.in_flight)
    at.later(100.0)  # and in the end nothing flies any more
    at.later(100.0)
    check_invariants(at.target)
    assert at.target.in_flight == 0


def test_a_replaced_target_says_so_and_never_comes_back() -> None:
    made = pair()
    made.target.go_down(State.REPLACED, IdentityChanged("another disk"))
    made.target.come_up(made.now)
    read = made.read(0, 1)
    assert isinstance(read.error, IdentityChanged)


def test_a_request_that_waits_for_long_while_others_are_answered_is_noticed() -> None:
    """The driver then measures the payload again; how is the business of the discovery."""
    made = pair(payload=17)
    made.wires[0].segment.faults = Faults(longest=1536)
    large = made.read(0, 17)
    for number in range(30):
        made.call(1.0 + number * 0.1, lambda: made.read(100, 1))
    made.run(2.0)
    assert not made.target.is_stuck(made.now)
    made.run(2.1)
    assert made.target.is_stuck(made.now)
    assert not made.target.is_silent
    made.target.paths[0].sectors = 2  # measured
    made.finish(large)
    assert not made.target.is_stuck(made.now)
    assert all(operation.good for operation in made.operations[0] if operation.asked_at != made.now)


def test_the_history_of_a_mixed_load_is_that_of_a_disk() -> None:
    made = pair(*segments(2), shard_delay=RTT / 4)
    operations = []
    for number in range(1, 60):
        operations.append(made.write(number * 7 % 30, stamp(number, 5)))
        operations.append(made.read(number * 11 % 30, 6))
        made.run(made.now + RTT / 3)
    made.finish(*operations)
    check_history(made.operations[0])
    made.run()
    check_at_rest(made)


def test_less_than_half_a_window_is_not_sent_while_more_room_is_on_its_way() -> None:
    """Each batch costs two system calls and a few array expressions, whatever its size."""
    made = pair(bufcnt=16)
    made.target.paths[0].window.size = 16
    request, _ = ask(sectors=200)
    made.target.submit(request, 0.0)
    (first,) = drain(made.target, 0.0)
    assert first.count == 16
    for answered in range(7):
        made.target.receive(first, answered, 1, 0.001)
        assert drain(made.target, 0.001) == []
    made.target.receive(first, 7, 1, 0.001)
    assert [run.count for run in drain(made.target, 0.001)] == [8]


def test_what_fits_is_sent_however_little_room_there_is() -> None:
    made = pair(bufcnt=16)
    made.target.paths[0].window.size = 16
    large, _ = ask(sectors=30)
    small, _ = ask(sectors=2)
    for request in (large, small):
        made.target.submit(request, 0.0)
    assert [run.count for run in drain(made.target, 0.0)] == [15, 1]


def test_a_read_gets_its_memory_when_its_first_command_goes_out() -> None:
    made = pair(bufcnt=4)
    asked: list[int] = []
    requests = []
    for number in range(2):

        def make(number: int = number) -> memoryview:
            asked.append(number)
            return memoryview(bytearray(8 * 512))

        request = Request(8 * number, 8, make, write=False, on_end=lambda _request: None)
        requests.append(request)
        made.target.submit(request, 0.0)
    made.target.paths[0].window.size = 4
    (first,) = drain(made.target, 0.0)
    assert asked == [0]
    memory = requests[0].buffer
    answer(made.target, first, 0.001)
    assert requests[0].take_result() is memory
    drain(made.target, 0.001)
    assert asked == [0, 1]


@pytest.mark.parametrize("write", [False, True])
def test_a_request_that_ended_keeps_no_memory_however_long_late_answers_to_it_may_come(write: bool) -> None:
    class Memory(bytearray):
        """One that can be watched."""

    made = pair(bufcnt=4)
    memory = Memory(8 * 512)
    alive = weakref.ref(memory)
    buffers = [memoryview(memory)]
    buffer = buffers.pop() if write else buffers.pop
    request = Request(0, 8, buffer, write=write, on_end=lambda _request: None)
    made.target.submit(request, 0.0)
    lost = drain(made.target, 0.0)
    made.target.handle_timeout(1.0)
    del buffer, memory
    now = 1.0
    while again := drain(made.target, now):  # a window of one command, which grows
        now += 0.001
        for run in again:
            answer(made.target, run, now)
    assert request.ended
    assert all(run.lost for run in lost), "may still be answered late"
    assert (request.take_result().nbytes == 0) is write
    assert alive() is None


def test_reads_share_a_bounded_memory_but_no_target_goes_without() -> None:
    memory = Memory(3 * 8 * 512)
    tags: TagTable[Run | LoneCommand] = TagTable(7)
    identity = Identity(sectors=64, serial="S", model="M", firmware="F")
    targets = []
    ended: list[Request] = []
    for slot in range(2):
        target = Target(Address(0, slot), identity, tags, memory=memory)
        target.set_bufcnt(64)
        target.add_path(cast(Link, object()), "fake0", (b"\2\0\0\0\0\1", b"\2\0\0\0\0\2"), 2).window.size = 64
        targets.append(target)
    busy, other = targets

    def ask_lazily(target: Target) -> None:
        target.submit(Request(0, 8, lambda: memoryview(bytearray(8 * 512)), write=False, on_end=ended.append), 0.0)

    for _ in range(5):
        ask_lazily(busy)
    runs = drain(busy, 0.0)
    assert len(runs) == 3, "the memory is used up"
    ask_lazily(other)
    (neighbour,) = drain(other, 0.0)
    assert memory.used == 4 * 8 * 512, "one read is always possible"
    answer(busy, runs[0], 0.001)
    assert drain(busy, 0.001) == [], "still more than the limit"
    answer(other, neighbour, 0.001)
    assert len(drain(busy, 0.001)) == 1
    busy.go_down(State.DOWN, TargetLost("gone"))
    assert memory.used == 0
    assert len(ended) == 6
