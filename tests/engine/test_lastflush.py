"""The last flush of all targets: what it does, and when it says that all is durable."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from aoefs.engine.disk import Disk
from aoefs.engine.lastflush import last_flush
from aoefs.protocol.wire import AoeCommand
from tests.engine.answers import flushes, is_flush, refuse_flush
from tests.engine.slowwrites import refuse_writes, write_behind
from tests.scene import DELAY, OUR_MAC, Announce, Scene, SimulatedTarget, open_scene

SECONDS = 5.0


async def add_disks(scene: Scene, count: int) -> tuple[list[SimulatedTarget], list[Disk]]:
    targets = [scene.add_target(0, slot) for slot in range(count)]
    return targets, [await scene.disk(0, slot) for slot in range(count)]


async def test_dirty_targets_are_flushed_at_the_same_time_and_others_are_left_alone(autojump_clock: MockClock) -> None:
    async with open_scene() as scene:
        _, disks = await add_disks(scene, 3)
        for disk in disks[:2]:
            await disk.write(0, bytes(512))
        began = trio.current_time()
        assert await last_flush(scene.engine, SECONDS)
        assert flushes(scene) == [began, began]
        assert trio.current_time() - began == pytest.approx(2 * DELAY)
        assert not any(disk.target.dirty for disk in disks)


async def test_a_reservation_is_given_back_after_the_flush(autojump_clock: MockClock) -> None:
    async with open_scene() as scene:
        (target,), (disk,) = await add_disks(scene, 1)
        await disk.reservation.take()
        assert target.export.access.holders == (OUR_MAC,)
        await disk.write(0, bytes(512))
        assert await last_flush(scene.engine, SECONDS)
        assert not target.export.access.holders
        assert scene.wire.sent(AoeCommand.RESERVE)[-1][0] > flushes(scene)[-1]


async def test_a_flush_that_fails_is_logged_and_the_others_go_on(autojump_clock: MockClock, announce: Announce) -> None:
    announce("e0.0: the last flush failed: ATA error UNC")
    async with open_scene() as scene:
        targets, disks = await add_disks(scene, 2)
        refuse_flush(targets[0], 0x40)
        for disk in disks:
            await disk.write(0, bytes(512))
        assert not await last_flush(scene.engine, SECONDS)
        assert [disk.target.dirty for disk in disks] == [True, False]


async def test_a_silent_target_is_given_up_after_the_seconds_that_were_given(
    autojump_clock: MockClock, announce: Announce
) -> None:
    announce("e0.1: the last flush was not answered within 5 s")
    async with open_scene() as scene:
        targets, disks = await add_disks(scene, 2)
        for disk in disks:
            await disk.write(0, bytes(512))
        targets[1].silent = True
        began = trio.current_time()
        assert not await last_flush(scene.engine, SECONDS)
        assert trio.current_time() - began == pytest.approx(SECONDS)
        assert [disk.target.dirty for disk in disks] == [False, True]


@pytest.mark.parametrize("reported", [False, True])
async def test_a_write_that_was_lost_is_forgiven_only_if_a_user_knows(
    autojump_clock: MockClock, announce: Announce, reported: bool
) -> None:
    announce("e0.0: a write at LBA 0 failed after it was answered")
    async with open_scene() as scene:
        (target,), (disk,) = await add_disks(scene, 1)
        refuse_writes(target)
        await write_behind(disk, 0)
        await disk.write_behind.wait_acknowledged()
        if reported:
            disk.write_behind.reported = disk.write_behind.lost
        assert await last_flush(scene.engine, SECONDS) is reported


@pytest.mark.parametrize("set_later", [False, True])
async def test_an_earlier_deadline_of_the_scope_ends_it_sooner(
    autojump_clock: MockClock, announce: Announce, set_later: bool
) -> None:
    announce("e0.0: the last flush was not answered within 2 s")
    async with open_scene() as scene, trio.open_nursery() as nursery:
        (target,), (disk,) = await add_disks(scene, 1)
        await disk.write(0, bytes(512))
        target.silent = True
        began = trio.current_time()
        scope = trio.CancelScope(deadline=float("inf") if set_later else began + 2)

        async def set_deadline() -> None:
            await trio.sleep(1)
            scope.deadline = began + 2

        if set_later:
            nursery.start_soon(set_deadline)
        assert not await last_flush(scene.engine, SECONDS, scope)
        assert trio.current_time() - began == pytest.approx(2)


async def test_a_last_flush_that_is_lost_is_sent_again_within_its_grace(autojump_clock: MockClock) -> None:
    async with open_scene() as scene:
        target = scene.add_target()
        disk = await scene.disk()
        await disk.write(0, b"x" * 512)
        lost: list[bytes] = []

        def lose_the_first_flush(frame: bytes, reply: bytes) -> list[tuple[float, bytes]]:
            if is_flush(frame) and not lost:
                lost.append(frame)
                return []
            return [(0.0, reply)]

        target.answer = lose_the_first_flush
        scene.engine.close()
        assert await last_flush(scene.engine, 10.0)
        assert lost
