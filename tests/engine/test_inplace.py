"""Waiting in place: what it waits for, when it gives way to other tasks, and which frames it takes meanwhile.

Descriptors are real pipes, time is virtual, the receiver is a fake.
"""

from __future__ import annotations

import errno
import math
import os
import socket
from collections.abc import Callable, Coroutine, Iterator
from contextlib import ExitStack
from typing import Any, cast

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from aoefs.core.link import Link
from aoefs.engine.busypoll import FIRST_PAUSE, PERIOD
from aoefs.engine.disk import Disk
from aoefs.engine.inplace import AWAY, FEW_CALLERS, FEW_COMMANDS, InPlace
from aoefs.engine.settings import Settings
from aoefs.engine.waits import Callers, Stepped
from tests.scene import Scene, nothing_is_left, open_scene


class Pipe:
    """Readable from :meth:`fill` to :meth:`drain`."""

    def __init__(self, cleanup: ExitStack) -> None:
        self.descriptor, self._end = os.pipe()
        for descriptor in (self.descriptor, self._end):
            cleanup.callback(os.close, descriptor)

    def fill(self) -> None:
        os.write(self._end, b"x")

    def drain(self) -> None:
        os.read(self.descriptor, 100)


class Bench:
    """An InPlace with one link; ``on_frames`` is called when its frames are taken.

    Each look at the clock takes ``step`` seconds; ``frames_at`` is when frames come, unless it is asleep then.
    """

    def __init__(self, cleanup: ExitStack, busy_poll: float | None = 0.0) -> None:
        self.now = 100.0
        self.step = 0.0
        self.frames_at = math.inf
        self.delay = 0.0  # seconds for which others had the processor
        self.looks = 0
        self.callers = Callers()
        self.in_flight = 1
        self.requests, self.frames = Pipe(cleanup), Pipe(cleanup)
        self.batches = 0
        self.on_frames: Callable[[], object] = lambda: None
        self.in_place = InPlace(
            self.receive_batch,
            self.attended,
            self.callers,
            lambda: self.in_flight,
            self.clock,
            busy_poll,
            lambda: self.delay,
        )
        cleanup.callback(self.in_place.close)
        self.in_place.add_link(cast(Link, self.frames))

    def attend(self) -> None:
        self.in_place.attend_to(self.requests.descriptor)
        self.in_place.loop_turned()

    def look_for_answer(self) -> bool | None:
        """One caller sleeps meanwhile."""
        self.callers.asleep += 1
        try:
            return self.in_place.look()
        finally:
            self.callers.asleep -= 1

    def clock(self) -> float:
        self.looks += 1
        self.now += self.step
        if self.now >= self.frames_at:
            self.frames_at = math.inf
            self.frames.fill()
        return self.now

    # As the receiver.

    def attended(self, by_other: bool) -> None:
        """Not used here."""

    def receive_batch(self, link: Link, *, in_place: bool = False) -> int:
        assert in_place
        self.frames.drain()
        self.batches += 1
        self.on_frames()
        return 1


@pytest.fixture
def bench() -> Iterator[Bench]:
    with ExitStack() as cleanup:
        yield Bench(cleanup)


def test_frames_are_taken_while_answers_or_requests_are_waited_for(bench: Bench) -> None:
    bench.attend()
    for look in (bench.look_for_answer, bench.in_place.look):
        bench.frames.fill()
        assert look() is False
    assert bench.batches == 2


def test_a_request_is_found_while_answers_or_requests_are_waited_for(bench: Bench) -> None:
    bench.attend()
    bench.requests.fill()
    assert bench.look_for_answer()
    assert bench.in_place.look()


def test_silence_ends_the_waiting(bench: Bench) -> None:
    bench.attend()
    assert bench.look_for_answer() is None
    assert bench.in_place.look() is None


def test_a_request_goes_before_frames(bench: Bench) -> None:
    bench.attend()
    bench.frames.fill()
    bench.requests.fill()
    seen = []
    for _ in range(2):
        seen.append((bench.look_for_answer(), bench.batches))
        bench.requests.fill()
        bench.requests.drain()
    assert seen == [(True, 0), (False, 1)]


