"""``aoefs MOUNTPOINT``: check what can be checked cheaply, then mount, in the background or in this process.

The checks run in the parent, so that most mistakes are reported before anything heavy is imported, and again in the
child, which is the same command in the foreground.
"""

from __future__ import annotations

import argparse
import errno
import importlib.util
import json
import os
import subprocess
from functools import partial

from aoefs.cli.options import given_names, is_remount, mount_options, pip
from aoefs.errors import UserError
from aoefs.fuse.options import LIVE, MountOptions
from aoefs.host import interfaces, mountpoint, service
from aoefs.host.background import Ready, start_in_background
from aoefs.host.mountreader import MountReader
from aoefs.host.systemlog import check_log_file, log, log_to_file, log_to_stderr, style
from aoefs.status.text import to_stderr

OPTIONS_FILE = ".aoefs/options"


def run(arguments: argparse.Namespace) -> int:
    """Mount; the exit code."""
    ready = Ready.from_environment()
    try:
        options = mount_options(arguments)
        style.level, style.json = options.log_level, options.log_format == "json"
        in_foreground = options.foreground and not ready.is_daemon
        log_to_stderr(max(options.verbose, int(in_foreground)))
        if is_remount(arguments):
            return _remount(options, given_names(arguments))
        _check(options)
        if arguments.check:
            return 0
        if not ready.is_daemon and (options.console or not options.foreground):
            return _mount_in_background(options, arguments.argv)
        from aoefs.fuse import mount

        ready.log_file = options.log_file
        if options.log_file is not None:
            log_to_file(options.log_file, beside=ready.is_daemon)
        return mount.run(options, ready, partial(mount_options, arguments))
    except UserError as error:
        if not ready.is_daemon:
            raise
        ready.fail(str(error), error.exit_code)
        return error.exit_code
    except Exception as error:
        if not ready.is_daemon:
            raise
        ready.fail(f"unexpected {type(error).__name__}: {error} (-f -v says where)")
        log.info("where it happened:", exc_info=True)  # on stderr with -v, in the system log always
        return 1


def _remount(options: MountOptions, given: set[str]) -> int:
    """Change options of a live mount: of those that were ``given`` the ones that differ."""
    found = mountpoint.require_mount(options.mountpoint)
    try:
        with MountReader(found.path) as reader:
            now = json.loads(reader.ask(OPTIONS_FILE))
        wanted = json.loads(json.dumps({name: getattr(options, name) for name in given & now.keys()}, default=str))
        differs = {name: value for name, value in wanted.items() if value != now[name]}
        if stuck := ", ".join(sorted(set(differs) - set(LIVE))).replace("_", "-"):
            raise UserError(f"{stuck} cannot be changed while {found.path} is mounted: 'aoefs umount' first")
        with mountpoint.opened(f"{found.path}/{OPTIONS_FILE}", os.O_WRONLY) as file:
            os.write(file, json.dumps(differs).encode())
    except OSError as error:
        what = "these options are not allowed" if error.errno == errno.EINVAL else error.strerror
        raise UserError(f"{found.path} cannot be remounted: {what}: see 'aoefs events'") from None
    return 0


def _check(options: MountOptions) -> None:
    mountpoint.check(options.mountpoint)
    mountpoint.require_fuse(allow_other=options.allow_other)
    interfaces.speakable(options.interfaces)
    if options.log_file is not None:
        check_log_file(options.log_file)
    if options.pid_file is not None:
        with service.PidFile(options.pid_file):
            pass
    if options.metrics is not None and importlib.util.find_spec("prometheus_client") is None:
        what = f"{pip('install aoefs[metrics]')}, or leave metrics out"
        raise UserError(f"--metrics needs the Python package prometheus_client: {what}")


def _mount_in_background(options: MountOptions, argv: list[str]) -> int:
    """Mount in a child process; with ``--console`` show that here until one of them ends.  The exit code.

    In a process of its own the mount goes on while the terminal is stuck (Ctrl-S, Ctrl-Z, a hung ssh).
    """
    from aoefs.cli.commands import status

    if options.console and not status.is_screen():
        raise UserError("--console needs a terminal: -f logs to stderr instead", exit_code=2)
    try:
        child, code = start_in_background(argv)
    except KeyboardInterrupt:
        mountpoint.clear_dead(options.mountpoint)  # the child may have been killed
        raise
    if code:
        return code
    if not options.console:
        child.returncode = 0  # it goes on running: Popen must not warn that its exit code was not read
        return 0
    ended = ""
    try:
        status.watch(options.mountpoint, ends_mount=True)
    except UserError as error:  # it was unmounted or killed
        ended = str(error)
    finally:
        code = _end(child, terminate=not ended)
    if ended:
        to_stderr(ended)
    return code if code >= 0 else 1


def _end(child: subprocess.Popen[bytes], *, terminate: bool) -> int:
    """The exit code of the mount process once it ended, with ``terminate`` by SIGTERM; Ctrl-C sends another one."""
    if terminate:
        child.terminate()
    while True:
        try:
            try:
                return child.wait(1.0)
            except subprocess.TimeoutExpired:
                to_stderr("serving files that are open, for some seconds; Ctrl-C ends this at once")
                return child.wait()
        except KeyboardInterrupt:
            child.terminate()
