"""One path, with runs made by hand: what is suspect, what is given up, and exactly when."""

from __future__ import annotations

from typing import cast

import pytest

from aoefs.core.link import Link
from aoefs.core.path import FRAME_LIFETIME, Path
from aoefs.core.recovery import INITIAL_RTO, MAX_BACKOFF, MIN_REORDER, MIN_RTO, RESTART_WINDOW
from aoefs.core.request import Request, Run, bits
from aoefs.protocol.wire import Address, AoeCommand, Flag, decode_header_untrusted

OURS, THEIRS = bytes.fromhex("020000000001"), bytes.fromhex("020000000002")
RTT = 2.0**-12


def make(limit: int = 16, sectors: int = 2) -> Path:
    return Path(cast(Link, object()), "eth0", Address(7, 3), (OURS, THEIRS), sectors, limit)


def send(path: Path, count: int, now: float) -> Run:
    """A run of ``count`` commands."""
    buffer = memoryview(bytearray(count * path.sectors * 512))
    request = Request(0, count * path.sectors, buffer, write=False, on_end=lambda _request: None)
    run = Run(request, path, 0, count * path.sectors, path.sectors, now)
    path.on_sent(run)
    return run


def answer(path: Path, run: Run, now: float, first: int = 0, count: int | None = None) -> None:
    count = run.count - first if count is None else count
    path.on_answered(run, bits(first, count), first + count - 1, now)


def warmed_up(limit: int = 16) -> Path:
    """A path that has seen one round trip, at time 0."""
    path = make(limit)
    answer(path, send(path, 1, -RTT), 0.0)
    return path


def test_the_heads_of_request_and_answer_are_what_the_codec_says() -> None:
    path = make()
    request = decode_header_untrusted(path.request_head + bytes(4))
    answered = decode_header_untrusted(path.answer_head + bytes(4))
    assert (request.destination, request.source, request.flags) == (THEIRS, OURS, 0)
    assert (answered.destination, answered.source, answered.flags) == (OURS, THEIRS, Flag.RESPONSE)
    assert request.address == answered.address == Address(7, 3)
    assert request.command == answered.command == AoeCommand.ATA


def test_a_payload_is_at_least_one_sector() -> None:
    assert make(sectors=0).sectors == 1


def test_with_nothing_in_flight_there_is_no_timeout() -> None:
    path = make()
    assert path.next_timeout() is None
    assert path.give_up(1e9) == []


def test_what_is_in_flight_takes_room_and_gives_it_back() -> None:
    path = make()
    room = path.room
    run = send(path, 5, 0.0)
    assert (path.in_flight, path.room) == (5, room - 5)
    answer(path, run, RTT, 0, 2)
    assert path.in_flight == 3
    answer(path, run, RTT, 2)
    assert path.in_flight == 0
    assert not path.runs
    assert (path.sent, path.answered) == (5, 5)


def test_a_first_command_is_given_up_after_the_initial_rto_and_not_before() -> None:
    path = make()
    run = send(path, 1, 5.0)
    assert path.next_timeout() == 5.0 + INITIAL_RTO
    assert path.give_up(5.0 + INITIAL_RTO - 1e-9) == []
    assert path.give_up(5.0 + INITIAL_RTO) == [(run, 1)]
    assert (run.flying, run.lost) == (0, 1)
    assert (path.in_flight, path.retransmits) == (0, 1)
    assert not path.runs


def test_the_tail_of_a_burst_is_given_up_an_rto_after_the_last_answer() -> None:
    path = warmed_up()
    run = send(path, 4, 1.0)
    answer(path, run, 1.0 + RTT, 0, 3)
    assert path.next_timeout() == 1.0 + RTT + path.rtt.rto
    assert path.give_up(1.0 + RTT + path.rtt.rto) == [(run, 0b1000)]


