"""The ring of events beside the log."""

from __future__ import annotations

import logging
import time

import pytest

from aoefs.host.systemlog import LINES_PER_SECOND, LogLimit, log_to
from aoefs.status.events import EventRing
from aoefs.status.report import STATUS_EVENTS


class Shown(logging.Handler):
    """In place of a terminal."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


@pytest.fixture
def log(quiet_log: logging.Logger) -> logging.Logger:
    """The log of aoefs as a foreground mount has it, with warnings shown."""
    log_to(Shown())
    quiet_log.setLevel(logging.WARNING)
    return quiet_log


def shown(log: logging.Logger) -> list[str]:
    return next(handler.lines for handler in log.handlers if isinstance(handler, Shown))


def test_the_ring_keeps_events_that_the_log_does_not_show(log: logging.Logger, announce: object) -> None:
    assert callable(announce)
    announce("e0.0 is down")
    ring = EventRing()
    ring.listen_to(log)
    before = time.time()
    log.info("%s is\nthere", "e0.0")
    log.warning("e0.0 is down")
    log.debug("not this")
    assert [(event.level, event.text) for event in ring.snapshot()] == [
        ("info", "e0.0 is there"),
        ("warning", "e0.0 is down"),
    ]
    assert shown(log) == ["e0.0 is down"]
    assert before <= ring.snapshot()[0].time <= ring.snapshot()[1].time <= time.time()


def test_the_ring_stays_when_the_log_goes_elsewhere(log: logging.Logger) -> None:
    ring = EventRing()
    ring.listen_to(log)
    log.info("before")
    log_to(Shown())
    log.info("after")
    assert [event.text for event in ring.snapshot()] == ["before", "after"]
    assert shown(log) == ["after"], "the new place decides for itself what it shows"


def test_the_ring_forgets_the_oldest(log: logging.Logger) -> None:
    ring = EventRing(size=3)
    ring.listen_to(log)
    for number in range(10):
        log.info("line %d", number)
    assert [event.text for event in ring.snapshot()] == ["line 7", "line 8", "line 9"]
    assert STATUS_EVENTS == 50


def test_two_limits_on_one_line_count_it_once_each(
    log: logging.Logger, monkeypatch: pytest.MonkeyPatch, announce: object
) -> None:
    assert callable(announce)
    announce("failed")
    now = 0.0
    monkeypatch.setattr("aoefs.host.systemlog.time.monotonic", lambda: now)
    ring = EventRing()
    ring.addFilter(LogLimit())
    ring.listen_to(log)
    for _ in range(LINES_PER_SECOND + 7):
        log.error("e0.0 failed")
    now = 1.0
    log.error("e0.0 failed")
    now = 2.0
    log.error("e0.0 failed")
    expected = ["e0.0 failed (before this, 7 such lines were left out)", "e0.0 failed"]
    assert [event.text for event in ring.snapshot()][-2:] == expected
    assert shown(log)[-2:] == expected
    assert len(ring.snapshot()) == LINES_PER_SECOND + 2
