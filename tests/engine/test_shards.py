"""Completion shards: where an answer is completed, when a shard starts, and what is left at the end."""

from __future__ import annotations

import random
from collections import Counter
from typing import cast

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from aoefs.core.link import Link
from aoefs.core.lonecommand import LoneCommand
from aoefs.core.request import Request, Run
from aoefs.core.tags import TagTable
from aoefs.core.target import Target
from aoefs.engine.disk import Disk
from aoefs.engine.settings import Settings
from aoefs.engine.shards import MAX_COMPLETIONS, Completion, Shard, Shards
from aoefs.errors import RequestError, TargetError, TargetLost
from aoefs.protocol.ata import Identity
from aoefs.protocol.wire import (
    SECTOR_BYTES,
    Address,
    Share,
)
from tests.scene import (
    DELAY,
    OUR_MAC,
    SimulatedTarget,
    nothing_is_left,
    open_scene,
    target_mac,
)

IDENTITY = Identity(sectors=1 << 20, serial="S", model="M", firmware="F")


class Machines:
    """Initiators whose runs are answered by hand."""

    def __init__(self) -> None:
        self.tags: TagTable[Run | LoneCommand] = TagTable(random.Random(0).randbytes)
        self.ended: list[tuple[Address, RequestError | None]] = []
        self.pumped: list[tuple[Address, float]] = []

    def make(self, shelf: int, slot: int, *, step: int = 2) -> Target:
        target = Target(Address(shelf, slot), IDENTITY, self.tags)
        target.set_bufcnt(64)
        path = target.add_path(cast(Link, None), "seg0", (OUR_MAC, target_mac(0)), step)
        path.window.size = 64
        return target

    def answer(self, target: Target, commands: int = 1, error: RequestError | None = None) -> Completion:
        """Answers to all commands of a new read, received and not yet completed."""
        buffer = memoryview(bytearray(commands * 2 * SECTOR_BYTES))
        request = Request(0, commands * 2, buffer, write=False, on_end=lambda ended: self._end(target, ended))
        target.submit(request, 0.0)
        run = target.next_run(0.0)
        assert run is not None
        assert run.count == commands
        assert target.receive(run, 0, commands, 0.1)
        return Completion(target, run, 0, commands, error)

    def _end(self, target: Target, request: Request) -> None:
        self.ended.append((target.address, request.error))

    def pump(self, target: Target, now: float) -> None:
        self.pumped.append((target.address, now))

    def now(self) -> float:
        return 5.0


async def settle() -> None:
    await trio.testing.wait_all_tasks_blocked()


@pytest.fixture
def machines() -> Machines:
    return Machines()


async def test_only_shard_0_runs_from_the_start(autojump_clock: trio.testing.MockClock, machines: Machines) -> None:
    await trio.sleep(7)
    async with trio.open_nursery() as nursery:
        shards = Shards(4, nursery, machines.pump, machines.now)
        assert [shard.active for shard in shards.statistics()] == [True, False, False, False]
        assert [shard.started_at for shard in shards.statistics()] == [7.0, None, None, None]
        await settle()
        assert len(nursery.child_tasks) == 1
        nursery.cancel_scope.cancel()


async def test_another_shard_starts_by_the_first_answer_for_it_which_shard_0_completes(
    autojump_clock: trio.testing.MockClock, machines: Machines
) -> None:
    target = machines.make(1, 2)
    async with trio.open_nursery() as nursery:
        shards = Shards(4, nursery, machines.pump, machines.now)
        await trio.sleep(3)
        shards.put(machines.answer(target))
        assert [shard.queued for shard in shards.statistics()] == [1, 0, 0, 0]
        assert not shards.statistics()[3].active, "started only after shard 0 completed the answer"
        await settle()
        assert machines.ended == [(target.address, None)]
        assert [shard.active for shard in shards.statistics()] == [True, False, False, True]
        assert shards.statistics()[3].started_at == 3.0
        assert [shard.completed for shard in shards.statistics()] == [1, 0, 0, 0]
        shards.put(machines.answer(target, 5))
        await settle()
        assert [shard.completed for shard in shards.statistics()] == [1, 0, 0, 5]
        assert [shard.batches for shard in shards.statistics()] == [1, 0, 0, 1]
        assert len(nursery.child_tasks) == 2
        nursery.cancel_scope.cancel()


