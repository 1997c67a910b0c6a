"""What a mount can be told, and how people write it: long options, and the ``-o`` list of mount(8) and fstab.

Owns :class:`MountOptions`, the one record that the mount takes, and the only parser that makes it.  Every long option
may also be written as a word of ``-o`` (``-o deadsecs=30,read_only``, with ``-`` or ``_``): a word is turned into the
long option and read by the same parser, so that the two can never differ.

Rejected: a table of options beside argparse's own (two places to change), and passing unknown words of ``-o`` on to
FUSE (a misspelt word must not be silently without effect).
"""

from __future__ import annotations

import argparse
import grp
import math
import os
import pwd
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any, NoReturn, TypeVar

from aoefs.errors import UserError
from aoefs.wire import parse_mac

_Value = TypeVar("_Value")

# Words that mount(8), fstab and /sbin/mount.fuse hand to every file system and that mean nothing to this one.
_STANDARD_WORDS = frozenset(
    """rw defaults auto noauto user nouser users owner group dev nodev suid nosuid exec noexec async
    atime noatime diratime nodiratime relatime norelatime strictatime nostrictatime lazytime nolazytime
    iversion noiversion mand nomand silent loud _netdev nofail default_permissions comment fsname subtype""".split()  # noqa: SIM905
)
_ALIASES = {"ro": "read-only"}

MAX_TARGETS = 0xFFFF * 0xFF  # as many as there are addresses


@dataclass(frozen=True, slots=True, kw_only=True)
class MountOptions:
    """Everything that a mount is told.

    ``mountpoint`` is an absolute path; ``interfaces`` are names, none meaning every usable one; ``shards`` is None for
    as many as there are usable CPUs; ``deadsecs`` is in seconds, 0 means never; ``maxout`` is the most commands in
    flight to one target; ``allow_mac`` lists the only MACs to talk to, 6 bytes each, none meaning all; ``umask`` is
    taken from mode 0666 of the files; ``plain_loop`` turns ``aoefs.turns`` off; ``verbose`` is 0, 1 (-v) or more.
    """

    mountpoint: str
    interfaces: tuple[str, ...] = ()
    foreground: bool = False
    console: bool = False
    read_only: bool = False
    shards: int | None = None
    deadsecs: float = 180.0
    maxout: int = 64
    direct: bool = False
    allow_mac: tuple[bytes, ...] = ()
    uid: int
    gid: int
    umask: int = 0o077
    allow_other: bool = False
    max_targets: int = 1024
    reserve: bool = False
    plain_loop: bool = False
    verbose: int = 0


class Parser(argparse.ArgumentParser):
    """argparse whose errors are one line: a UserError with exit code 2, and no dump of the usage."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(allow_abbrev=False, **arguments)

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see {self.prog} --help)", exit_code=2)


def argument_type(parse: Callable[[str], _Value]) -> Callable[[str], _Value]:
    """A ``type=`` for argparse that keeps the text of the ValueError that ``parse`` raises."""

    def checked(text: str) -> _Value:
        try:
            return parse(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return checked


def whole(least: int, most: int) -> Callable[[str], int]:
    """A ``type=`` for whole numbers from ``least`` to ``most``."""

    def parse(text: str) -> int:
        if not (text.isascii() and text.isdigit() and least <= int(text) <= most):
            raise argparse.ArgumentTypeError(f"'{text}' is not a whole number from {least} to {most}")
        return int(text)

    return parse


def seconds(text: str) -> float:
    """A ``type=`` for a time: a finite number that is not negative."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"'{text}' is not a number of seconds")
    return value


def _umask(text: str) -> int:
    try:
        value = int(text, 8)
    except ValueError:
        value = -1
    if not 0 <= value <= 0o777:
        raise argparse.ArgumentTypeError(f"'{text}' is not an octal mode from 0 to 777")
    return value


def _user(text: str) -> int:
    try:
        return pwd.getpwnam(text).pw_uid
    except KeyError:
        return _id_number(text, "user")


def _group(text: str) -> int:
    try:
        return grp.getgrnam(text).gr_gid
    except KeyError:
        return _id_number(text, "group")


