"""A store of the software target in memory, and an export that answers a FLUSH at once."""

from __future__ import annotations

from collections.abc import Sequence

from aoefs.protocol.wire import SECTOR_BYTES
from aoefs.softtarget.export import Export, FlushRequest


class MemoryStore:
    """A disk in memory: ``data``.  ``syncs`` counts the calls of :meth:`sync`."""

    def __init__(self, sectors: int, *, read_only: bool = False, volatile: bool = True) -> None:
        self.data = bytearray(sectors * SECTOR_BYTES)
        self.sectors = sectors
        self.read_only = read_only
        self.volatile = volatile
        self.syncs = 0

    def readv(self, buffers: Sequence[memoryview | bytearray], offset: int) -> int:
        start = offset
        for buffer in buffers:
            piece = self.data[offset : offset + len(buffer)]
            buffer[: len(piece)] = piece
            offset += len(piece)
        return offset - start

    def writev(self, buffers: Sequence[memoryview | bytes], offset: int) -> int:
        start = offset
        for buffer in buffers:
            self.data[offset : offset + len(buffer)] = buffer
            offset += len(buffer)
        return offset - start

    def sync(self) -> None:
        self.syncs += 1


def answer_at_once(export: Export, frame: bytes | memoryview, *, mac: bytes, max_sectors: int) -> bytes | None:
    """As ``Export.handle_untrusted``, but a FLUSH is executed at once, and may block."""
    answer = export.handle_untrusted(frame, mac=mac, max_sectors=max_sectors)
    if not isinstance(answer, FlushRequest):
        return answer
    try:
        export.store.sync()
    except OSError as error:
        return export.finish_flush(answer, error)
    return export.finish_flush(answer, None)
