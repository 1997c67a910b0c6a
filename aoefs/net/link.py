"""The real link: a packet socket on a network interface, with its sending and landing halves (``core.link.Link``)."""

from __future__ import annotations

import trio

from aoefs.core.lonecommand import LoneCommand
from aoefs.core.request import Run
from aoefs.core.tags import TagTable
from aoefs.net.landing import Landing
from aoefs.net.packetsocket import PacketSocket
from aoefs.net.sending import Sending


class EthernetLink(PacketSocket):
    """A link on the interface of this name.  OSError as :class:`PacketSocket`."""

    def __init__(self, interface: str, tags: TagTable[Run | LoneCommand]) -> None:
        super().__init__(interface)
        self._sending = Sending(self)
        self._landing = Landing(self, tags)
        self.receive = self._landing.receive
        self.receive_lone = self._landing.receive_lone
        self.forget = self._landing.forget

    def send_run(self, run: Run) -> int:
        sent = self._sending.send(run)
        if sent:
            self._landing.expect(run)
        return sent

    async def wait_readable(self) -> None:
        await trio.lowlevel.wait_readable(self.socket)

    async def wait_writable(self) -> None:
        await trio.lowlevel.wait_writable(self.socket)

    def close(self) -> None:
        trio.lowlevel.notify_closing(self.socket)
        super().close()
