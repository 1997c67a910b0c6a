"""A faulty wire between real network namespaces: forwards AoE frames between two interfaces, and misbehaves on demand.

The faults are those of the pure tests, since each direction is a :class:`tests.segment.Segment`: *out* carries the
frames of the left end (the initiators), *back* those of the right end (the targets).  A test makes a :class:`Wire`
between two sides of its lab and changes the faults while I/O runs; when the call returns, the new faults hold.

What always holds: both ends are promiscuous, since initiators and targets address each other; only a false answer is
sent back to where its request came from; a corrupted frame is lost, as a card drops it for its checksum.

Rejected: tc-netem (its module is not everywhere, it cannot choose frames by content), a bridge with rules (the same).
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import json
import math
import os
import random
import select
import signal
import socket
import struct
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aoefs.protocol.wire import ATA_BYTES, ETHERTYPE, AoeCommand
from tests.lab.process import Process, wait_until
from tests.lab.programs import python_module
from tests.segment import Faults, Injected, Segment, is_request, is_write

if TYPE_CHECKING:
    from tests.lab.lab import Lab

_SOL_PACKET, _PACKET_ADD_MEMBERSHIP, _PACKET_MR_PROMISC, _PACKET_IGNORE_OUTGOING = 263, 1, 1, 23
_SO_RCVBUFFORCE, _SO_SNDBUFFORCE = 33, 32
_BATCH = 64  # frames of one end before the other one gets a turn
_OPCODE_OFFSET = 27
DIRECTIONS = ("out", "back")


@dataclass(frozen=True)
class Misdeeds:
    """What one direction does: ``faults`` to any frame, the rest to chosen ones.

    ``hold_writes`` is the rate at which a write request is held back for ``hold_by`` seconds and then delivered;
    requests of the ATA commands in ``lost_opcodes`` are lost; ``lies`` is the rate at which an ATA request gets a false
    answer at once (:func:`lie`), whether or not it reaches its target.
    """

    faults: Faults = field(default_factory=Faults)
    hold_writes: float = 0.0
    hold_by: float = 0.0
    lost_opcodes: tuple[int, ...] = ()
    lies: float = 0.0


NOTHING_WRONG = Misdeeds()
BLACK_HOLE = Misdeeds(Faults(loss=1.0))


# ── lies ──────────────────────────────────────────────────────────────────────────────────────────────────────────

_FLAGS, _ERROR, _SHELF, _SLOT, _COMMAND, _TAG, _DATA_FLAGS, _COUNT = 14, 15, 17, 18, 19, 20, 24, 26
_THIRD_MAC = bytes.fromhex("026666666666")


def _change(answer: bytearray, at: int, value: int) -> bytearray:
    answer[at] = value
    return answer


def _from_third(answer: bytearray) -> bytearray:
    answer[6:12] = _THIRD_MAC
    return answer


# What makes an answer false, though it carries the tag of a command that waits for one.
LIES: dict[str, Callable[[bytearray], bytes | bytearray]] = {
    "another MAC": _from_third,
    "another MAC, ATA error": lambda answer: _change(_from_third(answer), _OPCODE_OFFSET, 0x41),
    "another MAC, AoE error": lambda answer: _change(_change(_from_third(answer), _FLAGS, 0x1C), _ERROR, 3),
    "another shelf": lambda answer: _change(answer, _SHELF, answer[_SHELF] ^ 1),
    "another slot": lambda answer: _change(answer, _SLOT, answer[_SLOT] ^ 1),
    "another tag": lambda answer: _change(answer, _TAG, answer[_TAG] ^ 0x40),
    "another version": lambda answer: _change(answer, _FLAGS, 0x28),
    "another command": lambda answer: _change(answer, _COMMAND, AoeCommand.CONFIG),
    "too short": lambda answer: answer[: max(30, len(answer) - 1) if len(answer) > 60 else 30],
}


def lie(request: bytes, kind: str, dice: random.Random) -> bytes:
    """A false answer to an ATA request, with random data."""
    answer = bytearray(request[:ATA_BYTES])
    answer[:6], answer[6:12] = request[6:12], request[:6]
    answer[_FLAGS] |= 0x08
    answer[_OPCODE_OFFSET] = 0x40
    if not request[_DATA_FLAGS] & 1:
        answer += dice.randbytes(512) * request[_COUNT]
    return bytes(LIES[kind](answer.ljust(60, b"\0")))


@dataclass
class Report(Injected):
    """What one direction did so far.

    ``under_way`` frames are still to be delivered; ``dropped`` frames found no room in the kernel.  Since the faults
    were changed, the latest delivery was ``overdue`` by so many seconds, since this machine was busy.
    """

    dropped: int = 0
    under_way: int = 0
    lied: int = 0
    overdue: float = 0.0


# ── the process ───────────────────────────────────────────────────────────────────────────────────────────────────


def open_end(interface: str) -> socket.socket:
    """A socket for all AoE frames that arrive at an interface, whatever their destination."""
    end = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    end.setblocking(False)
    end.setsockopt(_SOL_PACKET, _PACKET_IGNORE_OUTGOING, 1)
    for option in (_SO_RCVBUFFORCE, _SO_SNDBUFFORCE):
        end.setsockopt(socket.SOL_SOCKET, option, 32 << 20)
    membership = struct.pack("iHH8s", socket.if_nametoindex(interface), _PACKET_MR_PROMISC, 0, b"")
    end.setsockopt(_SOL_PACKET, _PACKET_ADD_MEMBERSHIP, membership)
    end.bind((interface, ETHERTYPE))
    return end


class Direction:
    """Carries frames from one end to the other by the Segment's rules; those to be delivered later wait in a heap."""

    def __init__(self, source: socket.socket, sink: socket.socket, seed: int) -> None:
        self.source = source
        self.dropped = 0  # frames for which the kernel had no room
        self._sink = sink
        self._segment = Segment(seed=seed, latency=0.0, checked=True)
        self._random = random.Random(seed)
        self._plain = True
        self._forwarded = 0
        self._lies = 0.0
        self._lied = 0
        self._late: list[tuple[float, int, bytes]] = []
        self._overdue = 0.0
        self._numbers = itertools.count()

    def misbehave(self, misdeeds: Misdeeds) -> None:
        self._plain = misdeeds == NOTHING_WRONG
        self._overdue = 0.0
        self._segment.faults = misdeeds.faults
        self._lies = misdeeds.lies

        def hold(frame: bytes) -> float:
            held = is_write(frame) and self._random.random() < misdeeds.hold_writes
            return misdeeds.hold_by if held else 0.0

        def lose(frame: bytes) -> bool:
            is_command = is_request(frame) and frame[19] == AoeCommand.ATA and len(frame) >= ATA_BYTES
            return is_command and frame[_OPCODE_OFFSET] in misdeeds.lost_opcodes

        self._segment.hold = hold if misdeeds.hold_writes else None
        self._segment.lose = lose if misdeeds.lost_opcodes else None

    def forward(self) -> None:
        """One batch of what has arrived."""
        with contextlib.suppress(BlockingIOError, OSError):  # nothing more; an interface that is down
            for _ in range(_BATCH):
                frame = self.source.recv(1 << 16)
                if self._plain and not self._late:
                    self._forwarded += 1
                    self._send(frame)
                    continue
                if self._lies and self._random.random() < self._lies:
                    self._lie_about(frame)
                now = time.monotonic()
                for arrives, copy in self._segment.transmit(frame, now):
                    if arrives <= now:
                        self._send(copy)
                    else:
                        heapq.heappush(self._late, (arrives, next(self._numbers), copy))

    def _lie_about(self, frame: bytes) -> None:
        if is_request(frame) and frame[_COMMAND] == AoeCommand.ATA and len(frame) >= ATA_BYTES:
            with contextlib.suppress(OSError):
                self.source.send(lie(frame, self._random.choice(list(LIES)), self._random))
                self._lied += 1

    def _send(self, frame: bytes) -> None:
        try:
            self._sink.send(frame)
        except OSError:  # full, or down
            self.dropped += 1

    def next_delivery(self) -> float:
        return self._late[0][0] if self._late else math.inf

    def deliver(self, now: float) -> None:
        while self._late and self._late[0][0] <= now:
            due, _, frame = heapq.heappop(self._late)
            self._overdue = max(self._overdue, now - due)
            self._send(frame)

    def report(self) -> Report:
        injected = asdict(self._segment.injected)
        injected["sent"] += self._forwarded
        return Report(
            **injected, dropped=self.dropped, under_way=len(self._late), lied=self._lied, overdue=self._overdue
        )


