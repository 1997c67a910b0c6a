"""Several links and paths: both are used, and I/O goes on when one goes."""

from __future__ import annotations

import random

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from aoefs.core.health import Health
from aoefs.engine.conversation import LINGER
from aoefs.engine.settings import Settings
from aoefs.protocol.ata import Opcode
from aoefs.protocol.wire import (
    Address,
    AoeCommand,
)
from tests.scene import (
    DELAY,
    Announce,
    SegmentLink,
    SimulatedTarget,
    make_export,
    nothing_is_left,
    open_scene,
    target_mac,
)


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
async def test_io_goes_on_when_one_of_two_links_goes(autojump_clock: MockClock, how: str) -> None:
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
            assert all(path.health is Health.GOOD for path in disk.target.paths)
            assert nothing_is_left(disk.target)


@pytest.mark.parametrize("after", [0.0, DELAY / 2, 1.5 * DELAY, 2.5 * DELAY, 3.5 * DELAY, 0.005, 0.3])
async def test_a_link_may_go_at_any_moment_of_a_discovery(autojump_clock: MockClock, after: float) -> None:
    async with open_scene() as scene:
        wire, link = scene.add_wire()
        target = SimulatedTarget(wire, make_export(Address(5, 5)))
        target.answer = lambda frame, reply: [(0.0, reply)] if frame[19] == AoeCommand.CONFIG else []
        await trio.sleep(after)
        scene.engine.drop_link(link)
        await trio.sleep(100)
        assert not scene.engine.driver.tags.live
        assert not scene.engine.discovery.candidates()


async def test_a_link_that_goes_while_a_second_disk_may_still_answer_gets_no_path(autojump_clock: MockClock) -> None:
    """IDENTIFY was answered, and its link was closed before that was a sighting."""
    async with open_scene() as scene:
        first = scene.add_target()
        disk = await scene.disk()
        await trio.sleep(2)
        wire, link = scene.add_wire()
        SimulatedTarget(wire, first.export, mac=target_mac(99))
        await trio.sleep(1.5 * LINGER)
        assert len(wire.ata(Opcode.IDENTIFY)) == 2, "once more when what passes was measured"
        assert len(disk.target.paths) == 1
        scene.engine.drop_link(link)
        await trio.sleep(0.5)
        assert len(disk.target.paths) == 1
        await disk.read(0, 8 * 512)


@pytest.mark.parametrize("sectors", [64, 512])
@pytest.mark.parametrize("reading", [False, True])
async def test_a_disk_may_get_another_size_while_its_only_link_is_replaced(
    autojump_clock: MockClock, announce: Announce, sectors: int, reading: bool
) -> None:
    announce("e0.0 (grew|shrank)")
    async with open_scene() as scene:
        target = scene.add_target()
        disk = await scene.disk()
        await trio.sleep(2)
        async with trio.open_nursery() as nursery:
            scene.engine.drop_link(scene.link)
            target.resize(sectors)
            if reading:
                nursery.start_soon(disk.read, 0, 512)
            await trio.sleep(1)
            scene.engine.add_link(SegmentLink(scene.wire, scene.engine.driver.tags, "seg0", target_mac(7)))
            await trio.sleep(1)
        assert scene.engine.disks[Address(0, 0)] is disk
        assert disk.size_bytes == sectors * 512
        assert await disk.read(0, 512) == target.data[:512]


async def test_a_disk_that_falls_silent_may_come_back_with_another_mac_and_size(
    autojump_clock: MockClock, announce: Announce
) -> None:
    announce(r"does not answer: \d+ request")
    announce("e0.0: (another disk answers there|02:aa:00:00:00:08 on seg0 is refused)")
    announce("e0.0 grew")
    async with open_scene(Settings(deadsecs=0)) as scene:
        target = scene.add_target()
        disk = await scene.disk()
        await trio.sleep(2)
        target.unplug()
        target.resize(512)
        moved = SimulatedTarget(scene.wire, target.export, mac=target_mac(8))
        with trio.fail_after(30):
            assert await disk.read(0, 512) == moved.data[:512]
        assert disk.size_bytes == 512 * 512


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
