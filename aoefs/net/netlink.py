"""The network interfaces of this host, from the kernel over rtnetlink: a list, and every change.

Owns the rtnetlink wire format (RTM_GETLINK, RTM_NEWLINK, RTM_DELLINK and four attributes).  ``host.interfaces`` chooses
which interfaces are used.

What holds always: a part of a netlink message that cannot be read ends its own message and raises nothing; an
:class:`InterfaceMonitor` yields only differences to what it has yielded before, so that one new list is enough after
messages were lost (ENOBUFS).

Rejected: /sys/class/net (it shows the network namespace in which sysfs was mounted, and cannot be waited for);
libraries (one request and one message layout are not worth a dependency).
"""

from __future__ import annotations

import errno
import socket
import struct
import sys
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

_MESSAGE = struct.Struct("=IHHII")  # nlmsghdr: length, type, flags, sequence number, port
_LINK = struct.Struct("=BxHiII")  # ifinfomsg: family, ARPHRD type, index, IFF flags, change mask
_ATTRIBUTE = struct.Struct("=HH")  # rtattr: length, type
_ERROR = struct.Struct("=i")

_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_RTM_NEWLINK, _RTM_DELLINK, _RTM_GETLINK = 16, 17, 18
_NLM_F_REQUEST, _NLM_F_DUMP = 0x001, 0x300
_NLM_F_DUMP_INTR = 0x010  # interfaces changed while the kernel listed them
_RTMGRP_LINK = 1
_IFLA_ADDRESS, _IFLA_IFNAME, _IFLA_MTU, _IFLA_MASTER = 1, 3, 4, 10
_IFF_UP, _IFF_LOOPBACK, _IFF_RUNNING, _IFF_NOARP = 0x01, 0x08, 0x40, 0x80
_ARPHRD_ETHER = 1

_RECEIVE_BYTES = 65536  # the kernel sends a list in datagrams of at most 32 KiB


@dataclass(frozen=True, slots=True)
class Interface:
    """One interface as the kernel last described it.

    ``mtu`` is in bytes.  ``up`` is set by the administrator (IFF_UP); with ``running`` there is a carrier too.
    ``ethernet`` interfaces can reach other machines (no loopback, no NOARP dummy).  ``master`` is the index of the
    bridge or bond that this interface is a port of, or 0.
    """

    index: int
    name: str
    mac: bytes
    mtu: int
    up: bool
    running: bool
    ethernet: bool
    master: int = 0


@dataclass(frozen=True, slots=True)
class InterfaceGone:
    """The interface was removed, moved to another network namespace, or renamed."""

    index: int
    name: str


# ── messages ──────────────────────────────────────────────────────────────────────────────────────────────────────


def _parts(data: bytes, header: struct.Struct) -> Iterator[tuple[list[int], bytes]]:
    """The fields after the length, and the body, of each part with this ``header``, up to the first that does not fit.

    Messages in a datagram and attributes in a message both begin with their length and are padded to four bytes.
    """
    offset = 0
    while offset + header.size <= len(data):
        length, *fields = header.unpack_from(data, offset)
        if length < header.size or offset + length > len(data):
            return
        yield fields, data[offset + header.size : offset + length]
        offset += length + 3 & ~3


