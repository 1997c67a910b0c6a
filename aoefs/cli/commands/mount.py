"""``aoefs MOUNTPOINT``: check everything that can be checked cheaply, then mount, in the background or here.

The checks run in the parent, so that most mistakes are answered before anything heavy is imported, and again in the
child, which is this same command in the foreground.
"""

from __future__ import annotations

import argparse
import importlib.util
import subprocess

from aoefs.cli.options import mount_options
from aoefs.errors import UserError
from aoefs.fuse.options import MountOptions
from aoefs.host import interfaces, mountpoint
from aoefs.host.background import Ready, run_in_background, start_in_background
from aoefs.host.systemlog import log, log_to_stderr
from aoefs.status.text import to_stderr


def run(arguments: argparse.Namespace) -> int:
    """Mount; the exit code."""
    ready = Ready.from_environment()
    try:
        options = mount_options(arguments)
        log_to_stderr(options.verbose)
        _check(options)
        if arguments.check:
            return 0
        if options.console and not ready.is_daemon:
            return _mount_with_console(options, arguments.argv)
        if not (options.foreground or ready.is_daemon):
            return _mount_in_background(options, arguments.argv)
        from aoefs.fuse import mount

        return mount.run(options, ready)
    except UserError as error:
        if not ready.is_daemon:
            raise
        ready.fail(str(error), error.exit_code)
        return error.exit_code
    except Exception as error:
        if not ready.is_daemon:
            raise
        ready.fail(f"unexpected {type(error).__name__}: {error} (-f -v says where)")
        log.info("where it happened:", exc_info=True)  # on stderr with -v only, in the system log always
        return 1


def _check(options: MountOptions) -> None:
    mountpoint.check(options.mountpoint)
    mountpoint.require_fuse(allow_other=options.allow_other)
    interfaces.require_packet_socket()
    interfaces.choose(options.interfaces)
    if options.metrics is not None and importlib.util.find_spec("prometheus_client") is None:
        raise UserError("--metrics needs the Python package prometheus_client: pip install 'aoefs[metrics]'")


def _mount_in_background(options: MountOptions, argv: list[str]) -> int:
    try:
        return run_in_background(argv)
    except KeyboardInterrupt:
        mountpoint.clear_dead(options.mountpoint)  # of a child that had to be killed
        raise


def _mount_with_console(options: MountOptions, argv: list[str]) -> int:
    """The mount as a child of the console, which it serves as any other reader; the mount's exit code.

    They end together, but nothing that the terminal does (Ctrl-S, Ctrl-Z, a hung ssh) can stop a disk.
    """
    from aoefs.cli.commands import status

    if not status.is_screen():
        raise UserError("--console needs a terminal: -f logs to stderr instead", exit_code=2)
    try:
        child, code = start_in_background(argv)
    except KeyboardInterrupt:
        mountpoint.clear_dead(options.mountpoint)
        raise
    if code:
        return code
    gone = None
    try:
        status.watch(options.mountpoint, ends_mount=True)
    except UserError as error:  # it was unmounted or killed
        gone = error
    finally:
        code = _end(child, asked=gone is None)
    if gone is not None:
        to_stderr(str(gone))
    return code if code >= 0 else 1


def _end(child: subprocess.Popen[bytes], *, asked: bool) -> int:
    """Let the mount process end, as SIGTERM does if it was not ending anyway; a Ctrl-C is its second signal."""
    if asked:
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
