"""``aoefs target``: export files and block devices on local Ethernet interfaces.

It checks everything, opens everything, prints what is exported, serves until SIGTERM or SIGINT, syncs and ends.  What
always holds: nothing is announced or served before all arguments are checked and all addresses are found free, and
whatever was opened is closed.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import itertools
import logging
import os
import signal
from collections.abc import Sequence
from typing import TYPE_CHECKING

from aoefs.cli.options import config_string, mac_type
from aoefs.errors import UserError
from aoefs.host.interfaces import speakable
from aoefs.protocol.wire import Address

if TYPE_CHECKING:
    from aoefs.net.packetsocket import PacketSocket, Role
    from aoefs.softtarget.configfile import ConfigFile
    from aoefs.softtarget.server import Server

log = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    what = "file or block device to export as eX.Y; refused if eX.Y is served on IF already, or if PATH is exported "
    add("exports", nargs="+", metavar="X.Y=PATH", help=what + "already and one of the two may be written")
    what = "Ethernet interface to serve (repeatable); AoE has no passwords: every host on that wire can write"
    add("-i", "--interface", action="append", required=True, metavar="IF", help=what)
    add("--read-only", action="store_true", help="refuse writes")
    add("--sync", action="store_true", help="answer a write only when it is on the disk (slow)")
    add("--bufcnt", type=int, metavar="N", help="messages that initiators may have on their way (64)")
    what = "config string of every export, in place of the one that was kept of an earlier run"
    add("--config-string", metavar="TEXT", help=what)
    what = "where to keep config strings (default: in PATH.aoe, which a read-only export only reads; those of block "
    add("--state-dir", metavar="DIR", help=what + "devices are not kept)")
    what = "answer only this initiator's MAC (repeatable); the mask list of the protocol can narrow it, never widen"
    add("--allow-mac", action="append", type=mac_type, default=[], metavar="MAC", help=what)


def parse_export(text: str) -> tuple[Address, str]:
    """Read ``X.Y=PATH``; UserError says what is wrong."""
    name, equals, path = text.partition("=")
    if not equals or not path:
        raise UserError(f"'{text}' is not an export: write X.Y=PATH, such as 0.1=disk.img", exit_code=2)
    try:
        return Address.parse(name), path
    except ValueError as error:
        raise UserError(str(error), exit_code=2) from error


def run(arguments: argparse.Namespace) -> int:
    """Serve until a signal; the exit code."""
    exports: dict[Address, str] = {}
    for text in arguments.exports:
        address, path = parse_export(text)
        if address in exports:
            raise UserError(f"{address} is given twice ({exports[address]} and {path}): use another slot", exit_code=2)
        exports[address] = path
    buffer_count = arguments.bufcnt
    if buffer_count is not None and not 1 <= buffer_count <= 0xFFFF:
        raise UserError(f"--bufcnt {buffer_count} is out of range: 1 to 65535", exit_code=2)
    given = arguments.config_string
    string = None if given is None else config_string(given, "--config-string")
    if arguments.state_dir is not None and not os.path.isdir(arguments.state_dir):
        raise UserError(f"--state-dir {arguments.state_dir} is not a directory")
    interfaces = speakable(arguments.interface)

    from aoefs.host.claims import Inquiry, claim
    from aoefs.net.packetsocket import Role
    from aoefs.softtarget.configfile import config_file
    from aoefs.softtarget.store import FileStore

    with contextlib.ExitStack() as stack:
        for interface, address in itertools.product(interfaces, exports):
            stack.enter_context(claim(address, interface))
        stores: dict[Address, FileStore] = {}
        config_files: dict[Address, ConfigFile] = {}
        strings = dict.fromkeys(exports, string or b"")
        for address, path in exports.items():
            store = FileStore(path, read_only=arguments.read_only, synchronous=arguments.sync)
            stores[address] = stack.enter_context(store)
            file = config_file(store, arguments.state_dir)
            if file is not None:
                config_files[address] = file
                if string is None:
                    strings[address] = file.string or b""
            for warning in (store.warning, "" if file is None else file.warning):
                if warning:
                    log.warning("%s", warning)
        with contextlib.ExitStack() as asking:
            sockets = [asking.enter_context(_open_link(interface, Role.HINTS)) for interface in interfaces]
            inquiry = Inquiry(exports, sockets)

            # These take as long as the answers may.
            import trio

            from aoefs import __version__
            from aoefs.softtarget.access import Access
            from aoefs.softtarget.export import DEFAULT_BUFFER_COUNT, Export
            from aoefs.softtarget.server import Server, keep_config

            inquiry.require_silence()
        sockets = [stack.enter_context(_open_link(interface, Role.TARGET)) for interface in interfaces]
        served = [
            Export(
                address,
                store,
                serial=store.serial,
                firmware=__version__,
                buffer_count=DEFAULT_BUFFER_COUNT if buffer_count is None else buffer_count,
                config_string=strings[address],
                access=Access(arguments.allow_mac),
                report=functools.partial(log.error, "%s"),
            )
            for address, store in stores.items()
        ]
        writable = {address: file for address, file in config_files.items() if file.writable}
        for export in served:
            if export.address in writable:
                keep_config(export, writable[export.address])
        mode = "read-only" if arguments.read_only else "read-write"
        where = ", ".join(interfaces)
        lines = [
            f"{address} {store.path} {store.sectors} sectors {mode} on {where}" for address, store in stores.items()
        ]
        return trio.run(_serve, Server(served, sockets, writable), lines)


async def _serve(server: Server, lines: Sequence[str]) -> int:
    import trio

    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with trio.open_nursery() as nursery:
            await nursery.start(server.run)
            for line in lines:
                print(line, flush=True)
            async for _ in signals:
                break
            nursery.cancel_scope.cancel()
        failed = await server.sync_all()
    for machine, error in failed:
        log.error("%s: the last sync failed, written data may be lost: %s", machine.address, error.strerror)
    return 1 if failed or any(machine.sync_failed for machine in server.exports.values()) else 0


def _open_link(interface: str, role: Role) -> PacketSocket:
    """A packet socket on an interface; UserError if it fails in spite of the checks."""
    from aoefs.net.packetsocket import PacketSocket

    try:
        return PacketSocket(interface, role=role)
    except OSError as error:
        raise UserError(f"cannot use interface {interface}: {error.strerror}") from error
