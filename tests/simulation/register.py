"""What each byte of a disk may be, by what its users were told: the sectors as atomic registers.

A sector is cut into *cells* where writes of partial sectors begin or end.  Each cell has an *entry* for each write that
covers it.  An entry is *certain* once its write returned without an error or was seen by a read; *durable* once a good
flush began after that; *over* once a later write is certain, or a read showed a later one.  What an uncertain write
put there may appear at any time until it is over.

Time is the order of events (:class:`Ledger`), since many of them happen in the same instant of the virtual clock.

- A read may show a write that began before the read ended, and was not over when the read began.
- After a read showed a write, what was certain before that read, and what ended before that write began, is over.
- A power cut takes back all that is not durable: it is uncertain then, and what it ended is open again.
- A good flush says nothing about writes of the time before a power cut that came during the flush.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

from aoefs.core.request import Request
from aoefs.protocol.wire import SECTOR_BYTES
from tests.simulation.drive import Drive
from tests.simulation.stamps import content, data_of, stamp

ANYTHING = object()  # through which something was written


class Ledger:
    """What all registers share: the numbers of moments, and which disk each stamp was made for."""

    def __init__(self) -> None:
        self.owners: dict[bytes, str] = {}
        self._numbers = itertools.count(1)

    def next(self) -> int:
        return next(self._numbers)


class Write:
    """``size`` bytes from ``offset`` on.  ``started`` and ``ended`` are moments; ``ok`` is what its caller was told.

    ``request`` is what still has to be acknowledged of a write that was answered early, and ``via`` the disk of aoefs
    through which it was written.
    """

    def __init__(self, drive: int, number: int, offset: int, size: int, started: int) -> None:
        self.drive = drive
        self.number = number
        self.offset = offset
        self.size = size
        self.started = started
        self.ended: int | None = None
        self.ok = False
        self.request: Request | None = None
        self.via: object = None

    @property
    def data(self) -> bytes:
        return data_of(self.drive, self.number, self.offset, self.size)

    @property
    def sectors(self) -> range:
        return range(self.offset // SECTOR_BYTES, -(-(self.offset + self.size) // SECTOR_BYTES))

    def part_of(self, sector: int) -> tuple[int, int]:
        """The bytes of this sector that it covers: first, end."""
        start = sector * SECTOR_BYTES
        return max(0, self.offset - start), min(SECTOR_BYTES, self.offset + self.size - start)

    def ended_before(self, moment: int) -> bool:
        return self.ended is not None and self.ended < moment

    def __str__(self) -> str:
        state = "under way" if self.ended is None else "good" if self.ok else "failed"
        return f"write {self.number} ({state}, moments {self.started} to {self.ended})"


class Entry:
    """One write in one cell.  ``over_by`` has what ended it, with the moment of each."""

    __slots__ = ("certain_since", "durable", "over_by", "seen", "write")

    def __init__(self, write: Write) -> None:
        self.write = write
        self.certain_since = math.inf
        self.durable = False
        self.seen = False
        self.over_by: dict[Entry, int] = {}

    @property
    def over_at(self) -> float:
        return min(self.over_by.values(), default=math.inf)

    def __str__(self) -> str:
        words = [str(self.write)]
        if self.certain_since < math.inf:
            words.append("durable" if self.durable else f"certain since {self.certain_since}")
        words += [f"over at {moment} by write {by.write.number}" for by, moment in self.over_by.items()]
        return ", ".join(words)


class Cell:
    """The bytes ``first`` to ``end`` (not included) of one sector."""

    __slots__ = ("end", "entries", "first")

    def __init__(self, first: int, end: int, entries: list[Entry]) -> None:
        self.first = first
        self.end = end
        self.entries = entries

    def split(self, at: int) -> tuple[Cell, Cell]:
        return Cell(self.first, at, self._copies()), Cell(at, self.end, self._copies())

    def _copies(self) -> list[Entry]:
        copies = {entry: Entry(entry.write) for entry in self.entries}
        for entry, copy in copies.items():
            copy.certain_since, copy.durable, copy.seen = entry.certain_since, entry.durable, entry.seen
            copy.over_by = {copies[by]: moment for by, moment in entry.over_by.items() if by in copies}
        return list(copies.values())


class Register:
    """The sectors of one drive."""

    def __init__(self, drive: Drive, ledger: Ledger) -> None:
        self.drive = drive
        self.writes = 0
        self.last_cut = 0
        self._ledger = ledger
        self._first = Write(drive.number, 0, 0, len(drive.current) * SECTOR_BYTES, 0)
        self._first.ended, self._first.ok = 0, True
        self._cells: dict[int, list[Cell]] = {}
        self._early: list[Write] = []
        self._reading: dict[int, None] = {}  # the moments at which reads under way began

    def _cells_of(self, sector: int) -> list[Cell]:
        cells = self._cells.get(sector)
        if cells is None:
            entry = Entry(self._first)
            entry.certain_since, entry.durable = 0, True
            cells = self._cells[sector] = [Cell(0, SECTOR_BYTES, [entry])]
        return cells

    def _entries_of(self, write: Write) -> Iterator[tuple[Cell, Entry]]:
        for sector in write.sectors:
            for cell in self._cells_of(sector):
                for entry in cell.entries:
                    if entry.write is write:
                        yield cell, entry

    # ── writes ────────────────────────────────────────────────────────────────────────────────────────────────────

    def begin_write(self, offset: int, size: int) -> Write:
        self.writes += 1
        write = Write(self.drive.number, self.writes, offset, size, self._ledger.next())
        for sector in write.sectors:
            self._ledger.owners[stamp(self.drive.number, write.number, sector)] = self.drive.serial
            first, end = write.part_of(sector)
            cells = self._cells_of(sector)
            for at in (first, end):
                for index, cell in enumerate(cells):
                    if cell.first < at < cell.end:
                        cells[index : index + 1] = cell.split(at)
                        break
            for cell in cells:
                if first <= cell.first and cell.end <= end:
                    cell.entries.append(Entry(write))
        return write

    def end_write(self, write: Write, *, ok: bool) -> None:
        write.ended = self._ledger.next()
        write.ok = ok
        if write.request is not None:
            self._early.append(write)
        if ok and write.started > self.last_cut:
            for cell, entry in self._entries_of(write):
                entry.certain_since = write.ended
                for other in cell.entries:
                    if other.write.ended_before(write.started):
                        other.over_by.setdefault(entry, write.ended)

    def settle(self) -> None:
        """Writes that were answered early and failed after all are uncertain."""
        for write in self._early:
            if write.request is not None and write.request.error is not None:
                write.ok = False
                for cell, entry in self._entries_of(write):
                    if not (entry.seen or entry.durable):
                        entry.certain_since = math.inf
                        for other in cell.entries:
                            other.over_by.pop(entry, None)
        self._early = [write for write in self._early if write.request is not None and not write.request.ended]

    # ── reads ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def begin_read(self) -> int:
        moment = self._ledger.next()
        self._reading[moment] = None
        return moment

    def end_read(self, started: int, offset: int = 0, data: bytes = b"", *, since: int | None = None) -> str:
        """What is wrong with what was read; empty if nothing is.  Without ``data`` it failed.

        What is read ahead may be from before a power cut: from any moment after ``since``.
        """
        del self._reading[started]
        self.settle()
        ended = self._ledger.next()
        for sector in range(offset // SECTOR_BYTES, -(-(offset + len(data)) // SECTOR_BYTES)):
            start = sector * SECTOR_BYTES
            for cell in self._cells_of(sector):
                first, end = max(cell.first, offset - start), min(cell.end, offset + len(data) - start)
                if first >= end:
                    continue
                found = data[start + first - offset : start + end - offset]
                shown = [
                    entry
                    for entry in cell.entries
                    if found == self._content(entry, sector)[first:end] and entry.over_at > started
                ]
                if not shown:
                    return self._complain(sector, first, found, cell, f"a read that began at moment {started}")
                if len(shown) == 1 and (since or started) > self.last_cut:
                    self._see(cell, shown[0], started, ended)
        return ""

    def _see(self, cell: Cell, entry: Entry, started: int, ended: int) -> None:
        entry.seen = True
        entry.certain_since = min(entry.certain_since, ended)
        for other in cell.entries:
            earlier = other.certain_since < started or other.write.ended_before(entry.write.started)
            if other is not entry and earlier:
                other.over_by.setdefault(entry, ended)

    def _content(self, entry: Entry, sector: int) -> bytes:
        return content(self.drive.number, entry.write.number, sector)

    def _complain(self, sector: int, first: int, found: bytes, cell: Cell, who: str) -> str:
        lines = [
            f"{who} shows {self.name(sector, first, found)} in sector {sector} of {self.drive.serial}, byte {first}"
        ]
        lines += [f"    {entry}" for entry in cell.entries]
        return "\n".join([*lines, f"    the last power cut was at moment {self.last_cut}"])

    def name(self, sector: int, first: int, found: bytes) -> str:
        """Which write of this disk put these bytes there, or anywhere."""
        for number in range(self.writes, -1, -1):
            if found == content(self.drive.number, number, sector)[first : first + len(found)]:
                return f"write {number}"
        for number in range(self.writes, -1, -1):
            for other in range(len(self.drive.current)):
                if len(found) >= 4 and found == content(self.drive.number, number, other)[first : first + len(found)]:
                    return f"write {number} of sector {other}"
        return f"what was never written there ({found[:8].hex()} ...)"

    # ── what lasts ────────────────────────────────────────────────────────────────────────────────────────────────

    def now(self) -> int:
        """A moment of its own."""
        return self._ledger.next()

    def end_flush(self, started: int, via: object = None) -> None:
        """A flush that began then was good; it covers what was acknowledged ``via`` the same, without it everything."""
        self.settle()
        if self.last_cut > started:
            return
        oldest = min(self._reading, default=math.inf)
        for cells in self._cells.values():
            for cell in cells:
                for entry in cell.entries:
                    covered = via is None or (entry.write.ok and via in (ANYTHING, entry.write.via))
                    entry.durable |= covered and entry.certain_since <= started
                if len(cell.entries) > 1:
                    cell.entries = [
                        entry
                        for entry in cell.entries
                        if not any(by.durable and moment < oldest for by, moment in entry.over_by.items())
                    ]

    def end_flush_of(self, write: Write) -> None:
        """A flush was good that began after this write was carried out, and within the same call."""
        if write.started > self.last_cut:
            for _, entry in self._entries_of(write):
                entry.durable = True

    def cut_power(self) -> None:
        self.settle()
        self.last_cut = self._ledger.next()
        for cells in self._cells.values():
            for cell in cells:
                for entry in cell.entries:
                    if not entry.durable:
                        entry.certain_since, entry.seen = math.inf, False
                    entry.over_by = {by: moment for by, moment in entry.over_by.items() if by.durable}

    def check_owner(self, sector: int, data: bytes) -> str:
        """What is wrong with a write to the disk: it was meant for another one."""
        owners = {self._ledger.owners.get(word, self.drive.serial) for word in (data[:8], data[-8:])}
        strangers = sorted(owners - {self.drive.serial})
        return f"sector {sector} of {self.drive.serial} gets what was written to {strangers[0]}" if strangers else ""

    def check(self, sectors: list[bytes], who: str) -> str:
        """What is wrong with what the disk holds at rest; empty if nothing is."""
        self.settle()
        for sector, held in enumerate(sectors):
            cells = self._cells.get(sector)
            if cells is None:
                if held != content(self.drive.number, 0, sector):
                    return self._complain(sector, 0, held, self._cells_of(sector)[0], who)
                continue
            for cell in cells:
                found = held[cell.first : cell.end]
                if not any(
                    found == self._content(entry, sector)[cell.first : cell.end] and not entry.over_by
                    for entry in cell.entries
                ):
                    return self._complain(sector, cell.first, found, cell, who)
        return ""
