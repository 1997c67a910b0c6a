"""Waits: a task sleeps until it is woken, and is counted meanwhile."""

from __future__ import annotations

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from aoefs.core.life import Life
from aoefs.engine.waits import Callers, Wait, WaitGroup
from aoefs.errors import TargetLost


def count(callers: Callers) -> tuple[int, int]:
    return callers.asleep, callers.ready


async def test_a_wait_that_was_woken_before_does_not_sleep(autojump_clock: MockClock) -> None:
    callers = Callers()
    wait = Wait(callers)
    wait.wake()
    with trio.fail_after(1), trio.testing.assert_no_checkpoints():
        await wait.wait()
    assert wait.woken
    assert count(callers) == (0, 0)


async def test_a_task_is_asleep_until_it_is_woken_and_ready_until_it_has_its_turn() -> None:
    callers = Callers()
    waits = [Wait(callers) for _ in range(3)]
    async with trio.open_nursery() as nursery:
        for wait in waits:
            nursery.start_soon(wait.wait)
        await trio.testing.wait_all_tasks_blocked()
        assert count(callers) == (3, 0)
        waits[1].wake("what a callback is given is ignored")
        assert count(callers) == (3, 1)
        await trio.testing.wait_all_tasks_blocked()
        assert count(callers) == (2, 0)
        assert [wait.woken for wait in waits] == [False, True, False]
        waits[0].wake()
        waits[2].wake()
    assert count(callers) == (0, 0)


async def test_to_wake_twice_counts_once() -> None:
    callers = Callers()
    wait = Wait(callers)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait.wait)
        await trio.testing.wait_all_tasks_blocked()
        wait.wake()
        wait.wake()
        assert count(callers) == (1, 1)
    assert count(callers) == (0, 0)


async def test_a_wait_may_be_used_again() -> None:
    callers = Callers()
    wait = Wait(callers)
    for _ in range(2):
        wait.woken = False
        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait.wait)
            await trio.testing.wait_all_tasks_blocked()
            assert count(callers) == (1, 0)
            wait.wake()
    assert count(callers) == (0, 0)


async def test_a_cancelled_wait_is_counted_no_longer_and_may_still_be_woken() -> None:
    callers = Callers()
    wait = Wait(callers)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait.wait)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert count(callers) == (0, 0)
    wait.wake()
    assert count(callers) == (0, 0)


async def test_a_group_wakes_all_of_its_waits_and_no_other() -> None:
    callers = Callers()
    group = WaitGroup(callers, Life())
    waits = [group.begin() for _ in range(2)]
    other = Wait(callers)
    async with trio.open_nursery() as nursery:
        for wait in (*waits, other):
            nursery.start_soon(wait.wait)
        await trio.testing.wait_all_tasks_blocked()
        group.interrupt(None)
        await trio.testing.wait_all_tasks_blocked()
        assert [wait.woken for wait in (*waits, other)] == [True, True, False]
        assert [wait.error for wait in waits] == [None, None]
        other.wake()


def test_a_group_counts_its_waits_and_keeps_the_first_error() -> None:
    group = WaitGroup(Callers(), Life())
    ended, kept = group.begin(), group.begin()
    assert len(group) == 2
    group.end(ended)
    assert len(group) == 1
    first, second = TargetLost("first"), TargetLost("second")
    for error in (first, second, None):
        group.interrupt(error)
    assert (ended.error, kept.error) == (None, first)


def test_a_group_takes_no_new_wait_when_the_mount_ends_but_for_what_the_mount_itself_still_does() -> None:
    life = Life()
    group = WaitGroup(Callers(), life)
    life.close()
    with pytest.raises(TargetLost):
        group.begin()
    life.end()
    group.begin()
    assert len(group) == 1
