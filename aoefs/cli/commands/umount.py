"""``aoefs umount``: flush every target, unmount, and wait until the mount process has ended.

What always holds: a busy mount stays as it is, and the error names what keeps it busy.  The mount of another user is
unmounted (by root), but not asked anything: it may lie, or never answer.  A target that cannot be flushed is reported,
with exit code 1.  For that this command flushes the files itself before it unmounts, since it cannot read the exit code
of a process that is not its child.  Every ten seconds stderr says what it waits for; ``--timeout`` bounds each wait.
``--lazy`` works although the mount process does not answer.

A child process flushes: one that sleeps in fsync(2) of a FUSE file cannot be ended, and would keep this command.

Rejected: asking the mount process to unmount (a process that hangs could not be unmounted), and polling /proc until its
pid is gone (a pid may be used again; a pidfd is not).
"""

from __future__ import annotations

import argparse
import errno
import math
import os
import select
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

from aoefs.cli.options import add_mountpoint_argument, seconds
from aoefs.errors import UserError
from aoefs.host import binds, mountpoint
from aoefs.host.mountreader import Liveness
from aoefs.status.text import to_stderr

PATIENCE_SECONDS = 5.0  # of waiting for the mount process; then a line says so
EVERY_SECONDS = 10.0  # another line
COPY_SECONDS = 30.0  # of waiting for a process that keeps a copy of the mount

_BUSY_SECONDS = 1.0  # a mount may be busy so long without a holder: a loop device that is just being freed
_FLUSH_PATIENCE_SECONDS = 2.0  # of waiting for flushes; then a line names the targets

