"""Kinds of frames, and answers that refuse what was asked."""

from __future__ import annotations

from aoefs.protocol.ata import Opcode, Status
from aoefs.protocol.wire import AoeCommand
from tests.scene import Scene, SimulatedTarget

FLUSHES = (Opcode.FLUSH, Opcode.FLUSH_EXT)


def data_only(frame: bytes) -> bool:
    """A READ or WRITE (the opcodes are the only ones with bit 5 and not bits 6 and 7)."""
    return frame[19] == AoeCommand.ATA and frame[27] & 0xE0 == 0x20


def error_answer(reply: bytes, status: int = Status.DRDY | Status.ERR, error: int = 0) -> bytes:
    return reply[:25] + bytes([error]) + reply[26:27] + bytes([status]) + reply[28:36].ljust(60 - 28, b"\0")


def is_flush(frame: bytes) -> bool:
    return frame[19] == AoeCommand.ATA and frame[27] in FLUSHES


def flushes(scene: Scene) -> list[float]:
    return sorted(at for opcode in FLUSHES for at, _ in scene.wire.ata(opcode))


def refuse_flush(target: SimulatedTarget, error: int, status: int = Status.DRDY | Status.ERR) -> None:
    target.answer = lambda frame, reply: [(0.0, error_answer(reply, status, error) if is_flush(frame) else reply)]
