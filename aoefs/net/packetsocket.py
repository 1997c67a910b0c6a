"""A raw packet socket for AoE on one local interface, with its filter, its buffers and its counters.

Owns the socket, and sends lone frames.  Frames in bulk go through ``net.frames`` and ``net.requests``, which use
:attr:`PacketSocket.descriptor`.

What holds always: the filter is attached before the socket is bound, so no other frame is ever queued; frames that this
host sends are never received (PACKET_IGNORE_OUTGOING); the filter of an initiator passes only answers to us, so that
other initiators on the same wire cost nothing.  What anybody may send without being asked comes by a socket of its own
with a small buffer (``Role.HINTS``): a flood of it takes no room from answers.

Rejected: one socket for all interfaces (the link of an answer would be unknown until the answer was read).
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import socket
import struct
from enum import Enum

from aoefs.core.link import LinkStatistics
from aoefs.core.statistics import snapshot
from aoefs.core.tags import HINT_TAGS
from aoefs.protocol.wire import ALL, BROADCAST_MAC, ETHERTYPE, Share, payload_sectors

_SOL_PACKET = 263
_PACKET_STATISTICS = 6
_PACKET_IGNORE_OUTGOING = 23
_SO_ATTACH_FILTER = 26
_SO_SNDBUFFORCE = 32
_SO_RCVBUFFORCE = 33

MAX_FRAME_BYTES = 1 << 16
RECEIVE_BUFFER_BYTES = 16 << 20  # 64 jumbo frames of each of 24 targets; the kernel charges twice the bytes
HINT_BUFFER_BYTES = 1 << 20  # a thousand config answers
SEND_BUFFER_BYTES = 4 << 20

#: errno values of a send or receive that mean "the interface is gone or down".
LINK_DOWN = frozenset({errno.ENETDOWN, errno.ENXIO, errno.ENODEV, errno.EBADF})  # EBADF: the socket is closed
#: errno values of a send that mean "no room now, try again later".
LINK_FULL = frozenset({errno.EAGAIN, errno.ENOBUFS, errno.ENOMEM})

_LD_B, _LD_H, _LD_W = 0x30, 0x28, 0x20  # BPF_LD | BPF_ABS of 1, 2, 4 bytes
_JEQ, _JSET, _RET = 0x15, 0x45, 0x06
_TAX, _ADD_X, _MOD = 0x07, 0x0C, 0x94


class Role(Enum):
    """What a socket is for; decides its filter."""

    INITIATOR = "initiator"  # answers to what an initiator asked
    HINTS = "hints"  # announcements, and answers to an initiator's broadcast queries
    TARGET = "target"  # requests


def _filter_program(role: Role, mac: bytes, share: Share) -> list[tuple[int, int, int, int]]:
    """Classic BPF as (code, jump if true, jump if false, constant); the last two instructions accept and reject."""
    mac_high, mac_low = struct.unpack("!IH", mac)
    broadcast_high, broadcast_low = struct.unpack("!IH", BROADCAST_MAC)
    not_ours = "reject" if role is Role.INITIATOR else "broadcast"
    # (its own label, code, constant, label to jump to if true, if false); None for the next instruction
    steps: list[tuple[str | None, int, int, str | None, str | None]] = [
        (None, _LD_H, 12, None, None),
        (None, _JEQ, ETHERTYPE, None, "reject"),
        (None, _LD_W, 0, None, None),
        (None, _JEQ, mac_high, None, not_ours),
        (None, _LD_H, 4, None, None),
        (None, _JEQ, mac_low, "flags", "reject"),
    ]
    if role is not Role.INITIATOR:
        steps += [
            ("broadcast", _JEQ, broadcast_high, None, "reject"),
            (None, _LD_H, 4, None, None),
            (None, _JEQ, broadcast_low, None, "reject"),
        ]
    if share.of > 1:  # the sum of shelf and slot
        steps += [
            ("flags", _LD_H, 16, None, None),
            (None, _TAX, 0, None, None),
            (None, _LD_B, 18, None, None),
            (None, _ADD_X, 0, None, None),
            (None, _MOD, share.of, None, None),
            (None, _JEQ, share.number, None, "reject"),
        ]
    steps.append((None if share.of > 1 else "flags", _LD_B, 14, None, None))
    if role is Role.TARGET:
        steps.append((None, _JSET, 0x08, "reject", "accept"))
    else:
        is_hint, is_answer = ("accept", "reject") if role is Role.HINTS else ("reject", "accept")
        steps.append((None, _JSET, 0x08, None, "reject"))
        if role is Role.HINTS:
            steps += [(None, _LD_B, 19, None, None), (None, _JEQ, 1, None, "reject")]  # the command: a config answer
        steps += [  # the tag, see core.tags
            (None, _LD_B, 20, None, None),
            (None, _JSET, 0x80, None, is_hint),
            (None, _LD_H, 20, None, None),
            (None, _JEQ, HINT_TAGS, is_hint, is_answer),
        ]
    labels = {label: index for index, (label, *_) in enumerate(steps) if label}
    labels |= {"accept": len(steps), "reject": len(steps) + 1}
    program = []
    for index, (_, code, constant, true, false) in enumerate(steps):
        jump_true = labels[true] - index - 1 if true else 0
        jump_false = labels[false] - index - 1 if false else 0
        program.append((code, jump_true, jump_false, constant))
    return [*program, (_RET, 0, 0, 0x40000), (_RET, 0, 0, 0)]


def _attach_filter(sock: socket.socket, role: Role, mac: bytes, share: Share) -> None:
    program = b"".join(struct.pack("HBBI", *instruction) for instruction in _filter_program(role, mac, share))
    memory = ctypes.create_string_buffer(program, len(program))
    sock.setsockopt(
        socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("HP", len(program) // 8, ctypes.addressof(memory))
    )


class PacketSocket:
    """An open packet socket on one Ethernet interface.

    ``interface`` is its name, ``mtu`` in bytes, ``mac`` 6 bytes; it gets frames of ``share`` only.  Raises OSError as
    socket(2) and bind(2) do: EPERM without CAP_NET_RAW, ENODEV without such an interface.
    """

    def __init__(self, interface: str, *, role: Role = Role.INITIATOR, share: Share = ALL) -> None:
        self.interface = interface
        self.up = True
        self.rx_frames = 0
        self.rx_unknown = 0  # answers to commands that we never sent or no longer remember
        self.tx_frames = 0
        self.tx_full = 0  # how often the socket had no room
        self.rx_dropped = 0  # frames lost because the buffer was full; counted by statistics()
        with contextlib.ExitStack() as undo:
            sock = undo.enter_context(socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0))
            sock.setblocking(False)
            try:
                self.index = socket.if_nametoindex(interface)
            except OSError as error:  # it has no errno
                raise OSError(errno.ENODEV, os.strerror(errno.ENODEV), interface) from error
            self.mac = self._hardware_address(sock)
            _attach_filter(sock, role, self.mac, share)
            sock.setsockopt(_SOL_PACKET, _PACKET_IGNORE_OUTGOING, 1)
            for force, plain, size in (
                (_SO_RCVBUFFORCE, socket.SO_RCVBUF, HINT_BUFFER_BYTES if role is Role.HINTS else RECEIVE_BUFFER_BYTES),
                (_SO_SNDBUFFORCE, socket.SO_SNDBUF, SEND_BUFFER_BYTES),
            ):
                try:
                    sock.setsockopt(socket.SOL_SOCKET, force, size)
                except PermissionError:  # without CAP_NET_ADMIN the system's limit holds
                    sock.setsockopt(socket.SOL_SOCKET, plain, size)
            sock.bind((interface, ETHERTYPE))
            self.mtu = self._read_mtu(sock)
            undo.pop_all()
        self.socket = sock
        self.descriptor = sock.fileno()

    def _hardware_address(self, sock: socket.socket) -> bytes:
        answer = fcntl.ioctl(sock, 0x8927, struct.pack("16s24x", self.interface.encode()))  # SIOCGIFHWADDR
        return answer[18:24]

    def _read_mtu(self, sock: socket.socket) -> int:
        answer = fcntl.ioctl(sock, 0x8921, struct.pack("16s24x", self.interface.encode()))  # SIOCGIFMTU
        mtu: int = struct.unpack_from("i", answer, 16)[0]
        return mtu

    @property
    def max_sectors(self) -> int:
        """Sectors that a frame on this interface holds."""
        return payload_sectors(self.mtu)

    def refresh(self) -> None:
        """Read the MTU again; OSError when the interface is gone."""
        self.mtu = self._read_mtu(self.socket)

    def send_frame(self, frame: bytes) -> bool:
        """Send one frame; False when there was no room or the interface is down.

        A frame that did not go out is lost, like one that is lost on the wire: the sender sends it again later.
        """
        try:
            self.socket.send(frame)
        except OSError as error:
            self.on_send_error(error)
            return False
        self.tx_frames += 1
        return True

    def receive_frames(self, most: int) -> list[bytes]:
        """Up to ``most`` frames that are there; none while the interface is down."""
        frames: list[bytes] = []
        try:
            while len(frames) < most:
                frames.append(self.socket.recv(MAX_FRAME_BYTES))
        except OSError as error:
            if error.errno not in LINK_FULL | LINK_DOWN:
                raise
        return frames

    def on_send_error(self, error: OSError) -> None:
        """Count a failed send.  An error other than "no room" or "down" is a defect of ours, and raised again."""
        if error.errno in LINK_FULL:
            self.tx_full += 1
        elif error.errno in LINK_DOWN:
            self.up = False
        elif error.errno == errno.EMSGSIZE:  # the MTU was lowered under us
            with contextlib.suppress(OSError):
                self.refresh()
        else:
            raise error

    def statistics(self) -> LinkStatistics:
        """A snapshot.  Reading the kernel's drop counter resets it, so it is added up here."""
        with contextlib.suppress(OSError):
            answer = self.socket.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, 8)
            self.rx_dropped += struct.unpack("II", answer)[1]
        return snapshot(LinkStatistics, self)

    def close(self) -> None:
        self.socket.close()
        self.descriptor = -1  # the number may soon be another file's

    def __enter__(self) -> PacketSocket:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
