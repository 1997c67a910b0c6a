"""The lookout: the first discovery, and which targets and paths are asked again."""

from __future__ import annotations

import contextlib
import logging
import math
import re
from itertools import pairwise

import pytest
import trio
from trio.testing import MockClock

from aoefs.core.health import Health, Sign
from aoefs.core.life import State
from aoefs.engine.changes import Change
from aoefs.engine.discovery import QUERY_PERIOD
from aoefs.engine.disk import Disk
from aoefs.engine.lookout import SILENT_QUERIES, WIDEN_AFTER
from aoefs.engine.settings import Settings
from aoefs.errors import TargetLost
from aoefs.protocol.wire import BROADCAST_ADDRESS, BROADCAST_MAC, AoeCommand
from tests.engine.queries import ZERO, broadcasts
from tests.scene import DELAY, Announce, Scene, SimulatedTarget, open_scene, target_mac


def asked(scene: Scene) -> list[tuple[float, bytes]]:
    """(time, MAC) of the config queries for e0.0: not those of the schedule, which are for every target."""
    sent = scene.wire.sent(AoeCommand.CONFIG)
    assert {header.address for _, header, _ in sent} <= {ZERO, BROADCAST_ADDRESS}
    return [(at, header.destination) for at, header, _ in sent if header.address == ZERO]


async def wait_for(disk: Disk) -> None:
    """Read, until the engine stops."""
    with contextlib.suppress(TargetLost):
        await disk.read(0, 512)


def forget_what_was_asked(scene: Scene) -> None:
    scene.wire.log.clear()


async def test_on_demand_the_schedule_begins_again(autojump_clock: MockClock) -> None:
    async with open_scene() as scene:
        await trio.sleep(10)
        seen = len(broadcasts(scene))
        scene.engine.lookout.discover()
        await trio.sleep(100)
        times = broadcasts(scene)[seen:]
        assert times == pytest.approx([10, 10.1, 10.3, 10.7, 70.7])


# ── silent targets ────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_silent_target_is_asked_for_everywhere_at_growing_distances(
    autojump_clock: MockClock, announce: Announce
) -> None:
    announce(r"does not answer: \d+ request")
    async with open_scene(Settings(deadsecs=0)) as scene:
        target = scene.add_target()
        disk = await scene.disk()
        await disk.read(0, 512)
        await trio.sleep(2)
        forget_what_was_asked(scene)
        await trio.sleep(10)
        assert asked(scene) == [], "a target that answers is left alone"
        target.silent = True
        scene.nursery.start_soon(wait_for, disk)
        await trio.sleep(90)
        assert {mac for _, mac in asked(scene)} == {BROADCAST_MAC, target.mac}, "it may come back with another MAC"
        times = [at for at, mac in asked(scene) if mac == BROADCAST_MAC]
        distances = [later - earlier for earlier, later in pairwise(times)]
        assert distances[: len(SILENT_QUERIES)] == pytest.approx(SILENT_QUERIES)
        assert set(distances[len(SILENT_QUERIES) :]) == {SILENT_QUERIES[-1]}
        target.silent = False
        await trio.sleep(16)
        assert not disk.target.is_silent
        forget_what_was_asked(scene)
        target.silent = True
        scene.nursery.start_soon(wait_for, disk)
        await trio.sleep(4)
        assert len(asked(scene)) >= 3, "the next silence begins with short distances again"


async def test_a_stall_is_reported_with_what_waits_and_until_when_and_then_rarely(
    autojump_clock: MockClock, announce: Announce, caplog: pytest.LogCaptureFixture
) -> None:
    announce("does not answer")
    async with open_scene() as scene:
        target = scene.add_target()
        disk = await scene.disk()
        caplog.set_level(logging.INFO, "aoefs")
        caplog.clear()
        target.silent = True
        async with trio.open_nursery() as nursery:
            for number in range(6):
                nursery.start_soon(disk.read, 4096 * number, 4096)
            await trio.sleep(1.5)
            assert scene.engine.statistics().targets[0].state == "up"
            await trio.sleep(60)
            assert scene.engine.statistics().targets[0].state == "stalled"
            target.silent = False
        await trio.sleep(1)
        assert scene.engine.statistics().targets[0].state == "up"
        said = [record.getMessage() for record in caplog.records if record.levelno >= logging.INFO]
        *reports, end = said
        assert re.fullmatch(r"e0\.0 does not answer: 6 requests wait, down in 17[78] s", reports[0])
        left = [int(report.split()[-2]) for report in reports]
        assert all("6 requests wait" in report for report in reports)
        assert [later - earlier for earlier, later in pairwise(left)] == [-10, -13, -26]
        assert re.fullmatch(r"e0\.0 answers again after [67][0-9] s", end)


