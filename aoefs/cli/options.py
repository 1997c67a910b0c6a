"""The options of a mount: on the command line, in the ``-o`` list of mount(8) and fstab, and in a configuration file.

Owns the parser that makes a ``fuse.options.MountOptions``, the one record that the mount takes.  Every long option can
also be a word of ``-o`` (``-o deadsecs=30,read_only``, with ``-`` or ``_``) or a key of the file (TOML: ``maxout = 3``,
``read-only = true``).  Both are turned into the long option and read by the same parser, so that the three cannot
differ.

What always holds: the command line overrides ``-o``, and ``-o`` overrides the file.  ``-i``, ``--allow-mac`` and
``--disk`` of the command line and of ``-o`` add up, and replace those of the file, so that a file never makes a mount
speak on a link that its user did not name.  ``-v`` adds up everywhere.  The file is read only to mount, never for
``--help``.
"""

from __future__ import annotations

import argparse
import contextlib
import grp
import math
import os
import pwd
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields
from typing import Any, NoReturn, TypeVar

from aoefs.errors import UserError
from aoefs.fuse.options import MountOptions
from aoefs.protocol.wire import MAX_CONFIG_BYTES, Address, parse_mac

_Value = TypeVar("_Value")

CONFIG_FILE = "/etc/aoefs.toml"  # read if it exists, unless --config names another

# Words that mount(8), fstab and /sbin/mount.fuse pass to every file system, and that mean nothing here.
_STANDARD_WORDS = frozenset(
    """rw defaults auto noauto user nouser users owner group dev nodev suid nosuid exec noexec async
    atime noatime diratime nodiratime relatime norelatime strictatime nostrictatime lazytime nolazytime
    iversion noiversion mand nomand silent loud _netdev nofail default_permissions comment fsname subtype
    remount user_id group_id""".split()  # noqa: SIM905 (it is read as words)
)
_ALIASES = {"ro": "read-only"}

# Destinations of options that --help leaves to --help-all.
_RARE = frozenset(
    {"shards", "maxout", "sync", "allow_mac", "disk", "max_targets", "fixed_paths", "plain_loop", "busy_poll", "slow"}
    | {"workers", "pid_file", "log_file", "log_level", "log_format", "check"}
)

MAX_TARGETS = 0xFFFF * 0xFF  # the number of addresses


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are a UserError with exit code 2, one line without the usage."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(allow_abbrev=False, **arguments)

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{self.explained(message)} (see {self.prog} --help)", exit_code=2)

    def explained(self, message: str) -> str:
        """An error of argparse in our words, with what was probably meant."""
        flag = re.match(r"argument (?:-\w/)?([^/:]+).*: ignored explicit argument", message)
        if flag is not None:
            return f"{flag[1]} takes no value"
        unknown = re.match(r"unrecognized arguments: (--[^ =]+)", message)
        return message + self.meant(unknown[1]) if unknown is not None else message

    def meant(self, option: str) -> str:
        """``: did you mean --timeout?`` of an option that is not there; nothing if none is like it."""
        import difflib

        alike = difflib.get_close_matches(option, self._option_string_actions, cutoff=0.8)
        return f": did you mean {alike[0]}?" if alike else ""


def pip(words: str) -> str:
    """The command line of the very pip that installed this aoefs."""
    return f"'{sys.executable} -m pip {words}'"


