"""An export in memory, and what can be asked of it."""

from __future__ import annotations

from typing import Any

from aoefs.protocol.ata import transfer_registers
from aoefs.protocol.wire import (
    Address,
    AoeCommand,
    Header,
    decode_ata_untrusted,
    decode_header_untrusted,
)
from aoefs.softtarget.export import Export
from tests.memorystore import MemoryStore, answer_at_once

OURS = bytes.fromhex("020000000001")
THEIRS = bytes.fromhex("020000000002")
ADDRESS = Address(7, 3)
TAG = 0x8000_1234
SECTORS = 1000
READ = transfer_registers(8, 2, write=False, lba48=True)
WRITE = transfer_registers(8, 2, write=True, lba48=True)


def make(sectors: int = SECTORS, **options: Any) -> Export:
    store = MemoryStore(sectors, read_only=bool(options.pop("read_only", False)))
    store.data[:] = bytes(index * 7 & 0xFF for index in range(512)) * sectors
    return Export(ADDRESS, store, serial="0123456789", **options)


def header(command: int = AoeCommand.ATA, **changes: Any) -> Header:
    fields: dict[str, Any] = {
        "destination": OURS,
        "source": THEIRS,
        "address": ADDRESS,
        "command": command,
        "tag": TAG,
    } | changes
    return Header(**fields)


def ask(export: Export, frame: bytes, max_sectors: int = 2) -> bytes:
    answer = answer_at_once(export, frame, mac=OURS, max_sectors=max_sectors)
    assert answer is not None
    return check_answer(answer)


def check_answer(answer: bytes) -> bytes:
    """What holds for every answer."""
    head = decode_header_untrusted(answer)
    assert len(answer) >= 60
    assert (head.destination, head.source, head.address, head.tag) == (THEIRS, OURS, ADDRESS, TAG)
    assert (head.version, head.is_response) == (1, True)
    assert head.flags & 0x03 == 0
    assert head.is_error == (head.error != 0)
    return answer


def is_silent(export: Export, frame: bytes) -> bool:
    return export.handle_untrusted(frame, mac=OURS, max_sectors=2) is None


def aoe_error(answer: bytes) -> int:
    head = decode_header_untrusted(answer)
    return head.error if head.is_error else 0


def registers(answer: bytes) -> tuple[int, int, int]:
    """Status, error, count; the AoE layer was content."""
    assert aoe_error(answer) == 0
    ata = decode_ata_untrusted(answer)
    return ata.command, ata.feature, ata.count
