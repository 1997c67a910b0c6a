"""The real link: a packet socket on a network interface, and the frames on it (``core.link.Link``).

Hints come by a second packet socket, so that a flood of them takes no room from answers.
"""

from __future__ import annotations

import trio

from aoefs.core.lonecommand import LoneCommand
from aoefs.core.request import Run
from aoefs.core.tags import TagTable
from aoefs.net.frames import Frames
from aoefs.net.packetsocket import PacketSocket, Role
from aoefs.protocol.wire import ALL, Share


class EthernetLink(PacketSocket):
    """A link on the interface of this name.  OSError as :class:`PacketSocket`.

    Answers are those of the ``share`` only; the first share gets hints of all, since it starts the others.
    """

    def __init__(self, interface: str, tags: TagTable[Run | LoneCommand], share: Share = ALL) -> None:
        super().__init__(interface, share=share)
        try:
            self._hints = PacketSocket(interface, role=Role.HINTS, share=share if share.number else ALL)
        except OSError:
            super().close()
            raise
        frames = Frames(self, tags)
        self.send_run = frames.send
        self.receive = frames.receive

    def receive_hints(self, most: int) -> list[bytes]:
        return self._hints.receive_frames(most)

    async def wait_readable(self) -> None:
        await trio.lowlevel.wait_readable(self.socket)

    async def wait_hints(self) -> None:
        await trio.lowlevel.wait_readable(self._hints.socket)

    async def wait_writable(self) -> None:
        await trio.lowlevel.wait_writable(self.socket)

    def close(self) -> None:
        for socket in (self.socket, self._hints.socket):
            trio.lowlevel.notify_closing(socket)
        self._hints.close()
        super().close()
