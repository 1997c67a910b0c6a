"""The stand-in for pyfuse3's trio: which worker goes on, when the loop waits and where, and how it ends."""

from __future__ import annotations

import errno
import os
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any, cast

import pytest
import trio
import trio.testing
from pyfuse3 import FUSEError
from trio.testing import MockClock

from aoefs.engine.inplace import InPlace
from aoefs.engine.waits import Callers, Stepped, Wait
from aoefs.errors import RequestError
from tests.scene import nothing_is_left, open_scene
from tests.source import from_source

WorkerLoop = from_source("fuse.workerloop").WorkerLoop

REQUESTS = 7  # the descriptor of the requests; nothing is done with it


class FakePlace:
    """An InPlace: what there is to see is in ``requests`` and ``frames``.

    ``descriptor`` is readable when one of them came while the loop was away.  ``log`` has what is done in which order.
    """

    def __init__(self, descriptor: int, callers: Callers) -> None:
        self.descriptor = descriptor
        self.callers = callers
        self.requests = 0
        self.frames: deque[Callable[[], object]] = deque()
        self.due = False  # the loop had no turn for long
        self.heeded = False
        self.attending: list[int] = []
        self.attended_by_other: list[bool] = []
        self.log: list[str] = []

    def attend_to(self, descriptor: int) -> None:
        self.attending.append(descriptor)
        self.heeded = True

    def heed_requests(self, heeded: bool) -> None:
        self.heeded = heeded

    def attended(self, by_other: bool) -> None:
        self.attended_by_other.append(by_other)

    def others_are_ready(self) -> bool:
        return self.due or self.callers.ready > 0

    def loop_turned(self) -> None:
        self.due = False
        self.log.append("turn")

    def without_turns(self) -> list[str]:
        """The log but for turns: trio may give the loop more than one of them before the other task has its own."""
        return [entry for entry in self.log if entry != "turn"]

    def look(self) -> bool | None:
        self.log.append("look")
        with suppress(BlockingIOError):
            os.read(self.descriptor, 100)
        if self.heeded and self.requests:
            self.requests -= 1
            return True
        if self.frames:
            self.frames.popleft()()
            return False
        return None


class Bench:
    """A loop with numbered workers.

    ``handle(number)`` is what a worker does with a request, ``took`` which ones got one, ``ended`` which have ended.
    """

    def __init__(self, ends: tuple[int, int], callers: Callers | None = None) -> None:
        self.callers = callers or Callers()
        self.place = FakePlace(ends[0], self.callers)
        self.loop = WorkerLoop(cast(InPlace, self.place))
        self._end = ends[1]
        self.took: list[int] = []
        self.ended: list[int] = []
        self.handle: Callable[[int], Awaitable[object]] = self.nothing
        self.scope = trio.CancelScope()

    async def nothing(self, _number: int) -> None:
        """A request that is over at once."""

    async def work(self, number: int, most: int = 1000) -> None:
        """As pyfuse3's ``_session_loop`` does it."""
        try:
            for _ in range(most):
                try:
                    async with self.loop.Lock():
                        await self.loop.lowlevel.wait_readable(REQUESTS)
                except trio.ClosedResourceError:
                    return
                self.took.append(number)
                await self.handle(number)
        finally:
            self.ended.append(number)

    def start(self, *functions: Callable[[], Any]) -> None:
        for function in functions:
            self.loop.start_soon(function, name="worker")

    async def run(self, workers: int = 0, most: int = 1000) -> None:
        """As pyfuse3's ``main`` does it, with so many workers of up to ``most`` requests."""
        with trio.CancelScope() as self.scope:
            async with self.loop.open_nursery() as nursery:
                for number in range(workers):
                    nursery.start_soon(self.work, number, most, name="worker")

    @asynccontextmanager
    async def running(self, workers: int) -> AsyncIterator[None]:
        """They are idle and the loop is away.  In the end it is closed, and has to end by itself."""
        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self.run, workers)
                await trio.testing.wait_all_tasks_blocked()
                yield
                self.loop.lowlevel.notify_closing(REQUESTS)

    async def arrive(self, requests: int = 0, *frames: Callable[[], object]) -> None:
        """They come while the loop is away, and what follows from them is done."""
        self.place.requests += requests
        self.place.frames.extend(frames)
        os.write(self._end, b"x")
        await trio.testing.wait_all_tasks_blocked()


@pytest.fixture
def ends() -> Iterator[tuple[int, int]]:
    reading, writing = os.pipe2(os.O_NONBLOCK)
    yield reading, writing
    os.close(reading)
    os.close(writing)


@pytest.fixture
def bench(ends: tuple[int, int]) -> Bench:
    return Bench(ends)


# ── which worker gets a request ───────────────────────────────────────────────────────────────────────────────────────


