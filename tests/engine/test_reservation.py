"""The reservation of one disk: its list at the target, while targets and interfaces come and go."""

from __future__ import annotations

from dataclasses import replace

import pytest
import trio
from trio.testing import MockClock

from aoefs.core.life import State
from aoefs.engine.settings import Settings
from aoefs.errors import TargetError, TargetLost
from aoefs.protocol.ata import Opcode
from aoefs.protocol.wire import (
    AoeCommand,
    ReserveArgument,
    ReserveCommand,
    decode_header_untrusted,
    decode_reserve_untrusted,
    encode,
)
from tests.scene import OUR_MAC, Announce, Scene, SegmentLink, SimulatedTarget, open_scene, target_mac

OTHER_HOST = target_mac(666)
OTHER_MAC = OUR_MAC[:-1] + b"\x07"


class Holder:
    """The reserve list of a target, as AoEr11 describes it and vblade has it; ``seen`` has the lists that were set."""

    def __init__(self, target: SimulatedTarget) -> None:
        self._macs: list[bytes] = []
        self.seen: list[ReserveArgument] = []
        self.refused_writes = 0
        target.answer = self.answer

    @property
    def macs(self) -> tuple[bytes, ...]:
        return tuple(self._macs)

    def set_to(self, *macs: bytes) -> None:
        """As another host would, or a restart."""
        self._macs[:] = macs

    def answer(self, frame: bytes, reply: bytes) -> list[tuple[float, bytes]]:
        header = decode_header_untrusted(frame)
        mine = not self.macs or header.source in self.macs
        if header.command == AoeCommand.ATA and not mine and frame[27] != Opcode.IDENTIFY:
            self.refused_writes += frame[27] == Opcode.WRITE_EXT  # the READs are those that measure the path
            return [(0.0, reply[:14] + b"\x1c\x06" + reply[16:])]
        if header.command != AoeCommand.RESERVE:
            return [(0.0, reply)]
        asked = decode_reserve_untrusted(frame)
        back = replace(header, destination=header.source, source=header.destination, flags=8)
        if asked.command == ReserveCommand.FORCE_SET or (asked.command == ReserveCommand.SET and mine):
            self.seen.append(asked)
            self.set_to(*asked.macs)
        elif asked.command == ReserveCommand.SET:
            back = replace(back, flags=12, error=6)
        return [(0.0, encode(back, ReserveArgument(asked.command, self.macs)))]


async def test_a_reservation_is_held_with_all_our_macs_from_the_first_writer_to_the_last(
    autojump_clock: MockClock,
) -> None:
    async with open_scene() as scene:
        scene.add_wire("seg1")
        holder = Holder(scene.add_target())
        reservation = (await scene.disk()).reservation
        assert not reservation.is_due
        await reservation.take()
        assert set(holder.macs) == {link.mac for link in scene.engine.links.values()}
        assert len(holder.macs) == 2
        await reservation.take()
        await reservation.give_back()
        assert len(holder.seen) == 1
        await reservation.give_back()
        assert not holder.macs
        assert not reservation.is_due


async def test_a_reservation_of_another_host_is_left_alone(autojump_clock: MockClock) -> None:
    async with open_scene() as scene:
        holder = Holder(scene.add_target())
        disk = await scene.disk()
        holder.set_to(OTHER_HOST)
        with pytest.raises(TargetError) as caught:
            await disk.reservation.take()
        assert caught.value.code == 6
        assert holder.macs == (OTHER_HOST,)
        assert not holder.seen
        assert not disk.reservation.is_due
        assert await disk.commands.holders() == (OTHER_HOST,)


async def test_a_target_that_knows_no_reservations_says_so(autojump_clock: MockClock) -> None:
    async with open_scene() as scene:
        target = scene.add_target()
        target.answer = lambda frame, reply: [
            (0.0, reply[:14] + b"\x1c\x01" + reply[16:] if frame[19] == AoeCommand.RESERVE else reply)
        ]
        with pytest.raises(TargetError) as caught:
            await (await scene.disk()).reservation.take()
        assert caught.value.code == 1


