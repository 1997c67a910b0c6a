"""Waits: a caller sleeps until it is woken, and is counted meanwhile; what needs trio runs in a task."""

from __future__ import annotations

import errno
from collections.abc import Coroutine
from typing import Any

import pytest
import trio
import trio.testing
from pyfuse3 import FUSEError
from trio.testing import MockClock

from aoefs.core.life import Life
from aoefs.engine.waits import Callers, Stepped, Wait, WaitGroup
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


# ── callers that are stepped by hand ──────────────────────────────────────────────────────────────────────────────────


class Stepper:
    """Steps one coroutine; ``ended`` when it has."""

    def __init__(self, callers: Callers, coroutine: Coroutine[Any, Any, object]) -> None:
        self.callers = callers
        self.stepped = Stepped(coroutine)
        self.ended = False

    def step(self) -> None:
        """Let it go on until it waits."""
        self.callers.stepping = self.stepped
        try:
            self.stepped.coroutine.send(None)
        except StopIteration:
            self.ended = True
        finally:
            self.callers.stepping = None

    def go_on(self) -> None:
        """The same, because it alone was resumed."""
        assert list(self.callers.resumed) == [self.stepped]
        self.callers.resumed.clear()
        self.step()


def test_a_stepped_caller_is_asleep_until_it_goes_on() -> None:
    callers = Callers()
    resumes: list[int] = []
    callers.on_resume = lambda: resumes.append(len(callers.resumed))
    wait = Wait(callers)
    caller = Stepper(callers, wait.wait())
    caller.step()
    assert count(callers) == (1, 0)
    wait.wake()
    wait.wake()
    assert resumes == [1], "to wake twice resumes once"
    assert not caller.ended
    caller.go_on()
    assert caller.ended
    assert count(callers) == (0, 0)


def test_a_stepped_caller_does_not_sleep_in_a_wait_that_was_woken_before() -> None:
    callers = Callers()
    wait = Wait(callers)
    wait.wake()
    caller = Stepper(callers, wait.wait())
    caller.step()
    assert caller.ended
    assert (count(callers), list(callers.resumed)) == ((0, 0), [])


def test_a_stepped_caller_may_use_a_wait_again() -> None:
    callers = Callers()
    wait = Wait(callers)

    async def twice() -> None:
        await wait.wait()
        wait.woken = False
        await wait.wait()

    caller = Stepper(callers, twice())
    caller.step()
    wait.wake()
    caller.go_on()
    assert (caller.ended, count(callers)) == (False, (1, 0))
    wait.wake()
    caller.go_on()
    assert (caller.ended, count(callers)) == (True, (0, 0))


def test_the_wait_of_a_caller_that_was_closed_resumes_nothing() -> None:
    callers = Callers()
    wait = Wait(callers)
    caller = Stepper(callers, wait.wait())
    caller.step()
    caller.stepped.coroutine.close()
    assert count(callers) == (0, 0)
    wait.wake()
    assert (wait.woken, list(callers.resumed)) == (True, [])


async def test_each_caller_is_another_one() -> None:
    callers = Callers()
    task = callers.current()
    assert task is callers.current()
    seen: list[object] = []

    async def look() -> None:
        seen.append(callers.current())

    for _ in range(2):
        Stepper(callers, look()).step()
    await look()
    assert seen[2] is task
    assert len(set(map(id, seen))) == 3


# ── what needs trio ───────────────────────────────────────────────────────────────────────────────────────────────────


async def add_slowly(first: int, second: int) -> int:
    await trio.sleep(1)
    return first + second


async def fail_slowly(error: Exception) -> int:
    await trio.sleep(1)
    raise error


async def test_a_caller_that_is_a_task_needs_no_other(autojump_clock: MockClock) -> None:
    callers = Callers()
    assert await callers.in_task(add_slowly, 1, 2) == 3
    with pytest.raises(TargetLost):
        await callers.in_task(fail_slowly, TargetLost("gone"))


async def test_what_needs_trio_runs_in_a_task_and_hands_its_result_back(autojump_clock: MockClock) -> None:
    callers = Callers()
    results: list[int] = []

    async def call() -> None:
        results.append(await callers.in_task(add_slowly, 1, 2))

    async with trio.open_nursery() as nursery:
        callers.start = nursery.start_soon
        caller = Stepper(callers, call())
        caller.step()
        assert callers.ready == 1, "the task wants its first turn"
        await trio.testing.wait_all_tasks_blocked()
        assert (callers.ready, list(callers.resumed)) == (0, [])
    caller.go_on()
    assert (caller.ended, results) == (True, [3])
    assert count(callers) == (0, 0)


@pytest.mark.parametrize("error", [TargetLost("gone"), FUSEError(errno.ENOSPC), ZeroDivisionError()])
async def test_an_error_in_the_task_is_that_of_the_caller(autojump_clock: MockClock, error: Exception) -> None:
    callers = Callers()
    caught: list[Exception] = []

    async def call() -> None:
        try:
            await callers.in_task(fail_slowly, error)
        except Exception as failure:
            caught.append(failure)

    async with trio.open_nursery() as nursery:
        callers.start = nursery.start_soon
        caller = Stepper(callers, call())
        caller.step()
    caller.go_on()
    assert caught == [error]


@pytest.mark.parametrize("begun", [False, True])
async def test_a_task_is_cancelled_with_its_caller(autojump_clock: MockClock, begun: bool) -> None:
    callers = Callers()
    ends: list[str] = []

    async def sleep() -> None:
        try:
            await trio.sleep_forever()
        finally:
            ends.append("cancelled")

    with trio.fail_after(1):
        async with trio.open_nursery() as nursery:
            callers.start = nursery.start_soon
            caller = Stepper(callers, callers.in_task(sleep))
            caller.step()
            if begun:
                await trio.testing.wait_all_tasks_blocked()
            caller.stepped.coroutine.close()
    assert ends == ["cancelled"]
    assert (count(callers), list(callers.resumed)) == ((0, 0), [])


async def test_a_task_that_ends_although_its_caller_was_closed_resumes_nothing(autojump_clock: MockClock) -> None:
    callers = Callers()
    wait = Wait(callers)
    async with trio.open_nursery() as nursery:
        callers.start = nursery.start_soon
        caller = Stepper(callers, callers.in_task(wait.wait))
        caller.step()
        await trio.testing.wait_all_tasks_blocked()
        wait.wake()
        caller.stepped.coroutine.close()
    assert (count(callers), list(callers.resumed)) == ((0, 0), [])


# ── groups ────────────────────────────────────────────────────────────────────────────────────────────────────────────


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
