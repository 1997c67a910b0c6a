"""The stand-in for pyfuse3's trio: a lock in order of arrival, and looking before waiting, bounded."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import trio
import trio.testing

from aoefs.turns import _Lock, _LowLevel, _Trio


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


class FakePlace:
    """A place that has ``requests`` more requests before the loop must have a turn."""

    def __init__(self, requests: int) -> None:
        self.requests = requests
        self.attended: list[int] = []
        self.turns = 0

    def attend_to(self, descriptor: int) -> None:
        self.attended.append(descriptor)

    def next_request(self) -> bool:
        self.requests -= 1
        return self.requests >= 0

    def loop_turned(self) -> None:
        self.turns += 1


async def test_the_loop_is_asked_only_when_waiting_in_place_brought_nothing(pipe: tuple[int, int]) -> None:
    place = FakePlace(3)
    low_level = _LowLevel(place)
    os.write(pipe[1], b"x")
    for _ in range(3):
        await low_level.wait_readable(pipe[0])
    assert place.turns == 0
    await low_level.wait_readable(pipe[0])
    assert place.turns == 1, "the loop had its turn"
    assert place.attended == [pipe[0]]


async def test_what_is_not_readable_is_waited_for_by_the_loop(pipe: tuple[int, int]) -> None:
    low_level = _LowLevel(FakePlace(0))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(low_level.wait_readable, pipe[0])
        await trio.testing.wait_all_tasks_blocked()
        assert nursery.child_tasks
        os.write(pipe[1], b"x")


def test_everything_else_is_trios_own() -> None:
    stand_in = _Trio(FakePlace(0))
    assert stand_in.open_nursery is trio.open_nursery
    assert stand_in.lowlevel.current_task is trio.lowlevel.current_task
    assert stand_in.ClosedResourceError is trio.ClosedResourceError
