"""Lone commands: what goes on the wire, what counts as an answer, and how long silence lasts."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from aoefs.core.link import Endpoint
from aoefs.engine import conversation
from aoefs.engine.conversation import FIND_LINGER, ask, find, pauses_within
from aoefs.protocol.ata import IDENTIFY_REGISTERS, Opcode, transfer_registers
from aoefs.protocol.wire import (
    BROADCAST_ADDRESS,
    BROADCAST_MAC,
    SECTOR_BYTES,
    Address,
    AoeCommand,
    AtaArgument,
    ConfigArgument,
    Flag,
    Header,
    ReserveArgument,
    decode_config_untrusted,
    decode_header_untrusted,
    encode,
)
from tests.scene import DELAY, Deliveries, Scene, SimulatedTarget, open_scene, target_mac

ZERO = Address(0, 0)


@asynccontextmanager
async def quiet_scene() -> AsyncIterator[Scene]:
    """An engine that asks nothing by itself."""
    async with open_scene(discover=False) as scene:
        yield scene
        assert not scene.engine.driver.tags.live


def endpoint(scene: Scene, target: SimulatedTarget) -> Endpoint:
    return Endpoint(scene.link, target.mac, target.export.address)


async def test_find_sends_one_broadcast_on_every_link_and_nothing_else(autojump_clock: MockClock) -> None:
    async with quiet_scene() as scene:
        wire, link = scene.add_wire(discover=False)
        near = scene.add_target(3, 1)
        far = SimulatedTarget(wire, near.export, mac=target_mac(99))
        scene.add_target(3, 2)
        answers = await find(scene.engine.driver, Address(3, 1), pauses_within(1.0))
        assert {answer.endpoint for answer in answers} == {
            Endpoint(scene.link, near.mac, Address(3, 1)),
            Endpoint(link, far.mac, Address(3, 1)),
        }
        assert all(decode_config_untrusted(answer.frame).buffer_count == 16 for answer in answers)
        assert all(abs(answer.seconds - 2 * DELAY) < 1e-9 for answer in answers)
        await trio.sleep(5)
        for each in (scene.wire, wire):
            assert [(at, header.destination, header.address) for at, header, _ in each.sent()] == [
                (0.0, BROADCAST_MAC, Address(3, 1))
            ]


async def test_without_discovery_an_announcement_causes_nothing(autojump_clock: MockClock) -> None:
    async with quiet_scene() as scene:
        scene.add_target().announce()
        await trio.sleep(5)
        assert scene.wire.sent() == []
        assert scene.engine.disks == {}


async def test_find_with_the_broadcast_address_finds_all_targets(autojump_clock: MockClock) -> None:
    async with quiet_scene() as scene:
        targets = [scene.add_target(0, slot) for slot in range(5)]
        answers = await find(scene.engine.driver, BROADCAST_ADDRESS, pauses_within(1.0))
        assert {answer.endpoint for answer in answers} == {endpoint(scene, target) for target in targets}


async def test_silence_is_an_empty_list_after_the_time_that_was_given(autojump_clock: MockClock) -> None:
    async with quiet_scene() as scene:
        started = trio.current_time()
        assert await find(scene.engine.driver, ZERO, pauses_within(1.0)) == []
        assert trio.current_time() - started == pytest.approx(1.0)
        times = [at - started for at, _, _ in scene.wire.sent(AoeCommand.CONFIG)]
        assert times == pytest.approx([0.0, 0.1, 0.3])


async def test_a_late_answer_is_measured_from_its_own_sending_and_reported_once(
    autojump_clock: MockClock,
) -> None:
    async with quiet_scene() as scene:
        target = scene.add_target()
        target.answer = lambda _frame, reply: [(0.12, reply)]  # after the first retransmission
        (answer,) = await find(scene.engine.driver, ZERO, pauses_within(2.0))
        assert answer.seconds == pytest.approx(0.12 + 2 * DELAY)
        assert len(scene.wire.sent(AoeCommand.CONFIG)) == 2


async def test_two_targets_behind_one_endpoint_are_both_found(autojump_clock: MockClock) -> None:
    async with quiet_scene() as scene:
        one = scene.add_target(serial="one")
        scene.add_target(serial="two", mac=one.mac)
        answers = await find(scene.engine.driver, ZERO, pauses_within(1.0))
        assert [answer.endpoint for answer in answers] == [endpoint(scene, one)] * 2
        assert len(await ask(scene.engine.driver, [endpoint(scene, one)], IDENTIFY_REGISTERS, pauses_within(1.0))) == 2


async def test_an_answer_after_the_linger_is_not_waited_for(autojump_clock: MockClock) -> None:
    async with quiet_scene() as scene:
        scene.add_target()
        slow = scene.add_target(mac=target_mac(7))
        slow.answer = lambda _frame, reply: [(2 * FIND_LINGER, reply)]
        assert len(await find(scene.engine.driver, ZERO, pauses_within(1.0))) == 1


LIES = {
    "another MAC": {"source": target_mac(66)},
    "another address": {"address": Address(0, 1)},
    "another command": {"command": AoeCommand.CONFIG},
    "another version": {"version": 2},
    "no response": {"flags": 0},
    "a group address": {"source": BROADCAST_MAC},
}


@pytest.mark.parametrize("lie", LIES)
async def test_a_frame_from_elsewhere_is_no_answer(autojump_clock: MockClock, lie: str) -> None:
    async with quiet_scene() as scene:
        target = scene.add_target()

        def answer(frame: bytes, reply: bytes) -> Deliveries:
            header = replace(decode_header_untrusted(reply), **LIES[lie])  # type: ignore[arg-type]
            return [(0.0, encode(header, AtaArgument(0, 0, 0, 0x40, 0), bytes(512)))]

        target.answer = answer
        assert await ask(scene.engine.driver, [endpoint(scene, target)], IDENTIFY_REGISTERS, pauses_within(0.3)) == []


async def test_an_answer_with_too_few_data_is_none_but_a_failed_command_is_one(autojump_clock: MockClock) -> None:
    async with quiet_scene() as scene:
        target = scene.add_target(sectors=8)
        past_the_end = transfer_registers(8, 1, write=False, lba48=False)
        (failed,) = await ask(
            scene.engine.driver, [endpoint(scene, target)], past_the_end, pauses_within(0.3), data_bytes=SECTOR_BYTES
        )
        assert failed.frame[27] & 1
        target.answer = lambda _frame, reply: [(0.0, reply[:-1])]
        assert not await ask(
            scene.engine.driver,
            [endpoint(scene, target)],
            IDENTIFY_REGISTERS,
            pauses_within(0.3),
            data_bytes=SECTOR_BYTES,
        )


async def test_an_error_is_an_answer(autojump_clock: MockClock) -> None:
    async with quiet_scene() as scene:
        target = scene.add_target()
        target.export.access.reserve(target_mac(5), [target_mac(5)], force=True)
        read = transfer_registers(0, 1, write=False, lba48=False)
        (answer,) = await ask(
            scene.engine.driver, [endpoint(scene, target)], read, pauses_within(1.0), data_bytes=SECTOR_BYTES
        )
        assert (answer.header.is_error, answer.header.error) == (True, 6)


async def test_only_config_queries_may_be_broadcast(autojump_clock: MockClock) -> None:
    async with quiet_scene() as scene:
        everywhere = Endpoint(scene.link, BROADCAST_MAC, ZERO)
        with pytest.raises(ValueError, match="RESERVE is never broadcast"):
            await ask(
                scene.engine.driver,
                [everywhere],
                ReserveArgument(),
                pauses_within(1.0),
            )
        assert not scene.wire.sent()


async def test_a_cancelled_find_leaves_no_tag(autojump_clock: MockClock) -> None:
    async with quiet_scene() as scene:
        with trio.move_on_after(0.05):
            await find(scene.engine.driver, ZERO, pauses_within(9.0))
        assert not scene.engine.driver.tags.live


async def test_lone_commands_work_beside_a_disk_of_the_same_target(autojump_clock: MockClock) -> None:
    async with open_scene() as scene:
        target = scene.add_target()
        disk = await scene.disk()
        assert len(await find(scene.engine.driver, ZERO, pauses_within(1.0))) == 1
        assert await disk.read(0, 512) == target.data[:512]
        assert scene.link.rx_unknown == 0


@given(st.floats(0, 100))
def test_pauses_double_and_are_the_given_time_in_all(seconds: float) -> None:
    pauses = list(pauses_within(seconds))
    assert sum(pauses) == pytest.approx(seconds)
    assert all(pause > 0 for pause in pauses)
    assert pauses[:-1] == [conversation.FIRST_PAUSE * 2**index for index in range(len(pauses) - 1)]
    assert len(pauses) <= 12


@given(st.lists(st.binary(max_size=80), max_size=5), st.sampled_from(list(AoeCommand)), st.integers(0, 15))
def test_whatever_is_answered_with_our_tag_raises_nothing(bodies: list[bytes], command: AoeCommand, flags: int) -> None:
    async def main() -> None:
        async with quiet_scene() as scene:
            target = scene.add_target()

            def answer(frame: bytes, _reply: bytes) -> Deliveries:
                asked = decode_header_untrusted(frame)
                header = Header(asked.source, target.mac, ZERO, command, asked.tag, flags | Flag.RESPONSE, 3)
                head = encode(header, AtaArgument(0, 0, 0, Opcode.READ, 0))[:24]
                return [(0.0, head + body) for body in bodies]

            target.answer = answer
            for found in await ask(
                scene.engine.driver, [endpoint(scene, target)], ConfigArgument(), pauses_within(0.2)
            ):
                assert found.header.is_error or decode_config_untrusted(found.frame)

    trio.run(main, clock=MockClock(autojump_threshold=0))
