"""Who answers config queries and is no disk of ours all the same, and why: for the log, ``discover`` and the status.

What holds always: a reason is logged when it is new, not each time the discovery comes by; at most ``MAX_STRANGERS``
are remembered, the last ones, and none for longer than ``REMEMBERED`` seconds after it was seen.

Rejected: saying nothing of them, as the Linux driver does (a target whose access list leaves this host out then looks
like one that is switched off).
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

from aoefs.protocol.wire import Address, ConfigArgument, format_mac

log = logging.getLogger("aoefs.strangers")

MAX_STRANGERS = 256
REMEMBERED = 150.0  # seconds: the discovery comes by every 60
NO_ANSWER, RESERVED, REFUSED = "no answer", "reserved", "refused"  # states
SILENT = (
    "it answers config queries but not IDENTIFY: its MAC mask or access list may leave this host out, or its disk hangs"
)

StrangerKey = tuple[str, bytes, Address]


@dataclass(frozen=True, slots=True)
class Stranger:
    """Somebody who says to be ``address`` on ``interface`` from ``mac``; ``reason`` is a line for a person."""

    address: Address
    interface: str
    mac: bytes
    config: ConfigArgument
    state: str
    reason: str

    @property
    def key(self) -> StrangerKey:
        return self.interface, self.mac, self.address


class Strangers:
    """See the module; ``now`` is in seconds."""

    def __init__(self) -> None:
        self._seen: dict[StrangerKey, tuple[float, Stranger]] = {}  # the oldest first

    def note(self, stranger: Stranger, now: float) -> None:
        before = self._seen.pop(stranger.key, None)
        self._seen[stranger.key] = now, stranger
        if len(self._seen) > MAX_STRANGERS:
            del self._seen[next(iter(self._seen))]
        if before is None or before[1].reason != stranger.reason:
            # Anybody can make silent ones by the hundred.
            level = logging.INFO if stranger.state == NO_ANSWER else logging.WARNING
            where = f"{format_mac(stranger.mac)} on {stranger.interface}"
            what = "refused" if stranger.state == REFUSED else "not used"
            log.log(level, "%s: %s is %s: %s", stranger.address, where, what, stranger.reason)

    def forget(self, key: StrangerKey) -> None:
        """It is a disk of ours now."""
        self._seen.pop(key, None)

    def present(self, now: float) -> list[Stranger]:
        """By address."""
        present = [stranger for at, stranger in self._seen.values() if now - at <= REMEMBERED]
        return sorted(present, key=lambda stranger: (stranger.address, stranger.interface, stranger.mac))