def test_a_hole_is_suspect_once_a_younger_command_was_answered() -> None:
    path = warmed_up()
    older, younger = send(path, 2, 1.0), send(path, 2, 1.0)
    assert path.suspects(older) == 0
    answer(path, younger, 1.0 + RTT, 0, 1)
    assert path.suspects(older) == 0b11
    assert path.suspects(younger) == 0


def test_within_a_run_only_the_commands_before_the_answered_one_are_suspect() -> None:
    path = warmed_up()
    run = send(path, 5, 1.0)
    answer(path, run, 1.0 + RTT, 2, 1)
    assert path.suspects(run) == 0b00011
    answer(path, run, 1.0 + RTT, 1, 1)  # an older answer is no better witness
    assert path.suspects(run) == 0b00001


def test_a_suspect_is_given_up_when_the_reordering_window_has_passed() -> None:
    path = warmed_up()
    run = send(path, 3, 1.0)
    answer(path, run, 1.0 + RTT, 1)
    due = 1.0 + RTT + max(path.rtt.srtt / 4, MIN_REORDER)
    assert path.next_timeout() == due
    assert path.give_up(due - 1e-9) == []
    assert path.give_up(due) == [(run, 1)]
    assert (path.window.reductions, path.rtt.backoff) == (1, 0)


def test_an_answer_within_the_reordering_window_costs_nothing() -> None:
    path = warmed_up()
    run = send(path, 3, 1.0)
    answer(path, run, 1.0 + RTT, 1)
    answer(path, run, 1.0 + RTT + MIN_REORDER / 2, 0, 1)
    assert path.next_timeout() is None
    assert (path.retransmits, path.window.reductions) == (0, 0)


def test_the_losses_of_one_round_trip_reduce_the_window_once() -> None:
    path = warmed_up()
    runs = [send(path, 1, 1.0 + number * 1e-6) for number in range(6)]
    answer(path, runs[-1], 1.0 + RTT)
    assert len(path.give_up(1.0 + 2 * RTT + MIN_REORDER)) == 5
    assert path.window.reductions == 1


def test_the_first_timeout_halves_the_window_and_the_next_ones_collapse_it() -> None:
    path = warmed_up(limit=64)
    size = path.window.size
    send(path, 1, 1.0)
    path.give_up(1.0 + MIN_RTO)
    assert path.window.size == size // 2
    send(path, 1, 2.0)
    path.give_up(2.0 + 2 * MIN_RTO)
    assert path.window.size == RESTART_WINDOW


def test_timeouts_back_off_by_doubling_until_an_answer_comes() -> None:
    path = warmed_up()
    now, waited = 1.0, []
    for _ in range(11):
        send(path, 1, now)
        due = path.next_timeout()
        assert due is not None
        waited.append(due - now)
        assert path.give_up(due)
        now = due
    assert waited == pytest.approx([min(MIN_RTO * 2**power, MAX_BACKOFF) for power in range(11)])
    run = send(path, 1, now)
    answer(path, run, now + RTT)
    assert path.rtt.rto == MIN_RTO


def test_all_that_flies_is_given_up_at_once_when_nothing_comes_though_it_was_sent_bit_by_bit() -> None:
    """Else each piece waits for a timeout of its own, each twice as long as the one before."""
    path = warmed_up()
    runs = [send(path, 1, 1.0 + number * RTT) for number in range(8)]
    lost = path.give_up(1.0 + MIN_RTO)
    assert [run for run, _ in lost] == runs
    assert path.rtt.backoff == 1


def test_a_timeout_spares_what_was_sent_less_than_a_round_trip_ago() -> None:
    path = warmed_up()
    old = send(path, 1, 1.0)
    send(path, 1, 1.0 + MIN_RTO - RTT / 2)
    assert path.give_up(1.0 + MIN_RTO) == [(old, 1)]


