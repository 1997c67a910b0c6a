"""The table of a worker's life."""

from __future__ import annotations

import itertools
import math
import random

import pytest

from aoefs.host.workerlife import (
    FIRST_PAUSE,
    MOST_PAUSE,
    RUNNING,
    START_SECONDS,
    STEADY_SECONDS,
    TRANSITIONS,
    Input,
    State,
    WorkerLife,
)


def lived(*inputs: Input, now: float = 0.0) -> WorkerLife:
    life = WorkerLife()
    for happened in inputs:
        life.take(happened, now)
    return life


def state_of(life: WorkerLife) -> State:
    """For mypy, which does not see that a call changes it."""
    return life.state


@pytest.mark.parametrize(("state", "happened"), list(itertools.product(State, Input)))
def test_every_input_in_every_state_leads_to_a_state_of_the_table(state: State, happened: Input) -> None:
    life = WorkerLife()
    life.state = state
    changed = life.take(happened, 0.0)
    assert life.state is TRANSITIONS[happened].get(state, state)
    assert changed == (life.state is not state)


def test_no_process_runs_before_a_target_of_its_share_is_found() -> None:
    life = WorkerLife()
    assert state_of(life) not in RUNNING
    assert life.take(Input.WANTED, 0.0)
    assert life.state is State.STARTING
    assert not life.take(Input.WANTED, 0.0), "the second target of the share starts nothing"
    assert (life.starts, life.restarts) == (1, 0)


def test_one_that_is_not_ready_in_time_is_killed_and_started_again() -> None:
    life = lived(Input.WANTED)
    assert life.due == START_SECONDS
    life.take(Input.DUE, life.due)
    assert state_of(life) is State.STUCK
    assert life.due == math.inf
    life.take(Input.DIED, START_SECONDS)
    assert life.state is State.WAITING


def test_one_that_dies_is_started_again_at_once() -> None:
    life = lived(Input.WANTED, Input.READY)
    life.take(Input.DIED, 5.0)
    assert (life.state, life.due) == (State.WAITING, 5.0 + FIRST_PAUSE)
    life.take(Input.DUE, life.due)
    assert (life.state, life.restarts) == (State.STARTING, 1)


def test_one_that_dies_again_and_again_is_started_ever_more_rarely() -> None:
    life = lived(Input.WANTED)
    pauses, now = [], 0.0
    for _ in range(10):
        life.take(Input.READY, now)
        life.take(Input.DIED, now)
        pauses.append(life.due - now)
        now = life.due
        life.take(Input.DUE, now)
    assert pauses[0] == FIRST_PAUSE
    assert pauses == sorted(pauses)
    assert pauses[-1] == MOST_PAUSE
    assert sum(pauses[:2]) < 2, "files are back within two seconds after two deaths"


def test_one_that_stayed_is_started_again_at_once() -> None:
    life = lived(Input.WANTED, Input.READY, Input.DIED, Input.DUE, Input.READY)
    life.take(Input.DIED, STEADY_SECONDS)
    assert life.due == STEADY_SECONDS + FIRST_PAUSE


@pytest.mark.parametrize("state", State)
def test_after_a_stop_nothing_is_started_any_more(state: State) -> None:
    life = WorkerLife()
    life.state = state
    life.take(Input.STOP, 0.0)
    assert life.state is (State.STOPPING if state in RUNNING else State.ENDED)
    for happened in Input:
        life.take(happened, 0.0)
        assert life.state in (State.STOPPING, State.ENDED)
    life.take(Input.DIED, 0.0)
    assert life.state is State.ENDED
    assert life.due == math.inf


@pytest.mark.parametrize("seed", range(200))
def test_whatever_happens_there_is_one_process_at_most_and_none_at_the_end(seed: int) -> None:
    dice, life, now = random.Random(seed), WorkerLife(), 0.0
    processes = 0
    for _ in range(200):
        happened = dice.choices(list(Input), (5, 5, 5, 5, 0.1))[0]
        if (happened is Input.DIED and not processes) or (happened is Input.DUE and life.due == math.inf):
            continue
        now = life.due if happened is Input.DUE else now + dice.random()
        before = life.state
        life.take(happened, now)
        processes += (life.state is State.STARTING and before is not State.STARTING) - (happened is Input.DIED)
        assert processes == (life.state in RUNNING)
        assert (life.due < math.inf) == (life.state in (State.STARTING, State.WAITING))
    life.take(Input.STOP, now)
    if processes:
        life.take(Input.DIED, now)
    assert life.state is State.ENDED