def test_requests_are_not_found_while_nobody_could_take_one(bench: Bench) -> None:
    bench.attend()
    bench.requests.fill()
    for _ in range(2):  # said twice, it holds all the same
        bench.in_place.heed_requests(False)
    assert bench.in_place.look() is None
    bench.frames.fill()
    assert bench.in_place.look() is False, "frames are"
    for _ in range(2):
        bench.in_place.heed_requests(True)
    assert bench.in_place.look()


def test_no_request_is_looked_for_before_there_is_a_descriptor_of_requests(bench: Bench) -> None:
    bench.in_place.heed_requests(True)
    bench.in_place.heed_requests(False)
    bench.requests.fill()
    assert bench.in_place.look() is None
    bench.attend()
    assert bench.in_place.look()


def test_tasks_that_are_ready_want_a_turn(bench: Bench) -> None:
    bench.attend()
    for ready in (0, 1, 2, 0):
        bench.callers.ready = ready
        assert bench.in_place.others_are_ready() == (ready > 0)
        bench.in_place.loop_turned()
        assert bench.in_place.others_are_ready() == (ready > 0), "a turn alone changes nothing"


def test_the_loop_wants_a_turn_however_many_requests_there_are(bench: Bench) -> None:
    bench.attend()
    bench.requests.fill()
    assert bench.in_place.look()
    bench.now += AWAY
    assert bench.in_place.others_are_ready()
    bench.in_place.loop_turned()
    assert not bench.in_place.others_are_ready()


def test_a_flood_of_frames_does_not_keep_the_loop_from_its_turn(bench: Bench) -> None:
    bench.attend()

    def more() -> None:
        bench.now += AWAY / 10
        bench.frames.fill()

    bench.frames.fill()
    bench.on_frames = more
    while not bench.in_place.others_are_ready():
        assert bench.look_for_answer() is False
    assert 10 <= bench.batches <= 11


def test_a_link_that_was_dropped_is_not_looked_at(bench: Bench) -> None:
    bench.attend()
    bench.in_place.drop_link(cast(Link, bench.frames))
    bench.frames.fill()
    assert bench.look_for_answer() is None
    assert not bench.batches
    bench.in_place.add_link(cast(Link, bench.frames))
    assert bench.look_for_answer() is False


# ── polling before sleeping ───────────────────────────────────────────────────────────────────────────────────────────


def polls(busy_poll: float | None) -> Iterator[Bench]:
    with ExitStack() as cleanup:
        bench = Bench(cleanup, busy_poll)
        bench.attend()
        bench.step = 1e-6
        yield bench


@pytest.fixture
def polling() -> Iterator[Bench]:
    """It always polls for 100 us."""
    yield from polls(100e-6)


@pytest.fixture
def adapting() -> Iterator[Bench]:
    yield from polls(None)


def answered_after(bench: Bench, seconds: float) -> bool:
    """An answer comes after so many seconds of polling, or never if it sleeps by then: whether it was taken."""
    bench.frames_at = bench.now + seconds
    found = bench.look_for_answer()
    bench.frames_at = math.inf
    return found is False


def teach(bench: Bench) -> None:
    """Answers come soon after it went to sleep, again and again."""
    for _ in range(8):
        bench.frames.fill()
        assert bench.look_for_answer() is False


def test_an_answer_within_the_time_of_polling_is_taken_without_a_sleep(polling: Bench) -> None:
    assert answered_after(polling, 50e-6)
    assert not answered_after(polling, 150e-6)


def test_what_comes_while_no_caller_sleeps_is_polled_for_too(polling: Bench) -> None:
    polling.frames_at = polling.now + 50e-6
    assert polling.in_place.look() is False


@pytest.mark.parametrize("in_flight", [FEW_COMMANDS, FEW_COMMANDS + 1])
def test_answers_that_come_in_large_batches_are_not_polled_for(polling: Bench, in_flight: int) -> None:
    polling.in_flight = in_flight
    assert answered_after(polling, 50e-6) == (in_flight <= FEW_COMMANDS)


@pytest.mark.parametrize("others", [FEW_CALLERS - 1, FEW_CALLERS])
def test_answers_for_many_callers_are_not_polled_for(polling: Bench, others: int) -> None:
    polling.callers.asleep = others
    assert answered_after(polling, 50e-6) == (others < FEW_CALLERS)


