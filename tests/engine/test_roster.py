"""The roster: what a sighting changes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from aoefs.engine.changes import Change
from aoefs.engine.discovery import (
    QUERY_PERIOD,
)
from aoefs.engine.settings import Settings
from aoefs.errors import AtaError, IdentityChanged, RequestError
from aoefs.protocol.ata import Identity, Opcode
from aoefs.protocol.wire import (
    AoeCommand,
)
from tests.engine.queries import ZERO
from tests.scene import Announce, SimulatedTarget, make_export, open_scene, target_mac


async def test_no_more_than_max_targets_are_made(autojump_clock: MockClock, announce: Announce) -> None:
    announce("is refused: 10 targets are the most")
    async with open_scene(Settings(max_targets=10)) as scene:
        for slot in range(20):
            scene.add_target(0, slot, sectors=8)
        await trio.sleep(2)
        assert len(scene.engine.disks) == 10
    assert Settings().max_targets == 1024


# ── paths ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_target_without_buffers_gets_one_command_at_a_time(autojump_clock: MockClock) -> None:
    async with open_scene() as scene:
        target = scene.add_target()
        target.export.buffer_count = 0
        disk = await scene.disk()
        assert await disk.read(0, 30 * 512) == target.data[: 30 * 512]
        assert disk.target.paths[0].window.limit == 1


async def test_one_identity_behind_many_macs_does_not_make_as_many_paths(
    autojump_clock: MockClock, announce: Announce
) -> None:
    announce("32 paths are the most")
    async with open_scene() as scene:
        machine = make_export(ZERO, sectors=8)
        for number in range(40):
            SimulatedTarget(scene.wire, machine, mac=target_mac(number))
        await trio.sleep(5)
        assert len(scene.engine.disks[ZERO].target.paths) == 32


async def test_a_second_mac_with_the_same_identity_is_a_path(autojump_clock: MockClock) -> None:
    async with open_scene() as scene:
        target = scene.add_target()
        SimulatedTarget(scene.wire, target.export, mac=target_mac(99))
        disk = await scene.disk()
        await trio.sleep(2)
        assert {path.mac for path in disk.target.paths} == {target.mac, target_mac(99)}
        assert len(disk.target.paths) == 2


async def test_a_second_mac_with_another_size_is_no_path(autojump_clock: MockClock, announce: Announce) -> None:
    announce("is another disk")
    async with open_scene() as scene:
        target = scene.add_target()
        disk = await scene.disk()
        other = scene.add_target(mac=target_mac(99), sectors=300, serial=target.export.identity.serial)
        other.announce()
        await trio.sleep(1)
        assert len(disk.target.paths) == 1
        assert disk.size_bytes == 256 * 512


# ── identity ──────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_another_disk_under_the_same_address_is_refused_while_the_first_one_lives(
    autojump_clock: MockClock, announce: Announce
) -> None:
    announce("is another disk")
    async with open_scene() as scene:
        first = scene.add_target(serial="first")
        disk = await scene.disk()
        second = scene.add_target(serial="second", mac=target_mac(99))
        second.data[:] = bytes(len(second.data))
        second.announce()
        await trio.sleep(1)
        assert scene.engine.disks[ZERO] is disk
        assert scene.engine.statistics().refused_identities >= 1
        assert [path.mac for path in disk.target.paths] == [first.mac]
        before = len(scene.wire.ata(Opcode.READ_EXT))
        for _ in range(5):
            assert await disk.read(0, 4096) == first.data[:4096]
        sent = scene.wire.sent(AoeCommand.ATA)
        reads = [header for _, header, frame in sent if frame[27] == Opcode.READ_EXT][before:]
        assert {header.destination for header in reads} == {first.mac}


async def test_another_disk_in_the_very_place_of_the_first_one_replaces_it(
    autojump_clock: MockClock, announce: Announce
) -> None:
    announce("e0.0 is another disk now .serial other.: open files fail")
    changes: list[tuple[object, Change]] = []
    async with open_scene(on_change=lambda disk, change: changes.append((disk, change))) as scene:
        target = scene.add_target(serial="first")
        old = await scene.disk()
        target.identify_as(replace(target.export.identity, serial="other"))
        target.announce()
        await trio.sleep(1)
        new = scene.engine.disks[ZERO]
        assert new is not old
        assert changes == [(old, Change.APPEARED), (old, Change.REPLACED), (new, Change.APPEARED)]
        for call in (old.read(0, 512), old.write(0, b"x" * 512), old.write(3, b"x")):
            with pytest.raises(IdentityChanged):
                await call
        with pytest.raises(RequestError):
            await old.flush()
        assert target.data[:1] != b"x"
        await new.write(0, b"x" * 512)
        assert target.data[:1] == b"x"


async def test_requests_under_way_fail_when_the_disk_is_replaced(autojump_clock: MockClock, announce: Announce) -> None:
    announce("e0.0 is another disk now")
    async with open_scene() as scene:
        target = scene.add_target(serial="first")
        disk = await scene.disk()
        target.answer = lambda frame, reply: (
            [] if frame[19] == AoeCommand.ATA and frame[27] != Opcode.IDENTIFY else [(0.0, reply)]
        )
        failed: list[float] = []

        async def write() -> None:
            with pytest.raises(IdentityChanged):
                await disk.write(0, bytes(8192))
            failed.append(trio.current_time())

        async def flush() -> None:
            with pytest.raises(IdentityChanged):
                await disk.flush()
            failed.append(trio.current_time())

        async with trio.open_nursery() as nursery:
            nursery.start_soon(write)
            nursery.start_soon(write)  # waits for the claim of the first one
            nursery.start_soon(flush)
            await trio.sleep(0.3)
            target.identify_as(replace(target.export.identity, serial="other"))
            target.announce()
            await trio.sleep(1.5)
            assert len(failed) == 3


@pytest.mark.parametrize(("sectors", "verb"), [(512, "grew"), (128, "shrank")])
async def test_another_size_is_noticed(autojump_clock: MockClock, announce: Announce, sectors: int, verb: str) -> None:
    announce(f"e0.0 {verb} from 131072 to {sectors * 512} bytes")
    changes: list[Change] = []
    async with open_scene(on_change=lambda _disk, change: changes.append(change)) as scene:
        target = scene.add_target(sectors=256)
        disk = await scene.disk()
        await trio.sleep(2)
        target.resize(sectors)
        await trio.sleep(QUERY_PERIOD)
        assert scene.engine.disks[ZERO] is disk
        assert disk.size_bytes == sectors * 512
        assert changes == [Change.APPEARED, Change.RESIZED]
        assert await disk.read(0, disk.size_bytes) == target.data
        with pytest.raises(ValueError, match="not within"):
            await disk.read(disk.size_bytes, 512)


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
