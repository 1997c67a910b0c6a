"""``aoefs mask``: the MACs that a target answers (AoEr11 section 3.3).

While the list is not empty, a host whose MAC is not on it gets no answer at all: no error, and none to a config query.
So this command does not lock out its own host without ``--force``.  It never sends a delete to vblade, which crashes on
it.
"""

from __future__ import annotations

import argparse

from aoefs.cli import companion
from aoefs.cli.companion import Session
from aoefs.cli.options import mac_type
from aoefs.errors import UserError
from aoefs.protocol.wire import (
    MaskArgument,
    MaskCommand,
    MaskDirective,
    MaskError,
    format_mac,
)

MAX_DIRECTIVES = 64  # of one command: 540 bytes, which every link carries
_DIRECTIVES = {"add": MaskDirective.ADD, "delete": MaskDirective.DELETE}
_ERRORS = {
    MaskError.UNSPECIFIED: "an error that it does not name",
    MaskError.BAD_DIRECTIVE: "it does not know the directive",
    MaskError.LIST_FULL: "its list is full",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    what = "get: list the MACs that it answers (default); add, delete: change the list; an empty one is everybody"
    companion.add_target_argument(parser, ("get", *_DIRECTIVES), what)
    parser.add_argument("macs", nargs="*", type=mac_type, metavar="MAC")
    parser.add_argument("--force", action="store_true", help="also if the target does not answer this host any more")
    companion.add_wire_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    if bool(arguments.macs) != (arguments.action in _DIRECTIVES):
        wrong = "needs at least one MAC" if arguments.action in _DIRECTIVES else "takes no MAC"
        raise UserError(f"mask {arguments.target} {arguments.action} {wrong}", exit_code=2)
    if len(arguments.macs) > MAX_DIRECTIVES:
        raise UserError(f"at most {MAX_DIRECTIVES} MACs go into one command", exit_code=2)
    return companion.run(arguments, _face)


async def _face(session: Session) -> int:
    arguments, address, action = session.arguments, session.arguments.target, session.arguments.action
    found = await session.find()

    async def ask(argument: MaskArgument) -> list[bytes]:
        """Send the command; the list that the target has afterwards."""
        answer = await session.command(found.endpoint, argument, "the mask command")
        if answer.error:
            why = _ERRORS.get(answer.error, f"error {answer.error}")  # type: ignore[call-overload]  # any byte may come
            failed = argument.directives[answer.count or 0 :][:1]
            raise UserError(f"{address} refuses {', '.join(format_mac(mac) for _, mac in failed) or 'that'}: {why}")
        return [mac for _, mac in answer.directives]

    if action == "get":
        listed = await ask(MaskArgument())
    else:
        if action == "delete":
            await _require_no_vblade(session, found)
        before = dict.fromkeys(await ask(MaskArgument()))
        wanted = [mac for mac in before if action == "add" or mac not in arguments.macs]
        wanted += [mac for mac in dict.fromkeys(arguments.macs) if action == "add" and mac not in before]
        ours = found.endpoint.link.mac
        if wanted and ours not in wanted and not arguments.force:
            raise UserError(f"{address} would not answer this host ({format_mac(ours)}) any more: --force does it")
        directives = tuple((int(_DIRECTIVES[action]), mac) for mac in arguments.macs)
        listed = await ask(MaskArgument(MaskCommand.EDIT, directives))
        if set(listed) != set(wanted):
            text = ", ".join(map(format_mac, listed)) or "empty"
            raise UserError(f"{address} accepted that, but its list is now {text} (vblade mixes up a third entry)")
    macs = [format_mac(mac) for mac in listed]
    session.show("mask", macs, "\n".join(macs) or f"{address} answers everybody")
    return 0


async def _require_no_vblade(session: Session, found: companion.Found) -> None:
    address = found.endpoint.address
    identities = await session.identify(found.endpoint)
    if not identities:
        raise UserError(f"{address} does not identify itself, and a vblade would crash on a mask delete")
    if any("vblade" in identity.model for identity in identities):
        raise UserError(f"{address} is a vblade, which crashes on a mask delete (a bug of vblade): restart it with -m")
