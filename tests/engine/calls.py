"""The engine on a simulated segment under a virtual clock: reads, writes, flushes, paths, ends."""

from __future__ import annotations

import errno
import math
import random
import socket
from collections.abc import Awaitable, Callable, Iterator

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from aoefs.engine.changes import Change
from aoefs.engine.disk import MAX_REQUEST_SECTORS, Disk
from aoefs.engine.engine import open_engine
from aoefs.engine.settings import Settings
from aoefs.errors import AtaError, RequestError, TargetError, TargetLost
from aoefs.protocol.ata import ErrorBit, Identity, Opcode
from aoefs.protocol.wire import (
    SECTOR_BYTES,
    Address,
    AoeCommand,
    AtaArgument,
    ErrorCode,
    Flag,
    Header,
    encode_ata,
    encode_header,
)
from tests.engine.answers import data_only, error_answer
from tests.scene import DELAY, Announce, Scene, SimulatedTarget, make_export, nothing_is_left, open_scene, target_mac

# ── reads and writes ──────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_lone_read_takes_one_round_trip(autojump_clock: MockClock) -> None:
    async with open_scene() as scene:
        target = scene.add_target()
        disk = await scene.disk()
        began = trio.current_time()
        assert await disk.read(1024, 1024) == target.data[1024:2048]
        assert trio.current_time() - began == pytest.approx(2 * DELAY, abs=1e-9)
        assert nothing_is_left(disk.target)


@pytest.mark.parametrize("offset", [0, 1, 511, 512, 513, 700])
@pytest.mark.parametrize("size", [1, 2, 511, 512, 513, 1024, 1700, 5000])
async def test_any_offset_and_length_is_read_and_written(autojump_clock: MockClock, offset: int, size: int) -> None:
    async with open_scene() as scene:
        target = scene.add_target(sectors=32)
        disk = await scene.disk()
        expected = bytearray(target.data)
        assert await disk.read(offset, size) == expected[offset : offset + size]
        new = bytes(index * 7 & 0xFF for index in range(size))
        await disk.write(offset, new)
        expected[offset : offset + size] = new
        assert target.data == expected
        assert await disk.read(0, len(expected)) == expected
        assert nothing_is_left(disk.target)


async def test_bytes_outside_the_disk_are_a_value_error(autojump_clock: MockClock) -> None:
    async with open_scene() as scene:
        scene.add_target(sectors=8)
        disk = await scene.disk()
        for offset, size in [(8 * 512, 1), (0, 8 * 512 + 1), (-1, 1), (-512, 512), (1 << 60, 512)]:
            with pytest.raises(ValueError, match="not within"):
                await disk.read(offset, size)
            with pytest.raises(ValueError, match="not within"):
                await disk.write(offset, bytes(size))
        assert nothing_is_left(disk.target)
        assert len(await disk.read(7 * 512, 512)) == 512


async def test_a_big_transfer_is_cut_into_pieces(autojump_clock: MockClock) -> None:
    sectors = 2 * MAX_REQUEST_SECTORS + 3
    async with open_scene() as scene:
        target = scene.add_target(sectors=sectors)
        disk = await scene.disk()
        assert await disk.read(0, sectors * SECTOR_BYTES) == target.data
        assert disk.target.reads == 3
        new = bytes(reversed(target.data))
        await disk.write(0, new)
        assert target.data == new
        assert (disk.target.writes, disk.target.write_bytes) == (3, sectors * SECTOR_BYTES)
        assert nothing_is_left(disk.target)


async def test_no_more_is_in_flight_than_the_target_has_buffers(autojump_clock: MockClock) -> None:
    async with open_scene() as scene:
        target = scene.add_target(sectors=4096, bufcnt=5)
        disk = await scene.disk()
        waiting: list[bytes] = []
        longest = 0

        def answer(frame: bytes, reply: bytes) -> list[tuple[float, bytes]]:
            nonlocal longest
            waiting.append(frame)
            longest = max(longest, disk.target.in_flight)
            return [(0.0, reply)]

        target.answer = answer
        async with trio.open_nursery() as nursery:
            for number in range(8):
                nursery.start_soon(disk.read, number * 200 * 512, 200 * 512)
        assert longest == 5
        assert nothing_is_left(disk.target)


