"""Where the log goes: to stderr while a person watches, to the system log of this host when the mount is a daemon.

What always holds: logging never blocks and never raises, since a log that is stuck must not stop a disk.  Text is made
printable here (:class:`PrintableFormatter`), because much of it comes from the network.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from aoefs.errors import UserError
from aoefs.status.events import EventRing
from aoefs.status.text import one_line, printable_lines

LOG_SOCKETS = ("/dev/log", "/run/systemd/journal/dev-log")
LINES_PER_SECOND = 20  # of one kind; more are counted and left out

_FACILITY_DAEMON = 3
_SEVERITIES = ((logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6))  # RFC 5424; everything else is 7, debug

log = logging.getLogger("aoefs")


class PrintableFormatter(logging.Formatter):
    """What a record says, as a terminal may show it; a traceback has several lines."""

    def format(self, record: logging.LogRecord) -> str:
        return printable_lines(super().format(record))


class JsonFormatter(logging.Formatter):
    """A record as one JSON object, with the fields of an event in status.json."""

    def format(self, record: logging.LogRecord) -> str:
        text = one_line(super().format(record))
        return json.dumps({"time": record.created, "level": record.levelname.lower(), "text": text})


class SyslogHandler(logging.Handler):
    """Sends each record as a datagram to the log socket of this host, and drops what that does not take at once.

    Rejected: the handler of the standard library.  It keeps a connection, which blocks when the log is stuck and is
    lost when the log restarts.
    """

    def __init__(self, paths: Sequence[str] = LOG_SOCKETS) -> None:
        super().__init__()
        self._paths = paths
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)

    def emit(self, record: logging.LogRecord) -> None:
        severity = next((code for level, code in _SEVERITIES if record.levelno >= level), 7)
        line = f"<{_FACILITY_DAEMON << 3 | severity}>aoefs[{os.getpid()}]: {one_line(self.format(record))}"
        for path in self._paths:
            with contextlib.suppress(OSError):
                self._socket.sendto(line.encode(errors="replace"), path)
                return

    def close(self) -> None:
        self._socket.close()
        super().close()


class StderrHandler(logging.Handler):
    """Lines for a person, ``aoefs: message``.  A stderr that is closed stops nothing."""

    def emit(self, record: logging.LogRecord) -> None:
        with contextlib.suppress(OSError, ValueError):
            print(f"{'' if style.json else 'aoefs: '}{self.format(record)}", file=sys.stderr, flush=True)


class LogLimit(logging.Filter):
    """Passes so many lines of one kind (one format) per second, and says how many it left out.

    A broken disk must not fill the log, and must not hide in it that another one went down and came back.
    """

    def __init__(self, lines_per_second: int = LINES_PER_SECOND) -> None:
        super().__init__()
        self._lines_per_second = lines_per_second
        self._second = -1
        self._passed: Counter[str] = Counter()
        self._left_out: Counter[str] = Counter()

    def filter(self, record: logging.LogRecord) -> bool:
        second = int(time.monotonic())
        kind: str = vars(record).setdefault("kind", str(record.msg))  # the limit of another handler may extend ``msg``
        if second != self._second:
            self._second = second
            self._passed.clear()
        self._passed[kind] += 1
        if self._passed[kind] > self._lines_per_second:
            self._left_out[kind] += 1
            return False
        left_out = self._left_out.pop(kind, 0)
        if left_out and str(record.msg) == kind:
            record.msg = f"{record.getMessage()} (before this, {left_out} such lines were left out)"
            record.args = None
        return True


@dataclass(slots=True)
class Style:
    """How the log is written from the next :func:`log_to` on, wherever it goes: see ``fuse.options``."""

    level: str | None = None
    json: bool = False


style = Style()


def log_to(handler: logging.Handler, *, beside: bool = False) -> None:
    """Make this the one place where the log goes, in the ``style``.  A ring of events stays, and ``beside`` the others
    do too, with no more lines than before.
    """
    handler.addFilter(LogLimit())
    text = "%(asctime)s %(levelname)s %(message)s" if isinstance(handler, logging.FileHandler) else None
    handler.setFormatter(JsonFormatter() if style.json else PrintableFormatter(text))
    if style.level is not None:
        handler.setLevel(style.level.upper())
    for old in log.handlers[:]:
        if beside:
            old.setLevel(max(old.level, log.level))
        elif not isinstance(old, EventRing):
            log.removeHandler(old)
            old.close()
    log.setLevel(min(log.level, logging.INFO) if beside else log.level)
    log.addHandler(handler)


def log_to_stderr(verbose: int = 0) -> None:
    """Log to stderr: warnings; with ``verbose`` 1 events too, with 2 everything."""
    log_to(StderrHandler())
    log.setLevel(
        style.level.upper() if style.level else (logging.WARNING, logging.INFO, logging.DEBUG)[min(verbose, 2)]
    )


def check_log_file(path: str) -> None:
    """UserError unless this file can be written."""
    try:
        with open(path, "a"):
            pass
    except OSError as error:
        raise UserError(f"--log-file {path} cannot be written: {error.strerror}") from None


def log_to_file(path: str, *, beside: bool = False) -> None:
    """Log to a file, which may be moved away at any time."""
    from logging.handlers import WatchedFileHandler

    log_to(WatchedFileHandler(path), beside=beside)
