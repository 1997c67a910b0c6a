"""Tags: which command an answer belongs to."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from aoefs.core.tags import BLOCK_TAGS, MAX_REMEMBERED, TagTable
from aoefs.protocol.wire import CLIENT_TAG_BIT

LAST_BLOCK = (1 << 25) - 1


class Owner:
    def __init__(self) -> None:
        self.tag = 0


def opened(table: TagTable[Owner]) -> Owner:
    owner = Owner()
    table.open(owner)
    return owner


def test_every_tag_of_a_block_leads_to_its_owner_and_no_other() -> None:
    table: TagTable[Owner] = TagTable(5)
    first, second = opened(table), opened(table)
    assert all(table.find(first.tag + index) is first for index in range(BLOCK_TAGS))
    assert all(table.find(second.tag + index) is second for index in range(BLOCK_TAGS))
    assert table.find(first.tag - 1) is None
    assert table.find(second.tag + BLOCK_TAGS) is None


def test_a_tag_of_the_kernels_driver_has_no_owner() -> None:
    table: TagTable[Owner] = TagTable(0)
    owner = opened(table)
    assert owner.tag & CLIENT_TAG_BIT
    assert table.find(owner.tag & ~CLIENT_TAG_BIT) is None


def test_the_first_tag_is_where_the_caller_drew_it() -> None:
    assert opened(TagTable(0x12345)).tag == CLIENT_TAG_BIT | 0x12345 * BLOCK_TAGS


@given(st.integers(0, (1 << 31) - 1))
def test_any_number_is_a_good_start(first: int) -> None:
    table: TagTable[Owner] = TagTable(first)
    owners = [opened(table) for _ in range(3)]
    assert all(CLIENT_TAG_BIT <= owner.tag <= 0xFFFF_FFFF - BLOCK_TAGS + 1 for owner in owners)
    assert len({owner.tag for owner in owners}) == 3


def test_a_closed_owner_is_forgotten() -> None:
    table: TagTable[Owner] = TagTable(0)
    owner = opened(table)
    table.close(owner)
    assert table.find(owner.tag) is None
    assert len(table) == 0
    table.close(owner)  # a second time: nothing happens


def test_blocks_wrap_around_and_skip_those_still_known() -> None:
    table: TagTable[Owner] = TagTable(LAST_BLOCK)
    last, first = opened(table), opened(table)
    assert last.tag == 0xFFFF_FFFF - BLOCK_TAGS + 1
    assert first.tag == CLIENT_TAG_BIT
    table.next_block = LAST_BLOCK  # once around
    assert opened(table).tag == CLIENT_TAG_BIT + BLOCK_TAGS
    assert table.find(last.tag) is last


def test_closing_does_not_take_the_block_of_another_owner() -> None:
    table: TagTable[Owner] = TagTable(0)
    owner, impostor = opened(table), Owner()
    impostor.tag = owner.tag
    table.close(impostor)
    table.remember(impostor)
    assert table.find(owner.tag) is owner


def test_owners_kept_for_late_answers_are_bounded_and_the_oldest_goes_first() -> None:
    table: TagTable[Owner] = TagTable(0)
    busy = opened(table)
    owners = [opened(table) for _ in range(MAX_REMEMBERED + 3)]
    for owner in owners:
        table.remember(owner)
    assert len(table) == MAX_REMEMBERED + 1
    assert [table.find(owner.tag) for owner in owners[:4]] == [None, None, None, owners[3]]
    assert table.find(busy.tag) is busy


def test_a_remembered_owner_may_be_closed() -> None:
    table: TagTable[Owner] = TagTable(0)
    owner = opened(table)
    table.remember(owner)
    table.close(owner)
    assert table.find(owner.tag) is None
    table.remember(owner)
    assert len(table) == 0
