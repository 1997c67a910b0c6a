"""Going into the background, and where the log goes.

Owns the protocol of the ready pipe.  The parent starts the same command again with ``--foreground`` in a new session
and one end of a pipe, named by an environment variable; the child writes exactly one line there, ``ok HINT`` once the
mount is live or ``error CODE MESSAGE``, and the parent relays it and ends with that code.

What holds always: the parent ends when the child has spoken or died, never before; it leaves no child behind that
failed, nor one that was interrupted by Ctrl-C; what the child has to say until it is ready reaches the person's
stderr, afterwards the system log.  Logging never blocks: a stuck log must not stop a disk.

Rejected: forking (the child would inherit half a process: threads, locks and sockets of libraries), and double fork
without a pipe (the caller would learn nothing of a failure).
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import IO

from aoefs.status.events import EventRing
from aoefs.status.tables import printable

READY_VARIABLE = "AOEFS_READY_FD"
LOG_SOCKETS = ("/dev/log", "/run/systemd/journal/dev-log")
LINES_PER_SECOND = 20  # of the log; more are counted and left out
STOP_SECONDS = 3.0  # for a child that was interrupted to unmount again

_FACILITY_DAEMON = 3
_SEVERITIES = ((logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6))

log = logging.getLogger("aoefs")


def one_line(text: str) -> str:
    """A message for people is one line, whatever is in it."""
    return " ".join(text.split())


# ── the log ───────────────────────────────────────────────────────────────────────────────────────────────────────


class SyslogHandler(logging.Handler):
    """Sends to the log socket of this host and drops what it does not take at once.

    The library's own handler keeps a connection, which blocks when the log is stuck and is lost when it restarts.
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
    """Lines for a person, ``aoefs: message``; a stderr that has gone away stops nothing."""

    def emit(self, record: logging.LogRecord) -> None:
        with contextlib.suppress(OSError, ValueError):
            text = "\n".join(map(printable, self.format(record).split("\n")))  # a target's serial number, for one
            print(f"aoefs: {text}", file=sys.stderr, flush=True)


class LogLimit(logging.Filter):
    """Passes so many lines of one kind (one format) a second and says how many it swallowed.

    A broken disk must not fill the log, nor hide in it that it went down and came back.
    """

    def __init__(self, lines_per_second: int = LINES_PER_SECOND) -> None:
        super().__init__()
        self._lines_per_second = lines_per_second
        self._second = -1
        self._passed: Counter[str] = Counter()
        self._swallowed: Counter[str] = Counter()

    def filter(self, record: logging.LogRecord) -> bool:
        second = int(time.monotonic())
        kind: str = vars(record).setdefault("kind", str(record.msg))  # another handler's limit may add to it
        if second != self._second:
            self._second = second
            self._passed.clear()
        self._passed[kind] += 1
        if self._passed[kind] > self._lines_per_second:
            self._swallowed[kind] += 1
            return False
        swallowed = self._swallowed.pop(kind, 0)
        if swallowed and str(record.msg) == kind:
            record.msg = f"{record.getMessage()} (before this, {swallowed} such lines were left out)"
            record.args = None
        return True


def log_to(handler: logging.Handler) -> None:
    """Make this the one place where the log goes; a ring of events stays beside it."""
    handler.addFilter(LogLimit())
    for old in log.handlers[:]:
        if not isinstance(old, EventRing):
            log.removeHandler(old)
            old.close()
    log.addHandler(handler)


def log_to_stderr(verbose: int = 0) -> None:
    """Log to stderr: warnings, with ``verbose`` 1 events too, with 2 everything."""
    log_to(StderrHandler())
    log.setLevel((logging.WARNING, logging.INFO, logging.DEBUG)[min(verbose, 2)])


# ── the child ─────────────────────────────────────────────────────────────────────────────────────────────────────


