"""Strangers: endpoints that answer config queries and are no disk of ours, and why; for the log and the status.

What always holds: a reason is logged when it is new, not each time the discovery asks.  At most ``MAX_STRANGERS`` are
remembered, the last ones, and none for longer than ``REMEMBERED`` seconds after it was seen.

Rejected: saying nothing of them, as the Linux driver does (a target whose access list leaves this host out then looks
like one that is switched off).
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

from aoefs.core.link import Endpoint
from aoefs.protocol.wire import ConfigArgument, format_mac

log = logging.getLogger("aoefs.strangers")

MAX_STRANGERS = 256
REMEMBERED = 150.0  # seconds: the discovery comes by every 60
NO_ANSWER, RESERVED, REFUSED = "no answer", "reserved", "refused"  # states
SILENT = (
    "it answers config queries but not IDENTIFY: its MAC mask or access list may leave this host out, or its disk hangs"
)


@dataclass(frozen=True, slots=True)
class Stranger:
    """``config`` is what it says of itself; ``reason`` is a line for a person."""

    endpoint: Endpoint
    config: ConfigArgument
    state: str
    reason: str
    serial: str = ""  # if it is known


class Strangers:
    """See the module; ``now`` is in seconds."""

    def __init__(self) -> None:
        self._seen: dict[Endpoint, tuple[float, Stranger]] = {}  # the oldest first

    def note(self, stranger: Stranger, now: float) -> None:
        link, mac, address = stranger.endpoint
        before = self._seen.pop(stranger.endpoint, None)
        self._seen[stranger.endpoint] = now, stranger
        if len(self._seen) > MAX_STRANGERS:
            del self._seen[next(iter(self._seen))]
        if before is None or before[1].reason != stranger.reason:
            level = logging.INFO if stranger.state == NO_ANSWER else logging.WARNING  # silent ones are easily forged
            where = f"{format_mac(mac)} on {link.interface}"
            what = "refused" if stranger.state == REFUSED else "not used"
            log.log(level, "%s: %s is %s: %s", address, where, what, stranger.reason)

    def forget(self, endpoint: Endpoint) -> None:
        """It is a path of a disk now."""
        self._seen.pop(endpoint, None)

    def present(self, now: float) -> list[Stranger]:
        return [stranger for at, stranger in self._seen.values() if now - at <= REMEMBERED]