async def test_two_writers_into_one_sector_lose_nothing(autojump_clock: MockClock) -> None:
    async with open_scene() as scene:
        target = scene.add_target(sectors=4)
        disk = await scene.disk()
        expected = bytearray(target.data)
        async with trio.open_nursery() as nursery:
            for start in range(0, 4 * 512, 7):
                piece = bytes([start & 0xFF]) * min(7, 4 * 512 - start)
                expected[start : start + 7] = piece
                nursery.start_soon(disk.write, start, piece)
        assert target.data == expected
        assert nothing_is_left(disk.target)


async def test_overlapping_writes_are_carried_out_in_the_order_in_which_they_came(autojump_clock: MockClock) -> None:
    async with open_scene() as scene:
        target = scene.add_target(sectors=64)
        disk = await scene.disk()
        done: list[int] = []

        async def write(number: int) -> None:
            await disk.write(number * 100, bytes([number]) * 8000)
            done.append(number)

        async with trio.open_nursery() as nursery:
            for number in range(8):
                nursery.start_soon(write, number)
                await trio.testing.wait_all_tasks_blocked()
        assert done == list(range(8))
        expected = b"".join(bytes([number]) * 100 for number in range(7)) + bytes([7]) * 8000
        assert target.data[: len(expected)] == expected


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
        for slot, (found, disk) in enumerate(zip(statistics.targets, disks, strict=True)):
            count = slot + 1
            assert (found.reads, found.read_bytes) == (count, count * 64 * 512)
            assert (found.writes, found.write_bytes) == (count, count * 10 * 512)
            assert (found.flushes, found.errors, found.retransmits, found.in_flight, found.queued) == (1, 0, 0, 0, 0)
            assert found.paths[0].sent == found.paths[0].answered == count * (32 + 5)
            assert disk.target.commands_completed == count * (32 + 5)
            assert not found.dirty
            assert found.rtt_us == pytest.approx(2 * DELAY * 1e6, rel=1e-3)
        assert sum(shard.completed for shard in statistics.shards) == 15 * 37
        assert all(shard.active and shard.batches for shard in statistics.shards)
        assert scene.link.tx_frames - frames == 15 * 37 + 5
        assert statistics.links[0].rx_unknown == 0
        assert statistics.hints == 0


# ── shards ────────────────────────────────────────────────────────────────────────────────────────────────────────


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


# ── cancellation ──────────────────────────────────────────────────────────────────────────────────────────────────


async def cancel_after(seconds: float, call: Callable[[], Awaitable[object]]) -> bool:
    """Run ``call``, cancelled after some virtual time; whether it was cut short."""
    with trio.move_on_after(seconds) as scope:
        await call()
    return scope.cancelled_caught


CALLS: dict[str, Callable[[Disk], Awaitable[object]]] = {
    "a read": lambda disk: disk.read(0, 100 * 512),
    "a lone read": lambda disk: disk.read(3, 5),
    "a long read": lambda disk: disk.read(0, 700 * 512),
    "a write": lambda disk: disk.write(0, bytes(100 * 512)),
    "a write of partial sectors": lambda disk: disk.write(7, bytes(2000)),
    "a flush": lambda disk: disk.flush(),
}


@pytest.mark.parametrize("name", CALLS)
async def test_a_call_cancelled_at_any_time_leaves_nothing_behind(autojump_clock: MockClock, name: str) -> None:
    """Every delivery is half a round trip after another one: half of such steps hits every state in between."""
    async with open_scene() as scene:
        scene.add_target(sectors=4096)
        disk = await scene.disk()
        await trio.sleep(6)  # until the tags of the queries are forgotten
        cut_short = 0
        for step in range(400):
            if not await cancel_after(step * DELAY / 2, lambda: CALLS[name](disk)):
                break
            cut_short += 1
            if step % 7 == 0:  # at once again, into the leftovers
                await CALLS[name](disk)
            await trio.sleep(0.05)  # the answers to what was cancelled come in
            assert nothing_is_left(disk.target), f"after {step} steps"
            assert not scene.engine.driver.tags.live, f"after {step} steps"
        else:
            pytest.fail("never came to its end")
        assert cut_short >= 3
        assert disk.target.errors == 0
        statistics = scene.engine.statistics().targets[0]
        assert (statistics.queued, statistics.in_flight) == (0, 0)


