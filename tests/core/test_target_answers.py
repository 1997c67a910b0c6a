"""What an answer does to its request: good ones, errors, repeated ones."""

from __future__ import annotations

from aoefs.core.request import NOTHING
from aoefs.errors import AtaError, TargetError, TargetLost
from tests.core.targets import answer, ask, drain, pair
from tests.pair import RTT, check_at_rest


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


def test_the_time_in_which_something_is_in_flight_is_counted_once_whatever_the_depth() -> None:
    made = pair()
    before = made.target.busy_seconds
    requests = [ask(4)[0], ask(4, lba=8)[0]]
    for request in requests:
        made.target.submit(request, 1.0)
    first, second = drain(made.target, 1.0)
    answer(made.target, first, 1.25)
    answer(made.target, second, 1.5)
    assert made.target.busy_seconds - before == 0.5
    made.target.submit(ask(4)[0], 3.0)  # idle until now
    (run,) = drain(made.target, 3.0)
    made.target.handle_timeout(3.125)
    assert made.target.busy_seconds - before == 0.625  # also without an answer
    answer(made.target, run, 3.25)
    assert made.target.busy_seconds - before == 0.75


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
    made.target.give_up(TargetLost("down"))
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
