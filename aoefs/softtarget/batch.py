"""A batch of the software target: the memory that one recvmmsg fills and one sendmmsg empties.

Owns that memory for one interface, and moves the data of a run between it and a store.  Each slot holds one frame: its
headers lie in a row of one numpy table, its payload in a row of a second one.  A payload row is as wide as the largest
data of a frame, so the data of a run of full frames are one piece of memory, for one preadv or one pwritev.
"""

from __future__ import annotations

import struct

import numpy as np

from aoefs.net.mmsg import MessageVector, address_of
from aoefs.protocol.wire import ATA_BYTES, MAX_CONFIG_BYTES, MIN_FRAME_BYTES, SECTOR_BYTES
from aoefs.softtarget.export import EXTENDED_OPCODES, LBA28_MASK, READ_OPCODES, WRITE_OPCODES, Export

SLOTS = 64  # frames in a batch: as many as an initiator has in flight with our default buffer count
ROW_BYTES = 64  # of a row of headers: 36 are used
_COUNT_OFFSET, _COMMAND_OFFSET = 26, 27
_unpack_command = struct.Struct("<BQ").unpack_from  # opcode; 48-bit LBA and 2 reserved bytes
LBA48_MASK = (1 << 48) - 1


class Batch:
    """The memory of one interface's batches, for frames of at most ``max_sectors`` sectors.

    ``rows`` are the headers as 64-bit words (``row_bytes``, ``row_words``, ``headers``: the same memory), ``received``
    the payloads, ``to_send`` the data of the answers to READs, one after another.
    """

    def __init__(self, max_sectors: int) -> None:
        self.max_sectors = max_sectors
        self.stride = max(max_sectors * SECTOR_BYTES, MAX_CONFIG_BYTES)  # bytes of a payload row
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

        #: What :meth:`lay_out` made ``output`` for; None when something else has written there since.
        self.layout: tuple[int, bool] | None = None

    def lay_out(self, size: int, *, write: bool) -> None:
        """Let every slot send the answer to a WRITE, or to a READ of ``size`` bytes, whose data then lie in
        ``to_send`` at the slot's number times ``size``.
        """
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

    def transfer(self, export: Export, first: int, end: int, start: int, stop: int) -> bool:
        """Execute the run in the slots ``first`` to ``end``: READs into ``to_send`` from ``start`` to ``stop``, or
        WRITEs of ``stop - start`` bytes in all.  The rows must still hold the requests.

        False when nothing was answered for: the run goes beyond the end, the store failed, the opcode is neither READ
        nor WRITE.  The frames then have to go to the export one by one, which tries again and reports.
        """
        opcode, lba = _unpack_command(self.headers, first * ROW_BYTES + _COMMAND_OFFSET)
        store = export.store
        limit = store.sectors
        if opcode in EXTENDED_OPCODES:
            lba &= LBA48_MASK
        else:
            lba &= LBA28_MASK
            limit = min(limit, LBA28_MASK + 1)
        size = stop - start
        if lba + size // SECTOR_BYTES > limit:
            return False
        try:
            if opcode in READ_OPCODES:
                moved = store.readv([self.to_send[start:stop]], lba * SECTOR_BYTES)
            elif opcode in WRITE_OPCODES and not store.read_only:
                moved = store.writev(self._payloads(first, end, size), lba * SECTOR_BYTES)
            else:
                return False
        except OSError:
            return False
        if moved == size:
            export.counters.add(end - first, size // SECTOR_BYTES, write=opcode in WRITE_OPCODES)
        return moved == size

    def _payloads(self, first: int, end: int, size: int) -> list[memoryview]:
        """The data of the WRITEs in these slots, ``size`` bytes in all."""
        at = first * self.stride
        if end - first == 1 or size == (end - first) * self.stride:
            return [self.received[at : at + size]]
        counts = self.headers[first * ROW_BYTES + _COUNT_OFFSET : end * ROW_BYTES : ROW_BYTES].tobytes()
        offsets = range(at, end * self.stride, self.stride)
        return [self.received[at : at + count * SECTOR_BYTES] for at, count in zip(offsets, counts, strict=True)]
