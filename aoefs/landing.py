"""Answers off the wire: many frames for one system call, each payload landed where the reader wants it.

Owns the receive memory of one link and the prediction of what comes next.  :meth:`Landing.receive` gives *entries*,
(run, first, count): good answers whose data are in place; and *odd frames*: whole frames that want judging one by one
(config answers, errors, other tags, damaged).  A good answer never costs an object of its own.

**How.**  Each message slot has three pieces: the 36 bytes of headers, the *place*, and the spill.  Before a call, the
places of the slots are pointed at where the next expected answers belong, in the order of sending.  After it, the
headers of the batch are compared with what was predicted in a few array expressions.  A frame that is not the
predicted one lies in the wrong place (and may go on in the spill); it is copied out and, if good, moved.

What holds always:

- A place belongs to a command that flies, of a request that has not ended, and to one slot of a batch only.  So a
  wrong frame there is overwritten by the right one later, and never reaches a reader.  A read of which a command was
  sent twice has no places: the late answer to the first sending may have filled what the second one would spoil.
- All wrong frames of a batch are copied out before one of them is moved to its place.
- An entry is made only of an answer on the link and from the MAC that the command was sent to, with its tag, shelf,
  slot, command, and all of its data; everything else is an odd frame, for ``aoefs.engine`` to judge.

Rejected: predicting by address alone (targets answer out of order by nature: a run that was predicted in vain goes to
the end of the order), and landing all payloads in an arena (one copy more for every byte).
"""

from __future__ import annotations

import struct
from collections import deque

import numpy as np
from numpy.typing import NDArray

from aoefs.ata import FAILED
from aoefs.link import Link
from aoefs.mmsg import MessageVector, address_of, memory_at
from aoefs.path import Path, Run
from aoefs.tags import BLOCK_TAGS, Exchange, TagTable
from aoefs.wire import ATA_BYTES, SECTOR_BYTES

SLOTS = 64  # frames per system call
_WORTH_PREDICTING = 3  # commands per run on average from which prediction pays
_ENOUGH_RUNS = 8  # to look at before that average is believed
_TAG = struct.Struct("!I")
_OFFSETS = np.arange(BLOCK_TAGS, dtype=np.int64)

Entry = tuple[Run, int, int]  # run, first command, number of commands


