"""A target whose power can be cut at any moment afterwards, or whose flush is broken on purpose.

As a process, it serves a copy of an image from memory and writes every write and every flush to a *journal*, in the
order in which they happened.  From the image and the journal, :func:`cut` builds what a disk with a volatile cache
could hold after a power cut at any point: everything before the last flush that was answered by then, and of the
later writes any.

    python -m tests.faults.powercut INTERFACE SHELF.SLOT IMAGE JOURNAL [fail|refuse]

With ``fail``, every sync fails; with ``refuse``, the disk does not know the flush commands (ABRT).
"""

from __future__ import annotations

import errno
import os
import random
import signal
import struct
import sys
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
    decode_ata_untrusted,
    decode_header_untrusted,
)
from aoefs.softtarget.export import Export, FlushRequest
from aoefs.softtarget.server import Server
from aoefs.softtarget.store import MemoryStore

_RECORD = struct.Struct("<QI")  # offset and length in bytes, then the data; a flush has length 0
_FLUSHED = 0
# What a write is torn into at most.  A sector would be smaller, but ext4 itself does not survive a torn superblock,
# which is two sectors under one checksum, and so is that of its journal.
ATOMIC_BYTES = 1024


@dataclass(frozen=True)
class Written:
    """One entry of a journal; a flush has no data.  ``end`` is where it ends in the journal."""

    offset: int
    data: bytes
    end: int

    @property
    def is_flush(self) -> bool:
        return not self.data


class JournalStore(MemoryStore):
    """A disk in memory whose past is kept; each entry goes into the journal by one system call, so in order."""

    def __init__(self, image: bytes, journal: Path, *, sync_fails: bool = False) -> None:
        super().__init__(len(image) // SECTOR_BYTES)
        self.data[:] = image
        self._sync_fails = sync_fails
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
        os.write(self._journal, _RECORD.pack(_FLUSHED, 0))


class NoFlushMachine(Export):
    """A disk that announces the flush commands and does not know them."""

    def handle_untrusted(
        self, frame: bytes | memoryview, *, mac: bytes, max_sectors: int
    ) -> bytes | FlushRequest | None:
        header = decode_header_untrusted(frame)
        if header.command == AoeCommand.ATA and len(frame) >= ATA_BYTES:
            ata = decode_ata_untrusted(frame)
            if ata.command in (Opcode.FLUSH, Opcode.FLUSH_EXT):
                return self._abort(header, ata, mac)
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
    store = JournalStore(Path(image).read_bytes(), Path(journal), sync_fails="fail" in faults)
    kind = NoFlushMachine if "refuse" in faults else Export
    machine = kind(Address.parse(address), store, serial="power cut")
    trio.run(_serve, Server([machine], [PacketSocket(interface, role=Role.TARGET)]))


if __name__ == "__main__":
    main(sys.argv[1:])
