"""``aoefs``: which command runs, its exit code, and its error line.

Owns the table of commands and the exit codes: 0, 1 for a failure, 2 for wrong usage, 130 after Ctrl-C, 141 when the
reader of the output went away.  A command is a module ``cli.commands.<name>`` with ``add_arguments(parser)`` and
``run(arguments) -> int``; all have ``-v``.  Only the module of the command that runs is imported.

Under the name ``umount.aoefs`` (or ``umount.fuse.aoefs``) it is a helper of umount(8).
Under the name ``mount.aoefs`` (or ``mount.fuse.aoefs``) it is a helper of mount(8): it translates the flags of such a
helper into a command line of ours, and the exit codes into those of mount(8): 1 for wrong usage, 8 after Ctrl-C, 32 for
a failure.  There the first word is a SOURCE, also if it is named like a command.

What always holds: an error is one line on stderr that starts with ``aoefs:``; a traceback is shown with ``-v`` only.

Rejected: argparse subparsers (``aoefs MOUNTPOINT`` has no command word, and help would import all modules).
"""

from __future__ import annotations

import argparse
import errno
import importlib
import os
import sys
from collections.abc import Sequence
from typing import Any

from aoefs import __version__, is_compiled
from aoefs.cli import options
from aoefs.errors import UserError
from aoefs.status.text import to_stderr

COMMANDS = {
    "discover": "list the targets of the network without mounting",
    "umount": "flush, unmount, and wait until the mount process is gone",
    "status": "show the state of a mount, live in a terminal",
    "wait": "wait until targets are up in a mount of this host",
    "events": "list what happened to the targets of a mount",
    "target": "export files and devices as AoE targets",
    "demo": "try everything on this one machine",
    "config": "read, set or test the config string of a target",
    "doctor": "look for what can be wrong on this host, and say how to fix it",
    "identify": "show the identity data of a disk, and its SMART data",
    "mask": "list or change the hosts that a target answers",
    "path-test": "measure which frames pass between this host and its targets",
    "ping": "probe a target repeatedly, and time its answers",
    "reserve": "keep other hosts from a target",
    "install": "put unit, man pages, mount helper and shell completions in place",
}

_GUESSES = {"list": "discover", "ls": "discover", "scan": "discover", "unmount": "umount", "log": "events"}

_DESCRIPTION = """\
Show every ATA-over-Ethernet disk of the local network as a file /MOUNTPOINT/eX.Y.

commands (aoefs COMMAND --help says more):
"""


def build_parser(command: str | None) -> argparse.ArgumentParser:
    """The parser of a command; for None that of the mount."""
    if command is None:
        summaries = "\n".join(f"  {name:<10} {summary}" for name, summary in COMMANDS.items())
        parser = options.Parser(
            prog="aoefs",
            usage="aoefs [SOURCE] MOUNTPOINT [options]\n       aoefs COMMAND [options]",
            description=_DESCRIPTION + summaries,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            add_help=False,
        )
        form = "compiled" if is_compiled() else "pure Python"
        parser.add_argument("-h", "--help", action=options.ShortHelp, nargs=0, help="show this, without rare options")
        parser.add_argument("--version", action="version", version=f"aoefs {__version__} ({form})")
        options.add_arguments(parser)
        return parser
    summary = COMMANDS[command]
    parser = options.Parser(prog=f"aoefs {command}", description=f"{summary[0].upper()}{summary[1:]}.")
    _module(command).add_arguments(parser)
    options.add_verbose_argument(parser)
    return parser


def all_parsers() -> dict[str | None, argparse.ArgumentParser]:
    """Every parser by its command, that of the mount under None; ``aoefs install`` writes the manuals from them."""
    return {command: build_parser(command) for command in (None, *COMMANDS)}


def _mount_helper_argv(argv: Sequence[str]) -> list[str]:
    """The arguments of a helper (mount(8), "External helpers") as a command line of a mount."""
    parser = options.Parser(prog="mount.aoefs", description="Helper of mount(8); people write: mount -t aoefs ...")
    parser.add_argument("source", metavar="SOURCE", help="interfaces, such as eth0,eth1, or any")
    parser.add_argument("mountpoint", metavar="MOUNTPOINT")
    add = parser.add_argument
    add("-o", action="append", default=[], metavar="WORD[,WORD...]", help="options of aoefs(1) and of mount(8)")
    add("-n", action="store_true", help="no line in /etc/mtab: there is none anyhow")
    add("-s", action="store_true", help="ignore unknown words of -o")
    add("-v", action="store_true", help="say more")
    add("-f", action="store_true", help="check everything, mount nothing")
    add("-t", metavar="TYPE", help="the type that mount(8) was asked for: there is only one")
    helper = parser.parse_intermixed_args(argv)
    words = ",".join(helper.o)
    if helper.s:
        words = options.known_words(words)
    flags = [flag for flag, given in (("-v", helper.v), ("--check", helper.f)) if given]
    return [helper.source, helper.mountpoint, *(["-o", words] if words else []), *flags]