class Landing:
    """The receiving half of one link."""

    def __init__(self, link: Link, tags: TagTable[Run | Exchange]) -> None:
        self._link = link
        self._tags = tags
        self._expected: deque[Run] = deque()  # runs in flight on this link, in the order in which answers should come
        self._headers = np.zeros((SLOTS, ATA_BYTES), np.uint8)
        self._header_bytes = self._headers.data.cast("B")
        self._words = self._headers.view(np.uint32)
        self._statuses = self._headers[:, 27]
        self._wanted = np.zeros((SLOTS, 6), np.uint32)
        self._wanted_tags = self._wanted.view(">u4")[:, 5]
        self._needed = np.zeros(SLOTS, np.uint32)
        self._heads: dict[Path, NDArray[np.uint32]] = {}
        self._vector = MessageVector(SLOTS, 3)
        self._vector.base[:, 0] = address_of(self._headers) + np.arange(SLOTS, dtype=np.uintp) * ATA_BYTES
        self._vector.size[:, 0] = ATA_BYTES
        self._allocate_spill()

    def _allocate_spill(self) -> None:
        self._spill_bytes = max(2048, self._link.mtu + 64)
        self._spill = np.zeros((SLOTS, self._spill_bytes), np.uint8)
        self._spill_view = self._spill.data.cast("B")
        spill = np.arange(SLOTS, dtype=np.uintp) * self._spill_bytes
        self._vector.base[:, 2] = address_of(self._spill) + spill
        self._vector.size[:, 2] = self._spill_bytes

    def expect(self, run: Run) -> None:
        """``run`` was sent on this link."""
        self._expected.append(run)

    def forget(self, path: Path) -> None:
        """``path`` is gone."""
        self._heads.pop(path, None)

    def receive(self) -> tuple[int, list[Entry], list[bytes]]:
        """Take one batch: (number of frames, good answers in place, odd frames).  OSError as recvmmsg(2)."""
        if self._spill_bytes < self._link.mtu:
            self._allocate_spill()
        predicted = self._predict()
        received = self._vector.receive(self._link.descriptor, SLOTS)
        if not received:
            return 0, [], []
        self._link.rx_frames += received
        if predicted:
            slots = sum(count for _, _, count in predicted)
            checked = min(received, slots)
            good = self._statuses[:checked] & FAILED == 0
            good &= self._vector.length[:checked] >= self._needed[:checked]
            same = self._words[:checked, :6] == self._wanted[:checked]
            if good.all() and same.all():
                entries = _first_slots(predicted, checked)
                if received == checked:
                    return received, entries, []
                matched = [True] * checked
            else:
                matched = (good & same.all(axis=1)).tolist()
                entries = _matched_slots(predicted, matched)
                self._retry_later(predicted, entries)
            matched += [False] * (received - checked)
            strays = [slot for slot, ok in enumerate(matched) if not ok]
        else:
            entries = []
            strays = list(range(received))
        return received, entries, self._take_strays(strays, entries)

    # ── prediction ────────────────────────────────────────────────────────────────────────────────────────────────

    def _predict(self) -> list[Entry]:
        """Point the places at what should come next; the commands so predicted, one per slot from slot 0 on."""
        expected = self._expected
        while expected and (not expected[0].flying or expected[0].request.ended):
            expected.popleft()
        predicted: list[Entry] = []
        slot = 0
        for run in expected:
            request = run.request
            flying = run.flying & ~run.path.suspects(run)
            if not flying or request.ended or (request.copies and not request.write):
                continue
            first = (flying & -flying).bit_length() - 1
            shifted = flying >> first
            count = min((~shifted & shifted + 1).bit_length() - 1, SLOTS - slot)
            predicted.append((run, first, count))
            slot += count
            if slot == SLOTS or (len(predicted) == _ENOUGH_RUNS and slot < _WORTH_PREDICTING * _ENOUGH_RUNS):
                break
        if slot < _WORTH_PREDICTING * len(predicted):
            predicted = []
        sizes = self._vector.size[:, 1]
        sizes[:] = 0
        slot = 0
        for run, first, count in predicted:
            self._point(run, first, count, slot)
            slot += count
        return predicted

    def _point(self, run: Run, first: int, count: int, slot: int) -> None:
        end = slot + count
        self._wanted[slot:end, :5] = self._head(run.path)
        self._wanted_tags[slot:end] = _OFFSETS[:count] + (run.tag + first)
        request = run.request
        if request.write:
            self._needed[slot:end] = ATA_BYTES
            return
        if not request.address:
            request.address = address_of(request.buffer)
        step_bytes = run.step * SECTOR_BYTES
        address = request.address + run.sector * SECTOR_BYTES + first * step_bytes
        self._vector.base[slot:end, 1] = _OFFSETS[:count] * step_bytes + address
        self._vector.size[slot:end, 1] = step_bytes
        self._needed[slot:end] = ATA_BYTES + step_bytes
        if first + count == run.count:
            last_bytes = (run.sectors - (run.count - 1) * run.step) * SECTOR_BYTES
            self._vector.size[end - 1, 1] = last_bytes
            self._needed[end - 1] = ATA_BYTES + last_bytes

    def _head(self, path: Path) -> NDArray[np.uint32]:
        head = self._heads.get(path)
        if head is None:
            head = self._heads[path] = np.frombuffer(path.answer_head, np.uint32)
        return head

    def _retry_later(self, predicted: list[Entry], entries: list[Entry]) -> None:
        """Runs that were predicted in vain go to the end of the order."""
        came = {id(run) for run, _, _ in entries}
        late = {id(run): run for run, _, _ in predicted if id(run) not in came}
        if late:
            self._expected = deque(run for run in self._expected if id(run) not in late)
            self._expected.extend(late.values())

    # ── what was not predicted ────────────────────────────────────────────────────────────────────────────────────

    def _take_strays(self, strays: list[int], entries: list[Entry]) -> list[bytes]:
        """Judge frames one by one: good answers are moved to their place and become entries, others are odd."""
        frames = [self._copy_out(slot) for slot in strays]
        odd = []
        for frame in frames:
            entry = self._place(frame)
            if entry is None:
                odd.append(frame)
            else:
                entries.append(entry)
        return odd

    def _copy_out(self, slot: int) -> bytes:
        """The whole frame that lies in ``slot``."""
        length = int(self._vector.length[slot])
        head = self._header_bytes[slot * ATA_BYTES : slot * ATA_BYTES + min(length, ATA_BYTES)]
        rest = length - ATA_BYTES
        if rest <= 0:
            return bytes(head)
        placed = min(rest, int(self._vector.size[slot, 1]))
        place = memory_at(int(self._vector.base[slot, 1]), placed) if placed else b""
        start = slot * self._spill_bytes
        return b"".join((head, place, self._spill_view[start : start + min(rest - placed, self._spill_bytes)]))

    def _place(self, frame: bytes) -> Entry | None:
        """Move a good answer to where it belongs; None when it is anything else."""
        if len(frame) < ATA_BYTES or frame[27] & FAILED:
            return None
        tag: int = _TAG.unpack_from(frame, 20)[0]
        run = self._tags.find(tag)
        if run.__class__ is not Run:
            return None
        index = tag - run.tag
        if index >= run.count or frame[:20] != run.path.answer_head or run.path.interface != self._link.interface:
            return None
        request = run.request
        if not request.write:
            start, sectors = run.sectors_of(index, 1)
            data = memoryview(frame)[ATA_BYTES : ATA_BYTES + sectors * SECTOR_BYTES]
            if len(data) < sectors * SECTOR_BYTES:
                return None
            request.land(start, data)
        return run, index, 1


def _first_slots(predicted: list[Entry], count: int) -> list[Entry]:
    """The entries of the first ``count`` slots."""
    entries = []
    for run, first, commands in predicted:
        if commands >= count:
            entries.append((run, first, count))
            break
        entries.append((run, first, commands))
        count -= commands
    return entries


def _matched_slots(predicted: list[Entry], matched: list[bool]) -> list[Entry]:
    """The entries of the slots that hold what was predicted, joined where they follow one another."""
    entries: list[Entry] = []
    slot = 0
    for run, first, count in predicted:
        start: int | None = None
        for index in range(first, first + count):
            ok = slot < len(matched) and matched[slot]
            slot += 1
            if ok and start is None:
                start = index
            elif not ok and start is not None:
                entries.append((run, start, index - start))
                start = None
        if start is not None:
            entries.append((run, start, first + count - start))
    return entries