async def test_requests_that_are_there_cost_no_turn_of_the_loop(autojump_clock: MockClock, bench: Bench) -> None:
    bench.place.requests = 3
    await bench.run(1, most=3)
    assert bench.took == [0, 0, 0]
    assert bench.place.log == ["look"] * 3
    assert bench.place.attending == [REQUESTS]


async def test_the_last_idle_worker_gets_the_next_request(autojump_clock: MockClock, bench: Bench) -> None:
    waits = [Wait(bench.callers) for _ in range(3)]
    bench.handle = lambda number: waits[number].wait()
    async with bench.running(3):
        await bench.arrive(2)
        assert bench.took == [2, 1]
        waits[2].wake()
        await trio.testing.wait_all_tasks_blocked()
        await bench.arrive(1)
        assert bench.took == [2, 1, 2]
        waits[1].wake()
    assert bench.callers.asleep == 0


async def test_requests_are_not_looked_for_while_all_workers_are_busy(autojump_clock: MockClock, bench: Bench) -> None:
    waits = [Wait(bench.callers), Wait(bench.callers)]
    bench.handle = lambda number: waits[number].wait()
    async with bench.running(2):
        await bench.arrive(3)
        assert (bench.took, bench.place.requests, bench.place.heeded) == ([1, 0], 1, False)
        await bench.arrive(0, waits[0].wake)
        assert (bench.took, bench.place.requests) == ([1, 0, 0], 0), "the one that is idle again takes it"
        waits[1].wake()


async def test_a_worker_may_start_another_before_it_carries_out_its_request(
    autojump_clock: MockClock, bench: Bench
) -> None:
    wait = Wait(bench.callers)

    async def handle(number: int) -> None:
        if number == 0:
            bench.start(lambda: bench.work(1))
            await wait.wait()

    bench.handle = handle
    async with bench.running(1):
        await bench.arrive(2)
        assert bench.took == [0, 1]
        wait.wake()


# ── turns ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_frames_resume_workers_without_a_turn_of_the_loop(autojump_clock: MockClock, bench: Bench) -> None:
    wait = Wait(bench.callers)
    bench.handle = lambda _number: wait.wait()
    bench.place.requests = 1
    bench.place.frames.append(wait.wake)
    await bench.run(1, most=1)
    assert bench.place.log == ["look"] * 2
    assert (bench.ended, bench.callers.asleep) == ([0], 0)


async def test_trios_loop_is_waited_in_only_when_waiting_in_place_brought_nothing(
    autojump_clock: MockClock, bench: Bench
) -> None:
    async with bench.running(1):
        assert bench.place.log == ["look"]
        await bench.arrive(1)
        assert bench.took == [0]
        assert bench.place.log == ["look", "turn", "look", "look"]


async def test_tasks_that_are_ready_get_a_turn_before_the_loop_waits(autojump_clock: MockClock, bench: Bench) -> None:
    wait = Wait(bench.callers)

    async def other() -> None:
        await wait.wait()
        bench.place.log.append("other")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(other)
        await trio.testing.wait_all_tasks_blocked()
        bench.place.requests = 1
        bench.place.frames.append(wait.wake)
        async with bench.running(1):
            assert bench.place.without_turns() == ["look", "look", "other", "look"]


async def test_the_loop_gets_its_turn_however_many_requests_there_are(autojump_clock: MockClock, bench: Bench) -> None:
    async def handle(_number: int) -> None:
        bench.place.due = len(bench.took) == 2

    bench.handle = handle
    bench.place.requests = 4
    await bench.run(1, most=4)
    assert bench.place.log == ["look", "look", "turn", "look", "look"]


async def test_a_resume_brings_the_loop_back_that_is_away(autojump_clock: MockClock, bench: Bench) -> None:
    wait = Wait(bench.callers)
    bench.handle = lambda _number: wait.wait()
    async with bench.running(1):
        await bench.arrive(1)
        wait.wake()  # by a task: no descriptor says so
        await trio.testing.wait_all_tasks_blocked()
        assert bench.callers.asleep == 0
        await bench.arrive(1)
        assert bench.took == [0, 0]


# ── tasks of handlers ─────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_handler_in_a_task_gets_its_turn_at_once_and_others_go_on_meanwhile(
    autojump_clock: MockClock, bench: Bench
) -> None:
    results: list[object] = []

    async def sleep() -> str:
        bench.place.log.append("task")
        await trio.sleep(1)
        return "slept"

    async def handle(number: int) -> None:
        if number == 1:
            results.append(await bench.callers.in_task(sleep))

    bench.handle = handle
    async with bench.running(2):
        bench.place.log.clear()
        await bench.arrive(2)
        assert bench.place.without_turns()[:3] == ["look", "task", "look"]
        assert (bench.took, results) == ([1, 0], [])
        await trio.sleep(2)
        assert results == ["slept"]


