"""Runs onto the wire: the headers of a whole batch are made at once, the payload is sent from the writer's buffer.

Owns the header memory of one link.  :meth:`Sending.send` sends a run and returns how much of it the socket took.  Runs
of one or two commands are sent one by one (``struct`` and ``send``): numpy and ``ctypes`` cost more than a microsecond
a call, which only a batch earns back.

What holds always: a header is padded to 60 bytes unless data follow; nothing of a buffer is kept after the call.
"""

from __future__ import annotations

import errno
import struct
from typing import Final

import numpy as np

from aoefs.core.path import Path
from aoefs.core.request import Run
from aoefs.core.tags import BLOCK_TAGS
from aoefs.net.mmsg import MessageVector, address_of, swapped
from aoefs.net.packetsocket import LINK_FULL, PacketSocket
from aoefs.protocol.ata import DEVICE_LBA, TRANSFERS, transfer_registers
from aoefs.protocol.wire import ATA_BYTES, MIN_FRAME_BYTES, SECTOR_BYTES

_FEW_COMMANDS: Final = 2  # up to here a system call each is faster than a vector
_TAIL: Final = struct.Struct("!I4B")  # tag, AFlags, feature, count, command; the LBA follows
_LBA: Final = struct.Struct("<Q")
_PADDING: Final = bytes(MIN_FRAME_BYTES - ATA_BYTES)
_OFFSETS: Final = np.arange(BLOCK_TAGS, dtype=np.uint64)
# As on the wire: what the tags of a run differ in from its first one.
_TAG_OFFSETS: Final = np.arange(BLOCK_TAGS, dtype=">u4").view(np.uint32)


class Sending:
    """The sending half of one link, for runs."""

    def __init__(self, socket: PacketSocket) -> None:
        self._socket = socket
        self._headers = np.zeros((BLOCK_TAGS, MIN_FRAME_BYTES), np.uint8)
        self._vector = MessageVector(BLOCK_TAGS, 2)
        self._vector.base[:, 0] = address_of(self._headers) + np.arange(BLOCK_TAGS, dtype=np.uintp) * MIN_FRAME_BYTES
        self._tags = self._headers[:, 20:24].view(np.uint32)[:, 0]
        self._counts = self._headers[:, 26]
        self._lbas = self._headers[:, 28:36].view("<u8")[:, 0]
        self._shape: tuple[Path, bool, int, bool] | None = None  # that the constant parts of the headers were made for
        self._steps = _OFFSETS  # from one LBA to the next
        self._strides = _OFFSETS.astype(np.uintp)

    def send(self, run: Run) -> int:
        """Send ``run``; how many of its commands the socket took.

        A link that is down takes all of them: they are lost, and recovery sends them on another path.
        """
        try:
            sent = self._send_one_by_one(run) if run.count <= _FEW_COMMANDS else self._send_vector(run)
        except OSError as error:
            self._socket.on_send_error(error)
            return 0 if error.errno in LINK_FULL or error.errno == errno.EMSGSIZE else run.count
        self._socket.tx_frames += sent
        return sent

    def _send_one_by_one(self, run: Run) -> int:
        request, path, raw = run.request, run.path, self._socket.socket
        flags, opcode = TRANSFERS[request.write, path.lba48]
        device = 0 if path.lba48 else DEVICE_LBA
        for index in range(run.count):
            start, sectors = run.sectors_of(index, 1)
            tail = _TAIL.pack(run.tag ^ index, flags, 0, sectors, opcode)
            head = path.request_head + tail + _LBA.pack(request.lba + start | device)
            try:
                if request.write:
                    data = request.buffer[start * SECTOR_BYTES : (start + sectors) * SECTOR_BYTES]
                    raw.sendmsg((head, data))
                else:
                    raw.send(head + _PADDING)
            except OSError:
                if index:
                    return index
                raise
        return run.count

    def _send_vector(self, run: Run) -> int:
        request, count, step = run.request, run.count, run.step
        vector = self._vector
        shape = (run.path, request.write, step, run.path.lba48)
        if shape != self._shape:
            self._lay_out(*shape)
        np.bitwise_xor(_TAG_OFFSETS[:count], swapped(run.tag), out=self._tags[:count])
        lba = request.lba + run.sector
        if not run.path.lba48:
            lba |= DEVICE_LBA
        np.add(self._steps[:count], lba, out=self._lbas[:count])
        last = run.sectors - (count - 1) * step
        if request.write:
            if not request.address:
                request.address = address_of(request.buffer)
            address = request.address + run.sector * SECTOR_BYTES
            np.add(self._strides[:count], address, out=vector.base[:count, 1])
        if last == step:
            return vector.send(self._socket.descriptor, count)
        self._counts[count - 1] = last
        if request.write:
            vector.size[count - 1, 1] = last * SECTOR_BYTES
        try:
            return vector.send(self._socket.descriptor, count)
        finally:
            self._counts[count - 1] = step
            if request.write:
                vector.size[count - 1, 1] = step * SECTOR_BYTES

    def _lay_out(self, path: Path, write: bool, step: int, lba48: bool) -> None:
        """Write what all headers of such runs have in common."""
        registers = transfer_registers(0, step, write=write, lba48=lba48)
        head = path.request_head + _TAIL.pack(0, registers.flags, 0, step, registers.command)
        self._headers[:, : len(head)] = np.frombuffer(head, np.uint8)
        self._vector.size[:, 0] = ATA_BYTES if write else MIN_FRAME_BYTES
        self._vector.size[:, 1] = step * SECTOR_BYTES if write else 0
        self._steps = _OFFSETS * np.uint64(step)
        self._strides = (_OFFSETS * np.uint64(step * SECTOR_BYTES)).astype(np.uintp)
        self._shape = (path, write, step, lba48)


assert 20 + _TAIL.size + _LBA.size == ATA_BYTES  # noqa: S101 (of constants: it fails at once or never)
