"""``aoefs config``: the config string of a target, by convention the name of its owner (AoEr11 section 3.2)."""

from __future__ import annotations

import argparse

from aoefs.cli import companion
from aoefs.cli.companion import Session
from aoefs.cli.options import config_string
from aoefs.errors import UserError
from aoefs.protocol.wire import ConfigArgument, ConfigCommand, ErrorCode
from aoefs.status.text import printable

_COMMANDS = {"set": ConfigCommand.SET, "test": ConfigCommand.TEST, "prefix": ConfigCommand.PREFIX}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    what = "get: print it (default); set: store STRING, if there is none yet; "
    what += "test, prefix: exit 0 if it is STRING, or begins with it"
    companion.add_target_argument(parser, ("get", *_COMMANDS), what)
    parser.add_argument("string", nargs="?", metavar="STRING", help="at most 1024 bytes; '' is the empty one")
    parser.add_argument("--force", action="store_true", help="set: replace what is there")
    companion.add_wire_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    if (arguments.string is None) != (arguments.action == "get"):
        wrong = "prints, and takes no STRING" if arguments.action == "get" else "needs a STRING"
        raise UserError(f"config {arguments.target} {arguments.action} {wrong}", exit_code=2)
    if arguments.force and arguments.action != "set":
        raise UserError("--force belongs to 'set'", exit_code=2)
    arguments.string = config_string(arguments.string or "", "STRING")
    return companion.run(arguments, _face)


def _text(string: bytes) -> str:
    return string.decode("utf-8", "backslashreplace")


async def _face(session: Session) -> int:
    arguments, address = session.arguments, session.arguments.target
    found = await session.find()
    present = found.config.string
    if arguments.action == "get":
        session.show("config", _text(present), printable(_text(present)))  # one line
        return 0
    string = arguments.string
    kind = ConfigCommand.FORCE_SET if arguments.force else _COMMANDS[arguments.action]
    matches = {ConfigCommand.TEST: present == string, ConfigCommand.PREFIX: present.startswith(string)}
    if not matches.get(kind, True):  # then the target does not answer, and there is no need to wait for that
        verb = "begins otherwise" if kind is ConfigCommand.PREFIX else "is another one"
        raise UserError(f"the config string of {address} {verb}: '{_text(present)}'")
    there = f"{address} has a config string already, '{_text(present)}': --force replaces it"
    refusals: dict[int, str] = {ErrorCode.CONFIG_STRING_PRESENT: there}
    argument = ConfigArgument(kind, string)
    answer = await session.command(found.endpoint, argument, "the config string", refusals)
    if kind in (ConfigCommand.SET, ConfigCommand.FORCE_SET) and answer.string != string:
        raise UserError(f"{address} accepted the config string, but has '{_text(answer.string)}' now")
    return 0
