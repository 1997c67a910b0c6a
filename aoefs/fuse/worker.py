"""A worker: a process that serves one share of the targets for a mount (``fuse.workers`` starts it).

It is a mount like any other, of a directory that only root may enter, its first argument.  Its stdin gives it its
options, then a byte when the main process stops, and another one when that must be at once.  The end of stdin says that
the main process is gone.  ``ok`` on its pipe says that it is ready.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import sys

from aoefs.fuse.mount import run
from aoefs.fuse.options import MountOptions, Part
from aoefs.host import binds
from aoefs.host.background import READY_VARIABLE, Ready
from aoefs.host.systemlog import log, log_to_file, log_to_stderr, style


class WorkerReady(Ready):
    """Reports on the pipe; ``is_daemon`` as the main process is."""

    def __init__(self, descriptor: int, *, is_daemon: bool) -> None:
        super().__init__(descriptor if is_daemon else None)
        self._pipe = descriptor

    def ok(self, hint: str | None = None) -> None:
        if self.is_daemon:
            super().ok()
        else:
            os.write(self._pipe, b"ok\n")


def main() -> None:
    """The process, from its options on stdin to its exit code."""
    directory = sys.argv[1]
    for number in (signal.SIGINT, signal.SIGTERM):  # sent to all processes, one may come when this one lets go of them
        signal.signal(number, signal.SIG_IGN)
    try:
        options, part, is_daemon = pickle.load(sys.stdin.buffer)  # noqa: S301 (our parent wrote it)
        sys.exit(_run(options, part, is_daemon=is_daemon))
    except EOFError:  # it is gone already
        sys.exit(1)
    except Exception as error:
        log.error("a worker ends: %s: %s", type(error).__name__, error, exc_info=True)
        sys.exit(1)
    finally:
        binds.empty(directory)
        with contextlib.suppress(OSError):  # it is not the last one
            os.rmdir(os.path.dirname(directory))


def _run(options: MountOptions, part: Part, *, is_daemon: bool) -> int:
    pipe = int(os.environ.pop(READY_VARIABLE))
    os.set_inheritable(pipe, False)
    style.level, style.json = options.log_level, options.log_format == "json"
    log_to_stderr(max(options.verbose, int(not is_daemon)))
    ready = WorkerReady(pipe, is_daemon=is_daemon)
    ready.log_file = options.log_file
    if options.log_file is not None and not is_daemon:
        log_to_file(options.log_file)
    return run(options, ready, part=part)
