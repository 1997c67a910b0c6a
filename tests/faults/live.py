"""What the tests of live mounts share: a mount with a log, its paths, direct I/O, work beside the test."""

from __future__ import annotations

import fcntl
import mmap
import os
import socket
import struct
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

from tests.lab import INITIATOR, TARGET, Lab, Mount, python_module, wait_until

_SIOCGIFFLAGS, _SIOCSIFFLAGS, _IFF_UP = 0x8913, 0x8914, 1


def mount_until(lab: Lab, *names: str, timeout: float = 30.0, **options: Any) -> Mount:
    """A mount in the foreground (for :func:`log_of`), once all of these files are there."""
    mount = lab.mount(foreground=True, verbose=True, **options)
    wait_until(lambda: set(names) <= set(os.listdir(mount.here)), timeout, f"{names} at {mount.path}")
    return mount


def log_of(mount: Mount) -> str:
    assert mount.process is not None
    return mount.process.output


def path_of(mount: Mount, name: str = "e0.0", interface: str = "aoe0") -> dict[str, Any]:
    found: dict[str, Any] = next(path for path in mount.target(name)["paths"] if path["interface"] == interface)
    return found


def serve_journal(lab: Lab, image: Path, *faults: str, address: str = "0.0") -> Path:
    """The target of :mod:`tests.faults.powercut`, once it listens; its journal."""
    journal = lab.directory / f"{image.name}.journal"
    wanted = lab.sides[TARGET].packet_sockets() + 1
    command = python_module("tests.faults.powercut", "aoe0", address, str(image), str(journal), *faults)
    process = lab.popen(TARGET, command)
    wait_until(lambda: process.poll() is not None or lab.sides[TARGET].packet_sockets() >= wanted)
    assert process.poll() is None, process.output
    return journal


def errno_of(call: Callable[[], object], timeout: float = 30.0) -> int | None:
    """The errno with which a call fails, or None.  A call that hangs fails the test, but does not hang it."""
    outcome: list[int | None] = []

    def run() -> None:
        try:
            call()
        except OSError as error:
            outcome.append(error.errno)
        else:
            outcome.append(None)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(timeout)
    assert outcome, f"still waiting after {timeout} s"
    return outcome[0]


def set_link(lab: Lab, side: str, interface: str, *, up: bool) -> None:
    """Switch an interface on or off without starting a program (see :func:`tests.lab.opened`)."""
    with lab.inside(side), socket.socket() as any_socket:
        request = struct.pack("16sH14x", interface.encode(), 0)
        _, flags = struct.unpack("16sH14x", fcntl.ioctl(any_socket, _SIOCGIFFLAGS, request))
        flags = flags | _IFF_UP if up else flags & ~_IFF_UP
        fcntl.ioctl(any_socket, _SIOCSIFFLAGS, struct.pack("16sH14x", interface.encode(), flags))


def aligned(data: bytes | int) -> mmap.mmap:
    """A buffer for direct I/O, with these bytes or of this size."""
    size = data if isinstance(data, int) else len(data)
    buffer = mmap.mmap(-1, size)
    if not isinstance(data, int):
        buffer[:] = data
    return buffer


def read(descriptor: int, size: int, offset: int = 0) -> bytes:
    """Bytes of the disk itself, not of the page cache (the descriptor has O_DIRECT)."""
    buffer = aligned(size)
    assert os.preadv(descriptor, [buffer], offset) == size
    return buffer[:]


def write(descriptor: int, data: bytes, offset: int = 0) -> None:
    assert os.pwritev(descriptor, [aligned(data)], offset) == len(data)


def pattern(number: int, size: int = 4096) -> bytes:
    """Bytes that show which write they are from."""
    return (number.to_bytes(8, "little") * (size // 8))[:size]


class Worker:
    """Calls ``step`` with rising numbers beside the test, until the block ends; its failure fails the test."""

    def __init__(self, step: Callable[[int], object]) -> None:
        self.steps = 0
        self.failure: Exception | None = None
        self._step = step
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        try:
            while not self._ending.is_set():
                self._step(self.steps)
                self.steps += 1
        except Exception as error:
            self.failure = error

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        self._thread.join(60)
        assert not self._thread.is_alive(), "it hangs"
        if self.failure is not None:
            raise self.failure

    def wait_for_steps(self, count: int, timeout: float = 60.0) -> None:
        """Wait until this many more steps are done, or one has failed."""
        wanted = self.steps + count
        wait_until(lambda: self.steps >= wanted or self.failure is not None, timeout, f"{count} more steps")
        assert self.failure is None, self.failure


def verify_with_fio(lab: Lab, path: Path, *options: str, size: str = "8M", timeout: float = 120) -> str:
    """Write blocks with checksums in random order and read them back; fio fails on any difference."""
    return lab.run(
        INITIATOR,
        [
            "fio", "--name=verify", f"--filename={path}", "--rw=randwrite", "--bs=4k", f"--size={size}", "--direct=1",
            "--ioengine=libaio", "--iodepth=16", "--verify=crc32c", "--do_verify=1", "--verify_fatal=1",
            "--verify_dump=0", "--allow_file_create=0", f"--aux-path={lab.directory}", "--minimal", *options,
        ],
        timeout=timeout,
    ).stdout  # fmt: skip