class Ready:
    """How a mount says that it is live, or that it will not be.  Without a pipe it says so on stderr."""

    def __init__(self, descriptor: int | None = None) -> None:
        self.is_daemon = descriptor is not None
        self._descriptor = descriptor

    @classmethod
    def from_environment(cls) -> Ready:
        """The pipe that a parent has left for us, if any; no process that we start will see it."""
        text = os.environ.pop(READY_VARIABLE, "")
        if not text.isdigit():
            return cls()
        os.set_inheritable(int(text), False)
        return cls(int(text))

    def ok(self, hint: str | None = None) -> None:
        """The mount is live; ``hint`` is something that its user should know."""
        if not self.is_daemon:
            if hint:
                log.warning("%s", one_line(hint))
            return
        self._say(f"ok {hint or ''}")
        log_to(SyslogHandler())
        log.setLevel(min(log.level, logging.INFO))
        os.chdir("/")
        null = os.open(os.devnull, os.O_RDWR)
        for descriptor in (1, 2):
            os.dup2(null, descriptor)
        os.close(null)

    def fail(self, message: str, code: int = 1) -> None:
        """The mount will not be live, or is no more."""
        if self._descriptor is None:  # there is no parent, or it has left
            log.error("%s", one_line(message))
        else:
            self._say(f"error {code} {message}")

    def _say(self, line: str) -> None:
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            with contextlib.suppress(BrokenPipeError):  # a parent that was killed needs no answer
                os.write(descriptor, one_line(line).encode(errors="replace") + b"\n")
            os.close(descriptor)


# ── the parent ────────────────────────────────────────────────────────────────────────────────────────────────────


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def run_in_background(arguments: Sequence[str]) -> int:
    """Start ``aoefs ARGUMENTS --foreground`` in a session of its own; wait until it is ready; its exit code."""
    child, code = start_in_background(arguments)
    if not code:
        child.returncode = 0  # it lives on: Popen must not warn that nobody waits for it
    return code


def start_in_background(arguments: Sequence[str]) -> tuple[subprocess.Popen[bytes], int]:
    """The same, for a caller that stays: the child, and 0 or with what exit code it has failed."""
    numbers = [number for number in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(number) == signal.SIG_DFL]
    old_handlers = {number: signal.signal(number, _interrupt) for number in numbers}
    read_end, write_end = os.pipe()
    try:
        with open(read_end, "rb") as pipe:
            try:
                child = _start(arguments, write_end)
            finally:
                os.close(write_end)
            try:
                return child, _relay(child, pipe)
            except BaseException:
                _stop(child)
                raise
    finally:
        for number, handler in old_handlers.items():
            signal.signal(number, handler)


def _start(arguments: Sequence[str], write_end: int) -> subprocess.Popen[bytes]:
    # -P keeps the current directory, which may be anybody's, out of the import path, unless aoefs itself came from it.
    root = str(Path(__file__).resolve().parents[2])
    isolation = [] if sys.path[0] == root else ["-P"]
    return subprocess.Popen(
        [sys.executable, *isolation, "-m", "aoefs", "--foreground", *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        pass_fds=(write_end,),
        env={**os.environ, READY_VARIABLE: str(write_end)},
        start_new_session=True,
    )


def _relay(child: subprocess.Popen[bytes], pipe: IO[bytes]) -> int:
    word, _, rest = pipe.readline().decode(errors="replace").rstrip("\n").partition(" ")
    if word == "ok":
        if rest:
            print(f"aoefs: {rest}", file=sys.stderr)
        return 0
    code = _wait(child)
    if word == "error":
        number, _, message = rest.partition(" ")
        print(f"aoefs: {message}", file=sys.stderr)
        return int(number) if number.isdigit() else 1
    how = f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"
    print(f"aoefs: the mount process {how} before the mount was live: try -f -v", file=sys.stderr)
    return 1


def _wait(child: subprocess.Popen[bytes]) -> int:
    """The exit code of a child that has to end now."""
    try:
        return child.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        child.kill()
        return child.wait()


def _stop(child: subprocess.Popen[bytes]) -> None:
    """End a child that nobody wants any more, with the mount that it may have made."""
    child.terminate()
    _wait(child)