async def test_a_restarted_target_has_its_reservation_again_before_it_gets_io(
    autojump_clock: MockClock, announce: Announce
) -> None:
    announce(r"does not answer: \d+ request")
    async with open_scene() as scene:
        target = scene.add_target()
        holder = Holder(target)
        disk = await scene.disk()
        await disk.reservation.take()
        target.silent = True
        async with trio.open_nursery() as nursery:
            nursery.start_soon(disk.write, 0, b"x" * 512)
            await trio.sleep(4)
            assert disk.target.life.state is State.STALLED
            holder.set_to()
            target.silent = False
            scene.wire.log.clear()
        assert holder.macs == (OUR_MAC,)
        (renewed,) = [at for at, _, _ in scene.wire.sent(AoeCommand.RESERVE)]
        assert renewed < min(at for at, _ in scene.wire.ata(Opcode.WRITE_EXT))


async def test_a_target_that_announces_itself_has_its_reservation_again(autojump_clock: MockClock) -> None:
    """It was restarted, and silent for too short a time to be noticed."""
    async with open_scene() as scene:
        target = scene.add_target()
        holder = Holder(target)
        disk = await scene.disk()
        await disk.reservation.take()
        await trio.sleep(2)
        holder.set_to()
        target.announce()
        await trio.sleep(0.2)
        assert holder.macs == (OUR_MAC,)


async def test_a_new_interface_is_on_the_list_before_it_carries_io(autojump_clock: MockClock) -> None:
    """The target is reached by both on one segment."""
    async with open_scene() as scene:
        holder = Holder(scene.add_target())
        disk = await scene.disk()
        await disk.reservation.take()

        async def keep_writing() -> None:
            while len(disk.target.paths) < 2 or not disk.target.paths[1].answered:
                await disk.write(0, b"x" * 512)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(keep_writing)
            await trio.sleep(0.01)
            # its frame with the new list is lost the first time
            lost: list[bytes] = []

            def route(frame: bytes) -> list[tuple[float, bytes]]:
                if frame[19] == AoeCommand.RESERVE and not lost:
                    lost.append(frame)
                    return []
                return [(0.0001, frame)]

            scene.wire.route = route
            scene.engine.add_link(SegmentLink(scene.wire, scene.engine.driver.tags, "seg1", OTHER_MAC))
        assert lost
        assert set(holder.macs) == {OUR_MAC, OTHER_MAC}
        assert not holder.refused_writes


async def test_an_interface_with_a_new_mac_keeps_the_disk_that_its_old_one_reserved(autojump_clock: MockClock) -> None:
    async with open_scene() as scene:
        holder = Holder(scene.add_target())
        disk = await scene.disk()
        await disk.reservation.take()
        scene.engine.drop_link(scene.link)
        scene.engine.add_link(SegmentLink(scene.wire, scene.engine.driver.tags, "seg0", OTHER_MAC))
        await disk.write(0, b"x" * 512)
        assert holder.macs == (OTHER_MAC,)
        assert not holder.refused_writes
        await disk.reservation.give_back()
        assert not holder.macs


async def test_a_reservation_that_could_not_be_given_back_is_given_back_when_the_target_returns(
    autojump_clock: MockClock, announce: Announce
) -> None:
    announce(r"does not answer: \d+ request")
    announce("e0.0 is down")
    async with open_scene(Settings(deadsecs=3)) as scene:
        target = scene.add_target()
        holder = Holder(target)
        disk = await scene.disk()
        await disk.reservation.take()
        target.silent = True
        with pytest.raises(TargetLost):
            await disk.read(0, 512)
        with pytest.raises(TargetLost):
            await disk.reservation.give_back()
        assert holder.macs == (OUR_MAC,)
        target.silent = False
        await trio.sleep(16)
        assert not holder.macs
        assert not disk.reservation.is_due


async def test_no_reservation_is_given_back_to_another_disk_at_the_same_address(
    autojump_clock: MockClock, announce: Announce
) -> None:
    announce("e0.0 is another disk now")
    async with open_scene() as scene:
        target = scene.add_target()
        holder = Holder(target)
        disk = await scene.disk()
        await disk.reservation.take()
        before = len(holder.seen)
        target.identify_as(replace(target.export.identity, serial="another"))
        target.announce()
        await trio.sleep(2)
        assert disk is not scene.engine.disks[disk.target.address]
        await disk.reservation.give_back()
        assert len(holder.seen) == before


