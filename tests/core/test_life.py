"""The table of a target's life."""

from __future__ import annotations

import itertools

import pytest

from aoefs.core.life import SERVED, TRANSITIONS, Input, Life, State


@pytest.mark.parametrize(("state", "happened"), list(itertools.product(State, Input)))
def test_every_input_in_every_state_leads_to_a_state_of_the_table(state: State, happened: Input) -> None:
    life = Life()
    life.state = state
    changed = life.take(happened)
    assert life.state is TRANSITIONS[happened].get(state, state)
    assert changed == (life.state is not state)
    assert (happened is Input.GONE or state is State.REPLACED) == (life.state is State.REPLACED)


def test_only_a_target_that_was_identified_is_up_again() -> None:
    for happened, leads in TRANSITIONS.items():
        for before, after in leads.items():
            if after is State.UP:
                assert happened is Input.IDENTIFIED or before is State.HELD


@pytest.mark.parametrize("state", State)
def test_requests_may_wait_for_what_is_served_until_the_mount_ends(state: State) -> None:
    life = Life()
    life.state = state
    assert life.is_served == (state in SERVED)
    life.close()
    assert not life.is_served
    assert life.state is state


@pytest.mark.parametrize("happened", Input)
def test_nothing_opens_what_is_closing(happened: Input) -> None:
    life = Life()
    life.close()
    life.take(happened)
    assert life.closing
    assert not life.ending
    life.end()
    assert life.ending
