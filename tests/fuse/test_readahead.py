"""Reading ahead in the daemon: what is foreseen, what may be used, and how much is held."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
import trio
from trio.testing import MockClock

from aoefs.engine.disk import Disk
from aoefs.engine.supervisor import Supervisor
from aoefs.errors import TargetLost
from aoefs.fuse.readahead import CHUNK_BYTES, DEPTH, MAX_CHUNKS, ReadAhead, ReadAheads
from tests.engine.slowwrites import BLOCK, SLOW, write_behind
from tests.scene import DELAY, Scene, SimulatedTarget, open_scene
from tests.segment import is_write

KERNEL = 128 << 10  # bytes of one request of a kernel with a small read-ahead


SIZE = 8 << 20


@asynccontextmanager
async def open_disk() -> AsyncIterator[tuple[Scene, SimulatedTarget, Disk, ReadAheads]]:
    async with open_scene(max_sectors=128) as scene:
        target = scene.add_target(0, 1, sectors=SIZE // 512, max_sectors=128, bufcnt=64)
        disk = await scene.disk(0, 1)
        await trio.sleep(2)
        yield scene, target, disk, ReadAheads(Supervisor(scene.nursery))


async def in_order(ahead: ReadAhead, disk: Disk, target: SimulatedTarget, first: int, count: int) -> None:
    """Read ``count`` requests of the kernel from the ``first`` on, and let what is read ahead come."""
    for number in range(first, first + count):
        offset = number * KERNEL
        assert await ahead.read(offset, KERNEL, SIZE) == target.data[offset : offset + KERNEL]
    await trio.sleep(0.05)


async def test_what_is_read_in_order_is_read_ahead(autojump_clock: MockClock) -> None:
    async with open_disk() as (_, target, disk, all_handles):
        ahead = ReadAhead(disk, all_handles)
        await in_order(ahead, disk, target, 0, 3)
        assert all_handles.chunks == DEPTH
        reads = disk.target.reads
        await in_order(ahead, disk, target, 3, 8)
        assert disk.target.reads - reads <= 2, "eight requests were there, one or two more chunks were asked for"


async def test_the_whole_of_a_disk_is_right_to_its_end(autojump_clock: MockClock) -> None:
    async with open_disk() as (_, target, disk, all_handles):
        ahead = ReadAhead(disk, all_handles)
        await in_order(ahead, disk, target, 0, SIZE // KERNEL)
        ahead.drop()
        assert all_handles.chunks == 0
        assert disk.target.read_bytes < SIZE + 2 * CHUNK_BYTES, "little was read twice"


async def test_nothing_is_read_ahead_of_reads_without_order(autojump_clock: MockClock) -> None:
    async with open_disk() as (_, target, disk, all_handles):
        ahead = ReadAhead(disk, all_handles)
        for number in (5, 40, 11, 60, 2, 33):
            await in_order(ahead, disk, target, number, 1)
        assert (all_handles.chunks, disk.target.read_bytes) == (0, 6 * KERNEL)


async def test_two_requests_that_overtake_each_other_are_still_in_order(autojump_clock: MockClock) -> None:
    async with open_disk() as (_, target, disk, all_handles):
        ahead = ReadAhead(disk, all_handles)
        for number in (0, 2, 1, 4, 3):
            await in_order(ahead, disk, target, number, 1)
        assert all_handles.chunks


async def test_a_write_is_seen_by_the_next_read_whatever_was_read_ahead(autojump_clock: MockClock) -> None:
    async with open_disk() as (_, target, disk, all_handles):
        ahead = ReadAhead(disk, all_handles)
        await in_order(ahead, disk, target, 0, 3)
        await disk.write(3 * KERNEL + 7, b"new")
        assert bytes((await ahead.read(3 * KERNEL, KERNEL, SIZE))[7:10]) == b"new"
        await in_order(ahead, disk, target, 4, 8)


async def test_what_was_asked_for_during_a_write_is_not_used(autojump_clock: MockClock) -> None:
    async with open_disk() as (scene, target, disk, all_handles):
        ahead = ReadAhead(disk, all_handles)
        await in_order(ahead, disk, target, 0, 2)
        answer = target.answer
        target.answer = lambda frame, reply: [(0.004, reply)] if frame[27] in (0x30, 0x34) else answer(frame, reply)
        scene.nursery.start_soon(disk.write, 4 * KERNEL, b"new")
        await trio.sleep(0.0005)
        assert await ahead.read(2 * KERNEL, KERNEL, SIZE) == target.data[2 * KERNEL : 3 * KERNEL]
        await trio.sleep(0.05)
        assert bytes((await ahead.read(4 * KERNEL, KERNEL, SIZE))[:3]) == b"new"


async def test_an_error_ahead_reaches_no_reader(autojump_clock: MockClock) -> None:
    async with open_disk() as (_, target, disk, all_handles):
        ahead = ReadAhead(disk, all_handles)
        await in_order(ahead, disk, target, 0, 3)
        target.data[:] = b"\xaa" * SIZE
        disk.generation += 1
        answer = target.answer
        bad = 10 * KERNEL

        def refuse(frame: bytes, reply: bytes) -> list[tuple[float, bytes]]:
            lba = int.from_bytes(frame[28:34], "little")
            if lba * 512 >= bad:
                reply = reply[:27] + b"\x41" + reply[28:36] + bytes(24)
            return answer(frame, reply)

        target.answer = refuse
        await in_order(ahead, disk, target, 3, 7)


async def test_one_process_of_several_holds_its_part_of_the_chunks(autojump_clock: MockClock) -> None:
    async with open_disk() as (scene, target, disk, _):
        few = ReadAheads(Supervisor(scene.nursery), DEPTH)
        for ahead in [ReadAhead(disk, few) for _ in range(3)]:
            await in_order(ahead, disk, target, 0, 3)
            assert few.chunks == DEPTH
            assert len(ahead.chunks) == DEPTH, "of the one that reads now"


async def test_all_handles_together_hold_a_bounded_number_of_chunks(autojump_clock: MockClock) -> None:
    async with open_disk() as (_, target, disk, all_handles):
        handles = [ReadAhead(disk, all_handles) for _ in range(MAX_CHUNKS // DEPTH + 5)]
        for ahead in handles:
            await in_order(ahead, disk, target, 0, 3)
            assert all_handles.chunks <= MAX_CHUNKS
        assert all_handles.chunks == MAX_CHUNKS
        for ahead in handles:
            ahead.drop()
        assert all_handles.chunks == 0


async def test_what_was_read_ahead_before_a_write_was_answered_is_not_used_after(autojump_clock: MockClock) -> None:
    """While the write waits for the window, its sectors are read ahead, and the read overtakes the write."""
    async with open_scene() as scene:
        target = scene.add_target()
        disk = await scene.disk()
        await disk.write(0, b"o" * 64 * BLOCK)
        all_handles = ReadAheads(Supervisor(scene.nursery))
        ahead = ReadAhead(disk, all_handles)
        scene.wire.route = lambda frame: [(SLOW if is_write(frame) else DELAY, frame)]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(disk.read, 64 * BLOCK, target.export.buffer_count * BLOCK)
            await trio.sleep(DELAY / 4)
            nursery.start_soon(write_behind, disk, 20)
            await trio.sleep(DELAY / 4)
            for block in range(3):
                nursery.start_soon(ahead.read, block * BLOCK, BLOCK, 64 * BLOCK)
        assert disk.write_behind.pending
        assert all_handles.chunks
        assert await ahead.read(20 * BLOCK, BLOCK, 64 * BLOCK) == b"n" * BLOCK
        assert not disk.write_behind.pending


async def test_what_a_closed_handle_still_reads_takes_no_chunks(autojump_clock: MockClock) -> None:
    async with open_disk() as (_, target, disk, all_handles):
        ahead = ReadAhead(disk, all_handles)
        await in_order(ahead, disk, target, 0, 3)
        ahead.close()
        await in_order(ahead, disk, target, 3, 8)
        assert all_handles.chunks == 0


async def test_writes_let_go_of_chunks_and_leave_their_handle_within_the_bound(autojump_clock: MockClock) -> None:
    async with open_disk() as (_, target, disk, all_handles):
        handles = [ReadAhead(disk, all_handles) for _ in range(MAX_CHUNKS)]
        for number in range(3, 9):
            for ahead in handles:
                for before in range(number - 3, number):
                    await ahead.read(before * KERNEL, KERNEL, SIZE)
                await disk.write(0, bytes(target.data[:512]))
            assert all_handles.chunks <= MAX_CHUNKS
            newcomer = ReadAhead(disk, all_handles)
            await in_order(newcomer, disk, target, 0, 4)
            assert len(newcomer.chunks) == DEPTH, "the last one is not starved"
            newcomer.close()
        for ahead in handles:
            ahead.close()
        assert all_handles.chunks == 0


class LateSupervisor(Supervisor):
    """Begins its work when the test says so."""

    def __init__(self) -> None:
        self.work: list[Callable[[], Awaitable[object]]] = []

    def start(self, name: str, work: Callable[[], Awaitable[object]]) -> None:
        self.work.append(work)


async def test_a_disk_that_shrinks_before_it_is_read_ahead_ends_nothing(autojump_clock: MockClock) -> None:
    async with open_disk() as (_, _, disk, _):
        supervisor = LateSupervisor()
        ahead = ReadAhead(disk, ReadAheads(supervisor))
        for number in range(2):
            await ahead.read(number * KERNEL, KERNEL, SIZE)
        assert len(supervisor.work) == DEPTH
        disk.target.identity = replace(disk.target.identity, sectors=8)
        for work in supervisor.work:
            await work()
        with pytest.raises(TargetLost, match=r"e0\.1 shrank"):
            await ahead.read(2 * KERNEL, KERNEL, SIZE)
