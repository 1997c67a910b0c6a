"""The roster: what a sighting changes, and what happens to disks that go."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from aoefs.core.health import Health, Sign
from aoefs.core.link import Endpoint
from aoefs.engine.changes import Change
from aoefs.engine.discovery import QUERY_PERIOD
from aoefs.engine.disk import Disk
from aoefs.engine.roster import FIRST_SECONDS, MAX_PATHS, PERSISTENCE, Sighting
from aoefs.engine.settings import Settings
from aoefs.engine.strangers import NO_ANSWER, REFUSED, SILENT, Stranger
from aoefs.errors import AtaError, IdentityChanged, RequestError, TargetLost
from aoefs.protocol.ata import Identity, Opcode
from aoefs.protocol.wire import Address, AoeCommand, ConfigArgument
from tests.engine.queries import ZERO
from tests.scene import Announce, Scene, SimulatedTarget, make_export, open_scene, target_mac

FIRST = Identity(sectors=256, serial="first", model="M", firmware="F")
OTHER = replace(FIRST, serial="other")


class Sightings:
    """A roster that gets its sightings from the test; ``changes`` are those that it published."""

    def __init__(self, scene: Scene, changes: list[tuple[Disk, Change]]) -> None:
        self.scene = scene
        self.roster = scene.engine.roster
        self.changes = changes

    def endpoint(self, number: int = 0, address: Address = ZERO) -> Endpoint:
        return Endpoint(self.scene.link, target_mac(number), address)

    def see(
        self,
        identity: Identity = FIRST,
        number: int = 0,
        *,
        address: Address = ZERO,
        bufcnt: int = 16,
        sectors: int = 2,
    ) -> None:
        """An endpoint (the MAC is ``number``) answered with this identity."""
        config = ConfigArgument(string=b"a string", buffer_count=bufcnt, sectors=sectors)
        self.roster.on_sighting(Sighting(self.endpoint(number, address), config, identity, sectors, 2))

    @property
    def disk(self) -> Disk:
        return self.roster.disks[ZERO]

    def macs(self) -> list[bytes]:
        return [path.mac for path in self.disk.target.paths]

    def take_changes(self) -> list[Change]:
        """What was published since the last time."""
        taken = [change for _, change in self.changes]
        self.changes.clear()
        return taken

    def rejected(self) -> list[tuple[bytes, str]]:
        """MAC and reason of each endpoint that was rejected."""
        strangers = self.roster.strangers([])
        assert {stranger.state for stranger in strangers} <= {REFUSED}
        return [(stranger.endpoint.mac, stranger.reason) for stranger in strangers]

    async def take_down(self) -> None:
        """Nothing answers on this wire."""
        with pytest.raises(TargetLost):
            await self.disk.read(0, 512)
        assert self.take_changes() == [Change.DOWN]


@asynccontextmanager
async def sightings(settings: Settings | None = None) -> AsyncIterator[Sightings]:
    changes: list[tuple[Disk, Change]] = []
    async with open_scene(
        settings, discover=False, on_change=lambda disk, change: changes.append((disk, change))
    ) as scene:
        yield Sightings(scene, changes)


# ── sightings ─────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_an_unknown_address_makes_a_disk_with_one_path(autojump_clock: MockClock) -> None:
    async with sightings() as at:
        assert not at.roster.first_appeared.is_set()
        assert at.roster.trusted_payload(at.endpoint()) == 0
        await trio.sleep(0.25)
        at.see(sectors=1)
        target = at.disk.target
        assert (target.identity, target.config, target.bufcnt) == (FIRST, b"a string", 16)
        (path,) = target.paths
        assert (path.link, path.mac, path.sectors, path.full_sectors) == (at.scene.link, target_mac(0), 1, 2)
        assert at.roster.find_path(at.endpoint()) is path
        assert at.roster.trusted_payload(at.endpoint()) == 1
        assert at.changes == [(at.disk, Change.APPEARED)]
        assert at.roster.first_appeared.is_set()
        assert at.roster.last_appeared_at == 0.25


async def test_the_same_disk_again_brings_buffer_count_and_payload_up_to_date(autojump_clock: MockClock) -> None:
    async with sightings() as at:
        at.see(sectors=1)
        disk, (path,) = at.disk, at.disk.target.paths
        at.take_changes()
        path.take(Sign.TIMEOUTS)
        assert at.roster.trusted_payload(at.endpoint()) == 0, "a degraded path is measured again"
        at.see(bufcnt=4, sectors=2)
        assert at.disk is disk
        assert (disk.target.bufcnt, disk.target.paths, path.sectors, path.health) == (4, [path], 2, Health.GOOD)
        assert at.take_changes() == []


async def test_a_resized_disk_stays_the_same_disk(autojump_clock: MockClock, announce: Announce) -> None:
    announce("e0.0 grew from 131072 to 262144 bytes")
    announce("e0.0 shrank from 262144 to 131072 bytes")
    async with sightings() as at:
        at.see()
        disk = at.disk
        at.take_changes()
        for sectors in (512, 256):
            at.see(replace(FIRST, sectors=sectors))
            assert at.disk is disk
            assert disk.size_bytes == sectors * 512
            assert at.take_changes() == [Change.RESIZED]


@pytest.mark.parametrize("other", [OTHER, replace(FIRST, model="N")])
async def test_another_disk_from_another_mac_is_rejected(
    autojump_clock: MockClock, announce: Announce, other: Identity
) -> None:
    announce("is refused: it is another disk")
    async with sightings() as at:
        at.see()
        disk = at.disk
        at.take_changes()
        await trio.sleep(FIRST_SECONDS)
        at.see(other, 1)
        assert at.disk is disk
        assert at.macs() == [target_mac(0)]
        assert at.rejected() == [(target_mac(1), f"it is another disk (serial {other.serial}, not first)")]
        assert at.roster.refused_identities == 1
        assert at.take_changes() == []


async def test_another_disk_on_one_of_two_paths_takes_that_path_away(
    autojump_clock: MockClock, announce: Announce
) -> None:
    announce("is refused: it is another disk")
    async with sightings() as at:
        at.see()
        disk = at.disk
        at.see(FIRST, 1)
        await trio.sleep(FIRST_SECONDS)
        at.see(OTHER, 0)
        assert at.disk is disk
        assert at.macs() == [target_mac(1)]
        assert [mac for mac, _ in at.rejected()] == [target_mac(0)]


async def test_another_disk_on_the_only_path_replaces_the_first_one(
    autojump_clock: MockClock, announce: Announce
) -> None:
    announce("e0.0 is another disk now .serial other.: open files fail")
    async with sightings() as at:
        at.see()
        old = at.disk
        at.take_changes()
        at.see(OTHER)
        new = at.disk
        assert new is not old
        assert at.changes == [(old, Change.REPLACED), (new, Change.APPEARED)]
        assert new.target.identity == OTHER
        with pytest.raises(IdentityChanged):
            await old.read(0, 512)


async def test_another_disk_replaces_one_that_is_down_whatever_its_mac(
    autojump_clock: MockClock, announce: Announce
) -> None:
    announce("e0.0 is down")
    announce("e0.0 is another disk now")
    async with sightings(Settings(deadsecs=1)) as at:
        at.see()
        at.take_changes()
        await at.take_down()
        at.see(OTHER, 1)
        assert at.take_changes() == [Change.REPLACED, Change.APPEARED]
        assert at.macs() == [target_mac(1)]


async def test_the_same_disk_returns_when_it_was_down(autojump_clock: MockClock, announce: Announce) -> None:
    announce("e0.0 is down")
    async with sightings(Settings(deadsecs=1)) as at:
        at.see()
        disk = at.disk
        at.take_changes()
        await at.take_down()
        assert at.roster.trusted_payload(at.endpoint()) == 0, "a silent target is measured again"
        at.see()
        assert at.disk is disk
        assert at.take_changes() == [Change.RETURNED]
        assert at.roster.trusted_payload(at.endpoint()) == 2


async def test_no_more_than_max_targets_are_made(autojump_clock: MockClock, announce: Announce) -> None:
    announce("is refused: 10 targets are the most")
    async with open_scene(Settings(max_targets=10)) as scene:
        for slot in range(20):
            scene.add_target(0, slot, sectors=8)
        await trio.sleep(2)
        assert len(scene.engine.disks) == 10
    assert Settings().max_targets == 1024


# ── strangers ─────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_strangers_are_those_that_are_no_path_by_address(autojump_clock: MockClock, announce: Announce) -> None:
    announce("is refused: it is another disk")
    async with sightings() as at:

        def silent(number: int, address: Address) -> Stranger:
            return Stranger(at.endpoint(number, address), ConfigArgument(), NO_ANSWER, SILENT)

        at.see(address=Address(1, 0))
        await trio.sleep(FIRST_SECONDS)
        at.see(OTHER, 1, address=Address(1, 0))
        at.roster.on_stranger(silent(2, Address(0, 9)))
        at.roster.on_stranger(silent(0, Address(1, 0)))  # a path that falls silent
        candidates = [silent(0, Address(1, 0)), silent(3, Address(0, 3)), silent(1, Address(1, 0))]
        assert [(str(one.endpoint.address), one.state) for one in at.roster.strangers(candidates)] == [
            ("e0.3", NO_ANSWER),
            ("e0.9", NO_ANSWER),
            ("e1.0", REFUSED),
        ]
        at.see(address=Address(0, 9), number=2)
        assert len(at.roster.strangers([])) == 1, "it is a path now"


# ── what goes ─────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_only_a_target_that_is_down_and_not_open_may_be_forgotten(
    autojump_clock: MockClock, announce: Announce
) -> None:
    announce("e0.0 is down")
    async with sightings(Settings(deadsecs=1)) as at:
        at.see()
        disk = at.disk
        at.take_changes()
        assert at.roster.reason_to_keep(disk) == "is not down"
        await at.take_down()
        disk.opened = 1
        assert at.roster.reason_to_keep(disk) == "is open"
        disk.opened = 0
        assert at.roster.reason_to_keep(disk) is None
        at.roster.forget(disk)
        assert at.changes == [(disk, Change.FORGOTTEN)]
        assert not at.roster.disks
        assert not at.roster.dirty_lost
        at.see()
        assert at.disk is not disk


async def test_a_link_that_goes_takes_its_paths_and_leaves_the_disk(autojump_clock: MockClock) -> None:
    async with sightings() as at:
        _, other = at.scene.add_wire(discover=False)
        at.see()
        at.roster.on_sighting(Sighting(Endpoint(other, target_mac(1), ZERO), ConfigArgument(), FIRST, 2, 2))
        at.take_changes()
        at.roster.drop_link(at.scene.link)
        assert at.macs() == [target_mac(1)]
        at.roster.drop_link(other)
        assert at.macs() == []
        assert at.take_changes() == []


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


async def test_a_path_of_a_full_list_is_replaced_only_when_it_is_degraded(
    autojump_clock: MockClock, announce: Announce
) -> None:
    announce(f"{MAX_PATHS} paths are the most")
    async with sightings() as at:
        for number in range(MAX_PATHS + 1):
            at.see(FIRST, number)
        assert at.macs() == [target_mac(number) for number in range(MAX_PATHS)]
        paths = at.disk.target.paths
        for path in paths:
            path.last_answer_at = 1.0
        paths[7].last_answer_at = 0.0
        at.see(FIRST, MAX_PATHS)
        assert target_mac(MAX_PATHS) not in at.macs(), "the oldest one works"
        paths[7].take(Sign.TIMEOUTS)
        at.see(FIRST, MAX_PATHS)
        assert at.macs() == [target_mac(number) for number in range(MAX_PATHS + 1) if number != 7]


async def test_a_second_mac_with_the_same_identity_is_a_path(autojump_clock: MockClock) -> None:
    async with open_scene() as scene:
        target = scene.add_target()
        SimulatedTarget(scene.wire, target.export, mac=target_mac(99))
        disk = await scene.disk()
        await trio.sleep(2)
        assert {path.mac for path in disk.target.paths} == {target.mac, target_mac(99)}
        assert len(disk.target.paths) == 2


async def test_a_second_mac_with_another_size_is_no_path(autojump_clock: MockClock, announce: Announce) -> None:
    announce("is refused: it has 153600 bytes, and 131072 on its other paths")
    async with open_scene() as scene:
        target = scene.add_target()
        disk = await scene.disk()
        other = scene.add_target(mac=target_mac(99), sectors=300, serial=target.export.identity.serial)
        other.announce()
        await trio.sleep(2)
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
        await trio.sleep(FIRST_SECONDS)
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


async def test_another_disk_at_the_only_endpoint_of_the_first_one_replaces_it(
    autojump_clock: MockClock, announce: Announce
) -> None:
    announce("e0.0 is another disk now .serial other.: open files fail")
    changes: list[tuple[object, Change]] = []
    async with open_scene(on_change=lambda disk, change: changes.append((disk, change))) as scene:
        target = scene.add_target(serial="first")
        old = await scene.disk()
        target.identify_as(replace(target.export.identity, serial="other"))
        target.announce()
        await trio.sleep(2)
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
    announce("e0.0: another disk answers there")
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
            await trio.sleep(PERSISTENCE + 5)
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
        await trio.sleep(2)
        assert disk.size_bytes == 512 << 30
        seen = len(scene.wire.ata(Opcode.READ))
        with pytest.raises(AtaError):
            await disk.read(512 << 29, 512 * 8)
        assert len(scene.wire.ata(Opcode.READ)) == seen
        assert scene.wire.ata(Opcode.READ_EXT)[-1][1].lba >= 1 << 29
