"""Lone commands of a disk: how often they are sent, on which path, and what answers them."""

from __future__ import annotations

import itertools
import logging
from dataclasses import replace

import pytest
import trio
from trio.testing import MockClock

from aoefs.core.health import Health
from aoefs.core.life import UNANSWERING, State
from aoefs.engine.disk import Disk
from aoefs.engine.settings import Settings
from aoefs.errors import TargetError, TargetLost
from aoefs.protocol.ata import Opcode
from aoefs.protocol.wire import (
    AoeCommand,
    AtaArgument,
    ConfigCommand,
    ErrorCode,
    MaskDirective,
    ReserveArgument,
    ReserveCommand,
    decode_ata_untrusted,
    decode_config_untrusted,
)
from tests.engine.answers import data_only, flushes, is_flush
from tests.scene import DELAY, OUR_MAC, Announce, Scene, SegmentLink, SimulatedTarget, open_scene, target_mac


async def test_a_command_carries_its_registers_and_gives_the_whole_answer(autojump_clock: MockClock) -> None:
    async with open_scene() as scene:
        scene.add_target()
        disk = await scene.disk()
        registers = replace(decode_ata_untrusted(bytes(36)), command=Opcode.CHECK_POWER_MODE)
        answer = await disk.commands.ata(registers)
        assert isinstance(answer.argument, AtaArgument)
        assert answer.argument.count == 0xFF


async def test_the_reserve_list_is_set_read_and_kept_from_others(autojump_clock: MockClock) -> None:
    async with open_scene() as scene:
        target = scene.add_target()
        commands = (await scene.disk()).commands
        assert await commands.holders() == ()
        assert await commands.reserve(ReserveArgument(ReserveCommand.SET, (OUR_MAC,))) == (OUR_MAC,)
        assert await commands.holders() == (OUR_MAC,)
        target.export.access.reserve(OUR_MAC, [target_mac(5)], force=False)  # as another initiator
        assert await commands.holders() == (target_mac(5),)
        with pytest.raises(TargetError) as caught:
            await commands.reserve(ReserveArgument(ReserveCommand.SET, (OUR_MAC,)))
        assert caught.value.code == ErrorCode.TARGET_IS_RESERVED


async def test_the_mask_list_is_read(autojump_clock: MockClock) -> None:
    async with open_scene() as scene:
        target = scene.add_target()
        commands = (await scene.disk()).commands
        assert await commands.mask() == ()
        target.export.access.edit_mask([(MaskDirective.ADD, OUR_MAC), (MaskDirective.ADD, target_mac(5))])
        assert await commands.mask() == (OUR_MAC, target_mac(5))


async def test_a_config_string_is_set_whatever_was_there(autojump_clock: MockClock) -> None:
    async with open_scene() as scene:
        scene.add_target()
        disk = await scene.disk()
        for string in (b"one", b"two", b""):
            await disk.commands.set_config(string)
            assert disk.target.config == string
        sent = [decode_config_untrusted(frame) for _, _, frame in scene.wire.sent(AoeCommand.CONFIG)]
        written = [config.string for config in sent if config.command == ConfigCommand.FORCE_SET]
        assert written == [b"one", b"two", b""]


async def test_each_sending_takes_the_next_path(autojump_clock: MockClock) -> None:
    async with open_scene(Settings(deadsecs=10)) as scene:
        target = scene.add_target()
        other = SimulatedTarget(scene.wire, target.export, mac=target_mac(99))
        disk = await scene.disk()
        await trio.sleep(2)
        for one in (target, other):
            one.answer = lambda frame, reply: [] if frame[19] == AoeCommand.RESERVE else [(0.0, reply)]
        with pytest.raises(TargetLost, match="did not answer RESERVE"):
            await disk.commands.holders()
        sent = [header.destination for _, header, _ in scene.wire.sent(AoeCommand.RESERVE)]
        assert sent[:4] == [path.mac for path in disk.target.paths] * 2


async def lose_a_read(scene: Scene, target: SimulatedTarget, disk: Disk) -> None:
    """From now on commands to this target are known to be lost at times."""
    lost: list[bytes] = []

    def lose_the_first(frame: bytes, reply: bytes) -> list[tuple[float, bytes]]:
        lost.append(frame)
        return [(0.0, reply)] if len(lost) > 1 else []

    target.answer = lose_the_first
    await disk.read(0, 512)
    assert disk.target.has_losses(scene.engine.now())


def deaf_to_flush(frame: bytes, reply: bytes) -> list[tuple[float, bytes]]:
    return [] if is_flush(frame) else [(0.0, reply)]