@pytest.mark.parametrize("name", CALLS)
async def test_a_call_cancelled_while_its_target_is_silent_leaves_nothing_behind(
    autojump_clock: MockClock, name: str
) -> None:
    async with open_scene() as scene:
        target = scene.add_target(sectors=4096)
        disk = await scene.disk()
        for seconds in (0.0, 0.001, 0.1, 0.5, 1.5, 2.5, 7.0, 20.0):
            await trio.sleep(1)
            target.silent = True
            assert await cancel_after(seconds, lambda: CALLS[name](disk))
            target.silent = False
            await trio.sleep(40)
            assert nothing_is_left(disk.target), f"after {seconds} s"
            assert not scene.engine.driver.tags.live, f"after {seconds} s"
            await CALLS[name](disk)
            await trio.sleep(10)


async def test_a_writer_cancelled_while_it_waits_for_another_one_lets_the_next_one_in(
    autojump_clock: MockClock,
) -> None:
    async with open_scene() as scene:
        target = scene.add_target(sectors=4096)
        disk = await scene.disk()
        for step in range(60):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(disk.write, 0, bytes(512 * 20))
                await trio.testing.wait_all_tasks_blocked()
                nursery.start_soon(cancel_after, step * DELAY / 2, lambda: disk.write(512, b"\1" * 512))
                await trio.testing.wait_all_tasks_blocked()
                nursery.start_soon(disk.write, 0, bytes([step + 2]) * 512 * 3)
            assert target.data[: 512 * 3] == bytes([step + 2]) * 512 * 3
            await trio.sleep(1)
            assert nothing_is_left(disk.target)


# ── the end ───────────────────────────────────────────────────────────────────────────────────────────────────────


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
    """The second step of a stop: open files fail, then what was acknowledged is made durable."""
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
            scene.engine.fail_all()
            await trio.testing.wait_all_tasks_blocked()
            assert len(errors) == 1
        target.silent = False
        assert disk.target.dirty
        await disk.flush()
        assert not disk.target.dirty


async def test_an_exception_of_the_callers_own_leaves_the_engine_unwrapped(autojump_clock: MockClock) -> None:
    with pytest.raises(KeyError, match="mine"):
        async with open_engine([]):
            raise KeyError("mine")


# ── time ──────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_request_fails_after_deadsecs_and_the_target_is_down(
    autojump_clock: MockClock, announce: Announce
) -> None:
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


async def test_without_deadsecs_a_request_waits_for_ever(autojump_clock: MockClock) -> None:
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


async def test_a_lost_frame_is_sent_again_and_counted(autojump_clock: MockClock) -> None:
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


# ── paths and links ───────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_target_with_two_paths_uses_both(autojump_clock: MockClock) -> None:
    async with open_scene() as scene:
        wire, _port = scene.add_wire()
        first = scene.add_target(sectors=512)
        second = SimulatedTarget(wire, first.export, mac=target_mac(99))
        disk = await scene.disk()
        await trio.sleep(0.5)
        assert len(disk.target.paths) == 2
        for _ in range(5):
            assert await disk.read(0, 512 * 512) == first.data
        sent = [path.sent for path in disk.target.paths]
        assert min(sent) > 0.3 * sum(sent)
        assert second.heard
        assert nothing_is_left(disk.target)


