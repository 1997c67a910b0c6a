"""``aoefs status``: the state of a live mount, read from its status file.

Owns the live screen: one loop that waits for keys, signals and statuses, and draws when one of them came.  A thread
waits for the statuses that a child process reads (``host.mountreader``), since a mount in trouble may not answer for
long; meanwhile the screen shows what is known, and keys work.

What always holds: reading takes at most a hundredth of the time (the more targets, the rarer, down to once in ten
seconds).  The file is open only while it is read, so that it does not keep the mount busy.  The terminal is restored,
however the loop ends.

Rejected: drawing in the mount process for ``--console``.  A terminal that takes no output (Ctrl-S, a hung ssh) or a
suspended console (Ctrl-Z) would stop every disk.
"""

from __future__ import annotations

import argparse
import errno
import json
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any

from aoefs.cli.commands.events import EVENTS_FILE, parsed
from aoefs.cli.options import seconds
from aoefs.errors import UserError
from aoefs.host import mountpoint
from aoefs.host.mountreader import MountReader
from aoefs.status.health import Health, health
from aoefs.status.tables import print_table
from aoefs.status.text import to_stdout

INTERVAL = 1.0  # seconds from status to status
MAX_INTERVAL = 10.0  # seconds, also if reading takes long
COST_SHARE = 0.01  # of the time is spent on reading, at most
PATIENCE = 3.0  # seconds without an answer of the mount; then the screen says so


def add_arguments(parser: argparse.ArgumentParser) -> None:
    what = "which mount (default: a line for each mount of this host, or with an option the only one)"
    parser.add_argument("mountpoint", nargs="?", metavar="MOUNTPOINT", help=what)
    how = parser.add_mutually_exclusive_group()
    what = "print one line, for monitoring and scripts; exit code 0: all is up, 1: a path is degraded or a target "
    how.add_argument("--check", action="store_true", help=what + "stalled, 2: a target is down or nothing is mounted")
    what = "print what happened to each target and path every N seconds"
    how.add_argument("--interval", type=_interval, metavar="N", help=what)
    how.add_argument("--json", action="store_true", help="print everything as one JSON object")
    how.add_argument("--once", action="store_true", help="print one snapshot and end (default without a terminal)")
    how.add_argument("--watch", type=_interval, metavar="N", help="print a line of JSON every N seconds")


def _interval(text: str) -> float:
    value = seconds(text)
    if value < 0.1:
        raise argparse.ArgumentTypeError(f"'{text}' is less than 0.1 seconds")
    return value


def run(arguments: argparse.Namespace) -> int:
    if arguments.check:
        return _check(arguments.mountpoint)
    plain = not (arguments.json or arguments.once or arguments.watch or arguments.interval)
    if arguments.mountpoint is None and plain:
        _print_all()
        return 0
    path = mountpoint.require_mount(arguments.mountpoint).path
    if arguments.json:
        print(json.dumps(_read(path), indent=2))
    elif arguments.watch is not None:
        _follow(path, arguments.watch, lambda status: print(json.dumps(status), flush=True))
    elif arguments.interval is not None:
        _print_intervals(path, arguments.interval)
    elif arguments.once or not is_screen():
        _print_once(_read(path))
    else:
        watch(path)
    return 0


def _read(path: str) -> dict[str, Any]:
    try:
        return mountpoint.read_status(path)
    except OSError as error:
        raise UserError(_why(path, error)) from None


def _why(path: str, error: OSError) -> str:
    mount = mountpoint.find_mount(path)
    if mount is None:
        return f"{path} is not mounted any more"
    why = error.strerror
    if error.errno == errno.EACCES and mount.owner != os.geteuid():
        why = f"it was mounted by {mount.user}: 'sudo aoefs status {path}'"
    elif error.errno in (errno.ENOTCONN, errno.ECONNABORTED):
        why = "its daemon is dead: 'aoefs umount' removes it"
    elif isinstance(error, TimeoutError):
        why = f"{why}: see 'aoefs doctor'"
    return f"{path} does not report its status: {why}"


