"""``aoefs discover``: list the targets that answer, without mounting anything."""

from __future__ import annotations

import argparse
import json
import sys

from aoefs.cli.options import add_interface_argument, seconds
from aoefs.host import interfaces
from aoefs.status.tables import print_table, printable, target_row

_COLUMNS = ("name", "size", "model", "serial", "interfaces", "payload", "state", "config")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_interface_argument(parser)
    parser.add_argument("--json", action="store_true", help="print a JSON list instead of a table")
    parser.add_argument(
        "--timeout", type=seconds, default=1.0, metavar="SECONDS", help="wait for answers this long (default 1)"
    )
    parser.add_argument("-v", "--verbose", action="count", default=0, help="say more")


def run(arguments: argparse.Namespace) -> int:
    interfaces.require_packet_socket()
    names = [interface.name for interface in interfaces.choose(arguments.interface or ())]
    from aoefs.status.report import discover_once

    targets = discover_once(names, arguments.timeout)
    if arguments.json:
        print(json.dumps(targets, indent=2))
    elif targets:
        print_table(_COLUMNS, [target_row(target) for target in targets])
    for target in targets:
        if target.get("reason"):
            where = ", ".join(f"{path['mac']} on {path['interface']}" for path in target["paths"])
            print(printable(f"aoefs: {target['name']} ({where}): {target['reason']}"), file=sys.stderr)
    if not targets:
        where = ", ".join(names)
        print(
            f"aoefs: no target answered on {where} within {arguments.timeout:g} s: "
            "check the cable and VLAN, and that a target runs there and allows this host",
            file=sys.stderr,
        )
    return 0 if targets else 1
