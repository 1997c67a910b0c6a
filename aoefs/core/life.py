"""The life of a target, as a table: what can happen to it, and in which state it is then.

    UP         it is served: what waits is sent
    SUSPENDED  it fell silent: nothing more is sent until it is identified again, since another disk may come back
    HELD       it is there, but refuses us until our reservation of it is renewed
    DOWN       it was silent for too long: requests fail at once, until it is identified again
    REPLACED   another disk has its address, or it was forgotten: for ever

Beside that a target may be *closing*, since the mount ends: what is new fails at once, in every state, for ever; what
the mount itself still has to do (the last flush, giving back a reservation) goes on as the state allows.

What always holds: :class:`Life` is the only writer.  Every input in every state leads to a state of the table.
"""

from __future__ import annotations

from enum import Enum
from typing import Final


class State(Enum):
    UP = "up"
    SUSPENDED = "suspended"
    HELD = "held"
    DOWN = "down"
    REPLACED = "replaced"


class Input(Enum):
    SILENT = "nothing was answered for some time"
    UNANSWERED = "nothing was answered for deadsecs"
    IDENTIFIED = "the same disk was identified"
    UNRESERVED = "its reservation must be renewed before it serves us"
    RENEWED = "its reservation was renewed, or refused for good"
    NOT_RENEWED = "it did not answer when its reservation was to be renewed"
    GONE = "another disk took its place, or it was forgotten"


SERVED: Final = (State.UP, State.SUSPENDED, State.HELD)

#: Where an input leads; a state that is not listed for it stays as it is.
TRANSITIONS: Final[dict[Input, dict[State, State]]] = {
    Input.SILENT: {State.UP: State.SUSPENDED},
    Input.UNANSWERED: dict.fromkeys(SERVED, State.DOWN),
    Input.IDENTIFIED: {State.SUSPENDED: State.UP, State.DOWN: State.UP},
    Input.UNRESERVED: {State.UP: State.HELD, State.SUSPENDED: State.HELD},
    Input.RENEWED: {State.HELD: State.UP},
    Input.NOT_RENEWED: {State.HELD: State.SUSPENDED},
    Input.GONE: dict.fromkeys((*SERVED, State.DOWN), State.REPLACED),
}


class Life:
    """``state`` is the present one; ``closing`` once the mount ends, ``ending`` while it does what is left to do."""

    __slots__ = ("closing", "ending", "state")

    def __init__(self) -> None:
        self.state = State.UP
        self.closing = False
        self.ending = False

    def take(self, happened: Input) -> bool:
        """Follow the table; True if that changed the state."""
        before = self.state
        self.state = TRANSITIONS[happened].get(before, before)
        return self.state is not before

    def close(self) -> None:
        """The mount ends."""
        self.closing = True

    def end(self) -> None:
        """No user is left: the mount flushes, and gives back what it reserved."""
        self.closing = self.ending = True

    @property
    def is_served(self) -> bool:
        """Requests may wait for it."""
        return self.state in SERVED and not self.closing
