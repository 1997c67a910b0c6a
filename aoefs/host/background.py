"""Going into the background: the parent waits until the mount of its child is live, and says how that went.

Owns the protocol of the ready pipe.  The parent starts the same command again with ``--foreground``, in a new session
and with one end of a pipe, whose number is in an environment variable.  The child writes exactly one line there:
``ok HINT`` when the mount is live, or ``error CODE MESSAGE``.  The parent prints the text and exits with the code.

What always holds: the parent ends when the child has written or ended, never before.  It leaves no child behind that
failed or that was interrupted by Ctrl-C.  The log of the child goes to the stderr of the command until the child is
ready, afterwards to the system log (``host.systemlog``), or from the beginning to a file.

Rejected: forking (the child would inherit half a process: threads, locks and sockets of libraries), and a double fork
without a pipe (the caller would learn nothing of a failure).
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import IO

from aoefs.host.systemlog import SyslogHandler, log, log_to, log_to_file
from aoefs.status.text import one_line, to_stderr

READY_VARIABLE = "AOEFS_READY_FD"
STOP_SECONDS = 3.0  # for a child to unmount and end after it was interrupted


class Ready:
    """How a mount reports that it is live, or that it failed: on the pipe of its parent, or without one in the log."""

    def __init__(self, descriptor: int | None = None) -> None:
        self.is_daemon = descriptor is not None
        self.log_file: str | None = None
        self._descriptor = descriptor

    @classmethod
    def from_environment(cls) -> Ready:
        """With the pipe that the parent opened for us, if there is one.  Processes that we start do not inherit it."""
        text = os.environ.pop(READY_VARIABLE, "")
        if not text.isdigit():
            return cls()
        os.set_inheritable(int(text), False)
        return cls(int(text))

    def ok(self, hint: str | None = None) -> None:
        """Report that the mount is live.  ``hint`` is something that its user should know.

        With a parent, this process is a daemon from now on: the log goes to its file or to the system log, and stderr
        nowhere.
        """
        if not self.is_daemon:
            if hint:
                log.warning("%s", one_line(hint))
            return
        self._say(f"ok {hint or ''}")
        if self.log_file is None:
            log_to(SyslogHandler())
        else:
            log_to_file(self.log_file)
        log.setLevel(min(log.level, logging.INFO))
        os.chdir("/")
        null = os.open(os.devnull, os.O_RDWR)
        for descriptor in (1, 2):
            os.dup2(null, descriptor)
        os.close(null)

    def fail(self, message: str, code: int = 1) -> None:
        """Report that the mount failed, before or after it was live."""
        if self._descriptor is None:  # there is no parent, or it has its answer
            log.error("%s", one_line(message))
        else:
            self._say(f"error {code} {message}")

    def _say(self, line: str) -> None:
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            with contextlib.suppress(BrokenPipeError):  # the parent was killed
                os.write(descriptor, one_line(line).encode(errors="replace") + b"\n")
            os.close(descriptor)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def start_in_background(arguments: Sequence[str]) -> tuple[subprocess.Popen[bytes], int]:
    """Start ``aoefs ARGUMENTS --foreground`` in a new session and wait until it is ready.

    The child, and its exit code if it failed, else 0.
    """
    with contextlib.ExitStack() as undo:
        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) == signal.SIG_DFL:
                undo.callback(signal.signal, number, signal.signal(number, _interrupt))
        read_end, write_end = os.pipe()
        pipe = undo.enter_context(open(read_end, "rb"))
        try:
            child = _start(arguments, write_end)
        finally:
            os.close(write_end)
        try:
            return child, _relay(child, pipe)
        except BaseException:
            _stop(child)
            raise


def own_command() -> list[str]:
    """The command line that starts this very program, whatever else is installed under its name."""
    # -P keeps the current directory, which may belong to anybody, out of the import path; not if aoefs came from there.
    root = str(Path(__file__).resolve().parents[2])
    isolation = [] if sys.path[0] == root else ["-P"]
    return [sys.executable, *isolation, "-m", "aoefs"]


def _start(arguments: Sequence[str], write_end: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen(  # noqa: S603 (this very program, with the words of its user)
        [*own_command(), "--foreground", *arguments],
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
            to_stderr(rest)
        return 0
    code = wait_or_kill(child)
    if word == "error":
        number, _, message = rest.partition(" ")
        to_stderr(message)
        return int(number) if number.isdigit() else 1
    how = f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"
    to_stderr(f"the mount process {how} before the mount was live: try -f -v")
    return 1


def wait_or_kill(child: subprocess.Popen[bytes], seconds: float = STOP_SECONDS) -> int:
    """The exit code of a child that is ending; it is killed when that takes too long."""
    try:
        return child.wait(seconds)
    except subprocess.TimeoutExpired:
        child.kill()
        return child.wait()


def _stop(child: subprocess.Popen[bytes]) -> None:
    """End the child of an interrupted command; it takes its mount away."""
    child.terminate()
    wait_or_kill(child)
