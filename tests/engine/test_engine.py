"""The engine on a simulated segment under a virtual clock: its counters, its end, silent targets."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from aoefs.engine.changes import Change
from aoefs.engine.disk import Disk
from aoefs.engine.engine import open_engine
from aoefs.engine.settings import Settings
from aoefs.errors import RequestError, TargetLost
from aoefs.protocol.wire import Share
from tests.engine.answers import data_only
from tests.engine.calls import CALLS, cancel_after
from tests.engine.queries import broadcasts
from tests.scene import DELAY, Announce, nothing_is_left, open_scene, target_mac


async def test_counters_equal_what_they_count(autojump_clock: MockClock) -> None:
    async with open_scene(Settings(shards=3)) as scene:
        for slot in range(5):
            scene.add_target(0, slot)
        disks = [await scene.disk(0, slot) for slot in range(5)]
        await trio.sleep(2)
        frames = scene.link.tx_frames
        for slot, disk in enumerate(disks):
            for _ in range(slot + 1):
                await disk.read(0, 64 * 512)
                await disk.write(0, bytes(10 * 512))
            await disk.flush()
        statistics = scene.engine.statistics()
        for slot, found in enumerate(statistics.targets):
            count = slot + 1
            assert (found.reads, found.read_bytes) == (count, count * 64 * 512)
            assert (found.writes, found.write_bytes) == (count, count * 10 * 512)
            assert (found.flushes, found.errors, found.retransmits, found.in_flight, found.queued) == (1, 0, 0, 0, 0)
            assert found.paths[0].sent == found.paths[0].answered == count * (32 + 5)
            assert not found.dirty
            assert found.rtt_us == pytest.approx(2 * DELAY * 1e6, rel=1e-3)
        assert sum(shard.completed for shard in statistics.shards) == 15 * 37
        assert all(shard.active and shard.batches for shard in statistics.shards)
        assert scene.link.tx_frames - frames == 15 * 37 + 5
        assert statistics.links[0].rx_unknown == 0
        assert statistics.hints == 5 * len(broadcasts(scene))


async def test_an_engine_of_one_share_knows_no_target_of_another_and_says_that_there_is_one(
    autojump_clock: MockClock,
) -> None:
    others: list[int] = []
    async with open_scene(Settings(share=Share(1, 3))) as scene:
        scene.engine.discovery.on_other_share = others.append
        for address in ((0, 0), (0, 1), (1, 0), (1, 1), (65534, 1)):
            scene.add_target(*address)
        await trio.sleep(2)
        assert {str(address) for address in scene.engine.disks} == {"e0.1", "e1.0"}
        assert set(others) == {0, 2}


# ── the end ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", [*CALLS, "a write behind another one", "a write behind a cancelled one"])
@pytest.mark.parametrize("deadsecs", [0, 180])
async def test_leaving_the_engine_ends_every_waiting_call_at_once(
    autojump_clock: MockClock, name: str, deadsecs: float
) -> None:
    outcomes: list[BaseException] = []

    async def call(disk: Disk, function: Callable[[Disk], Awaitable[object]]) -> None:
        try:
            await function(disk)
        except RequestError as error:
            outcomes.append(error)

    async with trio.open_nursery() as nursery:
        async with open_scene(Settings(deadsecs=deadsecs)) as scene:
            target = scene.add_target(sectors=4096)
            disk = await scene.disk()
            target.silent = True
            expected = 1
            if name == "a write behind another one":
                nursery.start_soon(call, disk, CALLS["a write"])
                await trio.sleep(0.1)
                nursery.start_soon(call, disk, CALLS["a write"])
                expected = 2
            elif name == "a write behind a cancelled one":
                await cancel_after(1.0, lambda: CALLS["a write"](disk))
                nursery.start_soon(call, disk, CALLS["a write"])
            else:
                nursery.start_soon(call, disk, CALLS[name])
            await trio.sleep(0.3)
            ended = trio.current_time()
        await trio.testing.wait_all_tasks_blocked()
        assert trio.current_time() == ended
        assert [type(outcome) for outcome in outcomes] == [TargetLost] * expected
        with pytest.raises(TargetLost):
            await disk.read(0, 512)
        with pytest.raises(TargetLost):
            await disk.write(0, bytes(512))
        with pytest.raises(TargetLost):
            await disk.flush()
        assert trio.current_time() == ended


@pytest.mark.parametrize("name", CALLS)
async def test_failing_all_ends_what_waits_and_leaves_the_target_to_be_flushed(
    autojump_clock: MockClock, name: str
) -> None:
    """As when a mount ends: open files fail, then what was acknowledged is made durable."""
    async with open_scene() as scene:
        target = scene.add_target(sectors=4096)
        disk = await scene.disk()
        await disk.write(0, b"precious")
        target.silent = True
        errors: list[RequestError] = []

        async def call() -> None:
            with pytest.raises(TargetLost) as caught:
                await CALLS[name](disk)
            errors.append(caught.value)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(call)
            await trio.sleep(0.5)
            scene.engine.close()
            await trio.testing.wait_all_tasks_blocked()
            assert len(errors) == 1
        target.silent = False
        assert disk.target.dirty
        disk.target.life.end()
        await disk.flush()
        assert not disk.target.dirty


async def test_an_exception_of_the_callers_own_leaves_the_engine_unwrapped(autojump_clock: MockClock) -> None:
    with pytest.raises(KeyError, match="mine"):
        async with open_engine([]):
            raise KeyError("mine")


# ── time ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_request_fails_after_deadsecs_and_the_target_is_down(
    autojump_clock: MockClock, announce: Announce
) -> None:
    announce(r"does not answer: \d+ request")
    announce("e0.0 is down: not one answer for 30 s")
    changes: list[Change] = []
    async with open_scene(Settings(deadsecs=30), on_change=lambda _disk, change: changes.append(change)) as scene:
        target = scene.add_target()
        disk = await scene.disk()
        target.silent = True
        began = trio.current_time()
        with pytest.raises(TargetLost):
            await disk.read(0, 512)
        assert trio.current_time() - began == pytest.approx(30, abs=0.01)
        with pytest.raises(TargetLost, match="down"):
            await disk.read(0, 512)
        assert trio.current_time() - began == pytest.approx(30, abs=0.01), "new I/O fails at once"
        assert scene.engine.statistics().targets[0].state == "down"
        await trio.sleep(60)
        target.silent = False
        began = trio.current_time()
        while scene.engine.statistics().targets[0].state == "down":  # noqa: ASYNC110
            await trio.sleep(0.1)
        assert trio.current_time() - began <= 15.5
        assert await disk.read(0, 512) == target.data[:512]
        assert changes == [Change.APPEARED, Change.DOWN, Change.RETURNED]


async def test_without_deadsecs_a_request_waits_for_ever(autojump_clock: MockClock, announce: Announce) -> None:
    announce(r"does not answer: \d+ request")
    async with open_scene(Settings(deadsecs=0)) as scene:
        target = scene.add_target()
        disk = await scene.disk()
        target.silent = True
        async with trio.open_nursery() as nursery:
            nursery.start_soon(disk.write, 0, b"late" * 128)
            await trio.sleep(3600)
            target.silent = False
            began = trio.current_time()
        assert trio.current_time() - began <= 17
        assert target.data[:4] == b"late"


async def test_a_neighbour_of_a_silent_target_notices_nothing(autojump_clock: MockClock, announce: Announce) -> None:
    announce(r"does not answer: \d+ request")
    announce("e0.0 is down")
    async with open_scene(Settings(deadsecs=20, shards=1)) as scene:
        mac = target_mac(7)
        silent, lively = scene.add_target(0, 0, mac=mac), scene.add_target(0, 1, mac=mac)
        first, second = await scene.disk(0, 0), await scene.disk(0, 1)
        silent.silent = True
        slowest = 0.0

        async def lose() -> None:
            with pytest.raises(TargetLost):
                await first.read(0, 512 * 200)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(lose)
            for _ in range(3000):
                began = trio.current_time()
                assert await second.read(0, 1024) == lively.data[:1024]
                slowest = max(slowest, trio.current_time() - began)
                await trio.sleep(0.01)
        assert slowest == pytest.approx(2 * DELAY, abs=1e-9)
        assert second.target.statistics().retransmits == 0


async def test_a_lost_frame_is_retransmitted_and_counted(autojump_clock: MockClock) -> None:
    async with open_scene() as scene:
        target = scene.add_target(sectors=512)
        disk = await scene.disk()
        await disk.read(0, 512 * 512)
        lost = iter([True])
        scene.wire.route = lambda frame: [] if data_only(frame) and next(lost, False) else [(DELAY, frame)]
        began = trio.current_time()
        assert await disk.read(0, 512 * 512) == target.data
        assert trio.current_time() - began < 0.02
        assert disk.target.statistics().retransmits == 1
        assert nothing_is_left(disk.target)