def run(left: str, right: str, control_path: str, seed: int) -> None:
    """Forward until SIGTERM.  A datagram on the control socket changes faults, and the answer holds both reports."""
    ends = open_end(left), open_end(right)
    directions = dict(zip(DIRECTIONS, (Direction(*ends, seed), Direction(ends[1], ends[0], seed + 1)), strict=True))
    control = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    control.bind(control_path)
    poll = select.poll()
    by_descriptor: dict[int, Callable[[], None]] = {
        direction.source.fileno(): direction.forward for direction in directions.values()
    }
    by_descriptor[control.fileno()] = lambda: _obey(control, directions)
    for descriptor in by_descriptor:
        poll.register(descriptor, select.POLLIN)
    while True:
        due = min(direction.next_delivery() for direction in directions.values())
        timeout = None if due == math.inf else max(0.0, (due - time.monotonic()) * 1000)
        for descriptor, _ in poll.poll(timeout):
            by_descriptor[descriptor]()
        for direction in directions.values():
            direction.deliver(time.monotonic())


def _obey(control: socket.socket, directions: dict[str, Direction]) -> None:
    text, sender = control.recvfrom(1 << 16)
    for name, wanted in json.loads(text).items():
        directions[name].misbehave(Misdeeds(**{**wanted, "faults": Faults(**wanted["faults"])}))
    answer = {name: asdict(direction.report()) for name, direction in directions.items()}
    control.sendto(json.dumps(answer).encode(), sender)


