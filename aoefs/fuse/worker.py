"""A worker: a process that serves one share of the targets for a mount (``fuse.workers`` starts it).

It is a mount like any other, of a directory that only root may enter.  Its stdin gives it its options, then a byte when
the main process stops, and another one when that must be at once.  The end of stdin says that the main process is gone.
``ok`` on its pipe says that it is ready.
"""

from __future__ import annotations

import contextlib
import os
import pickle
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
    ready_pipe = int(os.environ.pop(READY_VARIABLE))
    os.set_inheritable(ready_pipe, False)
    options, part, is_daemon = pickle.load(sys.stdin.buffer)  # noqa: S301 (our parent wrote it)
    assert isinstance(options, MountOptions)  # noqa: S101 (for mypy)
    assert isinstance(part, Part)  # noqa: S101 (for mypy)
    style.level, style.json = options.log_level, options.log_format == "json"
    log_to_stderr(max(options.verbose, int(not is_daemon)))
    ready = WorkerReady(ready_pipe, is_daemon=is_daemon)
    ready.log_file = options.log_file
    if options.log_file is not None and not is_daemon:
        log_to_file(options.log_file)
    try:
        code = run(options, ready, part=part)
        binds.empty(options.mountpoint)
        with contextlib.suppress(OSError):  # it is not the last one
            os.rmdir(os.path.dirname(options.mountpoint))
        sys.exit(code)
    except Exception as error:
        log.error("worker %d: unexpected %s: %s", part.share.number, type(error).__name__, error, exc_info=True)
        sys.exit(1)
