"""The life of a target: every input in every state, abandoned requests, the end."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest

from aoefs.core.life import TRANSITIONS, Input, State
from aoefs.core.recovery import MIN_RTO
from aoefs.core.request import NOTHING
from aoefs.errors import IdentityChanged, TargetError, TargetLost
from tests.core.targets import Losing, answer, ask, drain, drop_link, pair, segments
from tests.pair import RTT, as_link, check_at_rest, check_history, check_invariants, stamp
from tests.segment import Faults, is_request


class Situation:
    """A target with a request in flight and one queued, brought into a state."""

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
        for happened in WAYS[state]:
            self.happens(happened)
        assert self.target.life.state is state

    def be_silent_in_flush(self) -> None:
        self.target.begin_flush(self.now)
        self.later(2.1)

    def end_flush(self) -> None:
        if self.target.life.state is not State.FLUSHING:
            self.target.begin_flush(self.now)
        self.target.end_flush()

    def later(self, seconds: float) -> None:
        self.now += seconds
        self.target.handle_timeout(self.now)

    def happens(self, happened: Input) -> None:
        """By the input that leads there."""
        target = self.target
        actions: dict[Input, Callable[[], object]] = {
            Input.TIMEOUTS: lambda: target.life.take(Input.TIMEOUTS),
            Input.SILENT: lambda: self.later(2.1),
            Input.SILENT_IN_FLUSH: self.be_silent_in_flush,
            Input.FLUSHED: self.end_flush,
            Input.OTHER_DISK: lambda: target.suspend(self.now),
            Input.UNANSWERED: lambda: target.give_up(TargetLost("silent")),
            Input.IDENTIFIED: lambda: target.come_up(self.now),
            Input.UNRESERVED: target.await_reservation,
            Input.RENEWED: lambda: target.reservation_was_renewed(self.now, answered=True),
            Input.NOT_RENEWED: lambda: target.reservation_was_renewed(self.now, answered=False),
            Input.GONE: lambda: target.go(IdentityChanged("gone")),
        }
        actions[happened]()

    def refuse(self, code: int) -> None:
        self.target.receive(self.run, 0, 1, self.now)
        self.target.fail_command(self.run, 0, TargetError(code))

    def drop_links(self) -> None:
        for wire in self.pair.wires:
            drop_link(self.target, wire)


WAYS = {
    State.UP: [],
    State.SUSPENDED: [Input.TIMEOUTS],
    State.STALLED: [Input.SILENT],
    State.FLUSHING: [Input.SILENT_IN_FLUSH],
    State.HELD: [Input.UNRESERVED],
    State.DOWN: [Input.UNANSWERED],
    State.REPLACED: [Input.GONE],
}
INPUTS: dict[str, tuple[Callable[[Situation], object], Input | None]] = {
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
    "silence": (lambda at: at.later(2.1), Input.SILENT),
    "death": (lambda at: at.later(9.0), Input.UNANSWERED),
    "heard": (lambda at: at.target.heard(at.now), None),
    "set_bufcnt": (lambda at: at.target.set_bufcnt(0), None),
    "leave_link": (lambda at: at.target.leave_link(as_link(at.pair.wires[0])), None),
    "drop_link": (lambda at: at.drop_links(), None),
    "close": (lambda at: at.target.close(), None),
    **{happened.name: (partial(Situation.happens, happened=happened), happened) for happened in Input},
}


@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize("name", INPUTS)
def test_every_input_in_every_state_leads_to_a_legal_state_and_breaks_nothing(state: State, name: str) -> None:
    at = Situation(state)
    action, happened = INPUTS[name]
    action(at)
    check_invariants(at.target)
    expected = state if happened is None else TRANSITIONS[happened].get(state, state)
    assert at.target.life.state is expected, f"{state.value} and {name}"
    for request, ended in ((at.flying, at.flying_ended), (at.queued, at.queued_ended), (at.fresh, at.fresh_ended)):
        assert len(ended) <= 1
        assert not ended or request.buffer is NOTHING
        if not at.target.life.is_served and (request is not at.fresh or name == "submit"):
            assert ended, "nothing waits for a target that is not served"
    if at.target.life.state is not State.UP:
        assert at.target.next_run(at.now) is None
    if not at.target.life.is_served:
        assert not at.target.requests()
    assert at.target.statistics().in_flight == at.target.in_flight
    at.later(100.0)  # and in the end nothing flies any more
    at.later(100.0)
    check_invariants(at.target)
    assert at.target.in_flight == 0


def test_a_replaced_target_says_so_and_never_comes_back() -> None:
    made = pair()
    made.target.go(IdentityChanged("another disk"))
    made.target.come_up(made.now)
    read = made.read(0, 1)
    assert isinstance(read.error, IdentityChanged)


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
    assert read.ended_at is None  # on_end is not called
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


def test_a_request_that_waits_for_long_while_others_are_answered_is_noticed() -> None:
    """The lookout then has the payload measured again."""
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
