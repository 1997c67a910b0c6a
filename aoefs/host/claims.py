"""Whether an address is free on an interface: asked before it is served there.

Owns the *claim*, by which the processes of this host know of each other (what one of them broadcasts, the others do not
receive), and the *inquiry*, which asks the other hosts on the wire.

What always holds: a claim ends with its process, also after SIGKILL.  It is an abstract Unix socket, so its scope is
the network namespace, as that of the interface is.  Nothing is announced here, and no disk is read.

Not found: a target of another program on this host and interface (vblade), and one that does not answer us (a mask).
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
import time
from collections.abc import Iterable, Sequence

from aoefs.core.tags import HINT_TAGS
from aoefs.errors import FrameError, UserError
from aoefs.net.packetsocket import PacketSocket
from aoefs.protocol import wire

_PATIENCE = 0.2  # seconds from the question; targets on a LAN answer within milliseconds
_LONGEST_QUEUE = 4096  # of processes that asked for our PID
_MOST_FRAMES = 4096  # read of one interface: a flood must not keep us


def claim(address: wire.Address, interface: str) -> socket.socket:
    """Claim an address on an interface until the socket is closed; UserError when another process has it."""
    name = f"\0aoefs-target/{interface}/{address.shelf}.{address.slot}"
    with contextlib.ExitStack() as undo:
        sock = undo.enter_context(socket.socket(socket.AF_UNIX))
        try:
            sock.bind(name)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise UserError(f"cannot claim {address} on {interface}: {error.strerror}") from error
            pid = _listener(name)
            who = f" (pid {pid})" if pid else ""
            raise UserError(
                f"{address} is already served on {interface} by another process{who}: "
                "end that one, or choose another slot"
            ) from error
        sock.listen(_LONGEST_QUEUE)  # for _listener
        undo.pop_all()
    return sock


def _listener(name: str) -> int:
    """The PID of the process that listens there; 0 if it is not known, such as in another PID namespace."""
    with socket.socket(socket.AF_UNIX) as sock, contextlib.suppress(OSError):
        sock.setblocking(False)
        sock.connect(name)
        pid: int = struct.unpack("iII", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0]
        return pid
    return 0


class Inquiry:
    """Ask the hosts on the wires of ``sockets`` (of ``Role.HINTS``) at once who serves ``addresses``.

    The caller owns the sockets, and has the time of an answer for other work before :meth:`require_silence`.
    """

    def __init__(self, addresses: Iterable[wire.Address], sockets: Sequence[PacketSocket]) -> None:
        self._addresses = frozenset(addresses)
        self._sockets = sockets
        tag = HINT_TAGS << 16 | os.getpid() & 0xFFFF
        for sock in sockets:
            for address in sorted(self._addresses):
                header = wire.Header(wire.BROADCAST_MAC, sock.mac, address, wire.AoeCommand.CONFIG, tag)
                sock.send_frame(wire.encode(header, wire.ConfigArgument()))
        self._asked = time.monotonic()

    def require_silence(self) -> None:
        """UserError if one of the addresses has answered within ``_PATIENCE`` of the question, or was announced."""
        time.sleep(max(0.0, self._asked + _PATIENCE - time.monotonic()))
        for sock in self._sockets:
            for frame in sock.receive_frames(_MOST_FRAMES):
                self._examine_untrusted(frame, sock.interface)

    def _examine_untrusted(self, frame: bytes, interface: str) -> None:
        try:
            header = wire.decode_header_untrusted(frame)
        except FrameError:
            return
        if header.is_response and header.command == wire.AoeCommand.CONFIG and header.address in self._addresses:
            raise UserError(
                f"{header.address} is already served on {interface} by {wire.format_mac(header.source)}: "
                "stop that target, or choose another slot"
            )
