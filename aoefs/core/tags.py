"""Tags: the number by which an answer is recognised.

Tags are issued in blocks of 64, from a counter that starts at random and skips blocks that are still known.  So the
commands of a run have consecutive tags, and a whole batch of answers is matched with one comparison.  Bit 31 is set:
the Linux driver ignores such answers.  ``tag >> 6`` names the owner of a block, ``tag & 63`` the transmission in it.

What always holds: a transmission has its own tag, so an answer is never ambiguous (except for a 65th sending of one
lone command); a tag is issued again only when it is no longer remembered.

Rejected: one dict entry per tag (it costs more than all other bookkeeping of a frame).
"""

from __future__ import annotations

from typing import Final, Generic, Protocol, TypeVar

from aoefs.protocol.wire import CLIENT_TAG_BIT

BLOCK_TAGS: Final = 64  # tags of one block: the most commands of a run
_BLOCK_BITS: Final = 6
_BLOCK_MASK: Final = (CLIENT_TAG_BIT - 1) >> _BLOCK_BITS
MAX_REMEMBERED: Final = 4096  # blocks kept for late answers only


class TagOwner(Protocol):
    """Anything that sends under the tags of a block; ``tag`` is the first of them."""

    tag: int


OwnerT = TypeVar("OwnerT", bound=TagOwner)


class TagTable(Generic[OwnerT]):
    """All tags that we would know in an answer: a block of 64 per owner (a run, a lone command).

    ``first`` is the first block number; the caller draws it at random, so that a host that sees no frame of
    ours cannot guess a tag.
    """

    __slots__ = ("_old", "_owners", "_remembered", "next_block")

    def __init__(self, first: int) -> None:
        self.next_block = first & _BLOCK_MASK
        self._owners: dict[int, OwnerT] = {}
        self._remembered: dict[int, OwnerT] = {}
        self._old: list[int] = []  # of these, those that were at the last call of forget_old

    def __len__(self) -> int:
        return len(self._owners)

    @property
    def live(self) -> list[OwnerT]:
        """The owners that still wait for something: not those that are kept for late answers only."""
        return [owner for block, owner in self._owners.items() if block not in self._remembered]

    def open(self, owner: OwnerT) -> None:
        """Give ``owner`` a block of tags; skips blocks that are still known."""
        owners = self._owners
        block = self.next_block
        while block in owners:
            block = block + 1 & _BLOCK_MASK
        owners[block] = owner
        owner.tag = CLIENT_TAG_BIT | block << _BLOCK_BITS
        self.next_block = block + 1 & _BLOCK_MASK

    def find(self, tag: int) -> OwnerT | None:
        """Whose tag this is; None for one that we never sent or no longer know."""
        if not tag & CLIENT_TAG_BIT:
            return None
        return self._owners.get((tag & ~CLIENT_TAG_BIT) >> _BLOCK_BITS)

    def close(self, owner: OwnerT) -> None:
        """Forget the tags of ``owner``."""
        block = (owner.tag & ~CLIENT_TAG_BIT) >> _BLOCK_BITS
        if self._owners.get(block) is owner:
            del self._owners[block]
            self._remembered.pop(block, None)

    def forget_old(self) -> None:
        """To be called about once a minute: forget what is remembered since before the last call."""
        for block in self._old:
            owner = self._remembered.get(block)
            if owner is not None:
                self.close(owner)
        self._old = list(self._remembered)

    def remember(self, owner: OwnerT) -> None:
        """Keep an owner for late answers only; beyond a bound the oldest one goes."""
        block = (owner.tag & ~CLIENT_TAG_BIT) >> _BLOCK_BITS
        if self._owners.get(block) is not owner:
            return
        self._remembered[block] = owner
        if len(self._remembered) > MAX_REMEMBERED:
            self.close(next(iter(self._remembered.values())))
