"""What is measured: aoefs, nbdfuse over nbdkit, and a C yardstick, with the same file over the same veth pair.

Each contender is a context manager: it starts its server and its mount in the lab, and ends them.  Only one runs at a
time, since it needs all cores of a small machine.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from tests.lab import INITIATOR, TARGET, Argument, Lab, Process, wait_until

Results = dict[str, dict[str, list[float]]]  # workload -> contender -> one figure per turn

_NBD_PORT = 10809


def note(results: Results, workload: str, contender: str, figure: float) -> None:
    results.setdefault(workload, {}).setdefault(contender, []).append(figure)


def note_processor(
    results: Results, workload: str, contender: str, client: Client, before: dict[str, float], requests: int
) -> None:
    """The processor time of the serving process since ``before``, for each request."""
    for kind, seconds in client.processor().items():
        figure = (seconds - before[kind]) / requests * 1e6
        note(results, f"{workload}: {kind} time of a request (us)", contender, figure)


@dataclass(frozen=True)
class Client:
    """A mounted file and the process that serves it; ``other`` is a file of a second target, if there is one."""

    file: Path
    pid: int
    other: Path | None = None

    def processor(self) -> dict[str, float]:
        """User and system time that the serving process has used (seconds)."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return {"user": int(fields[11]) / 100, "system": int(fields[12]) / 100}  # USER_HZ

    def receives_by_splice(self) -> bool:
        """libfuse takes its requests through a pipe, which has room for a whole one, and not by read(2).

        It does with CAP_SYS_RESOURCE, or where ``fs.pipe-max-size`` was raised.
        """
        for name in os.listdir(f"/proc/{self.pid}/fd"):
            with contextlib.suppress(OSError):  # closed meanwhile, or no pipe
                if os.readlink(f"/proc/{self.pid}/fd/{name}").startswith("pipe:"):
                    pipe = os.open(f"/proc/{self.pid}/fd/{name}", os.O_RDONLY | os.O_NONBLOCK)
                    try:
                        if fcntl.fcntl(pipe, fcntl.F_GETPIPE_SZ) > 1 << 20:
                            return True
                    finally:
                        os.close(pipe)
        return False

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
def aoefs(
    lab: Lab, disk: Path, other: Path | None = None, *, program: Path, embedded: bool = False
) -> Iterator[Client]:
    """An aoefs (the path of its command) over vblade, or over its own target; ``other`` is a second target."""
    disks = [disk] if other is None else [disk, other]
    with lab.using(program), contextlib.ExitStack() as servers:
        for slot, image in enumerate(disks):
            servers.enter_context(_running(lab.target(f"0.{slot}={image}") if embedded else lab.vblade(0, slot, image)))
        mount = lab.mount()
        try:
            yield Client(mount.file("e0.0"), mount.pid, None if other is None else mount.file("e0.1"))
        finally:
            mount.umount()


@contextlib.contextmanager
def nbdfuse(lab: Lab, disk: Path, other: Path | None = None) -> Iterator[Client]:
    """nbdfuse with its four connections, over nbdkit's file plugin and TCP; a second pair of them for ``other``."""
    lab.ip(TARGET, "addr", "replace", "10.66.0.1/24", "dev", "aoe0")
    lab.ip(INITIATOR, "addr", "replace", "10.66.0.2/24", "dev", "aoe0")
    with _nbd_file(lab, disk, _NBD_PORT) as client:
        if other is None:
            yield client
        else:
            with _nbd_file(lab, other, _NBD_PORT + 1) as second:
                yield replace(client, other=second.file)


@contextlib.contextmanager
def _nbd_file(lab: Lab, disk: Path, port: int) -> Iterator[Client]:
    server = lab.popen(TARGET, ["nbdkit", "-f", "-p", port, "file", disk])
    with _running(server):
        listening = ["sh", "-c", f"ss -ltn | grep -q :{port}"]
        wait_until(lambda: lab.run(TARGET, listening, check=False).returncode == 0, what="nbdkit listens")
        point = lab.directory / f"nbd{port}"
        point.mkdir(exist_ok=True)
        client = lab.popen(INITIATOR, ["nbdfuse", point / "disk", f"nbd://10.66.0.1:{port}"])
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
