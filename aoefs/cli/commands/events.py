"""``aoefs events``: the lines of ``.aoefs/events``, a ring of the last events of a mount.

The file ends at once, since a process that waits inside a FUSE file cannot be killed.  So ``-f`` polls it, and compares
its lines with those of the last time.  A child process reads it (``host.mountreader``), since the mount may not answer.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from datetime import datetime
from functools import partial
from typing import Any

from aoefs.cli.options import add_mountpoint_argument
from aoefs.errors import UserError
from aoefs.host import mountpoint
from aoefs.host.mountreader import MountReader
from aoefs.status.text import to_stderr, to_stdout

EVENTS_FILE = ".aoefs/events"

_POLL_SECONDS = 0.5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_mountpoint_argument(parser)
    what = "go on with what happens, until Ctrl-C or the mount goes"
    parser.add_argument("-f", "--follow", action="store_true", help=what)


def run(arguments: argparse.Namespace) -> int:
    path = mountpoint.require_mount(arguments.mountpoint).path
    on_silence = partial(mountpoint.say_silent, path) if arguments.follow else None
    lines: list[str] = []
    try:
        with MountReader(path) as reader:
            while True:
                try:
                    text = reader.ask(EVENTS_FILE, on_silence).decode(errors="replace")
                except OSError as error:
                    if mountpoint.find_mount(path) is None and arguments.follow:
                        to_stderr(f"{path} is not mounted any more")
                        return 0
                    raise UserError(f"{path} does not report its events: {error.strerror}") from None
                before, lines = lines, text.splitlines()
                for line in news(before, lines):
                    to_stdout(line)
                if not arguments.follow:
                    return 0
                time.sleep(_POLL_SECONDS)
    except KeyboardInterrupt:
        if not arguments.follow:
            raise
        return 0


def parsed(line: str) -> dict[str, Any]:
    """A line of the file as an event of status.json."""
    when, level, text = line.split(" ", 2)
    return {"time": datetime.fromisoformat(when).timestamp(), "level": level, "text": text}


def news(before: Sequence[str], now: Sequence[str]) -> Sequence[str]:
    """The new lines of a ring: those after the longest end of ``before`` with which ``now`` begins."""
    for first in range(len(before) + 1):
        kept = before[first:]
        if now[: len(kept)] == kept:
            return now[len(kept) :]
    return now