def _module(command: str) -> Any:
    return importlib.import_module(f"aoefs.cli.commands.{command.replace('-', '_')}")


def _run(argv: Sequence[str], command: str | None) -> int:
    try:
        parser = build_parser(command)
        if command is None:
            arguments, unknown = parser.parse_known_intermixed_args(argv)
            arguments.argv = list(argv)
            _refuse_misplaced_command(arguments)
            if unknown:
                parser.error(f"unrecognized arguments: {' '.join(unknown)}")
        else:
            arguments = parser.parse_intermixed_args(argv[1:])
            arguments.all_parsers = all_parsers
    except SystemExit as ended:  # --help and --version
        return int(ended.code or 0)
    from aoefs.host.systemlog import log_to_stderr  # here: --help needs no logging

    log_to_stderr(arguments.verbose)
    code: int = _module(command or "mount").run(arguments)
    return code


def _is_there(name: str) -> bool:
    """Whether a file has this name.  lstat(2) would wait for a mount whose process does not answer, readlink(2) not."""
    try:
        os.readlink(name)
    except OSError as error:
        return error.errno == errno.EINVAL
    return True


def _refuse_misplaced_command(arguments: argparse.Namespace) -> None:
    """UserError for ``aoefs -v status /mnt``, ``aoefs dicsover`` and ``aoefs mount /mnt``, which would be a mount on
    that name.
    """
    word = arguments.paths[0] if arguments.paths else "/"
    if "/" in word or _is_there(word) or any(os.path.exists(f"/sys/class/net/{name}") for name in word.split(",")):
        return
    if word == "mount":
        rest = " ".join(each for each in arguments.argv if each != word)
        raise UserError(f"mounting has no command word: 'aoefs {rest or '[SOURCE] MOUNTPOINT'}'", exit_code=2)
    import difflib

    alike = [_GUESSES.get(word, word)] if word in {*COMMANDS, *_GUESSES} else difflib.get_close_matches(word, COMMANDS)
    if alike:
        raise UserError(f"there is no '{word}': for the command write 'aoefs {alike[0]} ...'", exit_code=2)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line (by default that of the process, under its name) and return the exit code."""
    if argv is None:
        name = os.path.basename(sys.argv[0])
        if name.startswith("mount."):
            return mount_helper(sys.argv[1:])
        if name.startswith("umount."):
            return umount_helper(sys.argv[1:])
        argv = sys.argv[1:]
    return _guarded(argv, argv[0] if argv and argv[0] in COMMANDS else None)


_HELPER_CODES = {0: 0, 2: 1, 130: 8}  # of mount(8) and umount(8), by ours; any other is 32


def mount_helper(argv: Sequence[str]) -> int:
    """As ``/sbin/mount.aoefs``; the exit code is that of mount(8)."""
    try:
        words = _mount_helper_argv(argv)
        code = _guarded(words, None, words[1])
    except UserError as error:
        code = _fail(str(error), error.exit_code)
    except SystemExit:  # --help
        code = 0
    return _HELPER_CODES.get(code, 32)


def umount_helper(argv: Sequence[str]) -> int:
    """As ``/sbin/umount.fuse.aoefs``, without which umount(8) finds a mount with workers busy."""
    parser = options.Parser(prog="umount.aoefs", description="Helper of umount(8); people write: umount MOUNTPOINT")
    parser.add_argument("mountpoint", metavar="MOUNTPOINT")
    parser.add_argument("-l", action="store_true", help="detach at once, also when busy")
    for flag in ("-n", "-f", "-v", "-r"):
        parser.add_argument(flag, action="store_true", help="means nothing here")
    parser.add_argument("-t", metavar="TYPE", help="the type that umount(8) found: there is only one")
    try:
        helper = parser.parse_intermixed_args(argv)
        code = _guarded(["umount", *(["--lazy"] if helper.l else []), helper.mountpoint], "umount", helper.mountpoint)
    except UserError as error:
        code = _fail(str(error), error.exit_code)
    except SystemExit:  # --help
        code = 0
    return _HELPER_CODES.get(code, 32)


def _guarded(argv: Sequence[str], command: str | None, place: str = "") -> int:
    """``place`` begins each error that does not name it: ``mount -a`` mounts several."""
    try:
        code = _run(argv, command)
        sys.stdout.flush()
        return code
    except UserError as error:
        return _fail(str(error) if place in str(error) else f"{place}: {error}", error.exit_code)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # else the interpreter complains again at its end
        return 141
    except Exception as error:
        if any(word in ("-v", "-vv", "--verbose") for word in argv):
            from aoefs.host.systemlog import log, log_to_stderr

            log_to_stderr(1)
            log.info("where it happened:", exc_info=True)
        return _fail(f"unexpected {type(error).__name__}: {error} (-v says where)", 1)


def _fail(message: str, code: int) -> int:
    to_stderr(message)
    return code
