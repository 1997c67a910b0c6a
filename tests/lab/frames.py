"""Frames of a lab: captured, sent by hand, written to a pcap file, read by tshark."""

from __future__ import annotations

import contextlib
import itertools
import socket
import struct
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from aoefs.protocol.wire import ETHERTYPE
from tests.lab.side import INITIATOR

if TYPE_CHECKING:
    from tests.lab.lab import Lab

_ETH_P_ALL = 3
_SOL_PACKET, _PACKET_STATISTICS = 263, 6
_SO_RCVBUFFORCE = 33


class Capture:
    """Every frame that one interface sends or receives from now on, in order."""

    def __init__(self, interface: str, file: Path) -> None:
        self.file = file
        self._frames: list[bytes] = []
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 256 << 20)
        self._socket.setblocking(False)
        self._socket.bind((interface, _ETH_P_ALL))

    def frames(self) -> list[bytes]:
        """What was seen so far; AssertionError if the kernel had to drop some of it."""
        with contextlib.suppress(BlockingIOError):
            while True:
                self._frames.append(self._socket.recv(1 << 16))
        dropped = struct.unpack("II", self._socket.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, 8))[1]
        assert not dropped, f"the capture lost {dropped} frames: capture less"
        return self._frames

    def pcap(self) -> Path:
        """The file, in pcap format, with what was seen so far."""
        write_pcap(self.file, self.frames())
        return self.file

    def tshark(self, display_filter: str, *fields: str) -> list[list[str]]:
        """One row of ``fields`` for each frame that the filter lets through."""
        return tshark(self.pcap(), display_filter, *fields)

    def close(self) -> None:
        self._socket.close()


def open_packet_socket(lab: Lab, side: str = INITIATOR, interface: str = "aoe0") -> socket.socket:
    """A plain socket for AoE frames, with nothing of the code under test; ``recv`` waits two seconds at most."""
    with lab.inside(side), contextlib.ExitStack() as undo:
        wire = undo.enter_context(socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0))
        wire.bind((interface, ETHERTYPE))
        wire.settimeout(2.0)
        undo.pop_all()
    return wire


def write_pcap(file: Path, frames: Iterable[bytes]) -> Path:
    """Frames as a pcap file, one a millisecond."""
    with file.open("wb") as output:
        output.write(struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 1 << 18, 1))
        for index, frame in enumerate(frames):
            output.write(struct.pack("<IIII", index // 1000, index % 1000 * 1000, len(frame), len(frame)))
            output.write(frame)
    return file


def tshark(pcap: Path, display_filter: str, *fields: str) -> list[list[str]]:
    """One row of ``fields`` for each frame of a pcap file that the display filter lets through."""
    options = itertools.chain.from_iterable(("-e", field) for field in fields)
    command = ["tshark", "-n", "-2", "-r", str(pcap), "-Y", display_filter, "-T", "fields", *options]
    answer = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert answer.returncode == 0, f"{' '.join(command)}: {answer.stderr}"
    return [line.split("\t") for line in answer.stdout.splitlines()]
