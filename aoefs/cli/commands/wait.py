"""``aoefs wait``: until targets are up in a mount of this host, for the order of a boot and for scripts.

Asks all mounts twice a second, also when the first of them comes later.  Mounts of other users are not asked.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import time

from aoefs.cli.options import seconds
from aoefs.errors import UserError
from aoefs.host import mountpoint
from aoefs.protocol.wire import Address

_POLL_SECONDS = 0.5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    what = "a target, by its address or its serial number"
    parser.add_argument("targets", nargs="+", type=_name, metavar="X.Y|SERIAL", help=what)
    what = "fail when they are not up by then (default: wait as long as it takes)"
    parser.add_argument("--timeout", type=seconds, default=math.inf, metavar="SECONDS", help=what)


def _name(text: str) -> str:
    with contextlib.suppress(ValueError):
        return str(Address.parse(text))
    return text


def run(arguments: argparse.Namespace) -> int:
    deadline = time.monotonic() + arguments.timeout
    while True:
        states = _states()
        missing = [
            f"{name} is {states.get(name, 'not there')}" for name in arguments.targets if states.get(name) != "up"
        ]
        if not missing:
            return 0
        if time.monotonic() >= deadline:
            raise UserError(f"after {arguments.timeout:g} s {', '.join(missing)}")
        time.sleep(min(_POLL_SECONDS, max(0.0, deadline - time.monotonic())))


def _states() -> dict[str, str]:
    """The state of each target by its name and by its serial number; ``up`` where one of several mounts has it up."""
    found: dict[str, str] = {}
    for mount in mountpoint.aoefs_mounts():
        if not mount.is_trusted:
            continue
        with contextlib.suppress(OSError):  # it does not answer, or has just gone
            for target in mountpoint.read_status(mount.path)["targets"]:
                for name in (target["name"], target["serial"]):
                    if found.get(name) != "up":
                        found[name] = "in conflict" if target.get("conflict") else target["state"]
    return found
