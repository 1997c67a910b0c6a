"""What is measured: aoefs, nbdfuse over nbdkit, and a C yardstick, with the same file over the same veth pair.

Each contender is a context manager: it starts its server and its mount in the lab, and ends them.  Only one runs at a
time, since it needs all cores of a small machine.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.lab import INITIATOR, TARGET, Argument, Lab, Process, wait_until

Results = dict[str, dict[str, list[float]]]  # workload -> contender -> one figure per turn

_NBD_PORT = 10809


def note(results: Results, workload: str, contender: str, figure: float) -> None:
    results.setdefault(workload, {}).setdefault(contender, []).append(figure)


@dataclass(frozen=True)
class Client:
    """A mounted file and the process that serves it."""

    file: Path
    pid: int

    def cpu_seconds(self) -> float:
        """User and system time that the serving process has used."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / 100  # USER_HZ

    def peak_memory_mib(self) -> float:
        status = Path(f"/proc/{self.pid}/status").read_text()
        match = re.search(r"VmHWM:\s+(\d+)", status)
        assert match is not None
        return int(match[1]) / 1024


@contextlib.contextmanager
def _running(process: Process) -> Iterator[Process]:
    try:
        yield process
    finally:
        process.stop()


@contextlib.contextmanager
def aoefs(lab: Lab, disk: Path, *, program: Path, embedded: bool = False) -> Iterator[Client]:
    """An aoefs (the path of its command) over vblade, or over its own target."""
    with lab.using(program), _running(lab.target(f"0.0={disk}") if embedded else lab.vblade(0, 0, disk)):
        mount = lab.mount()
        try:
            yield Client(mount.file("e0.0"), mount.pid)
        finally:
            mount.umount()


@contextlib.contextmanager
def nbdfuse(lab: Lab, disk: Path) -> Iterator[Client]:
    """nbdfuse with its four connections, over nbdkit's file plugin and TCP."""
    lab.ip(TARGET, "addr", "replace", "10.66.0.1/24", "dev", "aoe0")
    lab.ip(INITIATOR, "addr", "replace", "10.66.0.2/24", "dev", "aoe0")
    server = lab.popen(TARGET, ["nbdkit", "-f", "-p", _NBD_PORT, "file", disk])
    with _running(server):
        listening = ["sh", "-c", f"ss -ltn | grep -q :{_NBD_PORT}"]
        wait_until(lambda: lab.run(TARGET, listening, check=False).returncode == 0, what="nbdkit listens")
        point = lab.directory / "nbd"
        point.mkdir(exist_ok=True)
        client = lab.popen(INITIATOR, ["nbdfuse", point / "disk", f"nbd://10.66.0.1:{_NBD_PORT}"])
        with _running(client):
            seen: list[Argument] = ["test", "-s", point / "disk"]
            wait_until(lambda: lab.run(INITIATOR, seen, check=False).returncode == 0, what="nbdfuse mounted")
            try:
                yield Client(point / "disk", client.pid)
            finally:
                lab.run(INITIATOR, ["fusermount3", "-u", point])
                client.wait(10)


def yardstick(
    lab: Lab, program: Path, *, window: int, sectors: int, mebibytes: int, write: bool
) -> dict[str, float] | None:
    """Run the C program against e0.0, a window in one batch; frames per second and MB per second as it printed them.

    None when it gave up: it does not retransmit.
    """
    arguments: list[Argument] = [program, window, sectors, mebibytes, window, "aoe0", *(["w"] if write else [])]
    match = re.search(r"(\d+) fps (\d+) MB/s", lab.run(INITIATOR, arguments, check=False).stdout)
    if match is None:
        return None
    return {"frames_per_second": float(match[1]), "mb_per_second": float(match[2])}