async def test_a_short_silence_is_not_worth_a_word(autojump_clock: MockClock, caplog: pytest.LogCaptureFixture) -> None:
    async with open_scene() as scene:
        target = scene.add_target()
        disk = await scene.disk()
        await disk.read(0, 4096)  # its RTO is known
        caplog.set_level(logging.INFO, "aoefs")
        caplog.clear()
        target.silent = True
        async with trio.open_nursery() as nursery:
            nursery.start_soon(disk.read, 0, 4096)
            await trio.sleep(1.2)
            assert disk.target.life.state is State.SUSPENDED
            target.silent = False
        assert not [record for record in caplog.records if record.levelno >= logging.INFO]


async def test_a_link_that_is_down_is_not_asked_on(autojump_clock: MockClock, announce: Announce) -> None:
    announce(r"does not answer: \d+ request")
    async with open_scene(Settings(deadsecs=0)) as scene:
        scene.add_wire()
        target = scene.add_target()
        disk = await scene.disk()
        await disk.read(0, 512)
        target.silent = True
        scene.nursery.start_soon(wait_for, disk)
        await trio.sleep(2)
        scene.engine.link_changed(scene.link, up=False)
        forget_what_was_asked(scene)
        await trio.sleep(30)
        assert asked(scene) == []


async def test_a_target_that_was_just_suspended_is_asked_on_each_path_at_once(autojump_clock: MockClock) -> None:
    async with open_scene() as scene:
        target = scene.add_target()
        other = SimulatedTarget(scene.wire, target.export, mac=target_mac(99))
        disk = await scene.disk()
        await trio.sleep(2)
        await disk.read(0, 512 * 64)
        forget_what_was_asked(scene)
        target.silent = other.silent = True
        scene.nursery.start_soon(wait_for, disk)
        while not disk.target.is_silent:  # noqa: ASYNC110 (virtual time costs nothing)
            await trio.sleep(0.001)
        await trio.sleep(0.002)
        assert {target.mac, other.mac} <= {mac for _, mac in asked(scene)}


async def test_a_late_answer_brings_a_silent_target_back_before_it_is_asked_again(
    autojump_clock: MockClock, announce: Announce
) -> None:
    announce(r"does not answer: \d+ request")
    async with open_scene() as scene:
        target = scene.add_target()
        disk = await scene.disk()
        await trio.sleep(2)
        target.answer = lambda frame, reply: (  # the data after 35 s, and nothing else
            [] if frame[19] == AoeCommand.CONFIG else [(35.0 - trio.current_time(), reply)]
        )
        scene.nursery.start_soon(wait_for, disk)
        await trio.sleep(30)
        assert disk.target.is_silent
        target.answer = lambda _frame, reply: [(0.0, reply)]
        asked_at = [at for at, mac in asked(scene) if mac == BROADCAST_MAC]
        await trio.sleep(4)
        assert not disk.target.is_silent
        assert asked_at == [at for at, mac in asked(scene) if mac == BROADCAST_MAC]


# ── revalidation ──────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_revalidate_asks_each_path_and_makes_what_was_read_old(autojump_clock: MockClock) -> None:
    changes: list[Change] = []
    async with open_scene(on_change=lambda _disk, change: changes.append(change)) as scene:
        target = scene.add_target()
        other = SimulatedTarget(scene.wire, target.export, mac=target_mac(99))
        disk = await scene.disk()
        await trio.sleep(2)
        generation = disk.generation
        changes.clear()
        forget_what_was_asked(scene)
        scene.engine.lookout.revalidate(disk)
        await trio.sleep(DELAY)
        assert sorted(mac for _, mac in asked(scene)) == sorted([target.mac, other.mac])
        assert disk.generation > generation
        assert changes == [Change.REVALIDATED]


async def test_revalidate_of_a_silent_target_asks_everywhere(autojump_clock: MockClock) -> None:
    async with open_scene() as scene:
        scene.add_target()
        disk = await scene.disk()
        scene.engine.drop_link(scene.link)
        wire, _ = scene.add_wire()
        scene.engine.lookout.revalidate(disk)
        queries = wire.sent(AoeCommand.CONFIG)
        assert [(header.destination, header.address) for _, header, _ in queries] == [(BROADCAST_MAC, ZERO)]


