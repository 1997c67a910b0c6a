"""The real link: a packet socket on a network interface, with its sending and landing halves (``core.link.Link``)."""

from __future__ import annotations

import trio

from aoefs.core.lonecommand import LoneCommand
from aoefs.core.request import Run
from aoefs.core.tags import TagTable
from aoefs.net.landing import Landing
from aoefs.net.packetsocket import PacketSocket
from aoefs.net.sending import Sending


class EthernetLink:
    """A link on the interface of this name.  OSError as :class:`PacketSocket`."""

    def __init__(self, interface: str, tags: TagTable[Run | LoneCommand]) -> None:
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
