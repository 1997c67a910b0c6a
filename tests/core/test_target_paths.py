"""Several paths to one target: which one is used, and what happens when one goes."""

from __future__ import annotations

import pytest

from aoefs.core.health import Health, Sign
from aoefs.core.life import State
from aoefs.core.link import Endpoint
from aoefs.core.recovery import MIN_RTO
from aoefs.protocol.wire import Address
from tests.core.targets import Losing, answer, ask, drain, drop_link, pair, segments
from tests.pair import as_link, check_invariants


def test_two_paths_are_used_by_turns() -> None:
    made = pair(*segments(2), bufcnt=16)
    made.finish(*(made.read(number, 2) for number in range(8)))
    used = [sent.wire.name for sent in made.sent]
    assert used in (["eth0", "eth1"] * 4, ["eth1", "eth0"] * 4)


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
    assert made.target.next_run(1.1) is None  # it is not retransmitted


def test_a_degraded_path_is_left_alone_and_costs_no_error() -> None:
    made = pair(*segments(2))
    made.wires[0].segment.lose = lambda frame: True
    for _ in range(20):
        made.finish(*(made.read(number * 8, 8) for number in range(8)))
    assert made.target.paths[0].health is Health.DEGRADED
    made.sent.clear()
    made.finish(*(made.read(number * 8, 8) for number in range(8)))
    assert {sent.wire.name for sent in made.sent} == {"eth1"}


@pytest.mark.parametrize("reads", [2, 3, 7])
@pytest.mark.parametrize("halved", [0, 1])
def test_a_dead_path_with_a_long_rto_costs_no_error(halved: int, reads: int) -> None:
    """The target was frozen, so its answers were late, and came back with another MAC."""
    made = pair(*segments(2), deadsecs=4.0)
    made.target.paths[0].rtt.late(30.0)
    for _ in range(halved):
        made.target.paths[0].rtt.rest()
    made.wires[0].segment.lose = lambda frame: True
    for _ in range(2):
        made.finish(*(made.read(number * 8, 8) for number in range(reads)))
    assert made.target.paths[0].health is Health.DEGRADED


def test_one_short_timeout_degrades_no_path() -> None:
    made = pair(*segments(2))
    for wire in made.wires:
        wire.segment.lose = Losing(lambda frame: True)
    made.finish(made.read(0, 2), made.read(2, 2))
    assert [path.health for path in made.target.paths] == [Health.GOOD] * 2
    assert sum(path.retransmits for path in made.target.paths) == 2


def test_a_path_that_is_identified_after_its_timeouts_is_good_until_it_times_out_again() -> None:
    made = pair(*segments(2))
    made.wires[0].segment.lose = lambda frame: True
    for _ in range(20):
        made.finish(*(made.read(number * 8, 8) for number in range(8)))
    made.target.paths[0].take(Sign.IDENTITY)
    made.target.handle_timeout(made.now)
    assert [path.health for path in made.target.paths] == [Health.GOOD] * 2
    made.finish(*(made.read(number * 8, 8) for number in range(8)))
    assert [path.health for path in made.target.paths] == [Health.DEGRADED, Health.GOOD]


def test_a_degraded_path_is_used_when_no_other_one_is_left() -> None:
    made = pair(*segments(2))
    for path in made.target.paths:
        path.take(Sign.TIMEOUTS)
    made.finish(made.read(0, 8))
    assert any(path.health is Health.GOOD for path in made.target.paths)


def test_when_a_target_was_silent_each_of_its_paths_is_good_again_only_when_it_was_identified_there() -> None:
    made = pair(*segments(2))
    first, second = made.wires
    first.segment.lose = second.segment.lose = lambda frame: True
    read = made.read(0, 8)
    made.run(4.0)
    assert made.target.life.state is State.STALLED
    assert [path.health for path in made.target.paths] == [Health.DEGRADED] * 2
    first.segment.lose = None
    made.finish(read)
    assert [path.health for path in made.target.paths] == [Health.GOOD, Health.DEGRADED]
    made.sent.clear()
    made.finish(*(made.read(number * 8, 8) for number in range(8)))
    assert {sent.wire for sent in made.sent} == {first}


def test_a_path_whose_link_is_down_is_used_only_if_there_is_no_other_one() -> None:
    made = pair(*segments(2))
    first, second = made.target.paths
    for path in (first, second):
        path.take(Sign.TIMEOUTS)
    assert made.target.usable_paths() == [first, second]
    made.target.leave_link(first.link)
    assert (first.health, made.target.usable_paths()) == (Health.CUT, [second])
    made.target.leave_link(second.link)
    assert made.target.usable_paths() == [first, second]


def test_only_the_verified_paths_of_a_target_answer_for_it() -> None:
    made = pair(*segments(2))
    first, second = made.wires
    address = made.target.address
    assert made.target.answers_from(Endpoint(as_link(first), first.remote, address))
    assert not made.target.answers_from(Endpoint(as_link(second), first.remote, address)), "right MAC, wrong link"
    assert not made.target.answers_from(Endpoint(as_link(first), second.remote, address))
    for other in (Address(address.shelf + 1, address.slot), Address(address.shelf, address.slot + 1)):
        assert not made.target.answers_from(Endpoint(as_link(first), first.remote, other))
