"""A link: a link with its sending and landing halves, as the engine sees it.

:class:`Link` is what the engine needs of a local interface; :class:`EthernetLink` is the real one.  Tests put a
simulated Ethernet segment behind the same names, so everything above runs on a virtual clock.

What holds always: sending and receiving never block; only the two ``wait_*`` do.
"""

from __future__ import annotations

from typing import Protocol

import trio

from aoefs.core.path import Path, Run
from aoefs.core.tags import Exchange, TagTable
from aoefs.net.landing import Entry, Landing
from aoefs.net.packetsocket import LinkStatistics, PacketSocket
from aoefs.net.sending import Sending


class Link(Protocol):
    """``interface`` is the link's name, ``mac`` ours, ``max_sectors`` the payload of its MTU, ``up`` its state."""

    interface: str
    descriptor: int
    mac: bytes
    up: bool
    rx_unknown: int

    @property
    def max_sectors(self) -> int: ...

    def send_run(self, run: Run) -> int:
        """Put a run on the wire; how many commands went out (fewer: there is no room, see :meth:`wait_writable`)."""
        ...

    def send_frame(self, frame: bytes) -> bool:
        """Put a lone frame on the wire; False when it did not go."""
        ...

    def receive(self) -> tuple[int, list[Entry], list[bytes]]:
        """See :meth:`net.landing.Landing.receive`."""
        ...

    def receive_lone(self) -> tuple[int, list[Entry], list[bytes]]:
        """See :meth:`net.landing.Landing.receive_lone`."""
        ...

    def forget(self, path: Path) -> None: ...

    async def wait_readable(self) -> None: ...

    async def wait_writable(self) -> None: ...

    def refresh(self) -> None:
        """The interface changed: read its MTU again."""
        ...

    def statistics(self) -> LinkStatistics: ...

    def close(self) -> None: ...


class EthernetLink:
    """A link on a real interface.  OSError as ``PacketSocket``."""

    def __init__(self, interface: str, tags: TagTable[Run | Exchange]) -> None:
        self._socket = PacketSocket(interface)
        self._landing = Landing(self._socket, tags)
        self._sending = Sending(self._socket)
        self.interface = interface
        self.descriptor = self._socket.descriptor
        self.mac = self._socket.mac
        self.receive = self._landing.receive
        self.receive_lone = self._landing.receive_lone
        self.forget = self._landing.forget
        self.send_frame = self._socket.send
        self.statistics = self._socket.statistics
        self.refresh = self._socket.refresh

    @property
    def max_sectors(self) -> int:
        return self._socket.max_sectors

    @property
    def up(self) -> bool:
        return self._socket.up

    @up.setter
    def up(self, value: bool) -> None:
        self._socket.up = value

    @property
    def rx_unknown(self) -> int:
        return self._socket.rx_unknown

    @rx_unknown.setter
    def rx_unknown(self, value: int) -> None:
        self._socket.rx_unknown = value

    def send_run(self, run: Run) -> int:
        sent = self._sending.send(run)
        if sent:
            self._landing.expect(run)
        return sent

    async def wait_readable(self) -> None:
        await trio.lowlevel.wait_readable(self._socket.socket)

    async def wait_writable(self) -> None:
        await trio.lowlevel.wait_writable(self._socket.socket)

    def close(self) -> None:
        trio.lowlevel.notify_closing(self._socket.socket)
        self._socket.close()