def argument_type(parse: Callable[[str], _Value]) -> Callable[[str], _Value]:
    """A ``type=`` for argparse whose error line is the text of the ValueError of ``parse``."""

    def checked(text: str) -> _Value:
        try:
            return parse(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return checked


address_type = argument_type(Address.parse)
mac_type = argument_type(parse_mac)


def config_string(text: str, what: str) -> bytes:
    """The bytes of a config string; UserError if ``what`` is too long."""
    string = text.encode("utf-8", "surrogateescape")
    if len(string) > MAX_CONFIG_BYTES:
        raise UserError(f"{what} has {len(string)} bytes; the protocol allows {MAX_CONFIG_BYTES}", exit_code=2)
    return string


def _checked(parse: Callable[[str], _Value], is_good: Callable[[_Value], bool], what: str) -> Callable[[str], _Value]:
    """A ``type=`` for texts of which ``parse`` makes a good value; the error says that others are not ``what``."""

    def checked(text: str) -> _Value:
        with contextlib.suppress(ValueError):
            value = parse(text)
            if is_good(value):
                return value
        raise argparse.ArgumentTypeError(f"'{text}' is not {what}")

    return checked


def _digits(text: str) -> int:
    return int(text) if text.isascii() and text.isdigit() else -1


def whole(least: int, most: int, what: str = "a whole number") -> Callable[[str], int]:
    """A ``type=`` for whole numbers from ``least`` (0 or more) to ``most``."""
    return _checked(_digits, lambda number: least <= number <= most, f"{what} from {least} to {most}")


seconds = _checked(float, lambda value: 0 <= value < math.inf, "a number of seconds")
_umask = _checked(lambda text: int(text, 8), lambda value: 0 <= value <= 0o777, "an octal mode from 0 to 777")


def _id_of(kind: str, look_up: Callable[[str], int]) -> Callable[[str], int]:
    """A ``type=`` for the name of a user or a group, or its number."""

    def parse(text: str) -> int:
        with contextlib.suppress(KeyError):
            return look_up(text)
        if not (text.isascii() and text.isdigit()):
            raise argparse.ArgumentTypeError(f"there is no {kind} '{text}': give a name of this host, or a number")
        return whole(0, 0xFFFF_FFFE)(text)

    return parse


_user = _id_of("user", lambda name: pwd.getpwnam(name).pw_uid)
_group = _id_of("group", lambda name: grp.getgrnam(name).gr_gid)


def _path(text: str) -> str:
    if not text:
        raise argparse.ArgumentTypeError("a file name is empty")
    return os.path.abspath(text)


def _disk(text: str) -> tuple[Address, str]:
    """``e7.0=SERIAL``, as ``aoefs discover`` shows them."""
    name, _, serial = text.partition("=")
    try:
        address = Address.parse(name)
    except ValueError:
        serial = ""
    if not serial:
        raise argparse.ArgumentTypeError(f"'{text}' names no disk: write e7.0=SERIAL, as 'aoefs discover' shows them")
    return address, serial


def _place(text: str) -> tuple[str, int]:
    """``PORT`` on the loopback interface, or ``ADDRESS:PORT``; an IPv6 address may stand in brackets."""
    address, colon, port = text.rpartition(":")
    return address.removeprefix("[").removesuffix("]") if colon else "127.0.0.1", _digits(port)


_metrics = _checked(
    _place, lambda place: bool(place[0]) and 1 <= place[1] <= 0xFFFF, "a place for metrics: write PORT or ADDRESS:PORT"
)


def _busy_poll(text: str) -> int | str:
    """``auto``, ``off``, or microseconds."""
    names: dict[str, int | str] = {"auto": "auto", "off": 0}
    return names[text] if text in names else whole(1, 200, "auto, off, or microseconds")(text)


def _workers(text: str) -> int | str:
    """``auto``, or how many."""
    if text == "auto":
        return text
    if not (text.isascii() and text.isdigit() and 1 <= int(text) <= 64):
        raise argparse.ArgumentTypeError(f"'{text}' is not auto, or a whole number from 1 to 64")
    return int(text)


def add_interface_argument(parser: argparse.ArgumentParser) -> None:
    """``-i``, the same for all commands that use the network; ``arguments.interface`` is a list or None."""
    what = "speak on this interface only (repeatable; default: every Ethernet interface that is up)"
    parser.add_argument("-i", "--interface", action="append", metavar="IF", help=what)


def add_mountpoint_argument(parser: argparse.ArgumentParser) -> None:
    """The mount that a command is about; ``arguments.mountpoint`` is None for the only one."""
    what = "which mount (default: the only one of this host)"
    parser.add_argument("mountpoint", nargs="?", metavar="MOUNTPOINT", help=what)


def add_verbose_argument(parser: argparse.ArgumentParser) -> None:
    """``-v``, the same for all commands: ``arguments.verbose`` says how often it was given."""
    parser.add_argument("-v", "--verbose", action="count", default=0, help="say more")


def add_mount_options(parser: argparse.ArgumentParser) -> None:
    """The options of a mount that can also stand in ``-o`` and, all but ``config``, in the file."""
    add_interface_argument(parser)
    add = parser.add_argument
    flag = argparse.BooleanOptionalAction  # the command line can take back what the file says
    add("-f", "--foreground", action=flag, help="stay in the foreground, log to stderr")
    add("--console", action=flag, help="stay in the foreground with the live console; leaving it unmounts")
    add("-r", "--read-only", action=flag, help="never write to a target (also -o ro)")
    what = "completion shards, shared out among --workers (default: one for each usable CPU)"
    add("--shards", type=whole(1, 1024), metavar="N", help=what)
    what = "so many processes share the targets (auto: one per usable CPU; default 1)"
    add("--workers", type=_workers, metavar="N|auto", help=what)
    add("--deadsecs", type=seconds, metavar="SECONDS", help="silence after which I/O fails (default 180; 0: never)")
    add("--maxout", type=whole(1, 65535), metavar="N", help="most commands in flight to one target (default 64)")
    what = "poll so long before sleeping, while an answer may come (default auto)"
    add("--busy-poll", type=_busy_poll, metavar="MICROSECONDS|auto|off", help=what)
    add("--direct", action=flag, help="no page cache: for disks that other hosts write too")
    add("--sync", action=flag, help="answer a write only when the target has, in streams of small writes too")
    add("--allow-mac", action="append", type=mac_type, metavar="MAC", help="talk to this target MAC only (repeatable)")
    what = "where several disks answer for eX.Y, show this one (repeatable)"
    add("--disk", action="append", type=_disk, metavar="eX.Y=SERIAL", help=what)
    what = "show at most N targets (default 1024); with --workers W, N/W of each share"
    add("--max-targets", type=whole(1, MAX_TARGETS), metavar="N", help=what)
    add("--fixed-paths", action=flag, help="a target has the paths found in its first second, and no others later")
    add("--reserve", action=flag, help="reserve a target while it is open for writing")
    add("--slow", type=seconds, metavar="SECONDS", help="log each request that takes longer, and where it waited")
    add("--plain-loop", action=flag, help="no short cuts around the event loop (to compare, or if in doubt)")
    add("--allow-other", action=flag, help="let other users in, as the file modes allow")
    add("--uid", type=_user, metavar="USER", help="owner of the files (default: you)")
    add("--gid", type=_group, metavar="GROUP", help="group of the files (default: yours)")
    add("--umask", type=_umask, metavar="OCTAL", help="taken from file mode 666 (default 077)")
    add("--pid-file", type=_path, metavar="FILE", help="holds the process id while the mount is live")
    add("--metrics", type=_metrics, metavar="[ADDRESS:]PORT", help="serve Prometheus metrics (on loopback by default)")
    add("--log-file", type=_path, metavar="FILE", help="log there (default: to the system log, with -f to stderr)")
    add("--log-level", choices=("debug", "info", "warning", "error"), help="the least that is logged (default info)")
    add("--log-format", choices=("text", "json"), help="json: an object a line, with time, level and text")
    add("--config", type=_path, metavar="FILE", help=f"take options from this file (default: {CONFIG_FILE} if there)")
    add("-v", "--verbose", action="count", default=0, help="say more; twice: even more")


class ShortHelp(argparse.Action):
    """``--help`` without the options of ``_RARE``."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        for action in parser._actions:
            if action.dest in _RARE:
                action.help = argparse.SUPPRESS
        parser.print_help()
        parser.exit()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The whole command line of a mount."""
    what = "SOURCE: interfaces, such as eth0,eth1, or any"
    parser.add_argument("paths", nargs="*", metavar="[SOURCE] MOUNTPOINT", help=what)
    add_options(parser)


def add_options(parser: argparse.ArgumentParser) -> None:
    """All options of the command line of a mount."""
    parser.add_argument("--help-all", action="help", help="show all options")
    add_mount_options(parser)
    parser.add_argument("--check", action="store_true", help="check options, mount point and rights, and mount nothing")
    words, what = "WORD[,WORD...]", "options as mount(8) gives them: any of the above as name or name=value, and ro"
    parser.add_argument("-o", action="append", default=[], dest="option_lists", metavar=words, help=what)


class _LayerParser(Parser):
    """Reads the options of a place other than the command line; its errors name the place."""

    def __init__(self, place: str) -> None:
        super().__init__(add_help=False)
        self.place = place
        add_mount_options(self)

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{self.place}: {self.explained(message)}", exit_code=2)

    def hint(self, option: str) -> str:
        """What to do about a word or a key that stands for an option that is not there."""
        return self.meant(option.partition("=")[0]).replace("--", "") or " (see aoefs --help)"


def _words(option_lists: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Each word of the ``-o`` lists that is ours, and the long option that it stands for."""
    for word in ",".join(option_lists).split(","):
        name, equals, value = word.partition("=")
        if word and name not in _STANDARD_WORDS and not name.lower().startswith("x-"):
            yield word, "--" + _ALIASES.get(name, name).replace("_", "-") + equals + value


def known_words(option_list: str) -> str:
    """The list without unknown words, which ``mount -s`` ignores.  A wrong value is an error all the same."""
    parser = _LayerParser("in the -o list")
    return ",".join(word for word, option in _words([option_list]) if not parser.parse_known_args([option])[1])


def _read_words(option_lists: Sequence[str]) -> argparse.Namespace:
    """The options of the ``-o`` lists."""
    parser = _LayerParser("in the -o list")
    layer = parser.parse_args([])
    for word, option in _words(option_lists):
        parser.place = f"'{word}' in the -o list"
        _, unknown = parser.parse_known_args([option], layer)
        if unknown:
            raise UserError(f"unknown word {parser.place}{parser.hint(option)}", exit_code=2)
    return layer


def _read_file(path: str) -> argparse.Namespace:
    """The options of a configuration file; UserError with exit code 2 names the file and the wrong key."""
    import tomllib

    try:
        with open(path, "rb") as file:
            table = tomllib.load(file)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}", exit_code=2) from None
    except ValueError as error:  # not TOML, or not UTF-8
        raise UserError(f"{path} is no TOML file: {error}", exit_code=2) from None
    parser = _LayerParser(path)
    layer = parser.parse_args([])
    for key, value in table.items():
        parser.place = f"{path}: {key}"
        for option in _file_options(key, value, parser):
            _, unknown = parser.parse_known_args([option], layer)
            if unknown or key == "config":
                parser.error(f"no such option{parser.hint(option)}")
    return layer


def _file_options(key: str, value: object, parser: _LayerParser) -> Iterator[str]:
    """The long options that a key of the file stands for."""
    option = "--" + key.replace("_", "-")
    if option == "--verbose":
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= 2:
            parser.error("write 0, 1 or 2")
        yield from [option] * value
    elif isinstance(value, bool):
        yield option if value else option.replace("--", "--no-", 1)
    elif option == "--umask" and not isinstance(value, str):
        parser.error('write it as a text, such as "022"')  # 022 is not a number of TOML, and 22 is another mask
    elif isinstance(value, str | int | float):
        yield f"{option}={value}"
    elif isinstance(value, list) and all(isinstance(item, str) for item in value):
        yield from (f"{option}={item}" for item in value)
    else:
        parser.error("write a text, a number, true, false, or a list of texts")


def is_remount(arguments: argparse.Namespace) -> bool:
    return "remount" in ",".join(arguments.option_lists).split(",")


def given_names(arguments: argparse.Namespace) -> set[str]:
    """The fields of MountOptions that the command line and ``-o`` name, but for ``verbose``: that is of a command."""
    layers = (arguments, _read_words(arguments.option_lists))
    given = {name for layer in layers for name, value in vars(layer).items() if value is not None}
    return given - {"verbose"} | {"interfaces" for layer in layers if layer.interface}


def mount_options(arguments: argparse.Namespace) -> MountOptions:
    """The record for a parsed command line (:func:`add_arguments`); UserError with exit code 2 when it is wrong.

    The configuration file is read here.
    """
    words = _read_words(arguments.option_lists)
    config = arguments.config or words.config
    if config is None and os.path.exists(CONFIG_FILE):
        config = CONFIG_FILE
    file = argparse.Namespace(verbose=0) if config is None else _read_file(config)
    paths: list[str] = arguments.paths
    if not 1 <= len(paths) <= 2 or not all(paths):
        what = "too many arguments" if len(paths) > 2 else "no mount point given"
        raise UserError(f"{what}: aoefs MOUNTPOINT, or aoefs --help for the commands", exit_code=2)

    def gather(name: str, more: Sequence[str] = ()) -> tuple[Any, ...]:
        own = [*(getattr(arguments, name) or ()), *(getattr(words, name) or ()), *more]
        return tuple(dict.fromkeys(own or getattr(file, name, None) or ()))

    source = paths[0] if len(paths) == 2 else "none"
    if "/" in source:
        swapped = "/" not in paths[-1]
        hint = f"the mount point comes last: aoefs {paths[-1]} {source}" if swapped else "SOURCE is eth0,eth1, or any"
        raise UserError(f"'{source}' names no interface: {hint}", exit_code=2)
    no_names = source in ("any", "none") or is_remount(arguments)  # mount(8) names those of the first time again
    interfaces = gather("interface", [] if no_names else source.split(","))
    if source == "any" and not arguments.interface and not words.interface:
        interfaces = ()  # also when the file names some
    if not all(interfaces):
        raise UserError("an interface name is empty: write them as eth0,eth1, or any", exit_code=2)
    # An option that was not given is None here and has the default of the record.
    given: dict[str, Any] = {"uid": os.getuid(), "gid": os.getgid()}
    for layer in (file, words, arguments):  # each overrides those before it
        given |= {name: value for name, value in vars(layer).items() if value is not None}
    given |= {
        "mountpoint": os.path.abspath(paths[-1]),
        "interfaces": interfaces,
        "allow_mac": gather("allow_mac"),
        "disk": gather("disk"),
        "verbose": arguments.verbose + words.verbose + file.verbose,
    }
    return MountOptions(**{field.name: given[field.name] for field in fields(MountOptions) if field.name in given})
