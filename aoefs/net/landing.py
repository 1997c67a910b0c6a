"""Answers off the wire: many frames per system call, each payload received where its reader wants it.

Owns the receive memory of one link, and the prediction of which answers come next.  :meth:`Landing.receive` returns
*entries*, (run, first, count): good answers whose data are in place; and *odd frames*: whole frames that have to be
checked one by one (config answers, errors, unknown tags, damaged frames).  A good answer never costs an object of its
own.

**How.**  A ring of message slots.  Each slot has three pieces of memory: 36 bytes for the headers, the *place* for the
payload, and the *spill* for the rest.  When a run was sent, the places of the next slots are pointed at the part of the
reader's buffer where its answers belong, and the headers that they should have are noted.  A batch then takes the slots
from the head of the ring, and one comparison of memory shows that it is what was predicted.  A frame that was not
predicted lies in the wrong place (and may continue in the spill): it is copied out, moved to its own place if good,
and all slots are pointed again.

What holds always:

- A place belongs to a command in flight, of a request that has not ended, and to one slot only.  This is checked before
  every batch, run by run.  So the right frame overwrites a wrong one in its place, which never reaches a reader.
- A read of which a command was sent twice has no places: the late answer to the first sending may have filled what a
  frame in the place of the second one would spoil.
- All wrong frames of a batch are copied out before the first of them is moved to its place.
- An entry is made only of an answer on the link and from the MAC that the command was sent to, with its tag, shelf,
  slot and command, and with all of its data.  Every other frame is odd, and ``engine.receiver`` checks it.

Rejected: landing all payloads in an arena (one more copy of every byte), and pointing the places before every batch
(costs as much as the batch itself).
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Final

import numpy as np

from aoefs.core.lonecommand import LoneCommand
from aoefs.core.path import Path
from aoefs.core.request import Run, bits
from aoefs.core.tags import BLOCK_TAGS, TagTable
from aoefs.net.mmsg import MessageVector, address_of, memory_at, swapped
from aoefs.net.packetsocket import PacketSocket
from aoefs.protocol.ata import FAILED
from aoefs.protocol.wire import ATA_BYTES, SECTOR_BYTES

SLOTS: Final = 64  # frames per system call
RING: Final = 4 * SLOTS  # slots that can be pointed ahead: a request of 1 MiB in jumbo frames takes half of them
_WORTH_PREDICTING: Final = 3  # commands of a run; below, a copy is cheaper than pointing
_COMPARED: Final = 7  # words of the header: up to the tag (6), then flags, error, count and status
_TAG: Final = struct.Struct("!I")
_OFFSETS: Final = np.arange(BLOCK_TAGS, dtype=np.uintp)
# As on the wire: what the tags of a run differ in from its first one.
_TAG_OFFSETS: Final = np.arange(BLOCK_TAGS, dtype=">u4").view(np.uint32)

Entry = tuple[Run, int, int]  # run, first command, number of commands


class _Expectation:
    """What good answers on a path look like: the words of their headers, and the length of answers to writes.

    The last word and the length are learned from the last good answers, since they differ between targets.
    """

    __slots__ = ("length", "words")

    def __init__(self, head: bytes) -> None:
        self.words = np.zeros(_COMPARED, np.uint32)
        self.words[:5] = np.frombuffer(head, np.uint32)
        self.length = ATA_BYTES


class Landing:
    """The receiving half of one link."""

    def __init__(self, socket: PacketSocket, tags: TagTable[Run | LoneCommand]) -> None:
        self._socket = socket
        self._tags = tags
        self._runs: dict[Run, None] = {}  # in flight and worth predicting, in the order in which answers should come
        self._unpointed: deque[Run] = deque()  # the runs of these that have no slots yet
        self._pointed: deque[tuple[Run, int, int, int]] = deque()  # (run, first, count, mask) from the head slot on
        self._head = 0  # the next slot to fill
        self._tail = 0  # the first slot that is not pointed
        self._placed = 0  # the first slot behind all that have a place
        # The slots from ``_alike`` to ``_alike_end`` are laid out for this shape, and lack only tags and addresses.
        self._shape: tuple[Path, bool, int] | None = None
        self._alike = self._alike_end = 0
        self._strides = _OFFSETS
        self._headers = np.zeros((RING, ATA_BYTES), np.uint8)
        self._header_bytes = self._headers.data.cast("B")
        self._words = self._headers.view(np.uint32)[:, :_COMPARED]
        self._statuses = self._headers[:, 27]
        self._wanted = np.zeros((RING, _COMPARED), np.uint32)
        self._wanted_tags = self._wanted[:, 5]
        self._lengths = np.zeros(RING, np.uint32)  # of the frames, as predicted
        self._needed = np.zeros(RING, np.uint32)  # the least length of a good answer
        self._expectations: dict[tuple[Path, bool], _Expectation] = {}
        self._vector = MessageVector(RING, 3)
        self._vector.base[:, 0] = address_of(self._headers) + np.arange(RING, dtype=np.uintp) * ATA_BYTES
        self._vector.size[:, 0] = ATA_BYTES
        self._allocate_spill()

    def _allocate_spill(self) -> None:
        """A row for each slot of a batch; slots that are never in the same batch share a row."""
        self._spill_bytes = max(2048, self._socket.mtu + 64)
        self._spill = np.zeros((SLOTS, self._spill_bytes), np.uint8)
        self._spill_view = self._spill.data.cast("B")
        rows = np.arange(RING, dtype=np.uintp) % SLOTS
        self._vector.base[:, 2] = address_of(self._spill) + rows * self._spill_bytes
        self._vector.size[:, 2] = self._spill_bytes
        self._lone = bytearray(ATA_BYTES + self._spill_bytes)
        self._lone_view = memoryview(self._lone)

    def expect(self, run: Run) -> None:
        """``run`` was sent on this link."""
        if run.count >= _WORTH_PREDICTING or self._runs:
            self._runs[run] = None
            self._unpointed.append(run)

    def forget(self, path: Path) -> None:
        """``path`` is gone."""
        for write in (False, True):
            self._expectations.pop((path, write), None)

    def receive(self) -> tuple[int, list[Entry], list[bytes]]:
        """Take one batch: (number of frames, good answers in place, odd frames).  OSError as recvmmsg(2)."""
        if self._spill_bytes < self._socket.mtu:
            self._allocate_spill()
        self._point_ahead()
        head = self._head
        if self._placed > self._tail:
            self._vector.size[self._tail : self._placed, 1] = 0
            self._placed = self._tail
            self._alike_end = min(self._alike_end, self._tail)
        received = self._vector.receive(self._socket.descriptor, min(SLOTS, RING - head), head)
        if not received:
            return 0, [], []
        self._socket.rx_frames += received
        pointed = min(received, self._tail - head)
        end = head + pointed
        if (
            self._words[head:end].tobytes() == self._wanted[head:end].tobytes()
            and self._vector.length[head:end].tobytes() == self._lengths[head:end].tobytes()
        ):
            entries = self._take_pointed(pointed)
            return received, entries, self._take_strays(range(end, head + received), end, entries)
        matched = self._check_one_by_one(head, end)
        entries = _matched_slots(self._pointed, matched)
        strays = [slot for slot in range(head, head + received) if slot >= end or not matched[slot - head]]
        odd = self._take_strays(strays, end, entries)
        self._unpoint_all(entries)
        return received, entries, odd

    def receive_lone(self) -> tuple[int, list[Entry], list[bytes]]:
        """As :meth:`receive`, for one frame and without arrays, which cost more than one frame."""
        if self._spill_bytes < self._socket.mtu:
            self._allocate_spill()
        try:
            size = self._socket.socket.recv_into(self._lone)
        except BlockingIOError:
            return 0, [], []
        self._socket.rx_frames += 1
        frame = self._lone_view[:size]
        entry = self._place(bytes(frame[:ATA_BYTES]), frame[ATA_BYTES:])
        return (1, [], [bytes(frame)]) if entry is None else (1, [entry], [])

    # ── prediction ────────────────────────────────────────────────────────────────────────────────────────────────

    def _point_ahead(self) -> None:
        """Check that every pointed slot may still use its place, and point the next ones."""
        for run, _, _, mask in self._pointed:
            request = run.request
            if run.flying & mask != mask or request.ended or (request.copies and not request.write):
                self._unpoint_all([])
                break
        unpointed = self._unpointed
        while unpointed:
            run = unpointed[0]
            request = run.request
            flying = run.flying & ~run.path.suspects(run)
            if not run.flying or request.ended:
                self._runs.pop(run, None)
            elif flying and (request.write or not request.copies):
                first = (flying & -flying).bit_length() - 1
                flying >>= first
                count = (~flying & flying + 1).bit_length() - 1
                if self._tail + count > RING:
                    if self._head < RING // 2:
                        break
                    self._unpoint_all([])
                    unpointed = self._unpointed
                    continue
                self._point(run, first, count)
            unpointed.popleft()

    def _point(self, run: Run, first: int, count: int) -> None:
        slot = self._tail
        end = self._tail = slot + count
        self._pointed.append((run, first, count, bits(first, count)))
        request = run.request
        shape = (run.path, request.write, run.step)
        if shape != self._shape:
            self._shape = shape
            self._alike = self._alike_end = slot
            self._strides = _OFFSETS * np.uintp(run.step * SECTOR_BYTES)
        elif not self._alike <= slot <= self._alike_end:
            self._alike = self._alike_end = slot
        if end > self._alike_end:
            self._lay_out(run, self._alike_end, end)
            self._alike_end = end
        np.bitwise_xor(_TAG_OFFSETS[first : first + count], swapped(run.tag), out=self._wanted_tags[slot:end])
        if request.write:
            return
        if not request.address:
            request.address = address_of(request.buffer)
        address = request.address + run.sector * SECTOR_BYTES
        np.add(self._strides[first : first + count], address, out=self._vector.base[slot:end, 1])
        last_bytes = (run.sectors - (run.count - 1) * run.step) * SECTOR_BYTES
        if first + count == run.count and last_bytes != run.step * SECTOR_BYTES:
            self._vector.size[end - 1, 1] = last_bytes
            self._lengths[end - 1] = self._needed[end - 1] = ATA_BYTES + last_bytes
            self._alike_end = end - 1

    def _lay_out(self, run: Run, slot: int, end: int) -> None:
        """Write what all answers to commands of this shape have in common into the slots ``slot`` to ``end``."""
        write = run.request.write
        key = (run.path, write)
        expectation = self._expectations.get(key)
        if expectation is None:
            expectation = self._expectations[key] = _Expectation(run.path.answer_head)
        step_bytes = 0 if write else run.step * SECTOR_BYTES
        self._wanted[slot:end] = expectation.words
        self._vector.size[slot:end, 1] = step_bytes
        self._needed[slot:end] = ATA_BYTES + step_bytes
        self._lengths[slot:end] = expectation.length if write else ATA_BYTES + step_bytes
        self._placed = max(self._placed, end)

    def _take_pointed(self, count: int) -> list[Entry]:
        """The next ``count`` slots hold what was predicted."""
        entries: list[Entry] = []
        pointed = self._pointed
        self._head += count
        while count:
            run, first, commands, mask = pointed[0]
            if commands > count:
                entries.append((run, first, count))
                pointed[0] = (run, first + count, commands - count, mask ^ bits(first, count))
                break
            entries.append((run, first, commands))
            pointed.popleft()
            if first + commands == run.count:
                self._runs.pop(run, None)
            count -= commands
        if entries and not pointed:
            self._unpoint_all([])
        return entries

    def _unpoint_all(self, entries: list[Entry]) -> None:
        """Point no slot; what is in flight gets new ones.  Runs that were predicted but did not come go to the end."""
        if entries:
            came = {run for run, _, _ in entries}
            for run in [run for run, *_ in self._pointed if run not in came]:
                if run in self._runs:
                    del self._runs[run]
                    self._runs[run] = None
        self._head = self._tail = 0
        self._pointed.clear()
        self._unpointed = deque(self._runs)

    def _check_one_by_one(self, head: int, end: int) -> list[bool]:
        """Which of the pointed slots hold what was predicted; the fields that may vary are learned from these."""
        good = self._statuses[head:end] & FAILED == 0
        good &= self._vector.length[head:end] >= self._needed[head:end]
        good &= (self._words[head:end, :6] == self._wanted[head:end, :6]).all(axis=1)
        matched: list[bool] = good.tolist()
        slot = head
        for run, _, count, _ in self._pointed:
            if slot < end and matched[slot - head]:
                expectation = self._expectations[run.path, run.request.write]
                expectation.words[6] = self._words[slot, 6]
                expectation.length = int(self._vector.length[slot])
                self._shape = None
            slot += count
        return matched

    # ── what was not predicted ────────────────────────────────────────────────────────────────────────────────────

    def _take_strays(self, strays: Sequence[int], pointed_end: int, entries: list[Entry]) -> list[bytes]:
        """Check frames one by one: good answers are moved to their place and become entries, others are odd."""
        frames = [self._pieces(slot, slot < pointed_end) for slot in strays]
        odd = []
        for head, data in frames:
            entry = self._place(head, data)
            if entry is None:
                odd.append(head + data)
            else:
                entries.append(entry)
        return odd

    def _pieces(self, slot: int, pointed: bool) -> tuple[bytes, bytes | memoryview]:
        """The headers and the data of the frame in a slot.  Data that lie in another frame's place are copied out."""
        length = int(self._vector.length[slot])
        head = self._header_bytes[slot * ATA_BYTES : slot * ATA_BYTES + min(length, ATA_BYTES)].tobytes()
        rest = max(0, length - ATA_BYTES)
        placed = min(rest, int(self._vector.size[slot, 1])) if pointed else 0
        start = slot % SLOTS * self._spill_bytes
        spilled = self._spill_view[start : start + min(rest - placed, self._spill_bytes)]
        return head, memory_at(int(self._vector.base[slot, 1]), placed) + spilled if pointed else spilled

    def _place(self, head: bytes, data: bytes | memoryview) -> Entry | None:
        """Move a good answer to its place; None for any other frame."""
        if len(head) < ATA_BYTES or head[27] & FAILED:
            return None
        tag: int = _TAG.unpack_from(head, 20)[0]
        run = self._tags.find(tag)
        if run.__class__ is not Run:
            return None
        index = tag ^ run.tag
        if index >= run.count or head[:20] != run.path.answer_head or run.path.interface != self._socket.interface:
            return None
        request = run.request
        if not request.write:
            start, sectors = run.sectors_of(index, 1)
            size = sectors * SECTOR_BYTES
            if len(data) < size:
                return None
            request.land(start, data[:size])
        return run, index, 1


def _matched_slots(pointed: Iterable[tuple[Run, int, int, int]], matched: list[bool]) -> list[Entry]:
    """The entries of the slots that hold what was predicted; consecutive ones are joined."""
    entries: list[Entry] = []
    slot = 0
    for run, first, count, _ in pointed:
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