def test_commands_of_no_caller_do_not_keep_it_from_polling(polling: Bench) -> None:
    polling.in_flight = FEW_COMMANDS + 1
    polling.frames_at = polling.now + 50e-6
    assert polling.in_place.look() is False


def test_polling_that_is_off_looks_at_no_clock(bench: Bench) -> None:
    bench.attend()
    before = bench.looks
    bench.frames.fill()
    assert bench.look_for_answer() is False
    assert bench.in_place.look() is None
    assert bench.looks == before


def test_polling_begins_when_answers_come_soon_and_ends_when_none_do(adapting: Bench) -> None:
    assert not answered_after(adapting, 50e-6)
    teach(adapting)
    assert answered_after(adapting, 50e-6)
    for _ in range(8):
        assert not answered_after(adapting, 1.0)
    assert not answered_after(adapting, 5e-6)


def test_answers_and_requests_are_polled_for_separately(adapting: Bench) -> None:
    teach(adapting)
    adapting.frames_at = adapting.now + 50e-6
    assert adapting.in_place.look() is None, "no request came soon so far"


def test_nothing_is_polled_while_others_want_the_processor(adapting: Bench) -> None:
    teach(adapting)
    adapting.delay += 1.0
    adapting.now += PERIOD
    assert not answered_after(adapting, 50e-6)
    adapting.now += FIRST_PAUSE + PERIOD
    assert answered_after(adapting, 50e-6)


def test_a_clock_that_stands_still_does_not_keep_it_polling(polling: Bench) -> None:
    polling.step = 0.0
    assert polling.look_for_answer() is None


# ── with an engine ────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def descriptors() -> Iterator[tuple[int, int]]:
    """One that is always readable, and one that never is."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.send(b"x")
        yield theirs.fileno(), ours.fileno()


async def ready_in_place(scene: Scene, descriptors: tuple[int, int]) -> Disk:
    """The disk of e0.1, whose answers are there as soon as the frames are sent, without any turn of the loop."""
    disk = await scene.disk(0, 1)
    await disk.read(0, 512)
    await trio.sleep(2)
    scene.wire.immediate = True
    scene.link.descriptor, requests = descriptors
    scene.engine.in_place.add_link(scene.link)
    scene.engine.in_place.attend_to(requests)
    scene.engine.in_place.loop_turned()
    return disk


def step_in_place(scene: Scene, coroutine: Coroutine[Any, Any, object]) -> None:
    """As ``fuse.workerloop`` does it, without any turn of the loop."""
    callers = scene.engine.driver.callers
    stepped = Stepped(coroutine)
    callers.resume(stepped)
    while True:
        while not callers.resumed:
            assert scene.engine.in_place.look() is False
        callers.stepping = callers.resumed.popleft()
        assert callers.stepping is stepped
        try:
            coroutine.send(None)
        except StopIteration:
            return
        finally:
            callers.stepping = None


async def test_a_call_ends_in_place_and_its_shard_counts_it(
    autojump_clock: MockClock, descriptors: tuple[int, int]
) -> None:
    async with open_scene(Settings(shards=2)) as scene:
        target = scene.add_target(0, 1)
        disk = await ready_in_place(scene, descriptors)
        before = [shard.completed for shard in scene.engine.statistics().shards]

        async def call() -> None:
            for _ in range(5):
                assert await disk.read(0, 2048) == target.data[:2048]
                await disk.write(0, bytes(512))

        step_in_place(scene, call())
        completed = [shard.completed for shard in scene.engine.statistics().shards]
        assert [after - then for after, then in zip(completed, before, strict=True)] == [0, 5 * (2 + 1)]
        assert nothing_is_left(disk.target)


async def test_an_interface_that_goes_down_under_a_caller_in_place_does_no_harm(
    autojump_clock: MockClock, descriptors: tuple[int, int]
) -> None:
    async with open_scene() as scene:
        target = scene.add_target(0, 1)
        disk = await ready_in_place(scene, descriptors)
        scene.link.failure = OSError(errno.ENETDOWN, "down")
        step_in_place(scene, disk.write(100, b"x" * 100))
        assert target.data[100:200] == b"x" * 100
        assert nothing_is_left(disk.target)
