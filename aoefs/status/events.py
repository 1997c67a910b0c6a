"""The last lines of the log, kept in memory for ``.aoefs/events`` and ``.aoefs/status.json``.

The ring is a log handler beside the one where the log goes (``host.systemlog``).  It takes lines of INFO and above,
also when the log shows warnings only.  The time of an event is the wall clock's.

What always holds: when the ring is full, the kind of line (one format) that has most loses its oldest one.  So a host
that makes us complain of it without end pushes out nothing but its own lines.
"""

from __future__ import annotations

import logging
from collections import deque
from dataclasses import dataclass
from heapq import merge
from itertools import count

from aoefs.status.text import one_line

MAX_EVENTS = 1000


@dataclass(frozen=True, slots=True)
class Event:
    """``time`` in seconds since 1970, ``level`` as ``warning``, ``text`` one line as it was logged, unescaped."""

    time: float
    level: str
    text: str


class EventRing(logging.Handler):
    """Keeps ``size`` lines of INFO and above."""

    def __init__(self, size: int = MAX_EVENTS) -> None:
        super().__init__(logging.INFO)
        self._size = size
        self._numbers = count()
        self._kinds: dict[str, deque[tuple[int, Event]]] = {}

    def emit(self, record: logging.LogRecord) -> None:
        kind = str(vars(record).get("kind", record.msg))
        event = Event(record.created, record.levelname.lower(), one_line(record.getMessage()))
        self._kinds.setdefault(kind, deque()).append((next(self._numbers), event))
        if sum(map(len, self._kinds.values())) > self._size:
            max(self._kinds.values(), key=len).popleft()

    def snapshot(self) -> tuple[Event, ...]:
        """The events in the ring, the oldest first."""
        return tuple(event for _, event in merge(*self._kinds.values()))

    def listen_to(self, log: logging.Logger) -> None:
        """Take the lines of ``log`` from now on.  Its other handlers show no more than before."""
        for handler in log.handlers:
            handler.setLevel(max(handler.level, log.level))
        log.setLevel(min(log.getEffectiveLevel(), logging.INFO))
        log.addHandler(self)
