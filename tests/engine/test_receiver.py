"""The receiver: which frames count as answers, where the others go, and when it sleeps."""

from __future__ import annotations

import errno
import itertools
from typing import cast

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from aoefs.core.link import Entry, Link
from aoefs.engine.receiver import RECEIVE_BATCHES, Receiver
from aoefs.errors import AtaError, TargetError
from aoefs.net.packetsocket import LINK_DOWN
from aoefs.protocol.ata import ErrorBit
from aoefs.protocol.wire import (
    Address,
    AoeCommand,
    AtaArgument,
    ErrorCode,
    Flag,
    Header,
    encode,
    encode_header,
)
from tests.engine.answers import data_only, error_answer
from tests.scene import DELAY, SimulatedTarget, nothing_is_left, open_scene, target_mac
from tests.source import from_source


class BrokenLink:
    """Every receive fails."""

    def __init__(self, code: int) -> None:
        self.code = code
        self.up = True

    def receive(self) -> tuple[int, list[Entry], list[bytes]]:
        raise OSError(self.code, "broken")


def make_receiver() -> Receiver:
    """A receiver that gets no frame."""
    receiver: Receiver = from_source("engine.receiver").Receiver(None, None, None)
    return receiver


@pytest.mark.parametrize("code", LINK_DOWN)
def test_an_interface_that_is_down_gives_no_frames(code: int) -> None:
    link = BrokenLink(code)
    assert make_receiver().receive_batch(cast(Link, link)) == 0
    assert not link.up


def test_any_other_error_of_a_socket_is_not_hidden() -> None:
    with pytest.raises(OSError, match="broken"):
        make_receiver().receive_batch(cast(Link, BrokenLink(errno.EIO)))


async def test_an_interface_that_goes_down_under_the_receiver_ends_nothing(autojump_clock: MockClock) -> None:
    async with open_scene() as scene:
        target = scene.add_target()
        disk = await scene.disk()
        scene.link.fail_next_receive(OSError(errno.ENETDOWN, "down"))
        await trio.sleep(0.1)
        assert scene.link.up, "frames came, so it is up"
        assert await disk.read(0, 512) == target.data[:512]


# ── errors ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("code", [1, 3, 4, 5, 6, 99])
async def test_an_aoe_error_fails_the_request_at_once(autojump_clock: MockClock, code: int) -> None:
    async with open_scene() as scene:
        target = scene.add_target()
        disk = await scene.disk()

        def refuse(frame: bytes, reply: bytes) -> list[tuple[float, bytes]]:
            answer = reply[:14] + bytes([0x10 | Flag.RESPONSE | Flag.ERROR, code]) + reply[16:60]
            return [(0.0, answer if data_only(frame) else reply)]

        target.answer = refuse
        began = trio.current_time()
        with pytest.raises(TargetError) as caught:
            await disk.read(512, 512)
        assert (caught.value.code, caught.value.lba) == (code, 1)
        assert trio.current_time() - began == pytest.approx(2 * DELAY, abs=1e-9)
        assert disk.target.errors == 1
        assert nothing_is_left(disk.target)


async def test_an_ata_error_names_the_first_sector_of_its_command(autojump_clock: MockClock) -> None:
    async with open_scene() as scene:
        target = scene.add_target()
        disk = await scene.disk()

        def refuse(frame: bytes, reply: bytes) -> list[tuple[float, bytes]]:
            bad = data_only(frame) and frame[28] == 10  # the lowest byte of the LBA
            return [(0.0, error_answer(reply, error=ErrorBit.UNC) if bad else reply)]

        target.answer = refuse
        with pytest.raises(AtaError) as caught:
            await disk.read(0, 40 * 512)
        assert (caught.value.lba, caught.value.error) == (10, ErrorBit.UNC)
        await trio.sleep(1)
        assert nothing_is_left(disk.target)
        assert await disk.read(0, 10 * 512) == target.data[: 10 * 512]


