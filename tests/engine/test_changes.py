"""The stream of changes: subscribers are called at once, in order."""

from __future__ import annotations

from functools import partial
from typing import cast

from aoefs.engine.changes import Change, Changes
from aoefs.engine.disk import Disk

DISK = cast(Disk, object())


def test_subscribers_are_called_at_once_in_the_order_in_which_they_subscribed() -> None:
    changes = Changes()
    seen: list[tuple[str, Disk, Change]] = []

    def note(name: str, disk: Disk, change: Change) -> None:
        seen.append((name, disk, change))

    changes.publish(DISK, Change.APPEARED)
    changes.subscribe(partial(note, "first"))
    changes.publish(DISK, Change.DOWN)
    changes.subscribe(partial(note, "second"))
    changes.publish(DISK, Change.RETURNED)
    assert seen == [
        ("first", DISK, Change.DOWN),
        ("first", DISK, Change.RETURNED),
        ("second", DISK, Change.RETURNED),
    ]