async def test_a_slow_path_gets_its_rto_before_a_flush_is_retransmitted(autojump_clock: MockClock) -> None:
    async with open_scene() as scene:
        target = scene.add_target()
        disk = await scene.disk()
        await lose_a_read(scene, target, disk)
        disk.target.paths[0].rtt.rto = 1.25
        target.answer = deaf_to_flush
        began = trio.current_time()
        with trio.move_on_after(1.4):
            await disk.flush()
        assert [at - began for at in flushes(scene)] == pytest.approx([0, 1.25])


async def test_a_cancelled_command_leaves_nothing_behind(autojump_clock: MockClock) -> None:
    async with open_scene() as scene:
        target = scene.add_target()
        disk = await scene.disk()
        await trio.sleep(6)  # until the tags of the queries are forgotten
        target.silent = True
        with trio.move_on_after(0.5):
            await disk.commands.holders()
        assert not scene.engine.driver.tags.live
        await trio.sleep(60)
        assert disk.target.life.state is State.UP, "nothing waited, so nothing was silent"


async def test_where_commands_are_lost_a_flush_is_retransmitted_after_a_second_doubling_up_to_eight(
    autojump_clock: MockClock,
) -> None:
    async with open_scene(Settings(deadsecs=40)) as scene:
        target = scene.add_target()
        disk = await scene.disk()
        await lose_a_read(scene, target, disk)
        await disk.write(0, b"x" * 512)
        target.answer = deaf_to_flush
        began = trio.current_time()
        with pytest.raises(TargetLost):
            await disk.flush()
        assert trio.current_time() - began == pytest.approx(40)
        sent = [at - began for at in flushes(scene)]
        assert sent[:2] == pytest.approx([0, 1])
        pauses = [later - earlier for earlier, later in itertools.pairwise(sent)]
        assert all(least <= pause <= least + 2 for least, pause in zip((1, 2, 4, 8, 8, 8), pauses, strict=False))
        tags = [header.tag for _, header, frame in scene.wire.sent(AoeCommand.ATA) if is_flush(frame)]
        assert len(set(tags)) == len(tags), "each sending has a tag of its own"
        assert disk.target.dirty
        assert disk.target.errors == 1


async def test_where_nothing_is_lost_a_flush_is_sent_again_after_half_a_minute_and_an_identify(
    autojump_clock: MockClock,
) -> None:
    async with open_scene() as scene:
        target = scene.add_target()
        disk = await scene.disk()
        await disk.write(0, b"x" * 512)
        target.answer = deaf_to_flush
        began = trio.current_time()
        with pytest.raises(TargetLost):
            await disk.flush()
        sent = [at - began for at in flushes(scene)]
        assert sent == pytest.approx([0, 33, 98], abs=1.5)
        assert disk.target.life.state is State.UP, "it answered whatever else it was asked"


async def test_the_reads_of_a_disk_that_flushes_go_on_and_its_flush_is_sent_once(autojump_clock: MockClock) -> None:
    async with open_scene() as scene:
        target = scene.add_target()
        disk = await scene.disk()
        await disk.write(0, b"x" * 512)
        target.answer = lambda frame, reply: [(30.0 if is_flush(frame) else 0.0, reply)]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(disk.flush)
            for _ in range(29):
                await trio.sleep(1)
                began = trio.current_time()
                await disk.read(0, 4096)
                assert trio.current_time() - began == pytest.approx(2 * DELAY)
                assert scene.engine.statistics().targets[0].state == "up"
        assert len(flushes(scene)) == 1
        assert disk.target.flushes == 1


@pytest.mark.parametrize("seconds", [7.0, 30.0])
async def test_a_target_that_answers_nothing_while_it_flushes_is_flushing_and_not_stalled(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture, seconds: float
) -> None:
    """It does one thing at a time: what it heard meanwhile is answered after the FLUSH."""
    async with open_scene() as scene:
        target = scene.add_target()
        disk = await scene.disk()
        await disk.write(0, b"x" * 512)
        busy_until = 0.0

        def one_at_a_time(frame: bytes, reply: bytes) -> list[tuple[float, bytes]]:
            nonlocal busy_until
            now = trio.current_time()
            busy_until = max(busy_until, now) + (seconds if is_flush(frame) else 0.0)
            return [(busy_until - now, reply)]

        target.answer = one_at_a_time
        caplog.clear()
        began = trio.current_time()
        seen = set()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(disk.flush)
            await trio.sleep(0.5)
            nursery.start_soon(disk.read, 0, 4096)
            while trio.current_time() < began + seconds - 1:
                await trio.sleep(1)
                seen.add(scene.engine.statistics().targets[0].state)
        assert trio.current_time() - began < seconds + 1
        assert seen == {"flushing"}
        assert len(flushes(scene)) == 1
        assert not [record for record in caplog.records if record.levelno > logging.INFO or "back" in record.message]
        sent = scene.wire.sent(AoeCommand.ATA)
        identifies = [at for at, _, frame in sent if at > began and frame[27] == Opcode.IDENTIFY]
        assert len(identifies) <= 1