async def test_one_batch_of_shard_0_starts_every_shard_that_it_met(machines: Machines) -> None:
    targets = [machines.make(0, slot) for slot in range(6)]
    async with trio.open_nursery() as nursery:
        shards = Shards(3, nursery, machines.pump, machines.now)
        for target in targets:
            shards.put(machines.answer(target))
        assert shards.statistics()[0].longest_queue == 6
        await settle()
        assert all(shard.active for shard in shards.statistics())
        assert [shard.completed for shard in shards.statistics()] == [6, 0, 0]
        assert [address for address, _ in machines.ended] == [target.address for target in targets], "in order"
        assert len(nursery.child_tasks) == 3, "no shard is started twice"
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(("processes", "shards"), [(2, 2), (2, 4), (4, 2), (3, 4)])
async def test_the_targets_of_one_of_several_processes_are_spread_over_all_its_shards(
    machines: Machines, processes: int, shards: int
) -> None:
    share = Share(1, processes)
    targets = [target for slot in range(48) if share.number_of((target := machines.make(0, slot)).address) == 1]
    async with trio.open_nursery() as nursery:
        made = Shards(shards, nursery, machines.pump, machines.now, processes)
        for turn in (0, 1):  # shard 0 completes what comes before the others run
            for target in targets:
                made.put(machines.answer(target))
            await settle()
            counts = [shard.completed for shard in made.statistics()]
            assert turn == 0 or counts == [
                len(targets) + len(targets) // shards,
                *[len(targets) // shards] * (shards - 1),
            ]
        nursery.cancel_scope.cancel()


async def test_a_shard_yields_after_a_bounded_batch(machines: Machines) -> None:
    flood, neighbour = machines.make(0, 0), machines.make(0, 1)
    async with trio.open_nursery() as nursery:
        shards = Shards(2, nursery, machines.pump, machines.now)
        shards.put(machines.answer(neighbour))  # starts shard 1
        await settle()
        machines.ended.clear()
        entries = 3 * MAX_COMPLETIONS // 64
        for _ in range(entries):
            shards.put(machines.answer(flood, 64))
        shards.put(machines.answer(neighbour))
        turns: list[int] = []

        async def watch() -> None:
            while len(machines.ended) <= entries:
                turns.append(len(machines.ended))
                await trio.lowlevel.checkpoint()

        nursery.start_soon(watch)
        await settle()
        addresses = [address for address, _ in machines.ended]
        assert addresses.index(neighbour.address) <= 2 * MAX_COMPLETIONS // 64, "served before the flood was over"
        assert len(addresses) == entries + 1
        assert len(turns) >= 2, "other tasks ran between the batches"
        statistics = shards.statistics()[0]
        assert (statistics.completed, statistics.batches) == (64 * entries + 1, 1 + 3)
        assert statistics.longest_queue == entries
        nursery.cancel_scope.cancel()


def test_a_batch_ends_with_the_entry_that_reaches_the_bound(machines: Machines) -> None:
    target = machines.make(0, 0)
    shard = Shard(0, machines.pump, machines.now)
    for _ in range(MAX_COMPLETIONS + 10):
        shard.put(machines.answer(target))
    shard.complete_batch()
    assert shard.completed == MAX_COMPLETIONS
    assert len(shard.queue) == 10
    shard.complete_batch()
    assert (shard.completed, shard.batches, len(shard.queue)) == (MAX_COMPLETIONS + 10, 2, 0)


def test_a_refusal_fails_its_request_and_sends_what_that_freed(machines: Machines) -> None:
    target = machines.make(0, 5)
    error = TargetError(3)
    shard = Shard(0, machines.pump, machines.now)
    shard.put(machines.answer(target, error=error))
    target.submit(Request(0, 1, None, write=False, on_end=lambda _request: None), 0.0)
    shard.put(machines.answer(machines.make(0, 6)))
    shard.complete_batch()
    assert machines.ended == [(Address(0, 5), error), (Address(0, 6), None)]
    assert machines.pumped == [(Address(0, 5), 5.0)]
    assert target.errors == 1
    assert shard.completed == 2


async def test_what_is_completed_in_place_goes_to_its_shard_but_not_before_what_is_queued_there(
    machines: Machines,
) -> None:
    target, other = machines.make(0, 1), machines.make(0, 2)
    async with trio.open_nursery() as nursery:
        shards = Shards(3, nursery, machines.pump, machines.now)
        shards.complete(machines.answer(target), 7.0)
        assert machines.ended == [(target.address, None)]
        assert [shard.completed for shard in shards.statistics()] == [1, 0, 0], "it did not run yet"
        assert [shard.active for shard in shards.statistics()] == [True, True, False]
        shards.complete(machines.answer(target, 3), 7.0)
        assert [(shard.completed, shard.batches) for shard in shards.statistics()] == [(1, 1), (3, 1), (0, 0)]
        shards.put(machines.answer(target))
        machines.ended.clear()
        shards.complete(machines.answer(target), 7.0)
        shards.complete(machines.answer(other), 7.0)
        assert machines.ended == [(other.address, None)], "nothing is queued for that one"
        assert [shard.queued for shard in shards.statistics()] == [0, 2, 0]
        await settle()
        assert [address for address, _ in machines.ended] == [other.address, target.address, target.address]
        nursery.cancel_scope.cancel()


def test_a_flush_fails_what_waits_in_every_queue(machines: Machines) -> None:
    shard = Shard(0, machines.pump, machines.now)
    for slot in range(3):
        shard.put(machines.answer(machines.make(0, slot)))
    shard.flush()
    assert [type(error) for _, error in machines.ended] == [TargetLost] * 3
    assert not shard.queue
    assert shard.completed == 0


async def test_the_engine_flushes_the_queues_when_it_stops(
    autojump_clock: trio.testing.MockClock,
) -> None:
    errors: list[BaseException] = []
    queued: list[int] = []

    async with trio.open_nursery() as nursery, open_scene(Settings(shards=2)) as scene:
        scene.add_target()
        disk = await scene.disk()

        class StopOnceQueued(trio.abc.Instrument):
            def after_task_step(self, task: trio.lowlevel.Task) -> None:
                """The receiver's step queues an answer; no shard has had a step since."""
                if not queued and (count := sum(shard.queued for shard in scene.engine.statistics().shards)):
                    queued.append(count)
                    scene.engine.stop()

        trio.lowlevel.add_instrument(StopOnceQueued())

        async def read() -> None:
            try:
                await disk.read(0, 1024)
            except RequestError as error:
                errors.append(error)

        nursery.start_soon(read)
        await trio.sleep(0.01)  # not until the next query, which would find its link closed
        assert queued == [1]
        assert [type(error) for error in errors] == [TargetLost]
        assert not any(shard.queued or shard.completed for shard in scene.engine.statistics().shards)
        assert scene.engine.statistics().targets[0].in_flight == 0


@pytest.mark.parametrize(
    "addresses",
    [
        [Address(0, slot) for slot in range(36)],
        [Address(shelf, 0) for shelf in range(36)],
        [Address(7 + index // 6, index % 6 * 6) for index in range(36)],
    ],
    ids=["one shelf", "every shelf with slot 0", "six shelves"],
)
async def test_36_targets_spread_evenly(
    autojump_clock: trio.testing.MockClock, machines: Machines, addresses: list[Address]
) -> None:
    targets = [machines.make(*address) for address in addresses]
    async with trio.open_nursery() as nursery:
        shards = Shards(6, nursery, machines.pump, machines.now)
        for target in targets:  # starts all of them
            shards.put(machines.answer(target))
        await settle()
        for target in targets:
            shards.put(machines.answer(target))
        assert [shard.queued for shard in shards.statistics()] == [6] * 6
        await settle()
        assert [shard.completed for shard in shards.statistics()] == [36 + 6, 6, 6, 6, 6, 6]
        assert Counter(address for address, _ in machines.ended) == dict.fromkeys(addresses, 2)
        nursery.cancel_scope.cancel()


# ── with an engine ────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_shard_runs_only_after_a_target_of_it_was_read(autojump_clock: MockClock) -> None:
    async with open_scene(Settings(shards=4)) as scene:
        scene.add_target(1, 1)
        scene.add_target(2, 1)
        first, second = await scene.disk(1, 1), await scene.disk(2, 1)
        await trio.sleep(3 - trio.current_time())
        active = [shard.active for shard in scene.engine.statistics().shards]
        assert active == [True, False, False, False], "discovery alone starts none"
        await first.read(0, 512)
        assert [shard.active for shard in scene.engine.statistics().shards] == [True, False, True, False]
        assert scene.engine.statistics().shards[2].started_at == pytest.approx(3 + 2 * DELAY)
        await second.read(0, 512)
        assert [shard.active for shard in scene.engine.statistics().shards] == [True, False, True, True]
        assert [shard.completed for shard in scene.engine.statistics().shards] == [2, 0, 0, 0]
        await second.read(0, 512)
        assert [shard.completed for shard in scene.engine.statistics().shards] == [2, 0, 0, 1]


async def test_36_targets_are_busy_at_once(autojump_clock: MockClock) -> None:
    async with open_scene(Settings(shards=6)) as scene:
        targets = [scene.add_target(shelf, 0, sectors=32) for shelf in range(36)]
        disks = [await scene.disk(shelf, 0) for shelf in range(36)]

        async def work(disk: Disk, target: SimulatedTarget) -> None:
            for _ in range(2):
                assert await disk.read(0, 32 * 512) == target.data
                await disk.write(512, bytes(reversed(target.data[512:])))

        async with trio.open_nursery() as nursery:
            for disk, target in zip(disks, targets, strict=True):
                nursery.start_soon(work, disk, target)
        completed = [shard.completed for shard in scene.engine.statistics().shards]
        assert sum(completed) == 36 * 2 * (16 + 16)
        assert all(shard.active for shard in scene.engine.statistics().shards)
        assert all(nothing_is_left(disk.target) for disk in disks)