async def test_a_reservation_that_another_host_took_by_force_is_left_alone_and_io_fails(
    autojump_clock: MockClock, announce: Announce
) -> None:
    announce("e0.0: renewing the reservation failed: AoE error 6")
    async with open_scene() as scene:
        target = scene.add_target()
        holder = Holder(target)
        disk = await scene.disk()
        await disk.reservation.take()
        holder.set_to(OTHER_HOST)
        target.announce()
        await trio.sleep(2)
        with pytest.raises(TargetError) as caught:
            await disk.read(0, 512)
        assert caught.value.code == 6
        assert holder.macs == (OTHER_HOST,)


# ── what nobody answered ──────────────────────────────────────────────────────────────────────────────────────────────


def replace_link(scene: Scene) -> None:
    """Our interface comes back with another MAC."""
    scene.engine.drop_link(scene.link)
    scene.engine.add_link(SegmentLink(scene.wire, scene.engine.driver.tags, "seg0", OTHER_MAC))


def lose_answers_to_reserve(target: SimulatedTarget, holder: Holder) -> None:
    target.answer = lambda frame, reply: [
        found for found in holder.answer(frame, reply) if frame[19] != AoeCommand.RESERVE
    ]


@pytest.mark.parametrize("how", ["fails", "is cancelled"])
async def test_a_reservation_whose_answer_was_lost_is_given_back(autojump_clock: MockClock, how: str) -> None:
    async with open_scene(Settings(deadsecs=3)) as scene:
        target = scene.add_target()
        holder = Holder(target)
        disk = await scene.disk()
        lose_answers_to_reserve(target, holder)
        if how == "fails":
            with pytest.raises(TargetLost):
                await disk.reservation.take()
        else:
            with trio.move_on_after(1):
                await disk.reservation.take()
        assert holder.macs == (OUR_MAC,)
        assert disk.reservation.writers == 0
        target.answer = holder.answer
        if how == "is cancelled":
            replace_link(scene)
        await trio.sleep(16)
        assert not holder.macs
        assert not disk.reservation.is_due


async def test_a_reservation_is_ours_also_when_its_answer_was_lost_with_the_link_that_asked(
    autojump_clock: MockClock,
) -> None:
    async with open_scene() as scene:
        target = scene.add_target()
        holder = Holder(target)
        disk = await scene.disk()
        lose_answers_to_reserve(target, holder)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(disk.reservation.take)
            await trio.sleep(0.5)
            target.answer = holder.answer
            replace_link(scene)
        assert holder.macs == (OTHER_MAC,)
        await disk.reservation.give_back()
        assert not holder.macs


async def test_a_disk_that_was_forgotten_before_its_reservation_was_given_back_is_still_ours(
    autojump_clock: MockClock, announce: Announce
) -> None:
    announce(r"does not answer: \d+ request")
    announce("e0.0 is down")
    async with open_scene(Settings(deadsecs=3)) as scene:
        target = scene.add_target()
        holder = Holder(target)
        disk = await scene.disk()
        await disk.reservation.take()
        target.silent = True
        with pytest.raises(TargetLost):
            await disk.read(0, 512)
        with pytest.raises(TargetLost):
            await disk.reservation.give_back()
        assert scene.engine.roster.reason_to_keep(disk) is None
        scene.engine.roster.forget(disk)
        replace_link(scene)
        target.silent = False
        disk = await scene.disk()
        await trio.sleep(1)
        assert not holder.macs
        await disk.read(0, 512)


async def test_a_reservation_that_was_refused_is_not_ours_to_give_back(autojump_clock: MockClock) -> None:
    async with open_scene() as scene:
        holder = Holder(scene.add_target())
        disk = await scene.disk()
        holder.set_to(OUR_MAC, OTHER_HOST)  # by the other host, which lets us write
        replace_link(scene)
        await trio.sleep(1)
        with pytest.raises(TargetError):
            await disk.reservation.take()
        assert holder.macs == (OUR_MAC, OTHER_HOST)
        assert not disk.reservation.is_due