@pytest.mark.parametrize("how", ["gone", "down"])
async def test_io_goes_on_when_one_of_two_ports_goes(autojump_clock: MockClock, how: str) -> None:
    async with open_scene() as scene:
        wire, link = scene.add_wire()
        first = scene.add_target(sectors=512)
        SimulatedTarget(wire, first.export, mac=target_mac(99))
        disk = await scene.disk()
        await trio.sleep(0.5)

        async def read() -> None:
            assert await disk.read(0, 512 * 512) == first.data

        for step in range(20):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(read)
                await trio.sleep(step * DELAY / 2)
                wire.route = lambda _frame: []
                if how == "gone":
                    scene.engine.drop_link(link)
                else:
                    scene.engine.link_changed(link, up=False)
            wire.route = lambda frame: [(DELAY, frame)]
            if how == "gone":
                wire, link = scene.add_wire()
                SimulatedTarget(wire, first.export, mac=target_mac(99))
            else:
                scene.engine.link_changed(link, up=True)
            await trio.sleep(3)
            assert len(disk.target.paths) == 2
            assert not any(path.degraded for path in disk.target.paths)
            assert nothing_is_left(disk.target)


@pytest.mark.parametrize("after", [0.0, DELAY / 2, 1.5 * DELAY, 2.5 * DELAY, 3.5 * DELAY, 0.005, 0.3])
async def test_a_port_may_go_at_any_moment_of_a_discovery(autojump_clock: MockClock, after: float) -> None:
    async with open_scene() as scene:
        wire, link = scene.add_wire()
        target = SimulatedTarget(wire, make_export(Address(5, 5)))
        target.answer = lambda frame, reply: [(0.0, reply)] if frame[19] == AoeCommand.CONFIG else []
        await trio.sleep(after)
        scene.engine.drop_link(link)
        await trio.sleep(100)
        assert not scene.engine.driver.tags.live
        assert not scene.engine.discovery._candidates


async def test_a_full_socket_takes_a_part_and_resumes_when_there_is_room(autojump_clock: MockClock) -> None:
    async with open_scene() as scene:
        target = scene.add_target(sectors=512)
        disk = await scene.disk()
        await trio.sleep(1)
        for step, room in enumerate((0, 1, 2, 5, 7)):
            scene.link.set_room(room)
            done = trio.Event()

            async def read(done: trio.Event = done) -> None:
                assert await disk.read(0, 200 * 512) == target.data[: 200 * 512]
                done.set()

            async with trio.open_nursery() as nursery:
                nursery.start_soon(read)
                while not done.is_set():
                    await trio.sleep(0.002)
                    scene.link.set_room(3)
            assert scene.link.tx_full > step
            scene.link.set_room(math.inf)
            await trio.sleep(1)
            assert nothing_is_left(disk.target)
        assert disk.target.errors == 0


async def test_a_full_socket_may_be_dropped(autojump_clock: MockClock) -> None:
    """The link goes while a target waits for room in its socket."""
    for delay in (0.0, 0.0001, 0.001, 0.1):
        async with open_scene(Settings(deadsecs=5)) as scene:
            scene.add_target()
            disk = await scene.disk()
            scene.link.set_room(0)
            async with trio.open_nursery() as nursery:

                async def read(disk: Disk = disk) -> None:
                    with pytest.raises(TargetLost):
                        await disk.read(0, 4096)

                nursery.start_soon(read)
                await trio.testing.wait_all_tasks_blocked()
                await trio.sleep(delay)
                scene.engine.drop_link(scene.link)
                await trio.sleep(0.1)
                scene.engine.fail_all()


async def test_an_interface_that_goes_down_under_the_receiver_ends_nothing(autojump_clock: MockClock) -> None:
    async with open_scene() as scene:
        target = scene.add_target()
        disk = await scene.disk()
        scene.link.fail_next_receive(OSError(errno.ENETDOWN, "down"))
        await trio.sleep(0.1)
        assert scene.link.up, "frames came, whether or not anybody told us that it is up again"
        assert await disk.read(0, 512) == target.data[:512]


# ── waiting in place ──────────────────────────────────────────────────────────────────────────────────────────────


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


async def test_an_interface_that_goes_down_under_a_caller_in_place_harms_nobody(
    autojump_clock: MockClock, descriptors: tuple[int, int]
) -> None:
    async with open_scene() as scene:
        target = scene.add_target(0, 1)
        disk = await ready_in_place(scene, descriptors)
        scene.link.failure = OSError(errno.ENETDOWN, "down")
        await disk.write(100, b"x" * 100)
        assert target.data[100:200] == b"x" * 100
        assert nothing_is_left(disk.target)


