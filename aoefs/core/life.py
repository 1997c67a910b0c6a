"""The life of a target, as a table: what can happen to it, and in which state it is then.

    UP         it is served: what waits is sent
    SUSPENDED  some timeouts in a row, or another disk was identified there: nothing more is sent until it is identified
               again
    STALLED    the same, and nothing at all was answered for some seconds in which something waited
    FLUSHING   the same, while it carries out a FLUSH: then many targets answer nothing else, for as long as it takes
    HELD       it is there, but refuses us until our reservation of it is renewed; silence ends that, too: another disk
               must not be reserved in its place
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
    STALLED = "stalled"
    FLUSHING = "flushing"
    HELD = "held"
    DOWN = "down"
    REPLACED = "replaced"


class Input(Enum):
    TIMEOUTS = "several timeouts in a row"
    SILENT = "nothing was answered for seconds"
    SILENT_IN_FLUSH = "nothing was answered for seconds, and a FLUSH is under way"
    FLUSHED = "the FLUSH is over"
    OTHER_DISK = "another disk was identified where it is known to be"
    UNANSWERED = "nothing was answered for deadsecs"
    IDENTIFIED = "the same disk was identified"
    UNRESERVED = "its reservation must be renewed before it serves us"
    RENEWED = "its reservation was renewed, or refused for good"
    NOT_RENEWED = "it did not answer when its reservation was to be renewed"
    GONE = "another disk took its place, or it was forgotten"


UNANSWERING: Final = (State.SUSPENDED, State.STALLED, State.FLUSHING)
SERVED: Final = (State.UP, State.HELD, *UNANSWERING)
NOT_ANSWERING: Final = (State.DOWN, State.HELD, *UNANSWERING)

#: Where an input leads; a state that is not listed for it stays as it is.
TRANSITIONS: Final[dict[Input, dict[State, State]]] = {
    Input.TIMEOUTS: {State.UP: State.SUSPENDED},
    Input.SILENT: dict.fromkeys((State.UP, State.SUSPENDED, State.HELD), State.STALLED),
    Input.SILENT_IN_FLUSH: dict.fromkeys((State.UP, State.SUSPENDED, State.HELD), State.FLUSHING),
    Input.FLUSHED: {State.FLUSHING: State.SUSPENDED},
    Input.OTHER_DISK: dict.fromkeys((State.UP, State.HELD), State.SUSPENDED),
    Input.UNANSWERED: dict.fromkeys(SERVED, State.DOWN),
    Input.IDENTIFIED: dict.fromkeys((*UNANSWERING, State.DOWN), State.UP),
    Input.UNRESERVED: dict.fromkeys((State.UP, *UNANSWERING), State.HELD),
    Input.RENEWED: {State.HELD: State.UP},
    Input.NOT_RENEWED: {State.HELD: State.SUSPENDED},
    Input.GONE: dict.fromkeys((*SERVED, State.DOWN), State.REPLACED),
}


class Life:
    """``state`` is the present one, and ``is_up`` says whether it is UP, for those who ask with each request;
    ``closing`` once the mount ends, ``ending`` while it does what is left to do.
    """

    def __init__(self) -> None:
        self.state = State.UP
        self.is_up = True
        self.closing = False
        self.ending = False

    def take(self, happened: Input) -> bool:
        """Follow the table; True if that changed the state."""
        before = self.state
        self.state = TRANSITIONS[happened].get(before, before)
        self.is_up = self.state is State.UP
        return self.state is not before

    def close(self) -> None:
        """The mount ends."""
        self.closing = True

    def end(self) -> None:
        """No user is left: the mount flushes, and gives back what it reserved."""
        self.closing = self.ending = True

    @property
    def is_closed(self) -> bool:
        """Nothing new may wait for it."""
        return self.closing and not self.ending

    @property
    def is_served(self) -> bool:
        """Requests may wait for it."""
        return self.state in SERVED and not self.closing
