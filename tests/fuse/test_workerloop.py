"""The stand-in for pyfuse3's trio: which worker takes a request, watches or sleeps, and when the loop gets its turn."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import cast

import pytest
import trio
import trio.testing

from aoefs.engine.inplace import InPlace
from tests.source import from_source

LowLevel, Trio = from_source("fuse.workerloop").LowLevel, from_source("fuse.workerloop").Trio


class FakePlace:
    """An InPlace with ``requests`` more requests, of which other tasks want the next ``ready`` turns."""

    def __init__(self, requests: int = 0, *, ready: int = 0, wanted: int = 1, descriptor: int = -1) -> None:
        self.requests = requests
        self.ready = ready
        self.wanted = wanted
        self.descriptor = descriptor
        self.attending: list[int] = []
        self.attended_by_other: list[bool] = []
        self.turns = 0

    def attend_to(self, descriptor: int) -> None:
        self.attending.append(descriptor)

    def attended(self, by_other: bool) -> None:
        self.attended_by_other.append(by_other)

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


class Workers:
    """Workers that wait for requests, numbered as they come; ``took`` has those that got one, in order."""

    def __init__(self, place: FakePlace) -> None:
        self.place = place
        self.low_level = LowLevel(cast(InPlace, place))
        self.took: list[int] = []
        self.candidates: list[int] = []  # at that moment: how many were about to try
        self.scopes: list[trio.CancelScope] = []

    async def wait(self, number: int) -> None:
        with trio.CancelScope() as scope:
            self.scopes.append(scope)
            await self.low_level.wait_readable(7)
            self.took.append(number)
            self.candidates.append(self.low_level.candidates)

    async def come(self, nursery: trio.Nursery, count: int) -> None:
        for number in range(len(self.scopes), len(self.scopes) + count):
            nursery.start_soon(self.wait, number)
            await trio.testing.wait_all_tasks_blocked()


def arrive(pipe: tuple[int, int], place: FakePlace, requests: int) -> None:
    """So many requests come; the worker that watches sees that."""
    place.requests = requests
    os.write(pipe[1], b"x")


async def settle(pipe: tuple[int, int]) -> None:
    """Let all tasks run that can; then the descriptor is no longer readable."""
    for _ in range(10):
        await trio.lowlevel.checkpoint()
    os.read(pipe[0], 100)


# ── which worker gets a request ───────────────────────────────────────────────────────────────────────────────────────


async def test_a_request_that_is_there_costs_no_turn_of_the_loop(pipe: tuple[int, int]) -> None:
    place = FakePlace(3, descriptor=pipe[0])
    low_level = LowLevel(cast(InPlace, place))
    for _ in range(3):
        await low_level.wait_readable(7)
    assert (place.attending, place.turns) == ([7], 0)


async def test_one_worker_watches_and_the_others_sleep_until_it_found_a_request(pipe: tuple[int, int]) -> None:
    workers = Workers(FakePlace(descriptor=pipe[0]))
    async with trio.open_nursery() as nursery:
        await workers.come(nursery, 4)
        assert workers.place.turns == 0, "all are in the loop"
        arrive(pipe, workers.place, 1)
        await settle(pipe)
        assert workers.took == [0], "the one that watched"
        arrive(pipe, workers.place, 1)
        await settle(pipe)
        assert workers.took == [0, 3], "the one that slept last watches next"
        nursery.cancel_scope.cancel()


async def test_a_worker_may_take_a_request_before_the_one_that_watches_runs(pipe: tuple[int, int]) -> None:
    workers = Workers(FakePlace(descriptor=pipe[0]))
    async with trio.open_nursery() as nursery:
        await workers.come(nursery, 2)
        arrive(pipe, workers.place, 1)
        await workers.low_level.wait_readable(7)
        await settle(pipe)
        assert workers.took == []
        assert [len(workers.low_level.asleep), workers.low_level.candidates] == [1, 0], "the other goes on watching"
        arrive(pipe, workers.place, 2)
        await settle(pipe)
        assert workers.took == [0, 1]


async def test_in_one_turn_as_many_workers_try_as_are_wanted(pipe: tuple[int, int]) -> None:
    workers = Workers(FakePlace(wanted=3, descriptor=pipe[0]))
    async with trio.open_nursery() as nursery:
        await workers.come(nursery, 6)
        workers.place.requests = 4
        await workers.low_level.wait_readable(7)
        assert workers.low_level.candidates == 0, "one watches already"
        os.write(pipe[1], b"x")
        await settle(pipe)
        assert workers.candidates[0] == 3
        assert len(workers.took) == 3
        assert set(workers.took[1:]) <= {3, 4, 5}, "those that came last"
        assert len(workers.low_level.asleep) == 2, "one of those that found nothing watches"
        nursery.cancel_scope.cancel()


async def test_a_worker_cancelled_while_it_sleeps_is_passed_over(pipe: tuple[int, int]) -> None:
    workers = Workers(FakePlace(descriptor=pipe[0]))
    async with trio.open_nursery() as nursery:
        await workers.come(nursery, 3)
        workers.scopes[2].cancel()
        await trio.testing.wait_all_tasks_blocked()
        for _ in range(2):
            arrive(pipe, workers.place, 1)
            await settle(pipe)
        assert workers.took == [0, 1]


async def test_when_the_worker_that_watches_is_cancelled_another_one_watches(pipe: tuple[int, int]) -> None:
    workers = Workers(FakePlace(descriptor=pipe[0]))
    async with trio.open_nursery() as nursery:
        await workers.come(nursery, 2)
        workers.scopes[0].cancel()
        await trio.testing.wait_all_tasks_blocked()
        arrive(pipe, workers.place, 1)
        await settle(pipe)
        assert workers.took == [1]


async def test_the_receivers_go_on_when_no_worker_waits_for_requests(pipe: tuple[int, int]) -> None:
    workers = Workers(FakePlace(descriptor=pipe[0]))
    attended = workers.place.attended_by_other
    async with trio.open_nursery() as nursery:
        await workers.come(nursery, 2)
        assert attended == [True]
        arrive(pipe, workers.place, 1)
        await settle(pipe)
        assert (workers.took, attended[-1]) == ([0], True), "the next one watches"
        workers.scopes[1].cancel()
        await trio.testing.wait_all_tasks_blocked()
        assert attended[-1] is False


# ── turns ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_the_loop_is_asked_only_when_waiting_in_place_brought_nothing(pipe: tuple[int, int]) -> None:
    place = FakePlace(descriptor=pipe[0])
    low_level = LowLevel(cast(InPlace, place))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(low_level.wait_readable, 7)
        await trio.testing.wait_all_tasks_blocked()
        assert nursery.child_tasks, "it waits for the descriptor"
        arrive(pipe, place, 1)
    assert place.turns == 1


async def test_tasks_that_are_ready_get_a_turn_before_a_worker_waits(pipe: tuple[int, int]) -> None:
    place = FakePlace(1, ready=2, descriptor=pipe[0])
    await LowLevel(cast(InPlace, place)).wait_readable(7)
    assert place.turns == 2


async def test_closing_ends_the_waiting_of_all_and_whatever_would_begin_later(pipe: tuple[int, int]) -> None:
    place = FakePlace(descriptor=pipe[0])
    low_level = LowLevel(cast(InPlace, place))
    ended: list[bool] = []

    async def wait() -> None:
        with pytest.raises(trio.ClosedResourceError):
            await low_level.wait_readable(pipe[0])
        ended.append(True)

    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked()
        low_level.notify_closing(pipe[0])
    await wait()
    assert ended == [True] * 4
    assert place.attended_by_other[-1] is False


def test_everything_else_is_that_of_trio() -> None:
    stand_in = Trio(cast(InPlace, FakePlace()))
    assert stand_in.open_nursery is trio.open_nursery
    assert stand_in.lowlevel.current_task is trio.lowlevel.current_task
    assert stand_in.ClosedResourceError is trio.ClosedResourceError
