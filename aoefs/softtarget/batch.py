"""A batch of the target: the memory that one recvmmsg fills and one sendmmsg empties, and its way to a store.

Owned by one port of ``softtarget.server``, which finds the runs in it.  The header of each message lies in a row of one
numpy table, its payload in a row of a second one as wide as the largest data, so that the data of a run of full
frames are one piece of memory: one preadv or one pwritev.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from aoefs.net.mmsg import MessageVector, address_of
from aoefs.protocol.wire import ATA_BYTES, MAX_CONFIG_BYTES, MIN_FRAME_BYTES, SECTOR_BYTES
from aoefs.softtarget.export import LBA28_MASK, READ_OPCODES, WRITE_OPCODES, Export

SLOTS = 64  # frames in a batch; as many as an initiator may have on its way by our default buffer count
ROW_BYTES = 64  # bytes per header in the table: 36 used, 8 words of 8 bytes
EXTENDED_BIT = 0x04


class Batch:
    """The memory of one link's batches, laid out for frames of ``max_sectors``."""

    def __init__(self, max_sectors: int) -> None:
        self.max_sectors = max_sectors
        # As wide as the largest data, so that full frames of a run lie one after another.
        self.stride = max(max_sectors * SECTOR_BYTES, MAX_CONFIG_BYTES)
        self.rows = np.zeros((SLOTS, ROW_BYTES // 8), "<u8")
        self.row_bytes = self.rows.view(np.uint8)
        self.row_words = self.rows.view("<u4")
        self.headers = self.row_bytes.reshape(-1).data
        received = np.zeros(SLOTS * self.stride, np.uint8)
        self.received = received.data
        to_send = np.zeros(SLOTS * max(1, max_sectors) * SECTOR_BYTES, np.uint8)
        self.to_send = to_send.data
        self.to_send_address = address_of(to_send)
        self._padding = np.zeros(MIN_FRAME_BYTES - ATA_BYTES, np.uint8)
        self.padding_address = address_of(self._padding)

        slots = np.arange(SLOTS, dtype=np.uintp)
        self.input = MessageVector(SLOTS, 2)
        self.output = MessageVector(SLOTS, 2)
        for vector in (self.input, self.output):
            vector.base[:, 0] = address_of(self.rows) + slots * ROW_BYTES
            vector.size[:, 0] = ATA_BYTES
        self.input.base[:, 1] = address_of(received) + slots * self.stride
        self.input.size[:, 1] = self.stride

        self.layout: tuple[int, bool] | None = None  # of the answers, by lay_out(); None: of another kind

    def lay_out(self, size: int, *, write: bool) -> None:
        """Let every slot send an answer to a READ of ``size`` bytes, one after another in memory, or to a WRITE."""
        if self.layout != (size, write):
            self.layout = (size, write)
            if write:
                self.output.base[:, 1] = self.padding_address
                self.output.size[:, 1] = MIN_FRAME_BYTES - ATA_BYTES
            else:
                self.output.base[:, 1] = self.to_send_address + np.arange(SLOTS, dtype=np.uintp) * size
                self.output.size[:, 1] = size

    def frame(self, slot: int) -> bytes:
        """The received frame in one piece."""
        length = int(self.input.length[slot])
        header = self.headers[slot * ROW_BYTES : slot * ROW_BYTES + min(length, ATA_BYTES)]
        start = slot * self.stride
        return b"".join((header, self.received[start : start + max(0, length - ATA_BYTES)]))


def transfer(
    batch: Batch,
    export: Export,
    opcode: int,
    lba: int,
    first: int,
    end: int,
    start: int,
    stop: int,
    sizes: NDArray[Any] | None = None,
) -> bool:
    """Read into the send buffer from ``start`` to ``stop``, or write that many bytes out of the slots ``first`` to
    ``end`` (``sizes``: what each holds, None when all hold the same).  False when the frames have to go to the export.

    Not a word to anybody on failure: the export tries again, frame by frame, and reports.
    """
    store = export.store
    limit = store.sectors
    if not opcode & EXTENDED_BIT:
        lba &= LBA28_MASK
        limit = min(limit, LBA28_MASK + 1)
    size = stop - start
    if lba + size // SECTOR_BYTES > limit:
        return False
    counters = export.counters
    if opcode in READ_OPCODES:
        try:
            if store.readv([batch.to_send[start:stop]], lba * SECTOR_BYTES) != size:
                return False
        except OSError:
            return False
        counters.reads += end - first
        counters.read_sectors += size // SECTOR_BYTES
        return True
    if opcode not in WRITE_OPCODES or store.read_only:
        return False
    at = first * batch.stride
    if end - first == 1 or size == (end - first) * batch.stride:
        pieces = [batch.received[at : at + size]]
    else:
        lengths = [size // (end - first)] * (end - first) if sizes is None else sizes[first:end].tolist()
        offsets = range(at, end * batch.stride, batch.stride)
        pieces = [batch.received[at : at + length] for at, length in zip(offsets, lengths, strict=True)]
    try:
        if store.writev(pieces, lba * SECTOR_BYTES) != size:
            return False
    except OSError:
        return False
    counters.writes += end - first
    counters.written_sectors += size // SECTOR_BYTES
    return True