def _id_number(text: str, kind: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise argparse.ArgumentTypeError(f"there is no {kind} '{text}': give a name of this host, or a number")
    return whole(0, 0xFFFF_FFFE)(text)


def add_interface_argument(parser: argparse.ArgumentParser) -> None:
    """``-i``, the same for all commands that speak on the wire; ``arguments.interface`` is a list or None."""
    parser.add_argument(
        "-i",
        "--interface",
        action="append",
        metavar="IF",
        help="speak on this interface only (repeatable; default: every Ethernet interface that is up)",
    )


def add_mount_options(parser: argparse.ArgumentParser) -> None:
    """The options of a mount; all are known to ``-o`` too."""
    add_interface_argument(parser)
    add = parser.add_argument
    add("-f", "--foreground", action="store_true", help="stay in the foreground, log to stderr")
    add("--console", action="store_true", help="stay in the foreground with the live console; leaving it unmounts")
    add("-r", "--read-only", action="store_true", help="never write to a target (also -o ro)")
    add("--shards", type=whole(1, 1024), metavar="N", help="completion shards (default: one for each usable CPU)")
    add("--deadsecs", type=seconds, metavar="SECONDS", help="silence after which I/O fails (default 180; 0: never)")
    add("--maxout", type=whole(1, 65535), metavar="N", help="most commands in flight to one target (default 64)")
    add("--direct", action="store_true", help="no page cache: for disks that other hosts write too")
    add(
        "--allow-mac",
        action="append",
        type=argument_type(parse_mac),
        metavar="MAC",
        help="talk to this target MAC only (repeatable)",
    )
    add("--max-targets", type=whole(1, MAX_TARGETS), metavar="N", help="show at most N targets (default 1024)")
    add("--reserve", action="store_true", help="reserve a target while it is open for writing")
    add("--plain-loop", action="store_true", help="no short cuts around the event loop (to compare, or if in doubt)")
    add("--allow-other", action="store_true", help="let other users in, as the file modes allow")
    add("--uid", type=_user, metavar="USER", help="owner of the files (default: you)")
    add("--gid", type=_group, metavar="GROUP", help="group of the files (default: yours)")
    add("--umask", type=_umask, metavar="OCTAL", help="taken from file mode 666 (default 077)")
    add("-v", "--verbose", action="count", default=0, help="say more; twice: even more")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The whole command line of a mount."""
    parser.add_argument(
        "paths", nargs="*", metavar="[SOURCE] MOUNTPOINT", help="SOURCE: interfaces, such as eth0,eth1, or any"
    )
    add_mount_options(parser)
    parser.add_argument(
        "-o",
        action="append",
        default=[],
        dest="option_lists",
        metavar="WORD[,WORD...]",
        help="options as mount(8) gives them: any of the above as name or name=value, and ro",
    )


class _WordParser(Parser):
    """Says where the mistake is."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"in the -o list: {message}", exit_code=2)


def _apply_words(option_lists: Sequence[str], arguments: argparse.Namespace) -> None:
    """Let each word of the ``-o`` lists act on ``arguments`` as its long option would."""
    parser = _WordParser(add_help=False)
    add_mount_options(parser)
    for word in ",".join(option_lists).split(","):
        name, equals, value = word.partition("=")
        if not word or name in _STANDARD_WORDS or name.lower().startswith("x-"):
            continue
        option = "--" + _ALIASES.get(name, name).replace("_", "-")
        _, unknown = parser.parse_known_args([option + equals + value], arguments)
        if unknown:
            raise UserError(f"unknown word '{word}' in the -o list (see aoefs --help)", exit_code=2)


def mount_options(arguments: argparse.Namespace) -> MountOptions:
    """The record for a parsed command line (:func:`add_arguments`); UserError with exit code 2 when it is wrong."""
    _apply_words(arguments.option_lists, arguments)
    paths: list[str] = arguments.paths
    if not 1 <= len(paths) <= 2 or not all(paths):
        what = "too many arguments" if len(paths) > 2 else "no mount point given"
        raise UserError(f"{what}: aoefs MOUNTPOINT, or aoefs --help for the commands", exit_code=2)
    interfaces = list(arguments.interface or ())
    if len(paths) == 2 and paths[0] not in ("any", "none"):
        interfaces += paths[0].split(",")
    if not all(interfaces):
        raise UserError("an interface name is empty: write them as eth0,eth1, or any", exit_code=2)
    # What was not given is None and keeps the default of the record.
    given = {field.name: getattr(arguments, field.name, None) for field in fields(MountOptions)}
    given |= {
        "mountpoint": os.path.abspath(paths[-1]),
        "interfaces": tuple(dict.fromkeys(interfaces)),
        "foreground": arguments.foreground,
        "allow_mac": tuple(dict.fromkeys(arguments.allow_mac or ())),
        "uid": os.getuid() if arguments.uid is None else arguments.uid,
        "gid": os.getgid() if arguments.gid is None else arguments.gid,
    }
    return MountOptions(**{name: value for name, value in given.items() if value is not None})