async def test_reads_are_right_over_two_paths_of_different_payload_with_late_and_lost_answers(
    autojump_clock: MockClock,
) -> None:
    """What was one command on the wide path is several on the narrow one, and both may be answered."""
    rng = random.Random(1)
    async with open_scene(max_sectors=8) as scene:
        target = scene.add_target(max_sectors=8, sectors=2048)
        disk = await scene.disk()
        wire, _ = scene.add_wire(max_sectors=2)
        narrow = SimulatedTarget(wire, target.export, mac=target_mac(77), max_sectors=2)
        await trio.sleep(2)
        assert sorted(path.sectors for path in disk.target.paths) == [2, 8]
        for _ in range(50):
            await disk.read(0, 64 * 512)
        target.answer = lambda _frame, reply: [(0.0 if rng.random() < 0.8 else rng.random() * 0.2, reply)]
        narrow.answer = lambda _frame, reply: [(0.0, reply)] if rng.random() < 0.7 else []
        for _ in range(200):
            offset = rng.randrange(1000) * 512
            assert await disk.read(offset, 256 * 512) == target.data[offset : offset + 256 * 512]


# ── errors ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("code", [1, 3, 4, 5, 6, 99])
async def test_an_aoe_error_fails_the_request_at_once(autojump_clock: MockClock, code: int) -> None:
    async with open_scene() as scene:
        target = scene.add_target()
        disk = await scene.disk()

        def refuse(frame: bytes, reply: bytes) -> list[tuple[float, bytes]]:
            answer = reply[:14] + bytes([0x10 | Flag.RESPONSE | Flag.ERROR, code]) + reply[16:60]
            return [(0.0, answer if data_only(frame) else reply)]

        target.answer = refuse
        began = trio.current_time()
        with pytest.raises(TargetError) as caught:
            await disk.read(512, 512)
        assert (caught.value.code, caught.value.lba) == (code, 1)
        assert trio.current_time() - began == pytest.approx(2 * DELAY, abs=1e-9)
        assert disk.target.errors == 1
        assert nothing_is_left(disk.target)


async def test_an_ata_error_names_the_first_sector_of_its_command(autojump_clock: MockClock) -> None:
    async with open_scene() as scene:
        target = scene.add_target()
        disk = await scene.disk()

        def refuse(frame: bytes, reply: bytes) -> list[tuple[float, bytes]]:
            bad = data_only(frame) and frame[28] == 10  # the lowest byte of the LBA
            return [(0.0, error_answer(reply, error=ErrorBit.UNC) if bad else reply)]

        target.answer = refuse
        with pytest.raises(AtaError) as caught:
            await disk.read(0, 40 * 512)
        assert (caught.value.lba, caught.value.error) == (10, ErrorBit.UNC)
        await trio.sleep(1)
        assert nothing_is_left(disk.target)
        assert await disk.read(0, 10 * 512) == target.data[: 10 * 512]


async def test_a_bad_argument_is_tried_once_more_with_a_smaller_payload(autojump_clock: MockClock) -> None:
    async with open_scene(max_sectors=17) as scene:
        target = scene.add_target(max_sectors=17)
        disk = await scene.disk()
        target.max_sectors = 8  # it lied, or was restarted on another link
        assert await disk.read(0, 100 * 512) == target.data[: 100 * 512]
        assert disk.target.paths[0].sectors in (7, 8)
        target.max_sectors = 0
        with pytest.raises(TargetError) as caught:
            await disk.read(0, 100 * 512)
        assert caught.value.code == ErrorCode.BAD_ARGUMENT


# ── forged answers ────────────────────────────────────────────────────────────────────────────────────────────────


FORGED: dict[str, dict[str, object]] = {
    "from a stranger": {"source": target_mac(666)},
    "of another shelf": {"address": Address(7, 0)},
    "of another slot": {"address": Address(0, 7)},
    "of another command": {"command": AoeCommand.MASK},
    "of another version": {"version": 0},
    "with an error, from a stranger": {"source": target_mac(666), "flags": Flag.RESPONSE | Flag.ERROR, "error": 3},
    "with a tag next to it": {"tag": None},
}


