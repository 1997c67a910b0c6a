"""Processes of a test: started, watched, waited for."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path


def wait_until(predicate: Callable[[], object], timeout: float = 30.0, what: str = "") -> None:
    """Poll a process or a file until ``predicate()`` is true; AssertionError after ``timeout`` seconds."""
    deadline = time.monotonic() + timeout
    while not predicate():
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout} s: {what or getattr(predicate, '__name__', predicate)}")
        time.sleep(0.005)


def is_gone(pid: int) -> bool:
    """Whether a process has ended.  A zombie has: its parent may be slow to reap it, and not every PID 1 reaps."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


class Process(subprocess.Popen[bytes]):
    """A program that runs in a lab.  Its stdout and stderr go to the file ``log``."""

    def __init__(self, arguments: Sequence[str], log: Path) -> None:
        self.log = log
        with log.open("wb") as output:
            # A session of its own: Ctrl-C reaches the test alone, which then ends everything in its order.
            super().__init__(
                arguments, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
            )

    @property
    def output(self) -> str:
        """What it has written so far."""
        return self.log.read_text(errors="replace")

    def stop(self, number: signal.Signals = signal.SIGTERM, timeout: float = 10.0) -> int:
        """Signal it (also when it is stopped) and wait; killed after ``timeout`` seconds.  The exit code."""
        if self.poll() is None:
            self.send_signal(number)
            self.send_signal(signal.SIGCONT)
            try:
                self.wait(timeout)
            except subprocess.TimeoutExpired:
                self.kill()
        return self.wait()