async def test_an_error_of_a_handler_in_a_task_ends_neither_its_worker_nor_the_loop(
    autojump_clock: MockClock, bench: Bench
) -> None:
    caught: list[FUSEError] = []

    async def fail() -> None:
        await trio.sleep(1)
        raise FUSEError(errno.ENOSPC)

    async def handle(_number: int) -> None:
        try:
            await bench.callers.in_task(fail)
        except FUSEError as error:
            caught.append(error)

    bench.handle = handle
    async with bench.running(1):
        for _ in range(2):
            await bench.arrive(1)
            await trio.sleep(2)
    assert [error.errno for error in caught] == [errno.ENOSPC] * 2


async def test_a_handler_that_waits_for_trio_outside_of_a_task_fails_and_its_worker_goes_on(
    autojump_clock: MockClock, bench: Bench
) -> None:
    caught: list[str] = []

    async def handle(_number: int) -> None:
        for _ in range(2):  # also if it tries again
            try:
                await trio.lowlevel.wait_task_rescheduled(lambda _: trio.lowlevel.Abort.SUCCEEDED)
            except RuntimeError as error:
                caught.append(str(error))

    bench.handle = handle
    async with bench.running(1):
        await bench.arrive(1)
        await bench.arrive(1)
    assert caught == ["a handler waits for trio outside of a task"] * 4


# ── its end ───────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_closing_ends_idle_workers_at_once_and_the_others_after_their_request(
    autojump_clock: MockClock, bench: Bench
) -> None:
    wait = Wait(bench.callers)
    bench.handle = lambda _number: wait.wait()
    async with bench.running(3):
        await bench.arrive(1)
        bench.loop.lowlevel.notify_closing(REQUESTS)
        await trio.testing.wait_all_tasks_blocked()
        assert sorted(bench.ended) == [0, 1]
        wait.wake()
        await trio.testing.wait_all_tasks_blocked()
        assert sorted(bench.ended) == [0, 1, 2]
    with pytest.raises(trio.ClosedResourceError):
        await bench.loop.lowlevel.wait_readable(REQUESTS)


async def test_closing_by_a_worker_ends_the_idle_ones(autojump_clock: MockClock, bench: Bench) -> None:
    async def handle(_number: int) -> None:
        bench.loop.lowlevel.notify_closing(REQUESTS)

    bench.handle = handle
    bench.place.requests = 1
    with trio.fail_after(60):
        await bench.run(3)
    assert sorted(bench.ended) == [0, 1, 2]


async def test_the_loop_ends_with_its_last_worker_though_several_were_resumed_at_once(
    autojump_clock: MockClock, bench: Bench
) -> None:
    waits = [Wait(bench.callers) for _ in range(3)]
    bench.start(*(wait.wait for wait in waits))
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(bench.run)
            await trio.testing.wait_all_tasks_blocked()
            looks = len(bench.place.log)
            for wait in waits:
                wait.wake()
    assert bench.place.log[looks:] == ["turn"]
    assert (bench.callers.asleep, bench.callers.ready) == (0, 0)


async def test_an_exception_of_a_worker_ends_the_loop_and_closes_all_others(
    autojump_clock: MockClock, bench: Bench
) -> None:
    wait = Wait(bench.callers)

    async def handle(number: int) -> None:
        await (bench.callers.in_task(trio.sleep_forever) if number == 2 else wait.wait())
        raise OSError(errno.EIO, "of the FUSE descriptor")

    bench.handle = handle
    bench.place.requests = 2
    bench.place.frames.append(wait.wake)
    with trio.fail_after(60), pytest.raises(ExceptionGroup) as group:
        await bench.run(4)
    # Worker 3 got the first request; 2, whose task never ends, the second one.
    assert [type(error) for error in group.value.exceptions] == [OSError]
    assert (sorted(bench.took), sorted(bench.ended)) == ([2, 3], [0, 1, 2, 3])
    assert bench.place.attended_by_other == [True, False]
    assert (bench.callers.asleep, bench.callers.ready) == (0, 0)


async def test_a_cancelled_loop_closes_its_workers_and_none_is_resumed_later(
    autojump_clock: MockClock, bench: Bench
) -> None:
    wait = Wait(bench.callers)
    ends: list[str] = []

    async def sleep() -> None:
        try:
            await trio.sleep_forever()
        finally:
            ends.append("task")

    async def handle(number: int) -> None:
        await (bench.callers.in_task(sleep) if number == 0 else wait.wait())

    bench.handle = handle
    async with bench.running(3):
        await bench.arrive(2)
        bench.handle = lambda _number: bench.callers.in_task(sleep)
        await bench.arrive(1)
        bench.scope.cancel()
        await trio.testing.wait_all_tasks_blocked()
        assert sorted(bench.ended) == [0, 1, 2]
        assert ends == ["task"]
        wait.wake()
        await trio.testing.wait_all_tasks_blocked()
        assert sorted(bench.ended) == [0, 1, 2]
    assert (bench.callers.asleep, bench.callers.ready, len(bench.callers.resumed)) == (0, 0, 0)


