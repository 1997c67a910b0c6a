"""Discovery: when it asks, which answers it believes, and what forged frames can make it do."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import islice, pairwise

import pytest
import trio
from trio.testing import MockClock

from aoefs.core.link import Endpoint
from aoefs.engine.candidates import MAX_WAITING, PLACES, Need
from aoefs.engine.conversation import LINGER
from aoefs.engine.discovery import (
    AWAITED_SECONDS,
    CONFIG_PAUSES,
    HINT_PERIOD,
    IDENTIFY_PAUSES,
    QUERY_PERIOD,
)
from aoefs.engine.settings import Settings
from aoefs.protocol.ata import Opcode, encode_identify
from aoefs.protocol.wire import (
    BROADCAST_ADDRESS,
    BROADCAST_MAC,
    Address,
    AoeCommand,
    AtaArgument,
    ConfigArgument,
    ConfigCommand,
    Flag,
    Header,
    decode_config_untrusted,
    decode_header_untrusted,
    encode,
)
from tests.engine.queries import ZERO, broadcasts, forge_config, unicasts
from tests.scene import DELAY, Announce, Deliveries, open_scene, target_mac

# ── asking ────────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_queries_go_out_at_0_100_300_and_700_ms_and_then_every_minute(autojump_clock: MockClock) -> None:
    async with open_scene() as scene:
        began = trio.current_time()
        await trio.sleep(200)
        times = [at - began for at in broadcasts(scene)]
        assert times == pytest.approx([0, 0.1, 0.3, 0.7, *(0.7 + QUERY_PERIOD * count for count in (1, 2, 3))])
        for _, header, frame in scene.wire.sent(AoeCommand.CONFIG):
            assert header.address == BROADCAST_ADDRESS
            assert header.tag & 0x8000_0000
            assert len(frame) == 60
            assert decode_config_untrusted(frame).command == ConfigCommand.READ
        tags = [header.tag for _, header, _ in scene.wire.sent(AoeCommand.CONFIG)]
        assert len(set(tags)) == len(tags)


async def test_a_link_that_comes_up_begins_its_queries_again_and_one_that_is_down_has_none(
    autojump_clock: MockClock,
) -> None:
    async with open_scene() as scene:
        await trio.sleep(10)
        scene.engine.link_changed(scene.link, up=False)
        seen = len(broadcasts(scene))
        await trio.sleep(200)
        assert len(broadcasts(scene)) == seen
        scene.engine.link_changed(scene.link, up=True)
        await trio.sleep(1)
        assert broadcasts(scene)[seen:] == pytest.approx([210, 210.1, 210.3, 210.7])
        assert scene.link.refreshed == 2


async def test_the_first_tag_is_random(autojump_clock: MockClock) -> None:
    tags = set()
    for _ in range(8):
        async with open_scene() as scene:
            await trio.sleep(0.01)
            tags.add(scene.wire.sent(AoeCommand.CONFIG)[0][1].tag)
    assert len(tags) == 8


async def test_one_lost_query_does_not_hide_a_disk(autojump_clock: MockClock) -> None:
    async with open_scene() as scene:
        lost = iter([True])
        scene.wire.route = lambda frame: [] if next(lost, False) else [(DELAY, frame)]
        scene.add_target()
        await trio.sleep(0.15)
        assert list(scene.engine.disks) == [ZERO]


# ── candidates ────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_config_answer_leads_to_identify_of_exactly_that_mac_and_only_that_makes_a_file(
    autojump_clock: MockClock,
) -> None:
    appeared: list[float] = []
    async with open_scene(on_change=lambda _disk, _change: appeared.append(trio.current_time())) as scene:
        target = scene.add_target(3, 4)
        slow = 0.05
        target.answer = lambda frame, reply: [(slow if frame[19] == AoeCommand.ATA else 0.0, reply)]
        await trio.sleep(0.02)
        asked = scene.wire.sent(AoeCommand.ATA)
        assert [(header.destination, header.address) for _, header, _ in asked] == [(target.mac, Address(3, 4))]
        assert not scene.engine.disks
        assert not appeared
        await trio.sleep(1)
        assert list(scene.engine.disks) == [Address(3, 4)]
        # broadcast, answer; query, answer; IDENTIFY, a moment for a second disk; the probe with a full frame; IDENTIFY
        assert appeared == pytest.approx([4 * DELAY + 3 * (2 * DELAY + slow) + 2 * LINGER])


async def test_identify_of_another_mac_is_not_accepted(autojump_clock: MockClock) -> None:
    async with open_scene() as scene:
        target = scene.add_target()
        target.answer = lambda frame, reply: [
            (0.0, reply[:6] + target_mac(666) + reply[12:] if frame[19] == AoeCommand.ATA else reply)
        ]
        await trio.sleep(50)
        assert not scene.engine.disks
        assert scene.link.rx_unknown >= 4
        assert not scene.engine.driver.tags.live


@pytest.mark.parametrize(
    ("field", "value"),
    [("address", Address(0, 1)), ("flags", Flag.RESPONSE | Flag.ERROR), ("version", 0), ("command", AoeCommand.MASK)],
)
async def test_identify_with_another_header_is_not_accepted(
    autojump_clock: MockClock, field: str, value: object, announce: Announce
) -> None:
    if field == "flags":
        announce("e0.0: .* is refused: it refuses IDENTIFY with AoE error 0")
    async with open_scene() as scene:
        target = scene.add_target()
        block = encode_identify(target.export.identity)

        def answer(frame: bytes, reply: bytes) -> list[tuple[float, bytes]]:
            if frame[19] != AoeCommand.ATA:
                return [(0.0, reply)]
            tag = int.from_bytes(frame[20:24], "big")
            header = Header(scene.link.mac, target.mac, ZERO, AoeCommand.ATA, tag, Flag.RESPONSE)
            changed = replace(header, **{field: value})  # type: ignore[arg-type]  # a field by its name
            return [(0.0, encode(changed, AtaArgument(0, 0, 0, 0x40, 0), block))]

        target.answer = answer
        await trio.sleep(30)
        assert not scene.engine.disks


async def test_identify_is_retransmitted_and_an_endpoint_that_stays_silent_is_dropped(
    autojump_clock: MockClock,
) -> None:
    async with open_scene() as scene:
        target = scene.add_target()
        asked: list[bytes] = []  # two queries are answered, or IDENTIFY would begin once more

        def answer(frame: bytes, reply: bytes) -> Deliveries:
            asked.append(frame)
            return [(0.0, reply)] if len(asked) <= 2 else []

        target.answer = answer
        await trio.sleep(20)
        times = [at for at, _ in scene.wire.ata(Opcode.IDENTIFY)]
        assert [after - before for before, after in pairwise(times)] == pytest.approx(IDENTIFY_PAUSES[:-1])
        assert not scene.engine.discovery.candidates()
        assert not scene.engine.driver.tags.live


async def test_a_disk_of_no_capacity_or_with_too_few_data_is_none(
    autojump_clock: MockClock, announce: Announce
) -> None:
    announce("e0.0: .* is refused: its answer to IDENTIFY is unusable: .* 0 sectors")
    announce("e0.1: .* is refused: its answer to IDENTIFY is unusable: .* 512 needed")
    async with open_scene() as scene:
        empty, short = scene.add_target(0, 0), scene.add_target(0, 1)
        empty.identify_as(replace(empty.export.identity, sectors=0))
        short.answer = lambda _frame, reply: [(0.0, reply[:300])]
        await trio.sleep(30)
        assert not scene.engine.disks


async def test_a_disk_that_changes_while_its_path_is_measured_is_identified_once_more(
    autojump_clock: MockClock,
) -> None:
    appeared: list[str] = []
    async with open_scene(on_change=lambda disk, _change: appeared.append(disk.target.identity.serial)) as scene:
        target = scene.add_target(serial="first")

        def answer(frame: bytes, reply: bytes) -> Deliveries:
            if frame[19] == AoeCommand.ATA and frame[27] != Opcode.IDENTIFY:  # a READ that measures
                target.identify_as(replace(target.export.identity, serial="second"))
            return [(0.0, reply)]

        target.answer = answer
        await trio.sleep(2)
        assert appeared == ["second"]


async def test_two_disks_behind_one_mac_and_address_are_both_refused(
    autojump_clock: MockClock, announce: Announce
) -> None:
    announce("e0.0: .* is refused: two disks answer")
    async with open_scene() as scene:
        scene.add_target(serial="one")
        scene.add_target(serial="two")
        await trio.sleep(5)
        assert not scene.engine.disks


async def test_only_allowed_macs_are_looked_at(autojump_clock: MockClock) -> None:
    allowed = target_mac(5)
    async with open_scene(Settings(allow_mac=frozenset({allowed}))) as scene:
        scene.add_target(0, 0, mac=target_mac(4))
        good = scene.add_target(0, 1, mac=allowed)
        await trio.sleep(5)
        for target in (good, scene.add_target(0, 2, mac=target_mac(6))):
            target.announce()
        await trio.sleep(5)
        assert list(scene.engine.disks) == [Address(0, 1)]
        asked = {header.destination for _, header, _ in scene.wire.sent()}
        assert asked == {BROADCAST_MAC, allowed}


# ── hints ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("version", [0, 1])
async def test_an_announcement_causes_a_tagged_unicast_query_and_changes_nothing_by_itself(
    autojump_clock: MockClock, version: int
) -> None:
    async with open_scene() as scene:
        await trio.sleep(5)
        target = scene.add_target()
        target.silent = True
        target.announce(version)
        await trio.sleep(20)
        asked = unicasts(scene)
        distances = [after - before for (before, _), (after, _) in pairwise(asked)]
        assert asked[0][0] == pytest.approx(5 + DELAY)
        assert distances == pytest.approx(CONFIG_PAUSES[:-1])
        for _, header in asked:
            assert (header.destination, header.address) == (target.mac, ZERO)
            assert header.tag & 0x8000_0000
        assert not scene.engine.disks
        assert not scene.wire.sent(AoeCommand.ATA)
        assert scene.engine.statistics().hints == 1


@pytest.mark.parametrize("version", [0, 1])
async def test_a_target_that_announces_itself_appears_within_two_seconds(
    autojump_clock: MockClock, version: int
) -> None:
    async with open_scene() as scene:
        await trio.sleep(5)
        target = scene.add_target()
        target.announce(version)
        await trio.sleep(0.1)
        assert list(scene.engine.disks) == [ZERO]


async def test_many_hints_of_one_endpoint_cause_few_queries(autojump_clock: MockClock) -> None:
    async with open_scene() as scene:
        target = scene.add_target()
        target.silent = True
        await trio.sleep(1)
        for _ in range(100):
            target.announce()
            await trio.sleep(HINT_PERIOD / 10)
        assert 10 <= len(unicasts(scene)) <= 25


async def test_a_flood_of_forged_announcements_creates_no_file_and_is_bounded(autojump_clock: MockClock) -> None:
    async with open_scene() as scene:
        await trio.sleep(1)
        for second in range(10):
            for number in range(500):
                mac = target_mac(second * 1000 + number)
                forge_config(scene, number & 3, mac=mac, address=Address(second, number & 0x7F))
            await trio.sleep(1)
        assert not scene.engine.disks
        each_second = Counter(int(at) for at, _ in unicasts(scene))
        assert max(each_second.values()) <= 2 * PLACES[Need.NEW] / AWAITED_SECONDS[0]
        assert scene.engine.statistics().hints == 5000
        assert len(scene.engine.driver.tags) <= PLACES[Need.NEW]
        await trio.sleep(40)
        assert not scene.engine.driver.tags.live
        target = scene.add_target()
        target.announce()
        await trio.sleep(0.1)
        assert list(scene.engine.disks) == [target.export.address]


async def test_a_new_target_and_a_silent_one_are_found_within_seconds_in_a_flood_of_forged_answers(
    autojump_clock: MockClock, announce: Announce
) -> None:
    """4500 at once, then 100 a second, each in the name of another MAC."""
    announce(r"e0.0 does not answer: \d+ request")
    async with open_scene() as scene:
        known = scene.add_target()
        disk = await scene.disk()
        await trio.sleep(2)
        known.silent = True
        scene.nursery.start_soon(disk.read, 0, 512)
        await trio.sleep(3)
        numbers = iter(range(40_000, 1_000_000))

        def forge(count: int) -> None:
            for number in islice(numbers, count):
                forge_config(scene, 0, mac=target_mac(number), address=Address(number % 9, number % 5))

        forge(4500)
        new = scene.add_target(7, 7)
        new.announce()
        known.silent = False
        for _ in range(80):
            forge(10)
            await trio.sleep(0.1)
        assert set(scene.engine.disks) == {ZERO, Address(7, 7)}
        assert not disk.target.is_silent


async def test_a_forged_answer_to_a_broadcast_query_is_a_hint_and_its_contents_are_not_believed(
    autojump_clock: MockClock,
) -> None:
    """Every host sees the tag of a broadcast query; who knows it still cannot answer for another MAC."""
    async with open_scene() as scene:
        target = scene.add_target(bufcnt=16)
        disk = await scene.disk()
        await trio.sleep(QUERY_PERIOD + 0.69)
        tag = scene.wire.sent(AoeCommand.CONFIG)[-1][1].tag
        for _ in range(5):
            evil = ConfigArgument(0, b"evil", 1, 0, 1, 1)
            header = Header(scene.link.mac, target.mac, ZERO, AoeCommand.CONFIG, tag, Flag.RESPONSE)
            scene.wire.send(encode(header, evil))
            await trio.sleep(1)
        assert (disk.target.bufcnt, disk.target.config, disk.target.paths[0].sectors) == (16, b"", 2)


async def test_a_query_takes_one_answer(autojump_clock: MockClock) -> None:
    """The second one has the tag, the MAC and the address of the first: only another host on the path can do that."""
    async with open_scene() as scene:
        target = scene.add_target(bufcnt=16)

        def answer(frame: bytes, reply: bytes) -> Deliveries:
            if frame[19] != AoeCommand.CONFIG:
                return [(0.0, reply)]
            header = decode_header_untrusted(reply)
            return [(0.0, reply), (0.0001, encode(header, ConfigArgument(0, b"evil", 1, 0, 1, 1)))]

        target.answer = answer
        disk = await scene.disk()
        await trio.sleep(10)
        assert (disk.target.bufcnt, disk.target.config, disk.target.paths[0].sectors) == (16, b"", 2)


async def test_impossible_endpoints_cause_no_query(autojump_clock: MockClock) -> None:
    async with open_scene() as scene:
        await trio.sleep(1)
        for address in (Address(0xFFFF, 0), Address(0, 0xFF), BROADCAST_ADDRESS, Address(0xFFF, 0)):
            forge_config(scene, 0, address=address)
        forge_config(scene, 0, mac=BROADCAST_MAC)
        forge_config(scene, 0, mac=bytes.fromhex("030000000001"))
        await trio.sleep(1)
        assert not unicasts(scene)


async def test_forged_config_answers_with_guessed_tags_are_counted_and_not_believed(
    autojump_clock: MockClock,
) -> None:
    async with open_scene() as scene:
        await trio.sleep(8)
        used = [header.tag for _, header, _ in scene.wire.sent()]
        before = scene.engine.statistics()
        for tag in (0x9000_0000, 0xFFFF_FFFF, 0x8001_0000, 0x8001_0000 | used[-1] & 0xFFFF):
            forge_config(scene, tag)
        await trio.sleep(5)
        after = scene.engine.statistics()
        assert after.hints == before.hints
        assert after.links[0].rx_unknown == before.links[0].rx_unknown + 4
        for tag in (0, 1, 0x8000_0000, used[-1]):  # an announcement, and answers to broadcast queries
            forge_config(scene, tag)
        await trio.sleep(5)
        assert scene.engine.statistics().hints == before.hints + 4
        assert {header.destination for _, header in unicasts(scene)} == {target_mac(666)}
        assert not scene.wire.sent(AoeCommand.ATA)
        assert not scene.engine.disks


async def test_as_many_forged_answers_as_there_are_places_create_nothing(autojump_clock: MockClock) -> None:
    async with open_scene() as scene:
        await trio.sleep(0.75)
        discovery = scene.engine.discovery
        places = PLACES[Need.NEW]
        for number in range(places + MAX_WAITING + 100):
            scene.engine.discovery.hint(Endpoint(scene.link, target_mac(number), Address(1, number & 0x7F)))
        assert discovery.queue.waiting == MAX_WAITING
        assert discovery.queue.dropped == 100
        await trio.sleep(30)
        assert not scene.engine.disks
        assert not discovery.is_busy
        assert not discovery.queue.waiting
        assert not scene.engine.driver.tags.live


async def test_more_targets_than_can_be_identified_at_once_are_all_found(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(PLACES, Need.NEW, 16)
    async with open_scene() as scene:
        for number in range(100):
            scene.add_target(number, 0, sectors=8)
        await trio.sleep(2)
        assert len(scene.engine.disks) == 100


async def test_slow_targets_make_room_for_others_and_are_found_all_the_same(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(PLACES, Need.NEW, 16)
    async with open_scene() as scene:
        for number in range(40):
            target = scene.add_target(number, 0, sectors=8)
            target.answer = lambda _frame, reply: [(0.5, reply)]
        await trio.sleep(20)
        assert len(scene.engine.disks) == 40


async def test_hints_during_an_examination_do_not_end_it_early(autojump_clock: MockClock) -> None:
    """A target that takes 2.7 s for each answer, as long as it flushes (seed 703379 of the simulation)."""
    async with open_scene() as scene:
        await trio.sleep(5)
        target = scene.add_target(sectors=1)
        target.answer = lambda _frame, reply: [(2.7, reply)]
        for _ in range(9):
            target.announce()
            await trio.sleep(HINT_PERIOD + 0.05)
        assert list(scene.engine.disks) == [ZERO]


async def test_an_announcement_with_a_targets_own_mac_changes_neither_bufcnt_nor_payload_nor_state(
    autojump_clock: MockClock,
) -> None:
    async with open_scene() as scene:
        target = scene.add_target(bufcnt=16)
        disk = await scene.disk()
        await trio.sleep(6)
        before = disk.target.statistics()
        for bufcnt, sectors in ((0, 0), (1, 1), (65535, 255)):
            target.announce(config=ConfigArgument(0, b"evil", bufcnt, 0, sectors, 1))
            await trio.sleep(2)
        assert disk.target.statistics() == before


# ── payload ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("link", "target", "expected"), [(17, 17, 17), (17, 2, 2), (2, 17, 2), (17, 0, 2), (17, 255, 17), (0, 2, 1)]
)
async def test_the_payload_is_what_target_and_link_take(
    autojump_clock: MockClock, link: int, target: int, expected: int
) -> None:
    async with open_scene(max_sectors=link) as scene:
        made = scene.add_target(max_sectors=target)
        if target == 0:
            made.max_sectors = 2
            made.answer = lambda frame, reply: [
                (0.0, reply[:28] + b"\0\0\0\0" + reply[32:] if frame[19] == AoeCommand.CONFIG else reply)
            ]
        disk = await scene.disk()
        await trio.sleep(1)
        assert disk.target.paths[0].sectors == expected


async def test_a_switch_without_jumbo_frames_is_measured(autojump_clock: MockClock) -> None:
    async with open_scene(max_sectors=17) as scene:
        target = scene.add_target(max_sectors=17)
        scene.wire.route = lambda frame: [(DELAY, frame)] if len(frame) <= 1514 else []
        disk = await scene.disk()
        await trio.sleep(5)
        assert disk.target.paths[0].sectors == 2
        assert await disk.read(0, 50 * 512) == target.data[: 50 * 512]
        assert disk.target.statistics().retransmits == 0
        scene.wire.route = lambda frame: [(DELAY, frame)]
        await trio.sleep(2 * QUERY_PERIOD)
        assert disk.target.paths[0].sectors == 17
