"""``aoefs status``: the state of a live mount, read from the mount's own status file."""

from __future__ import annotations

import argparse
import json

from aoefs import mountpoint
from aoefs.errors import UserError
from aoefs.tables import format_size, print_table, target_row

_COLUMNS = (
    "name",
    "size",
    "model",
    "serial",
    "interfaces",
    "payload",
    "state",
    "read",
    "written",
    "errors",
    "in flight",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("mountpoint", metavar="MOUNTPOINT")
    parser.add_argument("--json", action="store_true", help="print everything as one JSON object")
    parser.add_argument("--once", action="store_true", help="print one picture and end")
    parser.add_argument("-v", "--verbose", action="count", default=0, help="say more")


def run(arguments: argparse.Namespace) -> int:
    path = arguments.mountpoint
    mount = mountpoint.require_mount(path)
    try:
        status = mountpoint.read_status(mount.path)
    except OSError as error:
        why = "its daemon is dead: 'aoefs umount' removes it" if mount.is_dead else error.strerror
        raise UserError(f"{path} does not tell its status: {why}") from None
    if arguments.json:
        print(json.dumps(status, indent=2))
        return 0
    rows = []
    for target in status["targets"]:
        counters = (format_size(target["read_bytes"]), format_size(target["write_bytes"]))
        rows.append([*target_row(target)[:-1], *counters, str(target["errors"]), str(target["in_flight"])])
    print_table(_COLUMNS, rows)
    return 0
