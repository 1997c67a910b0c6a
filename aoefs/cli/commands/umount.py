"""``aoefs umount``: flush every target, unmount, and wait until the mount process has ended.

What always holds: a busy mount stays as it is, and the error names what keeps it busy.  The mount of another user is
unmounted (by root), but not asked anything: it may lie, or never answer.  A target that cannot be flushed is reported,
with exit code 1.  For that this command flushes the files itself before it unmounts, since it cannot read the exit code
of a process that is not its child.  What it waits for it says on stderr; ``--lazy`` works although the mount process
does not answer.

Rejected: asking the mount process to unmount (a process that hangs could not be unmounted), and polling /proc until its
pid is gone (a pid may be used again; a pidfd is not).
"""

from __future__ import annotations

import argparse
import errno
import os
import select
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any

from aoefs.errors import UserError
from aoefs.host import mountpoint
from aoefs.host.mountreader import Liveness
from aoefs.status.text import to_stderr

PATIENCE_SECONDS = 5.0  # of waiting for the mount process; then a line says so

_BUSY_SECONDS = 1.0  # a mount may be busy so long without a holder: a loop device that is just being freed
_FLUSH_PATIENCE_SECONDS = 2.0  # of waiting for flushes; then a line names the targets


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("mountpoint", metavar="MOUNTPOINT")
    what = "detach at once, also when busy, as umount -l: flushed when last closed"
    parser.add_argument("--lazy", action="store_true", help=what)


def run(arguments: argparse.Namespace) -> int:
    path = arguments.mountpoint
    mount = mountpoint.require_mount(path)
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
        failures = _flush(mount, status)
        _unmount(mount)
        _wait(daemon, status["pid"])
    except OSError as error:
        raise UserError(f"{path} cannot be unmounted: {error.strerror}") from None
    finally:
        os.close(daemon)
    return 1 if failures else 0


def _flush(mount: mountpoint.Mount, status: Mapping[str, Any]) -> int:
    """Flush all targets at the same time; how many failed.

    A target that is up and has nothing to flush is only opened and closed: if the kernel holds pages that a memory map
    left dirty, the close writes and flushes them, else nothing is sent.  A target that is down and has nothing to flush
    is left out, since it cannot lose anything.
    """
    dirty = {target["name"]: target.get("dirty", True) for target in status["targets"]}
    names = [target["name"] for target in status["targets"] if target["state"] != "down" or dirty[target["name"]]]

    def flush(root: int, name: str) -> str | None:
        try:
            with mountpoint.opened(name, os.O_RDONLY | os.O_NOFOLLOW, root) as descriptor:
                if dirty[name]:
                    os.fsync(descriptor)
        except FileNotFoundError:
            return None  # the target is gone
        except OSError as error:
            return error.strerror
        return None

    failures = 0
    with mountpoint.opened_root(mount) as root, ThreadPoolExecutor(max_workers=max(1, len(names))) as pool:
        flushes = {name: pool.submit(flush, root, name) for name in names}
        _, late = wait(flushes.values(), _FLUSH_PATIENCE_SECONDS)
        if late:
            silent = ", ".join(name for name, one in flushes.items() if one in late)
            to_stderr(f"waiting for {silent} to flush its last writes: until it answers, or its deadsecs are over")
        for name, one in flushes.items():
            problem = one.result()
            if problem is not None:
                failures += 1
                to_stderr(f"{mount.path}/{name} could not be flushed: {problem}: its last writes may be lost")
    return failures


def _unmount(mount: mountpoint.Mount, *, lazy: bool = False) -> None:
    deadline = time.monotonic() + _BUSY_SECONDS
    while True:
        try:
            mountpoint.unmount(mount, lazy=lazy)
            return
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise UserError(f"{mount.path} cannot be unmounted: {error.strerror}") from None
        holders = mountpoint.holders(mount)
        if holders or time.monotonic() > deadline:
            names = ", ".join(holders) or "something that you may not see"
            raise UserError(f"{mount.path} is busy: used by {names}; end that, or see --lazy")
        time.sleep(0.05)


def _wait(daemon: int, pid: int) -> None:
    """Wait until the process of the pidfd has ended."""
    if not select.select([daemon], [], [], PATIENCE_SECONDS)[0]:
        to_stderr(f"waiting for the mount process (pid {pid}), which is still flushing")
        select.select([daemon], [], [])