def parse_messages(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    """(type, flags, body) of each netlink message in a datagram, up to the first that does not fit."""
    for (kind, flags, *_), body in _parts(data, _MESSAGE):
        yield kind, flags, body


def _parse_attributes(data: bytes) -> dict[int, bytes]:
    return {kind & 0x3FFF: body for (kind,), body in _parts(data, _ATTRIBUTE)}  # the top bits are flags


def parse_link(body: bytes) -> Interface | None:
    """The interface that an RTM_NEWLINK or RTM_DELLINK is about.

    None for a message that cannot be read, and for family AF_BRIDGE: its DELLINK means that a port left its bridge, not
    that the interface is gone.
    """
    if len(body) < _LINK.size:
        return None
    family, hardware, index, flags, _ = _LINK.unpack_from(body)
    attributes = _parse_attributes(body[_LINK.size :])
    name = attributes.get(_IFLA_IFNAME, b"").split(b"\0")[0].decode(errors="replace")
    if family != socket.AF_UNSPEC or not name:
        return None

    def number(kind: int) -> int:
        return int.from_bytes(attributes.get(kind, b"")[:4], sys.byteorder)

    mac = attributes.get(_IFLA_ADDRESS, b"")
    ethernet = hardware == _ARPHRD_ETHER and len(mac) == 6 and not flags & (_IFF_LOOPBACK | _IFF_NOARP)
    return Interface(
        index=index,
        name=name,
        mac=mac,
        mtu=number(_IFLA_MTU),
        up=bool(flags & _IFF_UP),
        running=bool(flags & _IFF_RUNNING),
        ethernet=ethernet,
        master=number(_IFLA_MASTER),
    )


# ── the kernel ────────────────────────────────────────────────────────────────────────────────────────────────────


def list_interfaces() -> list[Interface]:
    """Every interface of this network namespace, by index."""
    while True:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as sock:
            sock.bind((0, 0))
            request = _LINK.pack(socket.AF_UNSPEC, 0, 0, 0, 0)
            header = (_MESSAGE.size + len(request), _RTM_GETLINK, _NLM_F_REQUEST | _NLM_F_DUMP, 1, 0)
            sock.send(_MESSAGE.pack(*header) + request)
            found = _receive_listing(sock)
        if found is not None:
            return found


def _receive_listing(sock: socket.socket) -> list[Interface] | None:
    """The answer to a request for the list; None when interfaces changed meanwhile and it must be requested again."""
    found: dict[int, Interface] = {}
    disturbed = False
    while True:
        for kind, flags, body in parse_messages(sock.recv(_RECEIVE_BYTES)):
            disturbed |= bool(flags & _NLM_F_DUMP_INTR)
            if kind == _NLMSG_DONE:
                return None if disturbed else [found[index] for index in sorted(found)]
            if kind == _NLMSG_ERROR:
                code = -_ERROR.unpack_from(body)[0] if len(body) >= _ERROR.size else 0
                raise OSError(code, "listing the network interfaces failed")
            if kind == _RTM_NEWLINK and (interface := parse_link(body)):
                found[interface.index] = interface


class InterfaceMonitor:
    """An async iterator (trio) over changes: an :class:`Interface` as it is now, or :class:`InterfaceGone`.

    ``interfaces`` is the list at the start, by index, and is kept up to date; only differences to it are yielded.  A
    renamed interface is first gone under its old name.  A context manager, which closes ``socket``.
    """

    def __init__(self) -> None:
        self.socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
        try:
            self.socket.setblocking(False)
            self.socket.bind((0, _RTMGRP_LINK))  # before the list, so that no change is missed
            self.interfaces = {interface.index: interface for interface in list_interfaces()}
        except BaseException:
            self.socket.close()
            raise
        self._pending: deque[Interface | InterfaceGone] = deque()

    def __aiter__(self) -> InterfaceMonitor:
        return self

    async def __anext__(self) -> Interface | InterfaceGone:
        import trio  # here, since the command line imports this module before it knows whether it needs trio

        while not self._pending:
            await trio.lowlevel.wait_readable(self.socket)
            self.receive_nowait()
        return self._pending.popleft()

    def receive_nowait(self) -> int:
        """Process what the kernel has sent so far; how many changes are to be yielded now."""
        lost = False
        while True:
            try:
                data, (port, _) = self.socket.recvfrom(_RECEIVE_BYTES)
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                lost = True  # what is still queued is older than what was lost: skip it, then list again
                continue
            if port == 0 and not lost:  # port 0 is the kernel
                self._process(data)
        if lost:
            self._resynchronise()
        return len(self._pending)

    def _process(self, data: bytes) -> None:
        for kind, _, body in parse_messages(data):
            interface = parse_link(body) if kind in (_RTM_NEWLINK, _RTM_DELLINK) else None
            if interface is None:
                continue
            if kind == _RTM_NEWLINK:
                self._note(interface)
            else:
                self._note_gone(interface.index)

    def _note(self, interface: Interface) -> None:
        before = self.interfaces.get(interface.index)
        if before == interface:
            return
        if before is not None and before.name != interface.name:
            self._note_gone(before.index)
        self.interfaces[interface.index] = interface
        self._pending.append(interface)

    def _note_gone(self, index: int) -> None:
        before = self.interfaces.pop(index, None)
        if before is not None:
            self._pending.append(InterfaceGone(index, before.name))

    def _resynchronise(self) -> None:
        present = {interface.index: interface for interface in list_interfaces()}
        for index in self.interfaces.keys() - present.keys():
            self._note_gone(index)
        for interface in present.values():
            self._note(interface)

    def close(self) -> None:
        self.socket.close()

    def __enter__(self) -> InterfaceMonitor:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
