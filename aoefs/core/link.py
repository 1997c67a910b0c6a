"""A link: a local interface that we speak on, as the core and the engine see it; and the endpoints behind it.

:class:`Link` is what is needed of one.  ``net.link.EthernetLink`` is the real one; tests have one on a simulated
segment, so that everything above runs on a virtual clock.

What always holds: sending and receiving never block; only the two ``wait_*`` do.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

from aoefs.protocol.wire import Address

if TYPE_CHECKING:
    from aoefs.core.request import Run

#: Good answers to commands of a run: the run, the first command, how many.
Entry = tuple["Run", int, int]


@dataclass(frozen=True, slots=True)
class LinkStatistics:
    """Counters of one link since it was opened.  ``rx_dropped`` frames were lost in this host since a buffer was full;
    ``rx_unknown`` answered nothing that we sent or still remember; ``tx_full`` times the socket had no room.
    """

    interface: str
    mac: bytes
    mtu: int
    up: bool
    rx_frames: int
    rx_dropped: int
    rx_unknown: int
    tx_frames: int
    tx_full: int


class Link(Protocol):
    """``interface`` is its name, ``mac`` our address on it, ``max_sectors`` the payload that its MTU allows, ``up``
    whether frames can be sent; ``descriptor`` can be polled for frames, and is negative if there is none.
    """

    interface: str
    descriptor: int
    mac: bytes
    up: bool
    rx_unknown: int

    @property
    def max_sectors(self) -> int: ...

    def send_run(self, run: Run) -> int:
        """Send a run; how many of its commands went out (fewer: there is no room, see :meth:`wait_writable`)."""
        ...

    def send_frame(self, frame: bytes) -> bool:
        """Send one frame; False if it did not go out."""
        ...

    def receive(self) -> tuple[int, list[Entry], list[bytes]]:
        """Take one batch: (number of frames, good answers whose data are in place, all other frames).

        OSError as recvmmsg(2).
        """
        ...

    def receive_hints(self, most: int) -> list[bytes]:
        """Take up to ``most`` config answers that nobody asked for, or that answer a broadcast query.

        They may come by :meth:`receive`, too.
        """
        ...

    async def wait_readable(self) -> None: ...

    async def wait_hints(self) -> None: ...

    async def wait_writable(self) -> None: ...

    def refresh(self) -> None:
        """The interface changed: read its MTU again.  OSError if it is gone."""
        ...

    def statistics(self) -> LinkStatistics: ...

    def close(self) -> None: ...


class Endpoint(NamedTuple):
    """Where a target answers for ``address``: on ``link``, from ``mac``.  With the broadcast MAC: any that does."""

    link: Link
    mac: bytes
    address: Address
