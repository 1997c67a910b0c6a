"""Whose identity counts: paths that appear, another size, another disk in place of the first, a full table."""

from __future__ import annotations

import logging
from dataclasses import replace

import pytest
import trio
from trio.testing import MockClock

from aoefs.core.health import Sign
from aoefs.core.life import State
from aoefs.engine.changes import Change
from aoefs.engine.roster import FIRST_SECONDS, MISSED_ROUND, PERSISTENCE
from aoefs.engine.settings import Settings
from aoefs.protocol.wire import Address
from tests.engine.test_roster import FIRST, OTHER, sightings
from tests.scene import Announce, target_mac

LARGER = replace(FIRST, sectors=512)


# ── paths ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_new_path_is_an_event_with_its_mac_and_a_warning_while_the_disk_is_open(
    autojump_clock: MockClock, announce: Announce, caplog: pytest.LogCaptureFixture
) -> None:
    announce("e0.0 has another path: 02:aa:00:00:00:02 on seg0")
    caplog.set_level(logging.INFO, "aoefs")
    async with sightings() as at:
        at.see()
        at.see(FIRST, 1)
        assert "e0.0 has another path: 02:aa:00:00:00:01 on seg0" in caplog.text
        at.disk.opened += 1
        at.see(FIRST, 2)
        said = len(caplog.records)
        at.see(FIRST, 2)
        assert len(caplog.records) == said, "it is known now"


async def test_fixed_paths_are_those_of_the_first_second(autojump_clock: MockClock, announce: Announce) -> None:
    announce("02:aa:00:00:00:02 on seg0 is refused: .* none is added .--fixed-paths")
    async with sightings(Settings(fixed_paths=True)) as at:
        at.see()
        at.see(FIRST, 1)
        await trio.sleep(FIRST_SECONDS)
        at.see(FIRST, 2)
        assert at.macs() == [target_mac(0), target_mac(1)]
        at.roster.drop_path(at.disk.target.paths[1])
        at.see(FIRST, 1)
        assert at.macs() == [target_mac(0), target_mac(1)], "it may come back"


# ── size ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_path_that_disagrees_about_the_size_goes_while_another_one_is_good(
    autojump_clock: MockClock, announce: Announce
) -> None:
    announce("e0.0: 02:aa:00:00:00:01 on seg0 is refused: it has 512 bytes, and 131072 on its other paths")
    async with sightings() as at:
        at.see()
        at.see(FIRST, 1)
        at.take_changes()
        for _ in range(3):
            at.see(replace(FIRST, sectors=1), 1)
            await trio.sleep(PERSISTENCE)
        assert (at.disk.size_bytes, at.macs(), at.take_changes()) == (FIRST.size_bytes, [target_mac(0)], [])
        at.see(FIRST, 1)
        assert at.macs() == [target_mac(0), target_mac(1)]


async def test_a_disk_grows_when_its_last_path_says_so_and_the_others_join_it_again(
    autojump_clock: MockClock, announce: Announce
) -> None:
    announce("is refused: it has 262144 bytes, and 131072 on its other paths")
    announce("e0.0 grew")
    async with sightings() as at:
        at.see()
        at.see(FIRST, 1)
        disk = at.disk
        at.see(LARGER, 1)
        assert disk.size_bytes == FIRST.size_bytes
        at.see(LARGER, 0)
        assert disk.size_bytes == LARGER.size_bytes
        at.see(LARGER, 1)
        assert at.macs() == [target_mac(0), target_mac(1)]
        assert at.disk is disk


async def test_a_disk_that_is_only_on_a_new_path_changes_its_size_when_that_persists(
    autojump_clock: MockClock, announce: Announce
) -> None:
    """Its first path is dead: the living one must not go (seed 700196 of the simulation)."""
    announce("e0.0: another disk answers there: serial first, 262144 bytes")
    announce("e0.0 grew")
    async with sightings() as at:
        at.see()
        at.see(FIRST, 1)
        at.disk.target.paths[0].take(Sign.TIMEOUTS)
        at.see(LARGER, 1)
        assert at.macs() == [target_mac(0), target_mac(1)]
        assert at.disk.target.is_silent, "it is asked again"
        await trio.sleep(PERSISTENCE)
        at.see(LARGER, 1)
        assert at.disk.size_bytes == LARGER.size_bytes
        assert not at.disk.target.is_silent