def _look(mount: mountpoint.Mount) -> tuple[Health, str]:
    """How well a mount is.  That of another user may say anything, so it is not asked."""
    if not mount.is_trusted:
        return Health.OK, f"mounted by {mount.user}, so it was not asked"
    try:
        return health(mountpoint.read_status(mount.path))
    except OSError as error:
        return Health.CRITICAL, _why(mount.path, error).removeprefix(f"{mount.path} ")


def _look_at_all(mounts: Sequence[mountpoint.Mount]) -> list[tuple[mountpoint.Mount, Health, str]]:
    with ThreadPoolExecutor(max(1, len(mounts))) as pool:  # one that is silent takes seconds, all of them no longer
        return [(mount, *look) for mount, look in zip(mounts, pool.map(_look, mounts), strict=True)]


def _print_all() -> None:
    mounts = mountpoint.aoefs_mounts()
    if not mounts:
        raise UserError("aoefs has nothing mounted here")
    words = {Health.OK: "ok", Health.WARNING: "degraded", Health.CRITICAL: "down"}
    rows = [[mount.path, words[state], mount.source, text] for mount, state, text in _look_at_all(mounts)]
    print_table(("mount", "state", "source", "targets"), rows)


def _check(path: str | None) -> int:
    """The line and the exit code of ``--check``, as Nagios has them."""
    try:
        mounts = mountpoint.aoefs_mounts() if path is None else [mountpoint.require_mount(path)]
        looks = [(state, f"{mount.path}: {text}") for mount, state, text in _look_at_all(mounts)]
    except UserError as error:
        looks = [(Health.CRITICAL, str(error))]
    looks = sorted(looks, key=lambda look: -look[0]) or [(Health.CRITICAL, "nothing is mounted")]
    to_stdout(f"AOEFS {looks[0][0].name} - {'; '.join(text for _, text in looks)}")
    return looks[0][0]


def _print_intervals(path: str, interval: float) -> None:
    """A table per interval, of fixed columns, so that figures stay below each other."""
    from rich.console import Console

    from aoefs.status.columns import Lane, intervals, lanes
    from aoefs.status.history import History
    from aoefs.status.layout import Section

    history = History()
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 120)

    def show(status: Mapping[str, Any]) -> None:
        is_first = not history.status
        history.add(status, time.monotonic())
        rows = [lane for target in history.targets.values() for lane in (Lane(target), *lanes(history, target))]
        if not is_first:
            section = Section(intervals(), rows, least=0, rank=0, none="no target answers yet", size=len(rows) or 1)
            for line in section.lines(console.width, {}):
                console.print(line) if sys.stdout.isatty() else print(line.plain.rstrip())
            print(flush=True)

    _follow(path, interval, show)


def _follow(path: str, interval: float, show: Callable[[Mapping[str, Any]], object]) -> None:
    """Show each status, at multiples of the interval; UserError when the mount ends."""
    on_silence = partial(mountpoint.say_silent, path)
    began = time.monotonic()
    with MountReader(path) as reader:
        while True:
            try:
                status = mountpoint.parse_status(reader.ask(mountpoint.STATUS_FILE, on_silence))
            except OSError as error:
                raise UserError(_why(path, error)) from None
            show(status)
            past = time.monotonic() - began
            time.sleep(interval - past % interval)


def _print_once(status: Mapping[str, Any]) -> None:
    from aoefs.status.console import View, draw, plain
    from aoefs.status.history import History

    history = History()
    history.add(status, 0.0)
    if is_screen():
        from rich.console import Console

        console = Console()
        console.print(draw(history, View(), console.width))
        return
    for number, (titles, rows) in enumerate(plain(history)):
        if number:
            print()
        print_table(titles, rows)


