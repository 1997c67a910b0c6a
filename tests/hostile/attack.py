"""A lab with a hostile host: initiator, target and attacker on one switch, and the attacks on the mount."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator

from tests.lab import ATTACKER, INITIATOR, TARGET, Lab, Mount, Process, python_module, wait_until


class Attack:
    """An attack that goes on until its block ends."""

    def __init__(self, process: Process) -> None:
        self.process = process

    def __getitem__(self, what: str) -> int:
        """How often the attacker did it, as far as it has said so."""
        assert self.process.poll() in (None, 0), self.process.output
        lines = [line for line in self.process.output.splitlines(keepends=True) if line.endswith("\n")]
        count: int = json.loads(lines[-1]).get(what, 0) if lines else 0
        return count

    def until(self, what: str, count: int = 1, timeout: float = 30.0) -> None:
        """Wait until the attacker did something that often."""
        wait_until(lambda: self[what] >= count, timeout, f"{count} {what} of the attacker")

    def goes_on(self, seconds: float) -> None:
        """Give it time."""
        assert self.process.poll() is None, self.process.output
        time.sleep(seconds)


@contextlib.contextmanager
def attacking(lab: Lab, kind: str, **numbers: float) -> Iterator[Attack]:
    """The attack of this name (``attacker.ATTACKS``) on e0.0, from when the attacker runs until the block ends."""
    macs = (lab.mac(INITIATOR).hex(":"), lab.mac(TARGET).hex(":"))
    options = [f"{name}={float(value)}" for name, value in numbers.items()]
    command = python_module("tests.hostile.attacker", kind, "aoe0", *macs, "0.0", *options)
    process = lab.popen(ATTACKER, command)
    try:
        wait_until(lambda: process.poll() is not None or "{" in process.output, what="the attacker runs")
        yield Attack(process)
    finally:
        process.stop()


def discover(mount: Mount) -> None:
    """Ask on all links, as the mount does every minute."""
    (mount.here / ".aoefs/discover").write_text("1")