# Each target in a thread of its own.  A line of output: its name, and an errno or 0.
_FLUSH_PROGRAM = """
import os, sys, threading
def flush(name, dirty):
    code = 0
    try:
        descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW, dir_fd=int(sys.argv[1]))
        try:
            if dirty:
                os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except FileNotFoundError:
        pass  # the target is gone
    except OSError as error:
        code = error.errno
    os.write(1, f"{name} {code}\\n".encode())
for word in sys.argv[2:]:
    threading.Thread(target=flush, args=(word[1:], word[0] == "+")).start()
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_mountpoint_argument(parser)
    what = "detach at once, also when busy, as umount -l: flushed when last closed"
    parser.add_argument("--lazy", action="store_true", help=what)
    what = "wait no longer for targets to flush, and then for the mount process (default: as long as it takes)"
    parser.add_argument("--timeout", type=seconds, default=math.inf, metavar="SECONDS", help=what)


def run(arguments: argparse.Namespace) -> int:
    mount = mountpoint.require_mount(arguments.mountpoint)
    path = arguments.mountpoint or mount.path
    if os.geteuid() not in (0, mount.owner):
        raise UserError(f"{path} was mounted by {mount.user}: only that user and root can unmount it")
    if not mount.is_trusted:
        _unmount(mount, lazy=arguments.lazy)
        what = f"it belongs to user {mount.owner}, whose process may still be flushing"
        to_stderr(f"{path} is unmounted, but {what}")
        return 0

    def say() -> None:
        what = f"waiting for the mount process of {path}{mount.pid_note()}, which does not answer"
        to_stderr(f"{what}: 'aoefs umount --lazy {path}' detaches the mount at once")

    liveness = mount.liveness(None if arguments.lazy else say)
    if liveness is Liveness.DEAD:
        mountpoint.clear_dead(path)
        to_stderr(f"the mount process of {path} was dead already: unmounted")
        return 0
    if arguments.lazy:
        note = mount.pid_note() if liveness is Liveness.SILENT else ""
        _unmount(mount, lazy=True)
        if liveness is Liveness.SILENT:
            what = f"{path} is detached, but its mount process{note} does not answer and may have to be killed"
            to_stderr(f"{what}: then what it has not flushed is lost")
        return 0
    try:
        status = mountpoint.read_status(mount.path, say)
        daemon = mount.watch_process(status["pid"])
    except OSError as error:  # it is in a container, or died just now
        _unmount(mount)
        what = f"its mount process cannot be watched ({error.strerror})"
        to_stderr(f"{path} is unmounted, but {what}: it may still be flushing")
        return 0
    try:
        failures = _flush(mount, status, arguments.timeout)
        _unmount(mount)
        _wait(mount, daemon, status["pid"], arguments.timeout)
    except OSError as error:
        raise UserError(f"{path} cannot be unmounted: {error.strerror}") from None
    finally:
        os.close(daemon)
    return 1 if failures else 0


def _until(descriptor: int, deadline: float, patience: float, say: Callable[[], None]) -> bool:
    """Wait until it is readable; False at the ``deadline``.  ``say`` after ``patience`` and then every ten seconds."""
    said = time.monotonic() + patience
    while True:
        now = time.monotonic()
        if select.select([descriptor], [], [], max(0.0, min(said, deadline, now + EVERY_SECONDS) - now))[0]:
            return True
        if time.monotonic() >= deadline:
            return False
        if time.monotonic() >= said:
            say()
            said += EVERY_SECONDS


def _flush(mount: mountpoint.Mount, status: Mapping[str, Any], timeout: float) -> int:
    """Flush all targets at the same time; how many failed.  UserError if that takes longer than ``timeout`` seconds.

    A target that is up and has nothing to flush is only opened and closed: if the kernel holds pages that a memory map
    left dirty, the close writes and flushes them, else nothing is sent.  A target that is down and has nothing to flush
    is left out, since it cannot lose anything.
    """
    dirty = {target["name"]: target.get("dirty", True) for target in status["targets"]}
    late = [target["name"] for target in status["targets"] if target["state"] != "down" or dirty[target["name"]]]
    failures, began = 0, time.monotonic()

    def say() -> None:
        waited = f"{time.monotonic() - began:.0f} s"
        what = f"waiting for {', '.join(late)} to flush its last writes, for {waited} so far"
        to_stderr(f"{what}: until it answers, or its deadsecs are over")

    with mountpoint.opened_root(mount) as root:
        words = [f"{'+' if dirty[name] else '-'}{name}" for name in late]
        child = subprocess.Popen(  # noqa: S603 (a program of ours)
            [sys.executable, "-I", "-S", "-c", _FLUSH_PROGRAM, str(root), *words],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            pass_fds=(root,),
            cwd="/",
            start_new_session=True,
            bufsize=0,
        )
        assert child.stdout is not None  # noqa: S101 (for mypy)
        try:
            while late:
                if not _until(child.stdout.fileno(), began + timeout, _FLUSH_PATIENCE_SECONDS, say):
                    names = ", ".join(late)
                    raise UserError(f"{mount.path} stays mounted: {names} did not flush within {timeout:g} s")
                name, _, code = child.stdout.readline().decode().partition(" ")
                if not code:
                    raise OSError(errno.EIO, "the process that flushes it was killed")
                late.remove(name)
                if int(code):
                    failures += 1
                    problem = f"could not be flushed: {os.strerror(int(code))}: its last writes may be lost"
                    to_stderr(f"{mount.path}/{name} {problem}")
            child.wait()  # it keeps the mount busy
        finally:
            child.kill()
            child.returncode = 0  # it may end later: Popen must not warn of that
            child.stdout.close()
    return failures


def _unmount(mount: mountpoint.Mount, *, lazy: bool = False) -> None:
    deadline = time.monotonic() + _BUSY_SECONDS
    while True:
        try:
            binds.unmount(mount, lazy=lazy)
            return
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise UserError(f"{mount.path} cannot be unmounted: {error.strerror}") from None
        holders = mountpoint.holders(mount)
        if holders or time.monotonic() > deadline:
            names = ", ".join(holders) or "something that you may not see"
            raise UserError(f"{mount.path} is busy: used by {names}; end that, or see --lazy")
        time.sleep(0.05)


def _wait(mount: mountpoint.Mount, daemon: int, pid: int, timeout: float) -> None:
    """Wait until the process of the pidfd has ended; UserError if it does not."""
    began = time.monotonic()

    def say() -> None:
        copies = ", ".join(mountpoint.copies(mount))
        why = f"since {copies} keeps a copy of the mount in another namespace" if copies else "which is still flushing"
        to_stderr(f"waiting for the mount process (pid {pid}), {why}")

    if _until(daemon, began + min(timeout, COPY_SECONDS), PATIENCE_SECONDS, say):
        return
    copies = ", ".join(mountpoint.copies(mount))
    if copies:
        what = f"{mount.path} is unmounted and flushed, but {copies} keeps a copy of it in another namespace"
        raise UserError(f"{what}: the mount process (pid {pid}) ends when that does")
    if not _until(daemon, began + timeout, 0.0, say):
        raise UserError(f"{mount.path} is unmounted, but its process (pid {pid}) has not ended within {timeout:g} s")
