"""Sending when a socket has no room."""

from __future__ import annotations

import math

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from aoefs.engine.disk import Disk
from aoefs.engine.settings import Settings
from aoefs.errors import TargetLost
from tests.scene import nothing_is_left, open_scene


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
