"""sendmmsg(2) and recvmmsg(2): many frames for one system call, gathered from and scattered to where data belong.

Owns all raw addresses of buffers, and ``ctypes`` on the hot path.  A :class:`MessageVector` is a fixed table of
message slots with a fixed number of I/O vectors each; its addresses and lengths are numpy arrays, so that a whole
batch is laid out by a few array expressions.

What holds always:

- The kernel reads or writes the addresses only during :meth:`MessageVector.send` or :meth:`MessageVector.receive`,
  which never block and never release the interpreter; so memory named in a vector must be alive during that call and
  no longer.
- That memory is an attribute of something that outlives the call: the headers and the spill of the vector's owner,
  the buffer of a Request that a Run in flight, or the run being sent, refers to.  Never of a local variable only: an
  address is a number and keeps nothing, and where these modules are compiled (.build/backend.py) a local is let go of
  after its last use, not at the end of its function.

Rejected: TPACKET_V2 rings (slower here: small batches, and one more copy in the other process's time); one
``recv_into`` per frame for batches (105 k frames/s at two sectors where a batch reaches 170 k and more).
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

_libc = ctypes.PyDLL(None, use_errno=True)  # PyDLL: the calls never block, so giving up the interpreter costs only
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
    """Where the bytes of a contiguous buffer lie; valid while an attribute (see the module) keeps the buffer."""
    if not isinstance(buffer, np.ndarray):
        buffer = np.frombuffer(buffer, np.uint8)
    address: int = buffer.__array_interface__["data"][0]
    return address


def swapped(tag: int) -> int:
    """A 32-bit number as the integer whose bytes in memory are those of the number on the wire."""
    return int.from_bytes(tag.to_bytes(4, "big"), sys.byteorder)


def memory_at(address: int, size: int) -> bytes:
    """A copy of ``size`` bytes that lie at ``address``, which the caller keeps alive."""
    return ctypes.string_at(address, size)


class MessageVector:
    """``slots`` messages of ``vectors`` pieces each.

    ``base[slot, piece]`` (address) and ``size[slot, piece]`` (bytes) say where a message lies; a piece of size 0 is
    skipped.  ``length[slot]`` is what arrived in the slot (bytes), after :meth:`receive`.
    """

    def __init__(self, slots: int, vectors: int) -> None:
        self.slots = slots
        iovecs = np.zeros((slots, vectors), _IOVEC)
        self._messages = np.zeros(slots, _MMSGHDR)
        self._iovecs = iovecs  # alive as long as the addresses in _messages
        self._messages["iov"] = address_of(iovecs) + np.arange(slots, dtype=np.uintp) * (vectors * _IOVEC.itemsize)
        self._messages["iov_count"] = vectors
        self._address = address_of(self._messages)
        self.base: NDArray[np.uintp] = iovecs["base"]
        self.size: NDArray[np.uintp] = iovecs["length"]
        self.length: NDArray[np.uint32] = self._messages["length"]

    def send(self, descriptor: int, count: int, first: int = 0) -> int:
        """Send the slots ``first`` to ``first + count``; how many went out.

        OSError only when not even the first one did; BlockingIOError (EAGAIN) means that the socket is full.
        """
        address = self._address + first * _MMSGHDR.itemsize
        while True:
            sent: int = _sendmmsg(descriptor, address, count, socket.MSG_DONTWAIT)
            if sent >= 0:
                return sent
            _raise_unless_interrupted()

    def receive(self, descriptor: int, count: int, first: int = 0) -> int:
        """Fill up to ``count`` slots from ``first`` on with what is queued; how many, 0 when nothing is.

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
