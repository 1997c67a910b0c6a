"""The memory of all reads under way: made when it is needed, counted, and bounded.

Owns what the reads of all targets together have borrowed.  A buffer belongs to its request (``core.request``) from the
first command to the last answer, and then to whoever reads.

What always holds: the bound is not hard.  A target always gets memory for one read, or a silent one could starve the
others; and a small read always gets its own, which is not worth waiting for.

Rejected: using the buffers again here.  With ``fuse.tuning.keep_freed_memory`` malloc does that: reads of 1 MiB took
the same processor time with a pool of buffers and without.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from aoefs.protocol.wire import SECTOR_BYTES

DEFAULT_SECTORS: Final = (24 << 20) // SECTOR_BYTES
SMALL_SECTORS: Final = (32 << 10) // SECTOR_BYTES  # a read of up to so many is small


def _zeroed(size_bytes: int) -> memoryview:
    return memoryview(bytearray(size_bytes))


class Memory:
    """``limit`` and ``used`` are sectors.  ``make(size_bytes)`` makes a buffer; its contents do not matter."""

    __slots__ = ("_make", "limit", "used")

    def __init__(self, make: Callable[[int], memoryview] = _zeroed, limit: int = DEFAULT_SECTORS) -> None:
        self.limit = limit
        self.used = 0
        self._make = make

    def is_short_for(self, sectors: int) -> bool:
        return self.used >= self.limit and sectors > SMALL_SECTORS

    def lend(self, sectors: int) -> memoryview:
        """A buffer for a read, which counts until :meth:`end`."""
        self.used += sectors
        return self._make(sectors * SECTOR_BYTES)

    def end(self, sectors: int) -> None:
        """A read of this size is over."""
        self.used -= sectors