async def test_a_bad_argument_is_answered_with_a_smaller_payload(autojump_clock: MockClock) -> None:
    async with open_scene(max_sectors=17) as scene:
        target = scene.add_target(max_sectors=17)
        disk = await scene.disk()
        target.max_sectors = 8  # it claimed more, or was restarted on another link
        assert await disk.read(0, 100 * 512) == target.data[: 100 * 512]
        assert disk.target.paths[0].sectors in (7, 8)
        target.max_sectors = 0
        with pytest.raises(TargetError) as caught:
            await disk.read(0, 100 * 512)
        assert caught.value.code == ErrorCode.BAD_ARGUMENT


# ── forged answers ────────────────────────────────────────────────────────────────────────────────────────────────────


FORGED: dict[str, dict[str, object]] = {
    "from a stranger": {"source": target_mac(666)},
    "of another shelf": {"address": Address(7, 0)},
    "of another slot": {"address": Address(0, 7)},
    "of another command": {"command": AoeCommand.MASK},
    "of another version": {"version": 0},
    "with an error, from a stranger": {"source": target_mac(666), "flags": Flag.RESPONSE | Flag.ERROR, "error": 3},
    "with a tag next to it": {"tag": None},
}


@pytest.mark.parametrize("kind", FORGED)
async def test_a_forged_answer_completes_nothing(autojump_clock: MockClock, kind: str) -> None:
    async with open_scene() as scene:
        target = scene.add_target()
        disk = await scene.disk()
        await trio.sleep(2)

        def forge(frame: bytes, reply: bytes) -> list[tuple[float, bytes]]:
            if not data_only(frame):
                return [(0.0, reply)]
            tag = int.from_bytes(frame[20:24], "big")
            changes = dict(FORGED[kind])
            if "tag" in changes:
                changes["tag"] = tag + 40
            fields: dict[str, object] = {
                "destination": scene.link.mac,
                "source": target.mac,
                "address": Address(0, 0),
                "command": AoeCommand.ATA,
                "tag": tag,
                "flags": Flag.RESPONSE,
            }
            header = Header(**(fields | changes))  # type: ignore[arg-type]  # a field by its name
            lie = encode(header, AtaArgument(0, 0, 0, 0x40, 0), b"\x66" * 1024)
            return [(0.0, lie), (0.001, reply)]

        target.answer = forge
        assert await disk.read(0, 2048) == target.data[:2048]
        await trio.sleep(0.1)
        assert scene.link.rx_unknown == 2
        assert disk.target.errors == 0


async def test_a_good_answer_from_another_verified_path_counts(autojump_clock: MockClock) -> None:
    """A target may answer from another one of its links."""
    async with open_scene() as scene:
        target = scene.add_target()
        other = SimulatedTarget(scene.wire, target.export, mac=target_mac(99))
        disk = await scene.disk()
        await trio.sleep(2)
        assert len(disk.target.paths) == 2
        for one in (target, other):
            one.answer = lambda frame, reply: [
                (0.0, reply[:6] + (other.mac if reply[6:12] == target.mac else target.mac) + reply[12:])
            ]
        assert await disk.read(0, 60 * 512) == target.data[: 60 * 512]
        await disk.write(0, b"\x77" * 30 * 512)
        assert target.data[: 30 * 512] == b"\x77" * 30 * 512
        assert disk.target.statistics().retransmits == 0
        assert nothing_is_left(disk.target)


async def test_a_good_answer_with_too_few_data_is_none(autojump_clock: MockClock) -> None:
    async with open_scene() as scene:
        target = scene.add_target()
        disk = await scene.disk()
        await trio.sleep(2)
        target.answer = lambda frame, reply: [(0.0, reply[:-1]), (0.001, reply)] if data_only(frame) else [(0.0, reply)]
        assert await disk.read(0, 1024) == target.data[:1024]
        assert scene.link.rx_unknown == 1
        assert disk.target.statistics().errors == 0