@pytest.mark.parametrize("kind", FORGED)
async def test_a_forged_answer_completes_nothing(autojump_clock: MockClock, kind: str) -> None:
    async with open_scene() as scene:
        target = scene.add_target()
        disk = await scene.disk()
        await trio.sleep(2)

        def forge(frame: bytes, reply: bytes) -> list[tuple[float, bytes]]:
            if not data_only(frame):
                return [(0.0, reply)]
            tag = int.from_bytes(frame[20:24], "big")
            changes = dict(FORGED[kind])
            if "tag" in changes:
                changes["tag"] = tag + 40
            fields: dict[str, object] = {
                "destination": scene.link.mac,
                "source": target.mac,
                "address": Address(0, 0),
                "command": AoeCommand.ATA,
                "tag": tag,
                "flags": Flag.RESPONSE,
            }
            lie = encode_ata(Header(**(fields | changes)), AtaArgument(0, 0, 0, 0x40, 0), b"\x66" * 1024)  # type: ignore[arg-type]
            return [(0.0, lie), (0.001, reply)]

        target.answer = forge
        assert await disk.read(0, 2048) == target.data[:2048]
        await trio.sleep(0.1)
        assert scene.link.rx_unknown == 2
        assert disk.target.errors == 0


async def test_a_good_answer_from_another_verified_path_counts(autojump_clock: MockClock) -> None:
    """A target may answer out of another of its links than the one that was asked."""
    async with open_scene() as scene:
        target = scene.add_target()
        other = SimulatedTarget(scene.wire, target.export, mac=target_mac(99))
        disk = await scene.disk()
        await trio.sleep(2)
        assert len(disk.target.paths) == 2
        for one in (target, other):
            one.answer = lambda frame, reply: [
                (0.0, reply[:6] + (other.mac if reply[6:12] == target.mac else target.mac) + reply[12:])
            ]
        assert await disk.read(0, 60 * 512) == target.data[: 60 * 512]
        await disk.write(0, b"\x77" * 30 * 512)
        assert target.data[: 30 * 512] == b"\x77" * 30 * 512
        assert disk.target.statistics().retransmits == 0
        assert nothing_is_left(disk.target)


async def test_frames_of_any_length_do_no_harm(autojump_clock: MockClock) -> None:
    async with open_scene() as scene:
        target = scene.add_target()
        disk = await scene.disk()
        await trio.sleep(2)
        real = scene.wire.sent(AoeCommand.ATA, response=True)[-1][2]
        head = encode_header(
            Header(scene.link.mac, target.mac, Address(0, 0), AoeCommand.ATA, 0x8000_0000, Flag.RESPONSE)
        )
        junk = [real[:size] for size in (1, 13, 14, 20, 23, 24, 30, 35, 36, 40)] + [head, head[:14] + b"\xff" * 60]
        for frame in junk:
            scene.link.deliver(frame)
        await trio.sleep(0.1)
        assert scene.link.rx_unknown >= len(junk) - 2
        assert await disk.read(0, 512) == target.data[:512]


# ── identity ──────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_disk_that_grows_past_short_addresses_is_addressed_with_long_ones(
    autojump_clock: MockClock, announce: Announce
) -> None:
    announce("e0.0 grew")
    async with open_scene() as scene:
        target = scene.add_target(sectors=64)
        old = Identity(sectors=64, serial="S", model="M", firmware="F", lba48=False, flush=True)
        target.identify_as(old)
        disk = await scene.disk()
        await disk.read(0, 512 * 8)
        assert scene.wire.ata(Opcode.READ)
        target.identify_as(Identity(sectors=1 << 30, serial="S", model="M", firmware="F", lba48=True, flush=True))
        scene.engine.lookout.discover()
        await trio.sleep(1)
        assert disk.size_bytes == 512 << 30
        seen = len(scene.wire.ata(Opcode.READ))
        with pytest.raises(AtaError):
            await disk.read(512 << 29, 512 * 8)
        assert len(scene.wire.ata(Opcode.READ)) == seen
        assert scene.wire.ata(Opcode.READ_EXT)[-1][1].lba >= 1 << 29
