"""Candidates: the endpoints that the discovery is to examine, while there are more of them than places.

Owns who is under examination and who waits.  A host can send hints in any number of names, so need decides and not
arrival:

    KNOWN   a path of ours: it never waits
    MISSED  it answers for a target that is silent, which may be back with another MAC: places of its own
    NEW     any other

Within one need the MACs take turns, and each MAC's endpoints are in the order in which they came: a host with a
thousand slots (an honest one may have them) is no obstacle to one with a single slot.  When the room for waiting ones
is full, a MAC that waits already gets no more of it, and the MAC whose turn is next loses its last one.

Pure: no clock, no task.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final

from aoefs.core.link import Endpoint

MAX_WAITING: Final = 4096  # of each need: four paths of each of the 1024 targets that a mount shows


class Need(IntEnum):
    KNOWN = 0
    MISSED = 1
    NEW = 2


PLACES: Final = {Need.MISSED: 64, Need.NEW: 256}


class Candidates:
    """See the module.  ``dropped`` counts those for which there was no room."""

    def __init__(self) -> None:
        self.dropped = 0
        self._examined: dict[Endpoint, Need] = {}
        self._taken = dict.fromkeys(Need, 0)
        self._waiting: dict[Need, dict[bytes, dict[Endpoint, bool]]] = {need: {} for need in PLACES}
        self._counts = dict.fromkeys(Need, 0)  # of those that wait

    @property
    def waiting(self) -> int:
        """How many wait."""
        return sum(self._counts.values())

    def add(self, endpoint: Endpoint, need: Need, *, second: bool = False) -> bool:
        """True if its examination begins now; else it waits, is under examination already, or there is no room.

        ``second``: it made room for others before it answered.
        """
        if endpoint in self._examined:
            return False
        if need is Need.KNOWN or self._taken[need] < PLACES[need]:
            self._begin(endpoint, need)
            return True
        self._wait(endpoint, need, second)
        return False

    def end(self, endpoint: Endpoint) -> tuple[Endpoint, bool] | None:
        """Its examination is over; whose begins in its place, and whether that is its second."""
        need = self._examined.pop(endpoint)
        self._taken[need] -= 1
        if need is Need.KNOWN or not self._counts[need]:
            return None
        following, second = self._next(need)
        self._begin(following, need)
        return following, second

    def is_awaited(self, endpoint: Endpoint) -> bool:
        """Others wait for the place of this one, which is under examination."""
        return self._counts[self._examined[endpoint]] > 0

    def _begin(self, endpoint: Endpoint, need: Need) -> None:
        self._examined[endpoint] = need
        self._taken[need] += 1

    def _wait(self, endpoint: Endpoint, need: Need, second: bool) -> None:
        macs = self._waiting[need]
        if endpoint in macs.get(endpoint.mac, ()):
            return
        if self._counts[need] >= MAX_WAITING:
            self.dropped += 1
            if endpoint.mac in macs:
                return
            mac, endpoints = next(iter(macs.items()))
            endpoints.popitem()
            self._counts[need] -= 1
            self._turn(need, mac)
        macs.setdefault(endpoint.mac, {})[endpoint] = second
        self._counts[need] += 1

    def _next(self, need: Need) -> tuple[Endpoint, bool]:
        mac, endpoints = next(iter(self._waiting[need].items()))
        endpoint = next(iter(endpoints))
        second = endpoints.pop(endpoint)
        self._counts[need] -= 1
        self._turn(need, mac)
        return endpoint, second

    def _turn(self, need: Need, mac: bytes) -> None:
        """This MAC had its turn: it is the last one now, if it still waits."""
        endpoints = self._waiting[need].pop(mac)
        if endpoints:
            self._waiting[need][mac] = endpoints
