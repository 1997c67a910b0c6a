"""How long to poll before sleeping: what it grows and shrinks by, and who else wants the processor."""

from __future__ import annotations

import os
import time

import pytest

from aoefs.engine.busypoll import CROWDED, FIRST_PAUSE, LEAST, MAX_PAUSE, MOST, PERIOD, BusyPoll, Crowd
from aoefs.engine.rundelay import RunDelay


def test_it_begins_with_nothing_and_doubles_while_what_is_waited_for_comes_soon() -> None:
    busy = BusyPoll()
    seen = []
    for _ in range(7):
        seen.append(busy.seconds)
        busy.came(MOST)
    assert seen == pytest.approx([0, LEAST, 2 * LEAST, 4 * LEAST, 8 * LEAST, 16 * LEAST, MOST])
    assert busy.seconds == MOST


def test_it_shrinks_to_nothing_while_nothing_comes_soon() -> None:
    busy = BusyPoll()
    for _ in range(10):
        busy.came(MOST / 2)
    for count in range(10):
        before = busy.seconds
        busy.came(MOST * 1.01 if count % 2 else float("inf"))
        assert busy.seconds == (before / 2 if before >= 2 * LEAST else 0)
    assert busy.seconds == 0


def test_a_fixed_duration_stays() -> None:
    busy = BusyPoll(50e-6, adapts=False)
    for waited in (0.0, 10.0):
        busy.came(waited)
        assert busy.seconds == 50e-6


def test_a_processor_that_is_free_is_no_crowd() -> None:
    crowd = Crowd()
    now = delay = 0.0
    for _ in range(100):
        now += PERIOD
        delay += PERIOD * CROWDED * 0.9
        assert now >= crowd.look_at
        crowd.look(now, delay)
        assert not crowd.is_there(now)
        assert now < crowd.look_at <= now + PERIOD


def test_a_crowd_is_believed_for_a_while_that_doubles_each_time() -> None:
    crowd = Crowd()
    now = delay = 0.0
    pauses = []
    for _ in range(8):
        now += PERIOD
        delay += PERIOD / 2
        crowd.look(now, delay)
        began = now
        while crowd.is_there(now):
            now += PERIOD
            crowd.look(now, delay)
        pauses.append(now - began)
    expected = [min(FIRST_PAUSE * 2**number, MAX_PAUSE) for number in range(8)]
    assert pauses == pytest.approx(expected, abs=1.1 * PERIOD)
    now += MAX_PAUSE + PERIOD
    crowd.look(now, delay)
    assert not crowd.is_there(now)
    now += PERIOD
    crowd.look(now, delay + PERIOD)
    assert crowd.is_there(now + FIRST_PAUSE * 0.9)
    assert not crowd.is_there(now + FIRST_PAUSE * 1.1), "it was quiet for long: from the beginning"


def test_while_the_crowd_lasts_the_pause_goes_on_and_does_not_grow() -> None:
    crowd = Crowd()
    now = 0.0
    for _ in range(100):
        now += PERIOD
        crowd.look(now, now)
        assert crowd.is_there(now)
    assert not crowd.is_there(now + FIRST_PAUSE * 1.1)


def test_the_delay_of_this_thread_only_grows() -> None:
    delay = RunDelay()
    try:
        first = delay.seconds()
        os.sched_yield()
        time.sleep(0)
        assert 0 <= first <= delay.seconds()
    finally:
        delay.close()
    assert delay.seconds() == 0.0
