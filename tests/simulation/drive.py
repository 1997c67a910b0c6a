"""A disk with a volatile write cache: what it holds now, and what a power cut would leave of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random

from aoefs.protocol.wire import SECTOR_BYTES
from tests.simulation.stamps import content


class Drive:
    """``sectors`` is the present capacity, of at most ``len(current)``.  ``number`` stands for its serial.

    A power cut leaves, of each sector that was written since the last flush, any one of the versions since then, or
    the one before.  Sectors in ``bad`` cannot be read or written.  ``check(sector, data)`` is called before a write.
    """

    def __init__(self, number: int, sectors: int, *, most_sectors: int, volatile: bool = True) -> None:
        self.number = number
        self.serial = f"serial {number}"
        self.sectors = sectors
        self.volatile = volatile
        self.read_only = False
        self.current = [content(number, 0, sector) for sector in range(most_sectors)]
        self.durable = list(self.current)
        self.bad: set[int] = set()
        self.check: Callable[[int, bytes], None] = lambda _sector, _data: None
        self._cached: dict[int, list[tuple[int, bytes]]] = {}  # by sector: (number of the write, data), in order
        self._writes = 0

    @property
    def is_clean(self) -> bool:
        """Nothing would be lost without power."""
        return not self._cached

    # ── as a Store of the software target ─────────────────────────────────────────────────────────────────────────

    def readv(self, buffers: Sequence[memoryview | bytearray], offset: int) -> int:
        sector = offset // SECTOR_BYTES
        for buffer in buffers:
            for start in range(0, len(buffer), SECTOR_BYTES):
                self._refuse(sector)
                buffer[start : start + SECTOR_BYTES] = self.current[sector]
                sector += 1
        return sum(map(len, buffers))

    def writev(self, buffers: Sequence[memoryview | bytes], offset: int) -> int:
        first = sector = offset // SECTOR_BYTES
        for buffer in buffers:
            for _ in range(0, len(buffer), SECTOR_BYTES):
                self._refuse(sector)
                sector += 1
        sector = first
        for buffer in buffers:
            for start in range(0, len(buffer), SECTOR_BYTES):
                self._write(sector, bytes(buffer[start : start + SECTOR_BYTES]))
                sector += 1
        return sum(map(len, buffers))

    def sync(self) -> None:
        self.end_flush(self.begin_flush())

    def _refuse(self, sector: int) -> None:
        if sector in self.bad:
            raise OSError(5, "Input/output error")

    def _write(self, sector: int, data: bytes) -> None:
        self.check(sector, data)
        self.current[sector] = data
        if self.volatile:
            self._writes += 1
            self._cached.setdefault(sector, []).append((self._writes, data))
        else:
            self.durable[sector] = data

    # ── the cache ─────────────────────────────────────────────────────────────────────────────────────────────────

    def begin_flush(self) -> int:
        """What was written by now is durable at :meth:`end_flush` with this number."""
        return self._writes

    def end_flush(self, mark: int) -> None:
        for sector, versions in list(self._cached.items()):
            later = [version for version in versions if version[0] > mark]
            if len(later) < len(versions):
                self.durable[sector] = versions[len(versions) - len(later) - 1][1]
            if later:
                self._cached[sector] = later
            else:
                del self._cached[sector]

    def cut_power(self, dice: Random | None) -> None:
        """Lose what is cached: without ``dice`` all of it."""
        for sector, versions in self._cached.items():
            survivors = [self.durable[sector], *(data for _, data in versions)]
            data = survivors[0] if dice is None else dice.choice((survivors[0], survivors[-1], dice.choice(survivors)))
            self.current[sector] = self.durable[sector] = data
        self._cached.clear()