def is_screen() -> bool:
    """Whether stdin and stdout are a terminal on which a screen can be drawn."""
    return sys.stdout.isatty() and sys.stdin.isatty() and os.environ.get("TERM", "dumb") != "dumb"


# A status, when it was taken (monotonic seconds), and how many seconds that took.
_Reading = tuple[dict[str, Any], float, float]


class _Reader:
    """Reads the status file on request.  Its thread waits as long as the mount does not answer, or for the end of the
    ``source``.
    """

    def __init__(self, source: MountReader, wake: Callable[[], None]) -> None:
        self._source = source
        self._wake = wake
        self._thread = ThreadPoolExecutor(1)
        self._reading: Future[_Reading] | None = None
        self._costs: deque[float] = deque(maxlen=5)
        self._asked_at = self._next = 0.0
        self.with_all_events = False  # not only the last ones, which the status file has

    def ask(self, now: float) -> float:
        """Ask for a status if it is time to; seconds until something may have to be done."""
        if self._reading is None and now >= self._next:
            self._asked_at = now
            self._reading = self._thread.submit(self._read)
            self._reading.add_done_callback(lambda _: self._wake())
        return self._next - now if self._reading is None else INTERVAL

    def take(self) -> _Reading | None:
        """The answer, if it has come; OSError when there is none."""
        if self._reading is None or not self._reading.done():
            return None
        reading, self._reading = self._reading.result(), None
        self._costs.append(reading[2])  # the least counts: the others waited for something else
        self._next = self._asked_at + min(MAX_INTERVAL, max(INTERVAL, min(self._costs) / COST_SHARE))
        return reading

    def notice(self, now: float) -> str:
        """A line about a mount that does not answer, or nothing."""
        waited = 0.0 if self._reading is None else now - self._asked_at
        return f"the mount has not answered for {waited:.0f} s" if waited >= PATIENCE else ""

    def _read(self) -> _Reading:
        began = time.monotonic()
        text = self._source.ask(mountpoint.STATUS_FILE, lambda: None)
        taken_at = time.monotonic()
        status = mountpoint.parse_status(text)
        if self.with_all_events:
            lines = self._source.ask(EVENTS_FILE, lambda: None).decode(errors="replace").splitlines()
            status["events"] = [parsed(line) for line in lines]
        return status, taken_at, taken_at - began


def watch(path: str, *, ends_mount: bool = False) -> None:
    """Show the mount at this path until a key or a signal ends that; UserError when the mount ends.

    ``ends_mount``: the screen says that quitting ends the mount.
    """
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    from aoefs.status.console import View, draw
    from aoefs.status.history import History
    from aoefs.status.terminal import QUIT, SUSPEND, Terminal

    sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]  # bars are not in every character set
    console, history, view = Console(), History(), View(ends_mount=ends_mount)
    screen = Live(
        Text(""), console=console, screen=True, auto_refresh=False, redirect_stdout=False, redirect_stderr=False
    )
    with Terminal() as terminal, MountReader(path) as source, screen:
        reader = _Reader(source, terminal.wake)
        while True:
            words = terminal.wait(reader.ask(time.monotonic()))
            if not {QUIT, "q", "Q"}.isdisjoint(words):
                return
            if SUSPEND in words:
                screen.stop()
                terminal.suspend()
                screen.start()
            for word in words:
                view.press(word)
            reader.with_all_events = view.alone
            try:
                reading = reader.take()
            except OSError as error:
                raise UserError(_why(path, error)) from None
            if reading is not None:
                status, taken_at, _ = reading
                if history.status and history.status["pid"] != status["pid"]:
                    raise UserError(f"{path} is not mounted any more: another mount is there now")
                if not view.paused:
                    history.add(status, taken_at)
            notice = reader.notice(time.monotonic())
            if words or reading or notice:
                screen.update(draw(history, view, *console.size, notice=notice), refresh=True)
