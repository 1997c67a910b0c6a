"""sendmmsg(2) and recvmmsg(2): many frames per system call, sent from and received into memory of any place.

Owns all raw addresses of buffers, and ``ctypes`` on the hot path.  A :class:`MessageVector` is a fixed table of message
slots with a fixed number of I/O vectors each.  Its addresses and lengths are numpy arrays, so that a few array
expressions lay out a whole batch.

What holds always:

- The kernel uses the addresses only during :meth:`MessageVector.send` and :meth:`MessageVector.receive`, which never
  block and never release the interpreter.  So memory that a vector points to must be alive during that call, and no
  longer.
- That memory is an attribute of something that outlives the call: the headers and the spill of the vector's owner, or
  the buffer of a request that a run refers to, in flight or being sent.  It is never held by a local variable only: an
  address is a number and keeps nothing alive, and compiled code (.build/backend.py) frees a local after its last use,
  not at the end of its function.

Rejected: TPACKET_V2 rings (slower here: small batches, and one more copy in the other process's time); one
``recv_into`` per frame for batches (105 k frames/s at two sectors, where a batch reaches 170 k and more).
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import sys
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

_libc = ctypes.PyDLL(None, use_errno=True)  # PyDLL: the calls never block, so the interpreter is not released
_sendmmsg = _libc.sendmmsg
_sendmmsg.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_uint, ctypes.c_int)
_recvmmsg = _libc.recvmmsg
_recvmmsg.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_uint, ctypes.c_int, ctypes.c_void_p)

_IOVEC: Final = np.dtype([("base", np.uintp), ("length", np.uintp)])
# struct mmsghdr: seven members of struct msghdr and the received length, each starting at a pointer's alignment.
_POINTER_BYTES: Final = ctypes.sizeof(ctypes.c_void_p)
_MMSGHDR: Final = np.dtype(
    {
        "names": ["name", "name_length", "iov", "iov_count", "control", "control_length", "flags", "length"],
        "formats": [np.uintp, np.uint32, np.uintp, np.uintp, np.uintp, np.uintp, np.int32, np.uint32],
        "offsets": [index * _POINTER_BYTES for index in range(8)],
        "itemsize": 8 * _POINTER_BYTES,
    }
)


def address_of(buffer: bytes | bytearray | memoryview | NDArray[Any]) -> int:
    """The address of a contiguous buffer; valid while an attribute (see the module) refers to the buffer."""
    if not isinstance(buffer, np.ndarray):
        buffer = np.frombuffer(buffer, np.uint8)
    address: int = buffer.__array_interface__["data"][0]
    return address


def swapped(tag: int) -> int:
    """A 32-bit tag as the integer whose bytes in memory are the tag as it is on the wire."""
    return int.from_bytes(tag.to_bytes(4, "big"), sys.byteorder)


def memory_at(address: int, size: int) -> bytes:
    """A copy of ``size`` bytes at ``address``; the caller keeps that memory alive."""
    return ctypes.string_at(address, size)


class MessageVector:
    """``slots`` messages of ``vectors`` pieces each.

    ``base[slot, piece]`` (address) and ``size[slot, piece]`` (bytes) say where the pieces are; a piece of 0 bytes is
    skipped.  After :meth:`receive`, ``length[slot]`` is the size of the frame in the slot (bytes).
    """

    def __init__(self, slots: int, vectors: int) -> None:
        self.slots = slots
        iovecs = np.zeros((slots, vectors), _IOVEC)
        self._messages = np.zeros(slots, _MMSGHDR)
        self._iovecs = iovecs  # _messages has their addresses
        self._messages["iov"] = address_of(iovecs) + np.arange(slots, dtype=np.uintp) * (vectors * _IOVEC.itemsize)
        self._messages["iov_count"] = vectors
        self._address = address_of(self._messages)
        self.base: NDArray[np.uintp] = iovecs["base"]
        self.size: NDArray[np.uintp] = iovecs["length"]
        self.length: NDArray[np.uint32] = self._messages["length"]

    def send(self, descriptor: int, count: int, first: int = 0) -> int:
        """Send the slots ``first`` to ``first + count``; how many went out.

        OSError only when the first one did not go out; BlockingIOError (EAGAIN) when the socket is full.
        """
        address = self._address + first * _MMSGHDR.itemsize
        while True:
            sent: int = _sendmmsg(descriptor, address, count, socket.MSG_DONTWAIT)
            if sent >= 0:
                return sent
            _raise_unless_interrupted()

    def receive(self, descriptor: int, count: int, first: int = 0) -> int:
        """Receive up to ``count`` queued frames into the slots from ``first`` on; how many, 0 when none is queued.

        OSError for anything but an empty queue (ENETDOWN once after the interface went down).
        """
        address = self._address + first * _MMSGHDR.itemsize
        while True:
            received: int = _recvmmsg(descriptor, address, count, socket.MSG_DONTWAIT, None)
            if received >= 0:
                return received
            if ctypes.get_errno() == errno.EAGAIN:
                return 0
            _raise_unless_interrupted()


def _raise_unless_interrupted() -> None:
    code = ctypes.get_errno()
    if code != errno.EINTR:
        raise OSError(code, os.strerror(code))
