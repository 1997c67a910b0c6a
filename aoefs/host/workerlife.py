"""The life of a worker, as a table: a child process that serves one share of the targets for the main process.

    IDLE      no target of its share was found yet: there is no process
    STARTING  the process was started and is not ready yet
    STUCK     it was not ready in time, and was killed; it is not gone yet
    READY     it serves its files
    WAITING   it ended by itself or was killed, and is started again after a pause
    STOPPING  the mount ends: it serves open files, flushes and ends
    ENDED     the mount ends, and there is no process

Pure: the caller starts, kills and watches processes (``fuse.workers``).  Times are in seconds of any clock.

What always holds: :class:`WorkerLife` is the only writer.  There is a process in the states of ``RUNNING`` and in no
other.  Pauses double up to a minute while a worker does not stay, so a broken one costs next to nothing.
"""

from __future__ import annotations

import math
from enum import Enum
from typing import Final

START_SECONDS = 20.0  # for a process to be ready: it takes half a second, or long on a machine without a free processor
FIRST_PAUSE = 0.1  # seconds before the second start
MOST_PAUSE = 60.0
STEADY_SECONDS = 60.0  # of being ready, after which the next pause is the first again


class State(Enum):
    IDLE = "idle"
    STARTING = "starting"
    STUCK = "stuck"
    READY = "ready"
    WAITING = "waiting"
    STOPPING = "stopping"
    ENDED = "ended"


class Input(Enum):
    WANTED = "a target of its share was found"
    READY = "it is ready"
    DIED = "its process ended"
    DUE = "the time of its state is over"
    STOP = "the mount ends"


RUNNING: Final = (State.STARTING, State.STUCK, State.READY, State.STOPPING)

#: Where an input leads; a state that is not listed for it stays as it is.
TRANSITIONS: Final[dict[Input, dict[State, State]]] = {
    Input.WANTED: {State.IDLE: State.STARTING},
    Input.READY: {State.STARTING: State.READY},
    Input.DIED: {
        **dict.fromkeys((State.STARTING, State.STUCK, State.READY), State.WAITING),
        State.STOPPING: State.ENDED,
    },
    Input.DUE: {State.STARTING: State.STUCK, State.WAITING: State.STARTING},
    Input.STOP: {
        **dict.fromkeys((State.STARTING, State.STUCK, State.READY), State.STOPPING),
        **dict.fromkeys((State.IDLE, State.WAITING), State.ENDED),
    },
}


class WorkerLife:
    """``state`` is the present one; at ``due`` it wants ``Input.DUE``; ``starts`` counts processes."""

    def __init__(self) -> None:
        self.state = State.IDLE
        self.due = math.inf
        self.starts = 0
        self._pause = FIRST_PAUSE
        self._ready_since = math.inf

    def take(self, happened: Input, now: float) -> bool:
        """Follow the table; True if that changed the state."""
        before = self.state
        self.state = TRANSITIONS[happened].get(before, before)
        if self.state is before:
            return False
        self.due = math.inf
        if self.state is State.STARTING:
            self.starts += 1
            self.due = now + START_SECONDS
        elif self.state is State.READY:
            self._ready_since = now
        elif self.state is State.WAITING:
            if now - self._ready_since >= STEADY_SECONDS:
                self._pause = FIRST_PAUSE
            self._ready_since = math.inf
            self.due = now + self._pause
            self._pause = min(max(1.0, 2 * self._pause), MOST_PAUSE)
        return True

    @property
    def restarts(self) -> int:
        return max(0, self.starts - 1)
