"""Two disks that answer for one address: nothing is written where it is not clear which one is meant."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from aoefs.engine.changes import Change
from aoefs.engine.disk import Disk
from aoefs.engine.roster import FIRST_SECONDS
from aoefs.engine.settings import Settings
from aoefs.errors import AddressConflict, TargetLost
from aoefs.protocol.wire import Address
from tests.scene import Announce, SimulatedTarget, open_scene, target_mac

ZERO = Address(0, 0)
ONE_MAC, OTHER_MAC = target_mac(0), target_mac(1)


async def test_a_second_disk_behind_the_mac_of_the_first_is_noticed_by_its_answers_and_ends_the_writes(
    autojump_clock: MockClock, announce: Announce, caplog: pytest.LogCaptureFixture
) -> None:
    announce("takes no writes")
    changes: list[tuple[Disk, Change]] = []
    async with open_scene(on_change=lambda disk, change: changes.append((disk, change))) as scene:
        scene.add_target(serial="first")
        disk = await scene.disk()
        await trio.sleep(5)
        await disk.write(0, b"x" * 512)
        second = scene.add_target(serial="second")
        contents = bytes(second.data)
        for _ in range(200):
            await disk.read(0, 4096)
            if disk.target.conflict:
                break
            await trio.sleep(0.02)
        with pytest.raises(AddressConflict, match=r"first.*second"):
            await disk.write(512, b"y" * 512)
        assert second.data == contents
        await disk.read(0, 4096)
        assert scene.engine.statistics().targets[0].conflict == disk.target.conflict
        assert (disk, Change.CONFLICT) in changes
        (line,) = [record.getMessage() for record in caplog.records if "takes no writes" in record.getMessage()]
        assert "serial first and serial second" in line


async def test_writes_are_taken_again_when_one_disk_answers_alone(
    autojump_clock: MockClock, announce: Announce
) -> None:
    announce("takes no writes")
    async with open_scene() as scene:
        scene.add_target(serial="first")
        disk = await scene.disk()
        await trio.sleep(5)
        second = scene.add_target(serial="second")
        while not disk.target.conflict:
            await disk.read(0, 4096)
            await trio.sleep(0.02)
        second.silent = True
        await trio.sleep(10)
        await disk.write(0, b"x" * 512)


@pytest.mark.parametrize("copies", [2, 3])
async def test_a_network_that_doubles_frames_stops_nothing(autojump_clock: MockClock, copies: int) -> None:
    async with open_scene() as scene:
        target = scene.add_target()
        disk = await scene.disk()
        await trio.sleep(5)
        target.answer = lambda _frame, reply: [(0.0, reply)] * copies
        for number in range(100):
            await disk.write(512 * number, bytes([number]) * 512)
            await trio.sleep(0.1)
        assert not disk.target.conflict
        assert bytes(target.data[: 100 * 512]) == b"".join(bytes([number]) * 512 for number in range(100))


@pytest.mark.parametrize("first", ["a", "b"])
async def test_two_disks_behind_two_macs_that_are_found_together_are_shown_read_only(
    autojump_clock: MockClock, announce: Announce, caplog: pytest.LogCaptureFixture, first: str
) -> None:
    announce("takes no writes")
    announce("is refused: it is another disk")
    async with open_scene() as scene:
        for serial in (first, {"a": "b", "b": "a"}[first]):
            scene.add_target(serial=serial, mac={"a": ONE_MAC, "b": OTHER_MAC}[serial])
        disk = await scene.disk()
        await trio.sleep(1)
        with pytest.raises(AddressConflict):
            await disk.write(0, b"x" * 512)
        await disk.read(0, 512)
        (line,) = [record.getMessage() for record in caplog.records if "takes no writes" in record.getMessage()]
        for word in ("serial a", "serial b", "02:", "on seg0", "--disk e0.0=SERIAL"):
            assert word in line
        await trio.sleep(200)
        assert disk.target.conflict, "only a person can decide"


async def test_a_disk_that_is_established_keeps_its_name(autojump_clock: MockClock, announce: Announce) -> None:
    announce("is refused: it is another disk")
    async with open_scene() as scene:
        first = scene.add_target(serial="first", mac=ONE_MAC)
        disk = await scene.disk()
        await trio.sleep(FIRST_SECONDS + 0.1)
        second = scene.add_target(serial="second", mac=OTHER_MAC)
        contents = bytes(second.data)
        scene.engine.lookout.discover()
        await trio.sleep(10)
        await disk.write(0, b"x" * 512)
        assert first.data[:512] == b"x" * 512
        assert second.data == contents


@pytest.mark.parametrize("meant", ["a", "b"])
async def test_a_serial_decides_which_disk_is_meant(autojump_clock: MockClock, announce: Announce, meant: str) -> None:
    announce("is refused: it is another disk than is meant")
    async with open_scene(Settings(serials={ZERO: meant})) as scene:
        macs = {"a": ONE_MAC, "b": OTHER_MAC}
        targets = {serial: scene.add_target(serial=serial, mac=mac) for serial, mac in macs.items()}
        disk = await scene.disk()
        await trio.sleep(2)
        await disk.write(0, b"x" * 512)
        assert disk.target.identity.serial == meant
        assert targets[meant].data[:512] == b"x" * 512


async def test_what_only_a_person_can_decide_is_not_ended_by_another_conflict_nor_by_the_death_of_the_first(
    autojump_clock: MockClock, announce: Announce
) -> None:
    announce("takes no writes: two disks have this address")
    announce("is refused: it is another disk")
    announce("is down: not one answer")
    announce("does not answer: 1 request waits")
    announce("is another disk now")
    async with open_scene(Settings(deadsecs=3)) as scene:
        targets = {mac: scene.add_target(serial=mac.hex(), mac=mac) for mac in (ONE_MAC, OTHER_MAC)}
        disk = await scene.disk()
        await trio.sleep(5)
        first = targets[disk.target.paths[0].mac]
        third = scene.add_target(serial="c", mac=disk.target.paths[0].mac)
        for _ in range(200):
            await disk.read(0, 4096)
            await trio.sleep(0.02)
        third.silent = True
        await trio.sleep(30)
        assert disk.target.conflict
        for target in (first, third):
            target.silent = True
        with pytest.raises(TargetLost):
            await disk.read(0, 4096)
        await trio.sleep(100)
        other = await scene.disk()
        assert other is not disk
        with pytest.raises(AddressConflict):
            await other.write(0, b"x" * 512)


async def test_a_conflict_goes_with_the_path_on_which_it_was(autojump_clock: MockClock, announce: Announce) -> None:
    announce("takes no writes")
    async with open_scene() as scene:
        first = scene.add_target(serial="first")
        SimulatedTarget(scene.wire, first.export, mac=target_mac(9))
        disk = await scene.disk()
        await trio.sleep(5)
        scene.add_target(serial="second")
        while not disk.target.conflict:
            await disk.read(0, 4096)
            await trio.sleep(0.02)
        mixed = disk.target.find_path(scene.link, first.mac)
        assert mixed is not None
        scene.engine.roster.drop_path(mixed)
        await disk.write(0, b"x" * 512)
