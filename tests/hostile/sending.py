"""sendmmsg(2) for a fast sender: the same frames again and again, changed in place between the calls."""

from __future__ import annotations

import ctypes
import errno
import os
import socket
from collections.abc import Sequence

_libc = ctypes.CDLL(None, use_errno=True)


class _Vector(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


class _Header(ctypes.Structure):  # struct msghdr
    _fields_ = (
        ("name", ctypes.c_void_p),
        ("name_length", ctypes.c_uint32),
        ("vectors", ctypes.POINTER(_Vector)),
        ("vector_count", ctypes.c_size_t),
        ("control", ctypes.c_void_p),
        ("control_length", ctypes.c_size_t),
        ("flags", ctypes.c_int),
    )


class _Message(ctypes.Structure):  # struct mmsghdr
    _fields_ = (("header", _Header), ("sent", ctypes.c_uint))


class Volley:
    """Frames that :meth:`fire` sends by one system call; ``frames`` may be changed, but not their lengths."""

    def __init__(self, frames: Sequence[bytes]) -> None:
        self.frames = [bytearray(frame) for frame in frames]
        self._pins = [(ctypes.c_char * len(frame)).from_buffer(frame) for frame in self.frames]
        self._vectors = [_Vector(ctypes.addressof(pin), len(pin)) for pin in self._pins]
        self._messages = (_Message * len(frames))()
        for message, vector in zip(self._messages, self._vectors, strict=True):
            message.header.vectors, message.header.vector_count = ctypes.pointer(vector), 1

    def fire(self, wire: socket.socket) -> int:
        """How many frames went out."""
        sent: int = _libc.sendmmsg(wire.fileno(), self._messages, len(self.frames), 0)
        if sent < 0 and (code := ctypes.get_errno()) not in (errno.ENOBUFS, errno.EAGAIN, errno.EINTR):
            raise OSError(code, os.strerror(code))
        return max(0, sent)
