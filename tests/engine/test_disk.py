"""One disk: reads and writes at any place, and calls that are cancelled."""

from __future__ import annotations

from dataclasses import replace

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from aoefs.engine.disk import MAX_REQUEST_SECTORS
from aoefs.errors import RequestError
from aoefs.protocol.wire import SECTOR_BYTES
from tests.engine.calls import CALLS, cancel_after
from tests.scene import DELAY, Announce, nothing_is_left, open_scene

# ── reads and writes ──────────────────────────────────────────────────────────────────────────────────────────────────


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


async def test_a_write_to_a_part_of_a_sector_fails_when_the_disk_shrinks_while_its_first_sector_is_read(
    autojump_clock: MockClock,
) -> None:
    async with open_scene() as scene:
        target = scene.add_target(sectors=8)
        disk = await scene.disk()
        before = bytes(target.data[: 4 * 512])

        async def shrink() -> None:
            await trio.sleep(DELAY / 2)
            target.resize(4)
            disk.target.identity = replace(disk.target.identity, sectors=4)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(shrink)
            with pytest.raises(RequestError, match="shrank"):
                await disk.write(3 * 512 + 1, bytes(4 * 512))
        assert target.data == before
        assert nothing_is_left(disk.target)


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


# ── cancellation ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", CALLS)
async def test_a_call_cancelled_at_any_time_leaves_nothing_behind(autojump_clock: MockClock, name: str) -> None:
    """Deliveries are half a round trip apart, and steps are half as long: they hit every state in between."""
    async with open_scene() as scene:
        scene.add_target(sectors=4096)
        disk = await scene.disk()
        await trio.sleep(6)  # until the tags of the queries are forgotten
        cut_short = 0
        for step in range(400):
            if not await cancel_after(step * DELAY / 2, lambda: CALLS[name](disk)):
                break
            cut_short += 1
            if step % 7 == 0:  # at once, among what is left of the cancelled one
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
    autojump_clock: MockClock,
    name: str,
    announce: Announce,
) -> None:
    if name != "a flush":
        announce(r"does not answer: \d+ request")
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
