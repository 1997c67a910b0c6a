"""Waiting in place: what it waits for, when it gives way to other tasks, and which frames it takes meanwhile.

Descriptors are real pipes, time is virtual, receiver and shards are fakes.
"""

from __future__ import annotations

import errno
import math
import os
import random
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any, cast

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from aoefs.core.link import Link
from aoefs.core.tags import TagTable
from aoefs.core.target import Target
from aoefs.engine.busypoll import FIRST_PAUSE, PERIOD
from aoefs.engine.disk import Disk
from aoefs.engine.inplace import AWAY, FEW_COMMANDS, PATIENCE, InPlace
from aoefs.engine.settings import Settings
from aoefs.engine.waits import Callers, Wait
from aoefs.protocol.ata import Identity
from aoefs.protocol.wire import (
    Address,
)
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


def make_target(*, soon: bool = True, in_flight: int = 1) -> Target:
    """A target that answers ``soon``, with so many commands in flight."""
    target = Target(
        Address(0, 0), Identity(sectors=64, serial="S", model="M", firmware="F"), TagTable(random.Random(7).randbytes)
    )
    path = target.add_path(cast(Link, object()), "fake0", (b"\2\0\0\0\0\1", b"\2\0\0\0\0\2"), 2)
    path.rtt.srtt = PATIENCE / 2 if soon else 2 * PATIENCE
    target.in_flight = in_flight
    return target


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
        self.requests, self.frames = Pipe(cleanup), Pipe(cleanup)
        self.batches = 0
        self.on_frames: Callable[[], object] = lambda: None
        self.in_place = InPlace(
            self.receive_batch, self.attended, self.callers, self.look, busy_poll, lambda: self.delay
        )
        cleanup.callback(self.in_place.close)
        self.in_place.add_link(cast(Link, self.frames))

    def attend(self) -> None:
        self.in_place.attend_to(self.requests.descriptor)
        self.in_place.loop_turned()

    def wait(self, **target: Any) -> Wait:
        wait = Wait(self.callers)
        if self.on_frames.__name__ == "<lambda>":
            self.on_frames = wait.wake
        self.in_place.wait(make_target(**target), wait)
        return wait

    def look(self) -> float:
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


def test_an_answer_is_waited_for_and_completed(bench: Bench) -> None:
    bench.attend()
    bench.frames.fill()
    assert bench.wait().woken
    assert bench.batches == 1


def test_nothing_is_waited_for_before_there_is_a_descriptor_of_requests(bench: Bench) -> None:
    bench.frames.fill()
    assert not bench.wait().woken
    assert not bench.batches


def test_a_slow_target_is_waited_for_in_the_loop(bench: Bench) -> None:
    bench.attend()
    bench.frames.fill()
    assert not bench.wait(soon=False).woken


def test_silence_ends_the_waiting(bench: Bench) -> None:
    bench.attend()
    assert not bench.wait().woken


def test_another_request_ends_the_waiting_for_an_answer(bench: Bench) -> None:
    bench.attend()
    bench.requests.fill()
    bench.frames.fill()
    assert not bench.wait().woken
    assert not bench.batches, "it goes first"
    assert bench.in_place.next_request()


def test_with_a_second_request_under_way_all_tasks_sleep(bench: Bench) -> None:
    bench.attend()
    bench.callers.asleep = 1
    bench.frames.fill()
    assert not bench.wait().woken


def test_frames_are_taken_while_the_next_request_is_waited_for(bench: Bench) -> None:
    bench.attend()
    bench.frames.fill()
    bench.on_frames = bench.requests.fill
    assert bench.in_place.next_request()
    assert bench.batches == 1


def test_a_task_that_was_woken_gets_its_turn_at_once(bench: Bench) -> None:
    bench.attend()

    def wake() -> None:
        bench.callers.ready = 1
        bench.frames.fill()
        bench.requests.fill()

    bench.frames.fill()
    bench.on_frames = wake
    assert bench.in_place.next_request(), "it is there, and was not waited for"
    bench.requests.drain()
    assert not bench.in_place.next_request()
    assert bench.in_place.others_are_ready()
    assert bench.batches == 1, "frames can wait"
    assert not bench.wait().woken
    assert bench.batches == 1


