"""``aoefs reserve``: the hosts that may use a target (AoEr11 section 3.4).

A reservation is a list of MACs; while it is not empty, other hosts get "target is reserved" for every read and write.
"""

from __future__ import annotations

import argparse

from aoefs.cli import companion
from aoefs.cli.companion import Session
from aoefs.cli.options import mac_type
from aoefs.errors import UserError
from aoefs.protocol.wire import ErrorCode, ReserveArgument, ReserveCommand, format_mac

_ACTIONS = {
    "get": ReserveCommand.READ,
    "set": ReserveCommand.SET,
    "force": ReserveCommand.FORCE_SET,
    "release": ReserveCommand.SET,
}
MAX_MACS = 64  # as many as the embedded target keeps; their count is one byte, and they must fit into a frame


def add_arguments(parser: argparse.ArgumentParser) -> None:
    what = "get: list the holders (default); set: reserve it for MACs, if no other host holds it; "
    what += "force: even if another host does; release: give it back"
    companion.add_target_argument(parser, tuple(_ACTIONS), what)
    default = "(default: ours, on all interfaces that lead to the target)"
    parser.add_argument("macs", nargs="*", type=mac_type, metavar="MAC", help=default)
    companion.add_wire_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    if arguments.macs and arguments.action in ("get", "release"):
        raise UserError(f"reserve {arguments.target} {arguments.action} takes no MAC", exit_code=2)
    if len(arguments.macs) > MAX_MACS:
        raise UserError(f"{len(arguments.macs)} MACs are more than the {MAX_MACS} of a reservation", exit_code=2)
    return companion.run(arguments, _face)


async def _face(session: Session) -> int:
    arguments, address, action = session.arguments, session.arguments.target, session.arguments.action
    found = await session.find()
    ours = dict.fromkeys(endpoint.link.mac for endpoint in found.endpoints)
    macs = () if action in ("get", "release") else tuple(arguments.macs or ours)
    taken = f"{address} is reserved by others: 'aoefs reserve {address}' lists them, 'force' takes it over"
    what = f"to {'show its reservation' if action == 'get' else action}"
    argument = ReserveArgument(_ACTIONS[action], macs)
    refusals: dict[int, str] = {ErrorCode.TARGET_IS_RESERVED: taken}
    answer = await session.command(found.endpoint, argument, what, refusals)
    holders = list(map(format_mac, answer.macs))
    if action != "get" and set(holders) != set(map(format_mac, macs)):
        raise UserError(f"{address} accepted that, but is held by {', '.join(holders) or 'no host'} now")
    session.show("holders", holders, "\n".join(holders) or f"{address} is not reserved")
    return 0