async def test_a_worker_that_does_not_close_keeps_none_of_the_others_open(
    autojump_clock: MockClock, bench: Bench
) -> None:
    async def refuse() -> None:
        try:
            await bench.work(7)
        finally:
            raise OSError(errno.EIO, "while it was closed")

    async def cancel_all() -> None:
        async with trio.open_nursery() as nursery:
            bench.start(*(partial(bench.work, number) if number % 2 else refuse for number in range(6)))
            nursery.start_soon(bench.run)
            await trio.testing.wait_all_tasks_blocked()
            bench.scope.cancel()

    with trio.fail_after(60), pytest.raises(ExceptionGroup) as group:
        await cancel_all()
    assert group.group_contains(OSError, match="while it was closed")
    assert sorted(bench.ended) == [1, 3, 5, 7, 7, 7]


async def test_the_receivers_sleep_while_the_loop_runs(autojump_clock: MockClock, bench: Bench) -> None:
    async with bench.running(1):
        await bench.arrive(1)
        assert bench.place.attended_by_other == [True]
    assert bench.place.attended_by_other == [True, False]


@pytest.mark.parametrize("write", [False, True])
async def test_what_workers_of_a_cancelled_loop_wait_for_is_abandoned(
    autojump_clock: MockClock, ends: tuple[int, int], write: bool
) -> None:
    async with open_scene() as scene:
        target = scene.add_target()
        disk = await scene.disk()
        bench = Bench(ends, scene.engine.driver.callers)
        target.silent = True
        tags = len(scene.engine.driver.tags)
        calls: list[Callable[[], Any]] = [lambda: disk.read(0, 4096), lambda: disk.read(512, 100)]
        if write:  # the second one waits for the first one, in a task
            calls = [lambda: disk.write(0, bytes(4096)), lambda: disk.write(512, bytes(512))]
        bench.start(*calls)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(bench.run)
            await trio.testing.wait_all_tasks_blocked()
            assert len(disk.target.requests()) == 2 - write
            bench.scope.cancel()
        assert not disk.target.requests()
        assert (bench.callers.asleep, bench.callers.ready) == (0, 0)
        await trio.sleep(200)  # no copy of a write can travel by then
        assert nothing_is_left(disk.target)
        assert len(scene.engine.driver.tags) <= tags


async def test_a_writer_that_is_closed_in_the_moment_in_which_it_gets_its_claim_keeps_none(
    autojump_clock: MockClock, ends: tuple[int, int]
) -> None:
    async with open_scene() as scene:
        scene.add_target()
        disk = await scene.disk()
        callers = scene.engine.driver.callers
        first, second = (Stepped(disk.write(0, bytes(512))) for _ in range(2))
        async with trio.open_nursery() as nursery:
            resumed = trio.Event()
            callers.start, callers.on_resume = nursery.start_soon, resumed.set
            for stepped in (first, second):
                callers.stepping = stepped
                stepped.coroutine.send(None)
            callers.stepping = None
            await resumed.wait()
            callers.stepping = callers.resumed.popleft()
            with suppress(StopIteration):
                first.coroutine.send(None)
            callers.stepping = None
            second.coroutine.close()
        await trio.sleep(200)
        assert nothing_is_left(disk.target)


async def test_calls_of_a_disk_end_in_workers_as_in_tasks(
    autojump_clock: MockClock, ends: tuple[int, int], announce: Callable[[str], None]
) -> None:
    announce("e0.0 does not answer|e0.0 is down")
    async with open_scene() as scene:
        target = scene.add_target()
        disk = await scene.disk()
        bench = Bench(ends, scene.engine.driver.callers)
        bench.start(lambda: disk.write(100, b"a" * 600), lambda: disk.write(300, b"b" * 600))  # one waits for the other
        await bench.run()
        assert target.data[100:900] == b"a" * 200 + b"b" * 600
        target.silent = True
        caught: list[RequestError] = []

        async def fail() -> None:
            try:
                await disk.read(0, 512)
            except RequestError as error:
                caught.append(error)

        bench.start(fail)
        await bench.run()
        assert len(caught) == 1
        assert nothing_is_left(disk.target)


# ── trio ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_everything_else_is_that_of_trio(ends: tuple[int, int]) -> None:
    stand_in = Bench(ends).loop
    assert stand_in.lowlevel.current_trio_token is trio.lowlevel.current_trio_token
    assert stand_in.ClosedResourceError is trio.ClosedResourceError
    assert isinstance(stand_in.lowlevel.current_task().name, str), "pyfuse3 logs it"
