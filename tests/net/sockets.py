"""A packet socket of this process and its wire, to test one half of a link without any rights."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

from aoefs.core.link import Link
from aoefs.net.packetsocket import PacketSocket

OURS = bytes.fromhex("020000000001")
_SO_SNDBUFFORCE = 32
_BUFFER_BYTES = 4 << 20


class FakeSocket:
    """What ``Landing`` and ``Sending`` use of a PacketSocket; ``errors`` are the errno values of failed sends."""

    def __init__(self, ours: socket.socket, mtu: int) -> None:
        self.interface = "fake0"
        self.mac = OURS
        self.mtu = mtu
        self.socket = ours
        self.descriptor = ours.fileno()
        self.rx_frames = self.tx_frames = self.tx_full = 0
        self.errors: list[int | None] = []

    def on_send_error(self, error: OSError) -> None:
        self.errors.append(error.errno)

    @property
    def as_packet_socket(self) -> PacketSocket:
        return cast(PacketSocket, self)

    @property
    def as_link(self) -> Link:
        """For paths, which only compare it."""
        return cast(Link, self)


@contextmanager
def socket_and_wire(mtu: int = 1500) -> Iterator[tuple[FakeSocket, socket.socket]]:
    """A pair of sockets that keeps the boundaries of frames."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        for end in (ours, theirs):
            end.setblocking(False)
            try:
                end.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, _BUFFER_BYTES)
            except PermissionError:
                end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER_BYTES)
        yield FakeSocket(ours, mtu), theirs
