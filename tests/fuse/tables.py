"""Boot records for the tests of partitions."""

from __future__ import annotations

import struct


def entry(kind: int, first: int, sectors: int, status: int = 0) -> bytes:
    return struct.pack("<B3xB3xII", status, kind, first, sectors)


def boot_record(*entries: bytes) -> bytes:
    return bytes(446) + b"".join(entries).ljust(64, b"\0") + b"\x55\xaa"
