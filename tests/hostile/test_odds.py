"""The odds of a host that sees none of our frames: n blind answers hit k live tags n*k/2^31 times."""

from __future__ import annotations

import random

import trio
from trio.testing import MockClock

from aoefs.core.tags import BLOCK_TAGS, TagOwner, TagTable
from aoefs.protocol.ata import Opcode, Status
from aoefs.protocol.wire import CLIENT_TAG_BIT, SECTOR_BYTES, AoeCommand, AtaArgument, Flag, Header, encode
from tests.hostile.attacker import FORGED
from tests.scene import open_scene

OWNERS = 1 << 15
GUESSES = 1 << 20
EXPECTED = GUESSES * OWNERS * BLOCK_TAGS / 2**31  # 1024 guesses lie in the block of an owner; one in 64 is its tag
BLIND = 20_000


def owners_of(table: TagTable[TagOwner], count: int) -> list[TagOwner]:
    owners = [TagOwner() for _ in range(count)]
    for owner in owners:
        table.open(owner)
    return owners


def test_blind_guesses_hit_as_often_as_chance_says() -> None:
    table: TagTable[TagOwner] = TagTable(random.Random(3).randbytes)
    owners_of(table, OWNERS)
    dice = random.Random(4)
    guesses = [dice.getrandbits(31) | CLIENT_TAG_BIT for _ in range(GUESSES)]
    owners = [(guess, owner) for guess in guesses if (owner := table.find(guess)) is not None]
    assert 0.8 * EXPECTED < len(owners) < 1.2 * EXPECTED
    assert sum(guess == owner.tag for guess, owner in owners) < 4 * EXPECTED / BLOCK_TAGS


def test_to_know_every_second_tag_helps_nothing_to_guess_the_others() -> None:
    """Sixty-four guesses near each tag that was given away: they hit the owners after it no more often than any."""
    table: TagTable[TagOwner] = TagTable(random.Random(3).randbytes)
    owners = owners_of(table, 2 * OWNERS)
    hits = 0
    for given, hidden in zip(owners[::2], owners[1::2], strict=True):
        hits += sum(table.find(given.tag + (step << 6) & 0xFFFF_FFFF) is hidden for step in range(1, 33))
        hits += sum(table.find(given.tag - (step << 6) & 0xFFFF_FFFF) is hidden for step in range(1, 33))
    assert hits < 10, "of 32768; in sequence it would be each"


async def test_blind_answers_end_no_read(autojump_clock: MockClock) -> None:
    """The same answer with the right tag does: so it is the tag alone that keeps them out."""
    async with open_scene() as scene:
        target = scene.add_target()
        disk = await scene.disk()
        target.answer = lambda frame, reply: [] if frame[27] == Opcode.READ_EXT else [(0.0, reply)]
        data = FORGED * (SECTOR_BYTES // len(FORGED))
        answer = encode(
            Header(scene.link.mac, target.mac, disk.target.address, AoeCommand.ATA, 0, Flag.RESPONSE),
            AtaArgument(0, 0, 0, Status.DRDY, 0),
            data,
        )
        read: list[bytes] = []

        async def reader() -> None:
            read.append(bytes(await disk.read(0, SECTOR_BYTES)))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(reader)
            await trio.sleep(0.001)
            dice = random.Random(5)
            for _ in range(BLIND):
                tag = dice.getrandbits(31) | CLIENT_TAG_BIT
                scene.link.deliver(answer[:20] + tag.to_bytes(4, "big") + answer[24:])
            await trio.sleep(0.001)
            assert not read
            assert scene.link.rx_unknown >= BLIND
            reads = [header.tag for _, header, frame in scene.wire.sent(AoeCommand.ATA) if frame[27] == Opcode.READ_EXT]
            scene.link.deliver(answer[:20] + reads[-1].to_bytes(4, "big") + answer[24:])
        assert read == [data]
