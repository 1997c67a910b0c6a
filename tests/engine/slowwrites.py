"""Writes of whole blocks that are answered late or refused."""

from __future__ import annotations

import trio

from aoefs.engine.disk import Disk
from aoefs.protocol.ata import ErrorBit, Status
from tests.engine.answers import error_answer
from tests.scene import SimulatedTarget
from tests.segment import is_write

BLOCK = 1024  # bytes: what one frame of these segments carries


SLOW = 0.008  # seconds that the targets here may take to acknowledge a write: below the least RTO


def acknowledge_slowly(target: SimulatedTarget, seconds: float = SLOW) -> None:
    target.answer = lambda frame, reply: [(seconds if is_write(frame) else 0.0, reply)]


def refuse_writes(target: SimulatedTarget, seconds: float = 0.0) -> None:
    refused = Status.DRDY | Status.ERR
    target.answer = lambda frame, reply: [
        (seconds, error_answer(reply, refused, ErrorBit.UNC) if is_write(frame) else reply)
    ]


async def write_behind(disk: Disk, block: int, data: bytes = b"n" * BLOCK) -> float:
    """Write without waiting for the acknowledgement; the seconds that it took."""
    began = trio.current_time()
    await disk.write(block * BLOCK, data, behind=True)
    return trio.current_time() - began