async def test_a_config_answer_with_no_tag_of_ours_is_a_hint_and_other_frames_are_counted(
    autojump_clock: MockClock,
) -> None:
    async with open_scene() as scene:
        await trio.sleep(2)
        for command, response in itertools.product(AoeCommand, (Flag.RESPONSE, 0)):
            header = Header(scene.link.mac, target_mac(1), Address(0, 0), command, 0x8000_0000, response)
            hints, unknown = scene.engine.statistics().hints, scene.link.rx_unknown
            scene.link.inbox.append(encode(header, AtaArgument(0, 0, 0, 0x40, 0)))
            scene.engine.receiver.receive_batches(scene.link)
            await trio.sleep(0.01)
            is_hint = command is AoeCommand.CONFIG and response == Flag.RESPONSE
            now = scene.engine.statistics().hints, scene.link.rx_unknown
            assert now == ((hints + 1, unknown) if is_hint else (hints, unknown + 1))


async def test_a_flood_of_frames_leaves_the_other_tasks_their_turns(autojump_clock: MockClock) -> None:
    async with open_scene() as scene:
        await trio.testing.wait_all_tasks_blocked()
        frames = 100 * RECEIVE_BATCHES * 64
        before = scene.link.rx_frames
        for _ in range(frames):
            scene.link.deliver(b"junk")
        turns = 0
        while scene.link.rx_frames < before + frames:
            await trio.lowlevel.checkpoint()
            turns += 1
        assert turns >= 100


async def test_frames_of_any_length_do_no_harm(autojump_clock: MockClock) -> None:
    async with open_scene() as scene:
        target = scene.add_target()
        disk = await scene.disk()
        await trio.sleep(2)
        real = scene.wire.sent(AoeCommand.ATA, response=True)[-1][2]
        head = encode_header(
            Header(scene.link.mac, target.mac, Address(0, 0), AoeCommand.ATA, 0x8000_0000, Flag.RESPONSE)
        )
        junk = [real[:size] for size in (1, 13, 14, 20, 23, 24, 30, 35, 36, 40)] + [head, head[:14] + b"\xff" * 60]
        for frame in junk:
            scene.link.deliver(frame)
        await trio.sleep(0.1)
        assert scene.link.rx_unknown >= len(junk) - 2
        assert await disk.read(0, 512) == target.data[:512]


# ── while another task takes the frames ───────────────────────────────────────────────────────────────────────────────


async def test_the_receivers_sleep_while_another_task_takes_the_frames(
    autojump_clock: MockClock,
) -> None:
    async with open_scene() as scene:
        scene.add_target(0, 1)
        disk = await scene.disk(0, 1)
        receiver = scene.engine.receiver
        await disk.read(0, 512)
        receiver.attended(True)
        read: list[memoryview] = []

        async def reader() -> None:
            read.append(await disk.read(512, 512))

        scene.nursery.start_soon(reader)
        await trio.sleep(0.005)
        assert not read
        assert scene.link.inbox, "the answer waits for the task that attends"
        receiver.attended(False)
        await trio.sleep(0.005)
        assert len(read) == 1


def receivers() -> list[str]:
    """The receivers' tasks, by name."""
    tasks = [trio.lowlevel.current_root_task()]
    found = []
    while tasks:
        task = tasks.pop()
        assert task is not None
        found += [task.name] if task.name.startswith("receiver") else []
        tasks += [child for nursery in task.child_nurseries for child in nursery.child_tasks]
    return found


async def test_a_link_may_go_while_its_receiver_sleeps(autojump_clock: MockClock) -> None:
    async with open_scene() as scene:
        scene.engine.receiver.attended(True)
        await trio.testing.wait_all_tasks_blocked()
        assert receivers() == ["receiver on seg0"]
        scene.engine.drop_link(scene.link)
        await trio.sleep(0.01)
        assert not receivers()
