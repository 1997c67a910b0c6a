"""Tags: which command an answer belongs to."""

from __future__ import annotations

import random
import struct

from hypothesis import given
from hypothesis import strategies as st

from aoefs.core.tags import BLOCK_TAGS, HINT_TAGS, MAX_REMEMBERED, TagOwner, TagTable
from aoefs.protocol.wire import CLIENT_TAG_BIT


def opened(table: TagTable[TagOwner]) -> TagOwner:
    owner = TagOwner()
    table.open(owner)
    return owner


def drawing(*numbers: int) -> TagTable[TagOwner]:
    """A table that draws these, and then others."""
    some = random.Random(1)
    first = [struct.pack("256I", *(some.getrandbits(32) for _ in range(256 - len(numbers))), *reversed(numbers))]
    return TagTable(lambda size: first.pop() if first else some.randbytes(size))


def a_table() -> TagTable[TagOwner]:
    return TagTable(random.Random(7).randbytes)


def test_every_tag_of_a_block_leads_to_its_owner_and_no_other() -> None:
    table = a_table()
    first, second = opened(table), opened(table)
    for owner in (first, second):
        assert all(table.find(owner.tag ^ index) is owner for index in range(BLOCK_TAGS))
        assert table.find(owner.tag ^ BLOCK_TAGS) is None


@given(st.lists(st.integers(0, 0xFFFF_FFFF), min_size=2, max_size=40))
def test_blocks_never_overlap_whatever_is_drawn(numbers: list[int]) -> None:
    near = [number & 0x1FF | 0x9000_0000 for number in numbers]  # many of them touch
    table = drawing(*near, *numbers)
    owners = [opened(table) for _ in numbers]
    assert all(CLIENT_TAG_BIT <= owner.tag <= 0xFFFF_FFFF for owner in owners)
    for owner in owners:
        assert all(table.find(owner.tag ^ index) is owner for index in range(BLOCK_TAGS))


def test_a_tag_of_the_kernels_driver_has_no_owner() -> None:
    table = a_table()
    owner = opened(table)
    assert owner.tag & CLIENT_TAG_BIT
    assert table.find(owner.tag & ~CLIENT_TAG_BIT) is None


def test_the_tags_of_broadcast_queries_have_no_owner() -> None:
    table = drawing(0, 0x8000_FFFF, 0x8001_0000, 0x1234_5678)
    assert opened(table).tag == 0x8001_0000
    assert table.hint_tag() == HINT_TAGS << 16 | 0x5678
    assert table.find(HINT_TAGS << 16 | 0xFFFF) is None


def test_a_tag_tells_nothing_of_the_next_one() -> None:
    """n blind answers hit k live tags n·k/2^31 times: here 5 million, 512 and 1.2 times (6 would be a defect)."""
    table = TagTable[TagOwner](random.Random(11).randbytes)
    for _ in range(512 // BLOCK_TAGS):
        opened(table)
    seen = opened(table).tag  # a query that was sent to the attacker
    blind = random.Random(12)
    guesses = [seen + step for step in range(BLOCK_TAGS, 1_000_000)]
    guesses += [CLIENT_TAG_BIT | blind.getrandbits(31) for _ in range(4_000_000)]
    assert sum(table.find(guess & 0xFFFF_FFFF) is not None for guess in guesses) < 6 * BLOCK_TAGS


def test_a_table_draws_in_bulk() -> None:
    sizes: list[int] = []

    def draw(size: int) -> bytes:
        sizes.append(size)
        return random.Random(len(sizes)).randbytes(size)

    table = TagTable[TagOwner](draw)
    for _ in range(200):
        opened(table)
    assert sizes == [1024]


def test_a_closed_owner_is_forgotten() -> None:
    table = a_table()
    owner = opened(table)
    table.close(owner)
    assert table.find(owner.tag) is None
    assert len(table) == 0
    table.close(owner)  # a second time: nothing happens


def test_closing_does_not_take_the_block_of_another_owner() -> None:
    table = a_table()
    owner, impostor = opened(table), TagOwner()
    impostor.tag = owner.tag
    table.close(impostor)
    table.remember(impostor, 1.0)
    table.forget_old(2.0)
    assert table.find(owner.tag) is owner


def test_owners_kept_for_late_answers_are_bounded_and_the_oldest_goes_first() -> None:
    table = a_table()
    busy = opened(table)
    owners = [opened(table) for _ in range(MAX_REMEMBERED + 3)]
    for owner in owners:
        table.remember(owner, 1.0)
    assert len(table) == MAX_REMEMBERED + 1
    assert [table.find(owner.tag) for owner in owners[:4]] == [None, None, None, owners[3]]
    assert table.find(busy.tag) is busy
    assert table.live == [busy]


def test_a_late_answer_is_known_for_its_time_and_not_longer() -> None:
    table = a_table()
    owners = [opened(table) for _ in range(3)]
    for owner, until in zip(owners, (5.0, 7.0, 6.0), strict=True):
        table.remember(owner, until)
    table.forget_old(6.0)
    assert [table.find(owner.tag) for owner in owners] == [None, owners[1], None]


def test_a_remembered_owner_may_be_closed() -> None:
    table = a_table()
    owner = opened(table)
    table.remember(owner, 1.0)
    table.close(owner)
    assert table.find(owner.tag) is None
    table.remember(owner, 1.0)
    assert len(table) == 0