# ── the test's side ───────────────────────────────────────────────────────────────────────────────────────────────


class Wire:
    """A faulty cable from one side of a lab to another, by a process in a third one."""

    def __init__(self, lab: Lab, left: str, right: str, *, seed: int = 0) -> None:
        side = f"wire{len(lab.sides)}"
        lab.add_side(side)
        self.left, near = lab.cable(left, side)
        far, self.right = lab.cable(side, right)
        self.side = side
        number = len(lab.sides)
        self._server = str(lab.directory / f"wire{number}.control")
        own = str(lab.directory / f"wire{number}.test")
        self._control = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._control.bind(own)
        self._control.settimeout(10.0)
        command = python_module("tests.lab.forwarder", near, far, self._server, seed)
        self.process: Process = lab.popen(side, command)
        wait_until(lambda: self.process.poll() is not None or Path(self._server).exists(), what="the forwarder listens")
        assert self.process.poll() is None, self.process.output
        self.report()

    def _ask(self, wanted: dict[str, Misdeeds]) -> dict[str, Report]:
        self._control.sendto(json.dumps({name: asdict(one) for name, one in wanted.items()}).encode(), self._server)
        answer: dict[str, dict[str, Any]] = json.loads(self._control.recv(1 << 16))
        return {name: Report(**numbers) for name, numbers in answer.items()}

    def misbehave(self, both: Misdeeds | None = None, **directions: Misdeeds) -> None:
        """From now on; ``out`` and ``back`` are the two directions, ``both`` stands for either."""
        wanted = directions if both is None else dict.fromkeys(DIRECTIONS, both)
        self._ask(wanted)

    def faults(self, **faults: Any) -> None:
        """From now on these faults (:class:`tests.segment.Faults`) in both directions, or none."""
        self.misbehave(Misdeeds(Faults(**faults)))

    def report(self) -> dict[str, Report]:
        """Counters since the start, by direction."""
        return self._ask({})

    def is_quiet(self) -> bool:
        """Whether no frame is left to be delivered."""
        return not any(direction.under_way for direction in self.report().values())

    def close(self) -> None:
        self._control.close()


def main(arguments: Sequence[str]) -> None:
    left, right, control, seed = arguments
    signal.signal(signal.SIGTERM, lambda _number, _frame: os._exit(0))
    run(left, right, control, int(seed))


if __name__ == "__main__":
    main(sys.argv[1:])
