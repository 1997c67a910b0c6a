"""A target whose power can be cut at any moment afterwards, or whose flush is broken on purpose.

As a process, it serves a copy of an image from memory and appends every write and every flush to a *journal*, in their
order.  From the image and the journal, :func:`cut` builds what a disk with a volatile cache could hold after a power
cut at any point: all writes before the last flush that was answered by then, and any of the later writes.

    python -m tests.faults.powercut INTERFACE SHELF.SLOT IMAGE JOURNAL [fail|refuse|slow=SECONDS]

With ``fail``, every sync fails; with ``refuse``, the disk does not know the flush commands (ABRT); with ``slow=3``, a
sync takes 3 seconds, in which everything else is answered.
"""

from __future__ import annotations

import errno
import os
import random
import signal
import struct
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import trio

from aoefs.net.packetsocket import PacketSocket, Role
from aoefs.protocol.ata import Opcode
from aoefs.protocol.wire import (
    ATA_BYTES,
    SECTOR_BYTES,
    Address,
    AoeCommand,
    decode_header_untrusted,
)
from aoefs.softtarget.export import Export, FlushRequest
from aoefs.softtarget.server import Server
from tests.memorystore import MemoryStore

_RECORD = struct.Struct("<QI")  # offset and length in bytes, then the data; a flush has length 0
_FLUSHED = 0
_OPCODE = 27  # its place in an ATA frame
# The pieces into which a power cut may tear a write.  Not sectors: ext4 does not survive a torn superblock, of its own
# or of its journal, which is two sectors under one checksum.
ATOMIC_BYTES = 1024


@dataclass(frozen=True)
class Written:
    """One entry of a journal; a flush has no data.  ``end`` is its end in the journal (bytes)."""

    offset: int
    data: bytes
    end: int

    @property
    def is_flush(self) -> bool:
        return not self.data


class JournalStore(MemoryStore):
    """A disk in memory with a journal; each entry is appended by one system call, so they are in order."""

    def __init__(self, image: bytes, journal: Path, *, sync_fails: bool = False, sync_seconds: float = 0.0) -> None:
        super().__init__(len(image) // SECTOR_BYTES)
        self.data[:] = image
        self._sync_fails = sync_fails
        self._sync_seconds = sync_seconds
        self._journal = os.open(journal, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_TRUNC, 0o600)

    def writev(self, buffers: Sequence[memoryview | bytes], offset: int) -> int:
        for buffer in buffers:
            os.writev(self._journal, [_RECORD.pack(offset, len(buffer)), buffer])
            self.data[offset : offset + len(buffer)] = buffer
            offset += len(buffer)
        return sum(map(len, buffers))

    def sync(self) -> None:
        if self._sync_fails:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        time.sleep(self._sync_seconds)
        os.write(self._journal, _RECORD.pack(_FLUSHED, 0))


class NoFlushExport(Export):
    """A disk that lists the flush commands in its identity, but answers them with ABRT."""

    def handle_untrusted(
        self, frame: bytes | memoryview, *, mac: bytes, max_sectors: int
    ) -> bytes | FlushRequest | None:
        is_ata = decode_header_untrusted(frame).command == AoeCommand.ATA and len(frame) >= ATA_BYTES
        if is_ata and frame[_OPCODE] in (Opcode.FLUSH, Opcode.FLUSH_EXT):
            frame = bytes(frame[:_OPCODE]) + b"\0" + bytes(frame[_OPCODE + 1 :])  # NOP, which is not implemented
        return super().handle_untrusted(frame, mac=mac, max_sectors=max_sectors)


def read_journal(journal: Path) -> Iterator[Written]:
    """The whole entries of a journal, in order."""
    text = memoryview(journal.read_bytes())
    position = 0
    while position + _RECORD.size <= len(text):
        offset, length = _RECORD.unpack_from(text, position)
        position += _RECORD.size
        data = bytes(text[position : position + length])
        if len(data) < length:
            return
        position += length
        yield Written(offset, data, position)


def cut(image: bytes, entries: Sequence[Written], at: int, *, seed: int) -> bytearray:
    """The disk after a power cut behind the first ``at`` entries: what was flushed, and some of the later writes."""
    dice = random.Random(seed)
    share = dice.choice((0.0, 0.2, 0.5, 0.8, 1.0))
    disk = bytearray(image)
    flushed = max((index for index in range(at) if entries[index].is_flush), default=-1)
    for index, entry in enumerate(entries[:at]):
        whole = memoryview(entry.data)
        pieces = [(0, whole)]
        if index > flushed:
            starts = [0, *range(-entry.offset % ATOMIC_BYTES or ATOMIC_BYTES, len(whole), ATOMIC_BYTES)]
            pieces = [(start, whole[start:end]) for start, end in pairwise([*starts, len(whole)])]
        for start, piece in pieces:
            if index < flushed or dice.random() < share:
                disk[entry.offset + start : entry.offset + start + len(piece)] = piece
    return disk


async def _serve(server: Server) -> None:
    with trio.open_signal_receiver(signal.SIGTERM) as signals:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(server.run)
            async for _ in signals:
                nursery.cancel_scope.cancel()


def main(arguments: Sequence[str]) -> None:
    interface, address, image, journal, *faults = arguments
    seconds = next((float(fault.removeprefix("slow=")) for fault in faults if fault.startswith("slow=")), 0.0)
    store = JournalStore(Path(image).read_bytes(), Path(journal), sync_fails="fail" in faults, sync_seconds=seconds)
    kind = NoFlushExport if "refuse" in faults else Export
    export = kind(Address.parse(address), store, serial="power cut")
    trio.run(_serve, Server([export], [PacketSocket(interface, role=Role.TARGET)]))


if __name__ == "__main__":
    main(sys.argv[1:])
