"""The driver: one place sends runs, never waits, and sends on when a full socket has room again."""

from __future__ import annotations

import math
import random
from itertools import pairwise
from typing import cast

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from aoefs.core.link import Link
from aoefs.core.request import Request, Run
from aoefs.core.tags import TagTable
from aoefs.core.target import SILENCE, Target
from aoefs.engine.clock import RunningClock
from aoefs.engine.disk import Disk
from aoefs.engine.driver import MAX_ROOM_PAUSE, ROOM_PAUSE, Driver
from aoefs.engine.settings import Settings
from aoefs.errors import TargetLost
from aoefs.protocol.ata import Identity
from aoefs.protocol.wire import Address
from tests.scene import OUR_MAC, nothing_is_left, open_scene, target_mac


class NarrowLink:
    """Takes ``room`` commands more.  Its descriptor is always writable: what is full is the queue of the device."""

    def __init__(self, interface: str = "seg0") -> None:
        self.interface = interface
        self.mac = OUR_MAC
        self.max_sectors = 2
        self.room = 0
        self.attempts: list[tuple[float, Address, int]] = []  # when, to which target, how many commands

    def send_run(self, run: Run) -> int:
        assert run.path.target is not None
        taken = min(self.room, run.count)
        self.room -= taken
        self.attempts.append((trio.current_time(), run.path.target.address, taken))
        return taken

    async def wait_writable(self) -> None:
        await trio.lowlevel.checkpoint()


class Bench:
    """A driver with one link, and targets behind it."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self.driver = Driver(nursery, RunningClock(trio.current_time), TagTable(random.Random(7).randbytes))
        self.link = NarrowLink()
        self.driver.links["seg0"] = cast(Link, self.link)

    def add_target(self, slot: int = 0) -> Target:
        identity = Identity(sectors=64, serial="S", model="M", firmware="F")
        target = Target(Address(0, slot), identity, self.driver.tags)
        target.set_bufcnt(16)
        target.add_path(cast(Link, self.link), "seg0", (OUR_MAC, target_mac(slot)), self.link.max_sectors)
        return target

    def submit(self, target: Target, sectors: int = 8) -> None:
        buffer = memoryview(bytearray(sectors * 512))
        self.driver.submit(target, Request(0, sectors, buffer, write=False, on_end=lambda _request: None))


def test_it_knows_our_addresses_on_all_links() -> None:
    driver = Driver(cast(trio.Nursery, None), RunningClock(lambda: 0.0), TagTable(random.Random(7).randbytes))
    assert driver.macs() == ()
    for number, interface in enumerate(("seg0", "seg1")):
        link = NarrowLink(interface)
        link.mac = target_mac(number)
        driver.links[interface] = cast(Link, link)
    assert driver.macs() == (target_mac(0), target_mac(1))


async def test_a_request_is_sent_at_once_and_the_timer_is_armed(autojump_clock: MockClock) -> None:
    async with trio.open_nursery() as nursery:
        bench = Bench(nursery)
        bench.link.room = 100
        target = bench.add_target()
        bench.submit(target)
        assert bench.link.attempts == [(0.0, target.address, 4)]
        with trio.fail_after(SILENCE):
            assert await bench.driver.timer.due() == [target]
        assert not nursery.child_tasks, "no task waits for room"


async def test_a_full_device_queue_is_tried_again_at_growing_distances(autojump_clock: MockClock) -> None:
    async with trio.open_nursery() as nursery:
        bench = Bench(nursery)
        bench.submit(bench.add_target())
        await trio.sleep(0.1)
        distances = [later - earlier for (earlier, *_), (later, *_) in pairwise(bench.link.attempts)]
        growing = [ROOM_PAUSE * 2**index for index in range(4)]
        assert distances[:4] == pytest.approx(growing)
        assert distances[4:] == pytest.approx([MAX_ROOM_PAUSE] * (len(distances) - 4))
        assert len(distances) > 10
        bench.link.room = 100
        await trio.sleep(2 * MAX_ROOM_PAUSE)
        assert bench.link.attempts[-1][2] == 4
        assert not nursery.child_tasks, "the task ended"
        bench.link.room = 0
        bench.submit(bench.add_target(1))
        assert len(nursery.child_tasks) == 1, "and begins again"
        nursery.cancel_scope.cancel()


async def test_all_targets_that_wait_for_room_get_their_turn(autojump_clock: MockClock) -> None:
    async with trio.open_nursery() as nursery:
        bench = Bench(nursery)
        targets = [bench.add_target(slot) for slot in range(3)]
        for target in targets:
            bench.submit(target)
        assert len(nursery.child_tasks) == 1, "one task for the link"
        bench.link.attempts.clear()
        bench.link.room = 100
        await trio.sleep(2 * ROOM_PAUSE)
        assert [(address, taken) for _, address, taken in bench.link.attempts] == [
            (target.address, 4) for target in targets
        ]


async def test_a_run_that_was_refused_is_cut_to_what_the_link_takes_now(autojump_clock: MockClock) -> None:
    """A smaller MTU refuses frames, too; the message that says so may come later."""
    async with trio.open_nursery() as nursery:
        bench = Bench(nursery)
        target = bench.add_target()
        bench.link.max_sectors = 1
        bench.submit(target)
        assert target.paths[0].sectors == 1
        bench.link.room = 100
        await trio.sleep(2 * ROOM_PAUSE)
        assert sum(taken for *_, taken in bench.link.attempts) == 8


async def test_when_a_link_goes_nothing_waits_for_room_there(autojump_clock: MockClock) -> None:
    async with trio.open_nursery() as nursery:
        bench = Bench(nursery)
        bench.submit(bench.add_target())
        attempts = len(bench.link.attempts)
        bench.driver.drop_link(cast(Link, bench.link))
        assert bench.driver.links == {}
        await trio.sleep(1)
        assert len(bench.link.attempts) == attempts
        assert not nursery.child_tasks


# ── with an engine ────────────────────────────────────────────────────────────────────────────────────────────────────


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
                scene.engine.close()
