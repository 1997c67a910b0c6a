"""What happened lately: the last lines of the log, kept for whoever looks at a mount (``status.json``, ``events``).

Owns a bounded ring in memory.  It is a log handler beside the one place where the log goes, and takes events (INFO)
also when that place shows warnings only.  The time of an event is the log record's, the wall clock's: the one place
where a person wants to know when.

Rejected: reading the system log back (a container has none), and events of a second kind beside log lines (what is
worth telling is worth logging).
"""

from __future__ import annotations

import logging
from collections import deque
from dataclasses import dataclass

MAX_EVENTS = 1000


@dataclass(frozen=True, slots=True)
class Event:
    """``time`` in seconds since 1970, ``level`` as ``warning``, ``text`` one line as it was logged, unescaped."""

    time: float
    level: str
    text: str


class EventRing(logging.Handler):
    """Keeps the last ``size`` lines of INFO and above."""

    def __init__(self, size: int = MAX_EVENTS) -> None:
        super().__init__(logging.INFO)
        self._events: deque[Event] = deque(maxlen=size)

    def emit(self, record: logging.LogRecord) -> None:
        self._events.append(Event(record.created, record.levelname.lower(), " ".join(record.getMessage().split())))

    def snapshot(self) -> tuple[Event, ...]:
        """What is in the ring, the oldest first."""
        return tuple(self._events)

    def listen_to(self, log: logging.Logger) -> None:
        """Take the lines of ``log`` from now on; its other handlers go on showing what they show."""
        for handler in log.handlers:
            handler.setLevel(max(handler.level, log.level))
        log.setLevel(min(log.getEffectiveLevel(), logging.INFO))
        log.addHandler(self)