@pytest.mark.parametrize("seconds", [0.5, 1.5, 6.0, 20.0])
async def test_a_slow_flush_is_waited_for(autojump_clock: MockClock, seconds: float) -> None:
    async with open_scene() as scene:
        target = scene.add_target()
        disk = await scene.disk()
        await disk.write(0, b"x" * 512)
        target.answer = lambda frame, reply: [(seconds if is_flush(frame) else 0.0, reply)]
        began = trio.current_time()
        await disk.flush()
        assert trio.current_time() - began == pytest.approx(seconds + 2 * DELAY)
        assert not disk.target.dirty
        assert disk.target.paths[0].rtt.srtt < 0.01, "a flush is no sample"
        assert disk.target.statistics().retransmits == 0


async def test_the_answer_to_a_flush_counts_only_from_a_path_of_the_target(autojump_clock: MockClock) -> None:
    async with open_scene() as scene:
        target = scene.add_target()
        disk = await scene.disk()
        await trio.sleep(1)
        unknown = scene.link.rx_unknown
        forged = target_mac(666)
        target.answer = lambda frame, reply: (
            [(0.0, reply[:6] + forged + reply[12:]), (0.2, reply)] if is_flush(frame) else [(0.0, reply)]
        )
        began = trio.current_time()
        await disk.flush()
        assert trio.current_time() - began == pytest.approx(0.2 + 2 * DELAY)
        assert scene.link.rx_unknown == unknown + 1


async def test_a_flush_is_sent_on_a_path_that_is_not_degraded(autojump_clock: MockClock) -> None:
    """The target moved to another link: its old path is degraded, and a flush does not wait for it."""
    async with open_scene() as scene:
        target = scene.add_target()
        disk = await scene.disk()
        other = SimulatedTarget(scene.wire, target.export, mac=target_mac(99))
        scene.engine.lookout.discover()
        await trio.sleep(6)
        assert len(disk.target.paths) == 2
        target.silent = True
        for _ in range(20):
            await disk.write(0, bytes(100 * 512))
        assert [path.health for path in disk.target.paths] == [Health.DEGRADED, Health.GOOD]
        for _ in range(4):
            began = trio.current_time()
            await disk.flush()
            assert trio.current_time() - began == pytest.approx(2 * DELAY)
        assert other.heard


async def test_a_path_that_is_gone_is_not_tried_again_and_again_when_the_other_one_is_slow(
    autojump_clock: MockClock, announce: Announce
) -> None:
    """One command at a time, each in a second: the target is silent before it is clear that only one path is."""
    announce(r"does not answer: \d+ request")
    async with open_scene() as scene:
        target = scene.add_target(bufcnt=1)
        other = SimulatedTarget(scene.wire, target.export, mac=target_mac(99))
        disk = await scene.disk()
        await trio.sleep(2)
        assert len(disk.target.paths) == 2
        target.answer = other.answer = lambda frame, reply: [(1.1 if data_only(frame) else 0.0, reply)]
        for _ in range(20):
            await disk.read(0, 512)
        assert all(path.rtt.rto > 1 for path in disk.target.paths)
        other.silent = True
        began = trio.current_time()
        for _ in range(10):
            await disk.read(0, 512)
        assert trio.current_time() - began < 10 * 1.1 + 3, "what the slow path alone takes, and one silence"


async def test_after_a_silence_commands_go_where_the_target_was_identified(
    autojump_clock: MockClock, announce: Announce
) -> None:
    announce(r"does not answer: \d+ request")
    async with open_scene() as scene:
        target = scene.add_target()
        SimulatedTarget(scene.wire, target.export, mac=target_mac(99))
        disk = await scene.disk()
        await trio.sleep(2)
        gone = disk.target.paths[0]
        scene.wire.route = lambda frame: []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(disk.commands.holders)
            await trio.sleep(4)
            assert disk.target.life.state is State.STALLED
            scene.wire.route = lambda frame: [] if gone.mac in (frame[:6], frame[6:12]) else [(DELAY, frame)]
        assert len(disk.target.paths) == 2
        for call in (disk.flush, disk.commands.holders):
            began = trio.current_time()
            await call()
            assert trio.current_time() - began == pytest.approx(2 * DELAY)