def test_without_any_sample_a_timeout_spares_what_is_younger_than_the_rto() -> None:
    path = make()
    old = send(path, 1, 0.0)
    send(path, 1, INITIAL_RTO / 2)
    assert path.give_up(INITIAL_RTO) == [(old, 1)]


def test_a_late_answer_uncounts_the_loss_and_undoes_the_reduction() -> None:
    path = warmed_up()
    run = send(path, 3, 1.0)
    answer(path, run, 1.0 + RTT, 1)
    size = path.window.size
    path.give_up(1.0 + RTT + MIN_REORDER)
    assert (path.retransmits, path.window.size) == (1, size // 2)
    path.on_late(run, 1, 1.0 + 8 * RTT)
    assert (path.retransmits, path.losses, path.late, run.lost) == (1, 0, 1, 0)
    assert path.window.size >= size
    assert path.reorder.factor == 0.5
    assert path.rtt.longest == 8 * RTT


def test_what_never_left_is_neither_in_flight_nor_sent() -> None:
    path = make()
    run = send(path, 4, 0.0)
    path.on_unsent(run, 1)
    assert (path.in_flight, run.flying, path.sent) == (1, 0b0001, 1)
    again = send(path, 4, 0.0)
    path.on_unsent(again, 0)
    assert (path.in_flight, path.sent) == (1, 1)
    assert list(path.runs) == [run]


def test_the_order_of_sending_holds_after_something_did_not_leave() -> None:
    path = warmed_up()
    cut = send(path, 4, 1.0)
    path.on_unsent(cut, 1)
    younger = send(path, 1, 1.0)
    assert younger.order > cut.order
    answer(path, younger, 1.0 + RTT)
    assert path.suspects(cut) == 1


def test_a_link_that_goes_down_loses_all_that_flies() -> None:
    path = warmed_up()
    runs = [send(path, 2, 1.0), send(path, 1, 1.1)]
    answer(path, runs[0], 1.1, 0, 1)
    assert path.give_up_all() == [(runs[0], 0b10), (runs[1], 0b1)]
    assert (path.in_flight, path.retransmits) == (0, 2)
    assert path.next_timeout() is None


def test_a_copy_may_live_half_a_second_or_four_rtos_or_the_longest_delay_seen() -> None:
    path = warmed_up()
    assert path.frame_lifetime() == FRAME_LIFETIME
    for _ in range(5):
        path.rtt.on_timeout()
    assert path.frame_lifetime() == 4 * path.rtt.rto > FRAME_LIFETIME
    path.rtt.late(30.0)
    assert path.frame_lifetime() == 30.0


def test_an_idle_path_forgets_that_answers_were_slow_a_half_every_ten_seconds() -> None:
    path = make()
    answer(path, send(path, 1, 0.0), 3.0)  # the process was stopped for three seconds
    slow = path.rtt.rto
    halved_at = []
    for second in range(4, 80):
        before = path.rtt.rto
        path.rest(float(second))
        if path.rtt.rto < before:
            halved_at.append(second)
    assert halved_at == [14, 25, 36, 47, 58]
    assert path.rtt.rto == INITIAL_RTO < slow


def test_a_path_that_waits_for_an_answer_forgets_nothing() -> None:
    path = make()
    answer(path, send(path, 1, 0.0), 3.0)
    send(path, 1, 4.0)
    slow = path.rtt.rto
    path.rest(60.0)
    assert path.rtt.rto == slow


def test_the_statistics_are_a_snapshot_in_microseconds() -> None:
    path = warmed_up()
    send(path, 3, 0.0)
    snapshot = path.statistics()
    assert (snapshot.interface, snapshot.mac, snapshot.sectors) == ("eth0", THEIRS, 2)
    assert (snapshot.in_flight, snapshot.sent, snapshot.answered, snapshot.retransmits) == (3, 4, 1, 0)
    assert snapshot.rtt_us == round(RTT * 1e6, 1)
    assert snapshot.rto_us == MIN_RTO * 1e6
    assert snapshot.healthy
