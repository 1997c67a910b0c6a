"""A port: a link with its sending and landing halves, as the engine sees it.

:class:`Port` is what the engine needs of a local interface; :class:`SocketPort` is the real one.  Tests put a
simulated Ethernet segment behind the same names, so everything above runs on a virtual clock.

What holds always: sending and receiving never block; only the two ``wait_*`` do.
"""

from __future__ import annotations

from typing import Protocol

import trio

from aoefs.core.path import Path, Run
from aoefs.core.tags import Exchange, TagTable
from aoefs.net.landing import Entry, Landing
from aoefs.net.packetsocket import Link, LinkStatistics
from aoefs.net.sending import Sending


class Port(Protocol):
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


class SocketPort:
    """A port on a real interface.  OSError as ``Link``."""

    def __init__(self, interface: str, tags: TagTable[Run | Exchange]) -> None:
        self._link = Link(interface)
        self._landing = Landing(self._link, tags)
        self._sending = Sending(self._link)
        self.interface = interface
        self.descriptor = self._link.descriptor
        self.mac = self._link.mac
        self.receive = self._landing.receive
        self.receive_lone = self._landing.receive_lone
        self.forget = self._landing.forget
        self.send_frame = self._link.send
        self.statistics = self._link.statistics
        self.refresh = self._link.refresh

    @property
    def max_sectors(self) -> int:
        return self._link.max_sectors

    @property
    def up(self) -> bool:
        return self._link.up

    @up.setter
    def up(self, value: bool) -> None:
        self._link.up = value

    @property
    def rx_unknown(self) -> int:
        return self._link.rx_unknown

    @rx_unknown.setter
    def rx_unknown(self, value: int) -> None:
        self._link.rx_unknown = value

    def send_run(self, run: Run) -> int:
        sent = self._sending.send(run)
        if sent:
            self._landing.expect(run)
        return sent

    async def wait_readable(self) -> None:
        await trio.lowlevel.wait_readable(self._link.socket)

    async def wait_writable(self) -> None:
        await trio.lowlevel.wait_writable(self._link.socket)

    def close(self) -> None:
        trio.lowlevel.notify_closing(self._link.socket)
        self._link.close()
