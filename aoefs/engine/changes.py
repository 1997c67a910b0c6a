"""What happens to the disks of an engine, as one stream: the engine publishes, the mount and the log subscribe."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from aoefs.engine.disk import Disk


class Change(Enum):
    """What happened to a disk.

    REVALIDATED: another host may have changed its data.  CONFLICT: another disk answers for its address, or no more.
    """

    APPEARED = "appeared"
    RESIZED = "resized"
    RETURNED = "returned"
    REPLACED = "replaced"
    FORGOTTEN = "forgotten"
    DOWN = "down"
    CONFLICT = "conflict"
    REVALIDATED = "revalidated"


class Changes:
    """The stream.  Subscribers are called at once, in the order in which they subscribed, and must not wait."""

    def __init__(self) -> None:
        self._subscribers: list[Callable[[Disk, Change], object]] = []

    def subscribe(self, subscriber: Callable[[Disk, Change], object]) -> None:
        self._subscribers.append(subscriber)

    def publish(self, disk: Disk, change: Change) -> None:
        for subscriber in self._subscribers:
            subscriber(disk, change)
