"""The stand-in for pyfuse3's trio: a lock in order of arrival, and looking before waiting, bounded."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import trio
import trio.testing

from aoefs.turns import MAX_STREAK, _Lock, _LowLevel, _Trio


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for end in ends:
        os.close(end)


async def test_the_lock_is_handed_over_in_the_order_in_which_tasks_came() -> None:
    lock = _Lock()
    order: list[int] = []

    async def hold(number: int) -> None:
        async with lock:
            order.append(number)
            await trio.testing.wait_all_tasks_blocked()

    async with trio.open_nursery() as nursery, lock:
        for number in range(4):
            nursery.start_soon(hold, number)
            await trio.testing.wait_all_tasks_blocked()
        assert order == []
    assert order == [0, 1, 2, 3]


async def test_a_task_cancelled_while_it_waits_for_the_lock_leaves_it_to_the_next() -> None:
    lock = _Lock()
    got = trio.Event()

    async def wait_cancelled(scope: trio.CancelScope) -> None:
        with scope:
            async with lock:
                raise AssertionError("it was cancelled before")

    async def wait() -> None:
        async with lock:
            got.set()

    async with trio.open_nursery() as nursery:
        async with lock:
            scope = trio.CancelScope()
            nursery.start_soon(wait_cancelled, scope)
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(wait)
            await trio.testing.wait_all_tasks_blocked()
            scope.cancel()
            await trio.testing.wait_all_tasks_blocked()
        await got.wait()
    async with lock:
        pass


async def test_what_is_readable_is_taken_without_a_turn_of_the_loop_but_not_for_ever(
    pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[int] = []
    asked: list[int] = []
    wait_readable = trio.lowlevel.wait_readable

    async def spy(descriptor: int) -> None:
        asked.append(descriptor)
        await wait_readable(descriptor)

    monkeypatch.setattr(trio.lowlevel, "wait_readable", spy)
    low_level = _LowLevel(found.append)
    os.write(pipe[1], b"x")
    for streak in (1, 2):
        for _ in range(MAX_STREAK):
            await low_level.wait_readable(pipe[0])
        assert len(asked) == streak - 1
        await low_level.wait_readable(pipe[0])
        assert len(asked) == streak, "the loop had its turn"
    assert found == [pipe[0]]


async def test_what_is_not_readable_is_waited_for_by_the_loop(pipe: tuple[int, int]) -> None:
    low_level = _LowLevel(lambda _descriptor: None)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(low_level.wait_readable, pipe[0])
        await trio.testing.wait_all_tasks_blocked()
        assert nursery.child_tasks
        os.write(pipe[1], b"x")


def test_everything_else_is_trios_own() -> None:
    stand_in = _Trio(lambda _descriptor: None)
    assert stand_in.open_nursery is trio.open_nursery
    assert stand_in.lowlevel.current_task is trio.lowlevel.current_task
    assert stand_in.ClosedResourceError is trio.ClosedResourceError
