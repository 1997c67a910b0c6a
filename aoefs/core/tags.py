"""Tags: by which number an answer is known.

Tags are issued in blocks of 64 from a counter that starts at random and skips blocks still known, so the commands of
a run have consecutive tags and a whole batch of answers is matched with one comparison.  Bit 31 is set: the Linux
driver ignores such answers.  ``tag >> 6`` names the owner of a block, ``tag & 63`` the transmission in it.

What holds always: a transmission has its own tag, so an answer is never ambiguous (a 65th sending of one exchange
excepted); a tag is issued anew only when nobody remembers it.

Rejected: one dict entry per tag (it costs more than all other bookkeeping of a frame).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, Generic, Protocol, TypeVar

from aoefs.protocol.wire import CLIENT_TAG_BIT

BLOCK_TAGS: Final = 64  # tags of one block: the most commands of a run
_BLOCK_BITS: Final = 6
_BLOCK_MASK: Final = (CLIENT_TAG_BIT - 1) >> _BLOCK_BITS
MAX_REMEMBERED: Final = 4096  # blocks kept for late answers only


class TagOwner(Protocol):
    """Anything that sends under the tags of a block; ``tag`` is the first of them."""

    tag: int


OwnerT = TypeVar("OwnerT", bound=TagOwner)


class Exchange:
    """A lone command that waits for its answer: config query, IDENTIFY, FLUSH.  Each sending takes a tag of its block.

    ``on_answer(link, frame)`` is called with each answer that carries one of the tags; judging it is the owner's
    business.
    """

    __slots__ = ("on_answer", "sendings", "tag")

    def __init__(self, on_answer: Callable[[Any, bytes], object]) -> None:
        self.on_answer = on_answer
        self.sendings = 0
        self.tag = 0

    def next_tag(self) -> int:
        """The tag of the next sending; the 65th takes the first one again."""
        tag = self.tag + self.sendings % BLOCK_TAGS
        self.sendings += 1
        return tag


class TagTable(Generic[OwnerT]):
    """All tags that we would know in an answer: a block of 64 per owner (a run, an exchange).

    ``first`` is the first block number; the caller draws it at random, so that nobody off the wire can guess a tag.
    """

    __slots__ = ("_block", "_owners", "_remembered")

    def __init__(self, first: int) -> None:
        self._block = first & _BLOCK_MASK
        self._owners: dict[int, OwnerT] = {}
        self._remembered: dict[int, OwnerT] = {}

    def __len__(self) -> int:
        return len(self._owners)

    def open(self, owner: OwnerT) -> None:
        """Give ``owner`` a block of tags; skips blocks that are still known."""
        owners = self._owners
        block = self._block
        while block in owners:
            block = block + 1 & _BLOCK_MASK
        owners[block] = owner
        owner.tag = CLIENT_TAG_BIT | block << _BLOCK_BITS
        self._block = block + 1 & _BLOCK_MASK

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

    def remember(self, owner: OwnerT) -> None:
        """Keep an owner for late answers only; beyond a bound the oldest one goes."""
        block = (owner.tag & ~CLIENT_TAG_BIT) >> _BLOCK_BITS
        if self._owners.get(block) is not owner:
            return
        self._remembered[block] = owner
        if len(self._remembered) > MAX_REMEMBERED:
            self.close(next(iter(self._remembered.values())))