def test_the_loop_gets_a_turn_however_many_requests_there_are(bench: Bench) -> None:
    bench.attend()
    bench.requests.fill()
    assert bench.in_place.next_request()
    bench.now += AWAY
    assert not bench.in_place.next_request()
    assert bench.in_place.others_are_ready()
    bench.in_place.loop_turned()
    assert bench.in_place.next_request()


def test_a_flood_of_frames_does_not_keep_the_loop_from_its_turn(bench: Bench) -> None:
    bench.attend()

    def more() -> None:
        bench.now += AWAY / 10
        bench.frames.fill()

    bench.frames.fill()
    bench.on_frames = more
    assert not bench.wait().woken
    assert 10 <= bench.batches <= 11


def test_a_link_that_was_dropped_is_not_looked_at(bench: Bench) -> None:
    bench.attend()
    bench.in_place.drop_link(cast(Link, bench.frames))
    bench.frames.fill()
    assert not bench.wait().woken
    assert not bench.batches


def test_more_workers_are_wanted_the_more_are_busy_up_to_a_bound(bench: Bench) -> None:
    wanted = []
    for bench.callers.asleep in (0, 1, 2, 8, 1000):
        wanted.append(bench.in_place.workers_wanted())
    assert wanted == [1, 1, 2, 5, 8]


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
    bench.on_frames = lambda: None
    bench.frames_at = bench.now + seconds
    woken = bench.wait().woken
    bench.frames_at = math.inf
    return woken


def teach(bench: Bench) -> None:
    """Answers come soon after it went to sleep, again and again."""
    for _ in range(8):
        bench.on_frames = lambda: None
        bench.frames.fill()
        assert bench.wait().woken


def test_an_answer_within_the_time_of_polling_is_taken_without_a_sleep(polling: Bench) -> None:
    assert answered_after(polling, 50e-6)
    assert not answered_after(polling, 150e-6)


def test_a_request_within_the_time_of_polling_is_taken_without_a_sleep(polling: Bench) -> None:
    polling.frames_at = polling.now + 50e-6
    polling.on_frames = polling.requests.fill
    assert polling.in_place.next_request()


@pytest.mark.parametrize("in_flight", [FEW_COMMANDS, FEW_COMMANDS + 1])
def test_answers_that_come_in_large_batches_are_not_polled_for(polling: Bench, in_flight: int) -> None:
    polling.frames_at = polling.now + 50e-6
    assert polling.wait(in_flight=in_flight).woken == (in_flight <= FEW_COMMANDS)


def test_polling_that_is_off_looks_at_no_clock(bench: Bench) -> None:
    bench.attend()
    before = bench.looks
    bench.frames.fill()
    assert bench.wait().woken
    assert bench.looks == before + 1, "whether the loop wants a turn"


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
    adapting.on_frames = adapting.requests.fill
    assert not adapting.in_place.next_request(), "no request came soon so far"


def test_nothing_is_polled_while_others_want_the_processor(adapting: Bench) -> None:
    teach(adapting)
    adapting.delay += 1.0
    adapting.now += PERIOD
    adapting.in_place.loop_turned()
    assert not answered_after(adapting, 50e-6)
    adapting.now += FIRST_PAUSE + PERIOD
    adapting.in_place.loop_turned()
    assert answered_after(adapting, 50e-6)


def test_a_clock_that_stands_still_does_not_keep_it_polling(polling: Bench) -> None:
    polling.step = 0.0
    assert not polling.wait().woken


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


async def test_a_caller_may_wait_in_place_and_its_shard_counts_it(
    autojump_clock: MockClock, descriptors: tuple[int, int]
) -> None:
    async with open_scene(Settings(shards=2)) as scene:
        target = scene.add_target(0, 1)
        disk = await ready_in_place(scene, descriptors)
        before = [shard.completed for shard in scene.engine.statistics().shards]
        turns = 0

        async def count() -> None:
            nonlocal turns
            while True:
                turns += 1
                await trio.lowlevel.checkpoint()

        scene.nursery.start_soon(count)
        for _ in range(5):
            assert await disk.read(0, 2048) == target.data[:2048]
            await disk.write(0, bytes(512))
        assert turns == 0, "the loop had no turn"
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
        await disk.write(100, b"x" * 100)
        assert target.data[100:200] == b"x" * 100
        assert nothing_is_left(disk.target)