# ── another disk ──────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_another_disk_in_place_of_an_open_one_suspends_it_and_the_first_one_may_come_back(
    autojump_clock: MockClock, announce: Announce
) -> None:
    announce("e0.0: another disk answers there: serial other, 131072 bytes, not serial first, 131072 bytes")
    async with sightings() as at:
        at.see()
        disk = at.disk
        disk.opened += 1
        at.take_changes()
        for _ in range(5):  # for longer than the patience, but not in a row
            at.see(OTHER)
            assert disk.target.life.state == State.SUSPENDED
            await trio.sleep(PERSISTENCE - 1)
            at.see()
            assert not disk.target.is_silent
        assert at.disk is disk
        assert at.take_changes() == []


async def test_a_disk_that_waits_for_its_reservation_is_suspended_by_another_one_or_by_silence(
    autojump_clock: MockClock, announce: Announce
) -> None:
    """Else the other one would be reserved, and read (seed 800858 of the simulation)."""
    announce("e0.0: another disk answers there")
    async with sightings() as at:
        at.see()
        target = at.disk.target
        at.disk.opened += 1
        target.await_reservation()
        at.see(OTHER)
        assert target.life.state == State.SUSPENDED
        at.see()
        target.await_reservation()
        target.begin_lone_command(at.scene.engine.now())
        await trio.sleep(5)
        target.handle_timeout(at.scene.engine.now())
        assert target.life.state.value == "stalled"
        target.end_lone_command()


async def test_another_disk_that_persists_replaces_an_open_one(autojump_clock: MockClock, announce: Announce) -> None:
    announce("e0.0: another disk answers there")
    announce("e0.0 is another disk now")
    async with sightings() as at:
        at.see()
        at.disk.opened += 1
        at.take_changes()
        at.see(OTHER)
        await trio.sleep(PERSISTENCE - 0.1)
        at.see(OTHER)
        assert at.take_changes() == []
        await trio.sleep(0.2)
        at.see(OTHER)
        assert at.take_changes() == [Change.REPLACED, Change.APPEARED]


# ── a full table ──────────────────────────────────────────────────────────────────────────────────────────────────────


def slots(count: int, first: int = 0) -> list[Address]:
    return [Address(1, slot) for slot in range(first, first + count)]


async def test_a_full_table_loses_a_target_that_misses_a_round_and_is_not_open(autojump_clock: MockClock) -> None:
    async with sightings(Settings(max_targets=3)) as at:
        for address in slots(3):
            at.see(address=address)
        at.roster.disks[Address(1, 0)].opened += 1
        await trio.sleep(MISSED_ROUND + 1)
        at.see(address=Address(1, 1))
        at.see(OTHER, 7)
        assert set(at.roster.disks) == {Address(1, 0), Address(1, 1), Address(0, 0)}


async def test_one_mac_gives_room_to_others_when_the_table_is_full(
    autojump_clock: MockClock, announce: Announce
) -> None:
    """One MAC may have all places, while nobody else wants one."""
    announce("3 targets are the most")
    async with sightings(Settings(max_targets=3)) as at:
        for address in slots(3):
            at.see(address=address)
            await trio.sleep(0.1)
        at.see(address=Address(2, 0))
        assert set(at.roster.disks) == set(slots(3)), "not for itself"
        at.see(OTHER, 7)
        assert set(at.roster.disks) == {*slots(2), Address(0, 0)}
        at.see(address=Address(1, 2))
        assert set(at.roster.disks) == {*slots(2), Address(0, 0)}, "and not in turns"
