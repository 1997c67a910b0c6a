"""The stand-in for pyfuse3's trio: a lock that is handed on or taken back, and waiting in place before the loop."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import trio
import trio.testing

from aoefs.turns import _Lock, _LowLevel, _Trio


class FakePlace:
    """A place that has ``requests`` more requests, ``ready`` turns of which others want."""

    def __init__(self, requests: int = 0, *, ready: int = 0, wanted: int = 1, descriptor: int = -1) -> None:
        self.requests = requests
        self.ready = ready
        self.wanted = wanted
        self.descriptor = descriptor
        self.attending: list[int] = []
        self.somebody: list[bool] = []
        self.turns = 0

    def attend_to(self, descriptor: int) -> None:
        self.attending.append(descriptor)

    def attended(self, somebody: bool) -> None:
        self.somebody.append(somebody)

    def next_request(self) -> bool:
        if self.ready:
            return False
        self.requests -= 1
        return self.requests >= 0

    def others_are_ready(self) -> bool:
        return self.ready > 0

    def workers_wanted(self) -> int:
        return self.wanted

    def loop_turned(self) -> None:
        self.turns += 1
        self.ready = max(0, self.ready - 1)


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for end in ends:
        os.close(end)


# ── the lock ──────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_the_lock_is_handed_over_to_whoever_came_last() -> None:
    lock = _Lock(FakePlace())
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
    assert order == [3, 2, 1, 0]


async def test_a_task_cancelled_while_it_waits_for_the_lock_leaves_it_to_the_next() -> None:
    lock = _Lock(FakePlace())
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


async def test_who_gave_the_lock_up_may_take_it_back_until_the_next_one_runs() -> None:
    lock = _Lock(FakePlace())
    turns: list[str] = []

    async def wait() -> None:
        async with lock:
            turns.append("other")

    async with trio.open_nursery() as nursery:
        async with lock:
            nursery.start_soon(wait)
            await trio.testing.wait_all_tasks_blocked()
        for _ in range(3):
            async with lock:
                turns.append("first")
        await trio.testing.wait_all_tasks_blocked()
        assert turns == ["first", "first", "first", "other"]
        async with lock:
            nursery.start_soon(wait)
            await trio.testing.wait_all_tasks_blocked()
        async with lock:  # it finds the lock taken, and goes on waiting
            await trio.testing.wait_all_tasks_blocked()
            turns.append("first")
    assert turns[4:] == ["first", "other"]


async def test_as_many_have_a_go_in_one_turn_as_the_place_wants() -> None:
    place = FakePlace(wanted=3)
    lock = _Lock(place)
    woken: list[int] = []

    async def wait(number: int) -> None:
        async with lock:
            woken.append(number)
        await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        async with lock:
            for number in range(5):
                nursery.start_soon(wait, number)
                await trio.testing.wait_all_tasks_blocked()
            place.wanted = 3
        assert lock._candidates == 3
        await trio.testing.wait_all_tasks_blocked()
        assert sorted(woken) == [0, 1, 2, 3, 4]
        nursery.cancel_scope.cancel()


async def test_the_place_is_told_when_nobody_waits_for_requests_any_more() -> None:
    place = FakePlace()
    lock = _Lock(place)

    async def wait() -> None:
        async with lock:
            pass

    async with trio.open_nursery() as nursery:
        async with lock:
            assert place.somebody == [True]
            nursery.start_soon(wait)
            await trio.testing.wait_all_tasks_blocked()
        assert place.somebody == [True], "the next one is about to"
    assert place.somebody == [True, True, False]


# ── waiting ───────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_the_loop_is_asked_only_when_waiting_in_place_brought_nothing(pipe: tuple[int, int]) -> None:
    place = FakePlace(3, descriptor=pipe[0])
    low_level = _LowLevel(place)
    for _ in range(3):
        await low_level.wait_readable(7)
    assert (place.attending, place.turns) == ([7], 0)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(low_level.wait_readable, 7)
        await trio.testing.wait_all_tasks_blocked()
        assert nursery.child_tasks, "it waits for the place's descriptor"
        place.requests = 1
        os.write(pipe[1], b"x")
    assert place.turns == 1


async def test_others_who_are_ready_get_a_turn_before_anybody_waits(pipe: tuple[int, int]) -> None:
    place = FakePlace(1, ready=2, descriptor=pipe[0])
    await _LowLevel(place).wait_readable(7)
    assert place.turns == 2


async def test_closing_ends_the_waiting_and_whatever_would_begin_later(pipe: tuple[int, int]) -> None:
    place = FakePlace(descriptor=pipe[0])
    low_level = _LowLevel(place)
    ended: list[bool] = []

    async def wait() -> None:
        with pytest.raises(trio.ClosedResourceError):
            await low_level.wait_readable(pipe[0])
        ended.append(True)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked()
        low_level.notify_closing(pipe[0])
    await wait()
    assert ended == [True, True]


def test_everything_else_is_trios_own() -> None:
    stand_in = _Trio(FakePlace())
    assert stand_in.open_nursery is trio.open_nursery
    assert stand_in.lowlevel.current_task is trio.lowlevel.current_task
    assert stand_in.ClosedResourceError is trio.ClosedResourceError