async def test_a_flush_to_a_target_that_comes_back_is_sent_as_soon_as_it_is_identified(
    autojump_clock: MockClock,
) -> None:
    async with open_scene() as scene:
        target = scene.add_target()
        disk = await scene.disk()
        await disk.write(0, b"x" * 512)
        target.silent = True
        async with trio.open_nursery() as nursery:
            nursery.start_soon(disk.flush)
            nursery.start_soon(disk.read, 0, 512)
            await trio.sleep(30)
            assert scene.engine.statistics().targets[0].state == "flushing"
            target.silent = False
            while disk.target.life.state is not State.UP:  # noqa: ASYNC110 (virtual time costs nothing)
                await trio.sleep(0.001)
            back = trio.current_time()
        assert trio.current_time() - back <= 0.02
        assert not disk.target.dirty


async def test_a_target_that_is_silent_to_a_flush_alone_is_identified_before_the_next_one(
    autojump_clock: MockClock,
) -> None:
    """Otherwise the flush of another disk at the same address would be taken for that of this one."""
    async with open_scene() as scene:
        target = scene.add_target()
        disk = await scene.disk()
        await disk.write(0, b"x" * 512)
        target.silent = True
        with trio.move_on_after(60):
            await disk.flush()
        assert len(flushes(scene)) == 1
        assert disk.target.life.state in UNANSWERING


# ── what did not go out, or is lost for sure ──────────────────────────────────────────────────────────────────────────

SOON = 0.5  # seconds


@pytest.mark.parametrize("name", ["flush", "holders"])
async def test_a_command_that_the_socket_did_not_take_goes_out_soon_after_there_is_room(
    autojump_clock: MockClock, name: str
) -> None:
    async with open_scene(Settings(deadsecs=0)) as scene:
        scene.add_target()
        disk = await scene.disk()
        scene.link.set_room(0)
        call = disk.flush if name == "flush" else disk.commands.holders
        async with trio.open_nursery() as nursery:
            nursery.start_soon(call)
            await trio.sleep(1.9)
            scene.link.set_room(1000)
            began = trio.current_time()
        assert trio.current_time() - began < SOON


@pytest.mark.parametrize("how", ["dropped", "down for a moment"])
async def test_a_flush_whose_link_went_goes_out_again_as_soon_as_there_is_a_path(
    autojump_clock: MockClock, how: str
) -> None:
    async with open_scene(Settings(deadsecs=0)) as scene:
        target = scene.add_target()
        disk = await scene.disk()
        target.answer = deaf_to_flush
        async with trio.open_nursery() as nursery:
            nursery.start_soon(disk.flush)
            await trio.sleep(1)
            target.answer = lambda frame, reply: [(0.0, reply)]
            if how == "dropped":
                scene.engine.drop_link(scene.link)
                await trio.sleep(0.1)
                scene.engine.add_link(SegmentLink(scene.wire, scene.engine.driver.tags, "seg0"))
            else:
                scene.engine.link_changed(scene.link, up=False)
                await trio.sleep(0.1)
                scene.engine.link_changed(scene.link, up=True)
            began = trio.current_time()
        assert trio.current_time() - began < SOON
        assert len(flushes(scene)) == 2
        assert disk.target.flushes == 1


async def test_a_flush_is_not_sent_again_when_another_link_than_its_own_goes(autojump_clock: MockClock) -> None:
    async with open_scene(Settings(deadsecs=0)) as scene:
        target = scene.add_target()
        disk = await scene.disk()
        wire, link = scene.add_wire()
        SimulatedTarget(wire, target.export, mac=target_mac(99))
        await trio.sleep(2)
        assert len(disk.target.paths) == 2
        target.answer = lambda frame, reply: [(5.0 if is_flush(frame) else 0.0, reply)]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(disk.flush)
            await trio.sleep(1)
            scene.engine.drop_link(link)
        assert len(flushes(scene)) == 1


async def test_a_flush_to_a_target_that_was_restarted_waits_for_its_reservation_only(
    autojump_clock: MockClock, announce: Announce
) -> None:
    async with open_scene(Settings(deadsecs=0)) as scene:
        target = scene.add_target()
        disk = await scene.disk()
        await disk.reservation.take()
        target.silent = True
        async with trio.open_nursery() as nursery:
            nursery.start_soon(disk.flush)
            nursery.start_soon(disk.commands.holders)
            await trio.sleep(10)
            target.export.access.reserve(OUR_MAC, [], force=True)
            target.silent = False
            while disk.target.is_silent:  # noqa: ASYNC110 (virtual time costs nothing)
                await trio.sleep(0.01)
            back = trio.current_time()
        assert trio.current_time() - back < SOON