# ── paths of which too little is known ────────────────────────────────────────────────────────────────────────────────


async def test_a_degraded_path_is_asked_at_growing_distances_until_it_answers(autojump_clock: MockClock) -> None:
    async with open_scene() as scene:
        target = scene.add_target()
        other = SimulatedTarget(scene.wire, target.export, mac=target_mac(99))
        disk = await scene.disk()
        await trio.sleep(2)
        path = disk.target.find_path(scene.link, other.mac)
        assert path is not None
        path.take(Sign.TIMEOUTS)
        other.silent = True
        forget_what_was_asked(scene)
        await trio.sleep(45)  # the schedule asks everywhere later
        assert {mac for _, mac in asked(scene)} == {other.mac}
        pauses = [later - earlier for (earlier, _), (later, _) in pairwise(asked(scene))]
        assert max(pauses) > SILENT_QUERIES[-1] / 2
        other.silent = False
        await trio.sleep(SILENT_QUERIES[-1] + 1)
        assert path.health is Health.GOOD
        path.take(Sign.TIMEOUTS)
        await trio.sleep(2)
        assert path.health is Health.GOOD, "it is asked soon again when it was good meanwhile"


async def test_a_path_with_a_small_payload_is_measured_again_at_growing_distances(autojump_clock: MockClock) -> None:
    async with open_scene(max_sectors=17) as scene:
        target = scene.add_target(max_sectors=17)
        scene.wire.route = lambda frame: [(DELAY, frame)] if len(frame) <= 1514 else []
        disk = await scene.disk()
        await trio.sleep(3)
        (path,) = disk.target.paths
        assert (path.sectors, path.full_sectors) == (2, 17)
        forget_what_was_asked(scene)
        await trio.sleep(QUERY_PERIOD - 5)  # the discovery asks afterwards
        times = [at for at, mac in asked(scene) if mac == target.mac]
        distances = [later - earlier for earlier, later in pairwise(times)]
        assert distances == pytest.approx([2 * WIDEN_AFTER])
        assert math.isclose(times[0], WIDEN_AFTER, abs_tol=2)


# ── the first discovery ───────────────────────────────────────────────────────────────────────────────────────────────


async def test_the_first_discovery_ends_150_ms_after_the_last_new_target(autojump_clock: MockClock) -> None:
    appeared: list[float] = []
    async with open_scene(on_change=lambda _disk, _change: appeared.append(trio.current_time())) as scene:
        began = trio.current_time()
        for slot in range(3):
            target = scene.add_target(0, slot)
            target.answer = lambda frame, reply, wait=slot * 0.1: [  # type: ignore[misc]
                (wait if frame[19] == AoeCommand.CONFIG else 0.0, reply)
            ]
        await scene.engine.first_discovery()
        assert len(appeared) == 3
        assert trio.current_time() == pytest.approx(appeared[-1] + 0.15)
        assert trio.current_time() - began < 1


async def test_the_first_discovery_waits_for_targets_that_are_being_identified(autojump_clock: MockClock) -> None:
    async with open_scene() as scene:
        scene.add_target(0, 0)
        slow = scene.add_target(0, 1)
        slow.answer = lambda frame, reply: [(0.2 if frame[19] == AoeCommand.ATA else 0.0, reply)]
        await scene.engine.first_discovery()
        assert len(scene.engine.disks) == 2


async def test_the_first_discovery_ends_after_a_second_without_any_answer(autojump_clock: MockClock) -> None:
    async with open_scene() as scene:
        began = trio.current_time()
        await scene.engine.first_discovery()
        assert trio.current_time() - began == pytest.approx(1.0)
        await scene.engine.first_discovery()
        assert trio.current_time() - began == pytest.approx(1.0), "later it is over already"


async def test_the_first_discovery_ends_after_a_second_when_targets_keep_coming(autojump_clock: MockClock) -> None:
    async with open_scene() as scene:

        async def come() -> None:
            for slot in range(40):
                scene.add_target(0, slot, sectors=8).announce()
                await trio.sleep(0.1)

        began = trio.current_time()
        scene.nursery.start_soon(come)
        await scene.engine.first_discovery()
        assert trio.current_time() - began == pytest.approx(1.0)
