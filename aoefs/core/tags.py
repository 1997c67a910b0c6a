"""Tags: the number by which an answer is recognised.

A tag is *drawn at random* for each owner (a run, a lone command): a host that sees none of our other frames learns
nothing from the tag of one.  n blind answers hit k live tags n·k/2^31 times.  The owner has the whole block of 64 tags
that differ in the lowest six bits: its transmission ``index`` has the tag ``owner.tag ^ index``.  So a whole batch of
answers is matched with one comparison.  Bit 31 is set: the Linux driver ignores such answers.

What always holds: a transmission has its own tag, so an answer is never ambiguous (except for a 65th sending of one
lone command).  The tags 0x8000_0000 to 0x8000_FFFF have no owner: broadcast queries take them, whose answers are hints
(``engine.discovery``; the filter of ``net.packetsocket`` tells them apart).

Rejected: one dict entry per tag (it costs more than all other bookkeeping of a frame); blocks in sequence (a host
that is sent a query knows the tags of the next reads).
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Final, Generic, TypeVar

from aoefs.protocol.wire import CLIENT_TAG_BIT

BLOCK_TAGS: Final = 64  # tags of one block: the most commands of a run
_BLOCK_BITS: Final = 6
HINT_TAGS: Final = 0x8000  # the upper half of the tags of broadcast queries
_FIRST: Final = (HINT_TAGS + 1) << 16
LATE: Final = 60.0  # seconds; a target that was away for less answers all that waited there
MAX_REMEMBERED: Final = 4096  # blocks kept for late answers only
_BULK: Final = struct.Struct("256I")  # numbers drawn at once: a draw of its own would cost more than the rest


def is_hint_tag(tag: int) -> bool:
    """What has it was not asked for, or by a broadcast query only."""
    return not tag & CLIENT_TAG_BIT or tag >> 16 == HINT_TAGS


class TagOwner:
    """What sends under the tags of a block; ``tag`` is that of its first transmission."""

    __slots__ = ("tag",)

    def __init__(self) -> None:
        self.tag = 0


OwnerT = TypeVar("OwnerT", bound=TagOwner)


class TagTable(Generic[OwnerT]):
    """All tags that we would know in an answer.  ``draw(n)`` gives n bytes that nobody can guess."""

    def __init__(self, draw: Callable[[int], bytes]) -> None:
        self._draw = draw
        self._drawn: list[int] = []
        self._owners: dict[int, OwnerT] = {}  # by the upper bits of its tags
        self._remembered: dict[OwnerT, float] = {}  # until when, the oldest first

    def __len__(self) -> int:
        return len(self._owners)

    @property
    def live(self) -> list[OwnerT]:
        """The owners that still wait for something: not those that are kept for late answers only."""
        return [owner for owner in self._owners.values() if owner not in self._remembered]

    def _next(self) -> int:
        if not self._drawn:
            self._drawn = list(_BULK.unpack(self._draw(_BULK.size)))
        return self._drawn.pop() | CLIENT_TAG_BIT

    def open(self, owner: OwnerT) -> None:
        """Give ``owner`` a tag, the first of a block that nobody else has."""
        tag = self._next()
        while tag < _FIRST or tag >> _BLOCK_BITS in self._owners:
            tag = self._next()
        owner.tag = tag
        self._owners[tag >> _BLOCK_BITS] = owner

    def hint_tag(self) -> int:
        """The tag of a broadcast query: what answers it is a hint."""
        return HINT_TAGS << 16 | self._next() & 0xFFFF

    def find(self, tag: int) -> OwnerT | None:
        """Whose tag this is; None for one that we never sent or no longer know."""
        return self._owners.get(tag >> _BLOCK_BITS)

    def close(self, owner: OwnerT) -> None:
        """Forget the tags of ``owner``."""
        block = owner.tag >> _BLOCK_BITS
        if self._owners.get(block) is owner:
            del self._owners[block]
            if self._remembered:
                self._remembered.pop(owner, None)

    def remember(self, owner: OwnerT, until: float) -> None:
        """Keep an owner for late answers only, ``until`` then (seconds); beyond a bound the oldest one goes."""
        if self._owners.get(owner.tag >> _BLOCK_BITS) is not owner:
            return
        self._remembered[owner] = until
        if len(self._remembered) > MAX_REMEMBERED:
            self.close(next(iter(self._remembered)))

    def forget_old(self, now: float) -> None:
        """Forget the owners whose time is over."""
        for owner in [owner for owner, until in self._remembered.items() if until <= now]:
            self.close(owner)
