"""One side of a lab: a network namespace and a mount namespace, kept by a process that sleeps."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import shlex
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

from aoefs.protocol.wire import ETHERTYPE
from tests.lab.process import wait_until
from tests.lab.programs import Argument

INITIATOR, TARGET = "initiator", "target"
ATTACKER = "attacker"  # a third host, of tests.hostile

_CLONE_NEWNET = 0x4000_0000

# The new mount namespace has copies of all mounts; one of a mount of another test would keep that alive.
_HOLD = """
grep ' fuse[.]aoefs' /proc/mounts | while read -r _ path _; do umount --lazy --no-canonicalize "$path"; done 2>/dev/null
exec sleep infinity
"""
_libc = ctypes.CDLL(None, use_errno=True)


class Side:
    """One network namespace of a lab, with the mount namespace of its holder."""

    def __init__(self, name: str, namespace: str, holder: int) -> None:
        self.name = name
        self.namespace = namespace
        self.holder = holder
        self.interfaces: list[str] = []

    @property
    def enter(self) -> list[str]:
        """The prefix of a command line that runs a program here.  ``nsenter`` becomes the program, so the pid stays."""
        return ["nsenter", "-t", str(self.holder), "-m", "-n", "--"]

    @property
    def root(self) -> Path:
        """The files of this side as this process sees them."""
        return Path(f"/proc/{self.holder}/root")

    def mounts(self) -> list[str]:
        """The lines of ``/proc/mounts`` here, oldest mount first."""
        return Path(f"/proc/{self.holder}/mounts").read_text().splitlines()

    def packet_sockets(self) -> int:
        """How many sockets are bound to the ethertype of AoE here."""
        lines = Path(f"/proc/{self.holder}/net/packet").read_text().splitlines()[1:]
        return sum(line.split()[3] == f"{ETHERTYPE:04x}" for line in lines)

    @contextlib.contextmanager
    def inside(self) -> Iterator[None]:
        """Sockets that this thread opens in the block belong to this side's network, also after the block."""
        with open("/proc/thread-self/ns/net") as outer, open(f"/proc/{self.holder}/ns/net") as inner:
            _set_namespace(inner.fileno())
            try:
                yield
            finally:
                _set_namespace(outer.fileno())


@contextlib.contextmanager
def open_side(name: str, namespace: str) -> Iterator[Side]:
    """A side without interfaces but ``lo``.  In the end all that runs in the network namespace is killed."""
    run_on_host("ip", "netns", "add", namespace)
    try:
        command = ["ip", "netns", "exec", namespace, "unshare", "-m", "--propagation", "private", "sh", "-c", _HOLD]
        with subprocess.Popen(command, start_new_session=True) as holder:
            try:
                comm = Path(f"/proc/{holder.pid}/comm")
                wait_until(functools.partial(reads, comm, "sleep"), what=f"holder of {namespace}")
                yield Side(name, namespace, holder.pid)
            finally:
                _kill_all_of(namespace, holder)
    finally:
        run_on_host("ip", "netns", "del", namespace)


def run_on_host(*arguments: Argument) -> None:
    """Run a command outside of all namespaces; AssertionError with its output if it fails."""
    answer = subprocess.run([*map(str, arguments)], capture_output=True, text=True, check=False, timeout=30)
    assert answer.returncode == 0, f"{shlex.join(map(str, arguments))}: {answer.stderr.strip()}"


def reads(path: Path, text: str) -> bool:
    """Whether a file of one line says this."""
    return path.read_text().strip() == text


def _set_namespace(descriptor: int) -> None:
    if _libc.setns(descriptor, _CLONE_NEWNET):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def _pids_in(namespace: str) -> list[int]:
    answer = subprocess.run(["ip", "netns", "pids", namespace], capture_output=True, text=True, check=False, timeout=30)
    return [int(line) for line in answer.stdout.split()]


def _kill_all_of(namespace: str, holder: subprocess.Popen[bytes]) -> None:
    """Kill what runs in a namespace of this lab: daemons first, then the holder, with which all mounts vanish."""
    try:
        for pid in _pids_in(namespace):
            if pid != holder.pid:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        wait_until(lambda: set(_pids_in(namespace)) <= {holder.pid}, timeout=30, what=f"nothing runs in {namespace}")
    finally:
        holder.kill()
        holder.wait()
