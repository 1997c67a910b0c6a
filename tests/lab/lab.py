"""Real networks for tests: network namespaces joined by veth pairs, targets in one, aoefs in the other.

What holds always:

- No frame leaves a lab.  Every interface in it was made by it; nothing runs on an interface of the host.
- Each side has one mount namespace of its own, kept by a holder process.  Whatever needs a mount of that side runs
  through :meth:`Lab.run` or :meth:`Lab.popen` (``nsenter``); this process sees the same files below
  :attr:`Mount.here`.
- Whatever a lab made is gone when it ends, also after a failure: one ExitStack undoes it in reverse, and what still
  runs in a namespace of the lab is killed by its own process id.
- IPv6 is off, so the wire is silent but for what the test sends.

Rejected: ``ip netns exec`` for each command (every call has a mount namespace of its own, so that no command would see
another's mount); dumpcap for captures (the last packets are lost when it is told to stop).

    with Lab(mtu=9000) as lab:
        disk = lab.image("disk", 8 << 20)
        lab.vblade(0, 0, disk)
        mount = lab.mount()
        lab.run("initiator", ["cmp", disk, f"{mount.path}/e0.0"])
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import itertools
import json
import os
import shlex
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pytest

ETHERTYPE = 0x88A2
both_mtus = pytest.mark.parametrize("lab", [1500, 9000], indirect=True)  # of the fixture in conftest.py
INITIATOR, TARGET = "initiator", "target"
COMMANDS = Path(sys.executable).parent  # of the virtual environment that runs the tests
SYSTEM_PATH = os.pathsep.join((os.environ.get("PATH", ""), "/usr/local/sbin", "/usr/sbin", "/sbin"))

_ETH_P_ALL = 3
_SOL_PACKET, _PACKET_STATISTICS = 263, 6
_SO_RCVBUFFORCE = 33
_CLONE_NEWNET = 0x4000_0000
_libc = ctypes.CDLL(None, use_errno=True)
_serial = itertools.count(1)

Argument = str | os.PathLike[str] | int  # of a command line


def require(*needed: str, root: bool = True) -> None:
    """Skip the test when a program (or a file, if written with a slash) is missing, or root rights; fail under CI.

    CI installs everything, so that nothing may be skipped there.
    """
    missing = [name for name in needed if not (Path(name).exists() if "/" in name else find_program(name))]
    if root and os.geteuid() != 0:
        missing.append("root rights")
    if missing:
        reason = f"needs {', '.join(missing)}; tests/run.sh installs what is missing"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)


def find_program(name: str) -> str | None:
    """Where a program lies; the commands of the virtual environment come first, sbin directories count."""
    return shutil.which(name, path=f"{COMMANDS}{os.pathsep}{SYSTEM_PATH}")


def wait_until(predicate: Callable[[], object], timeout: float = 10.0, what: str = "") -> None:
    """Poll a real process or file until ``predicate()`` is true; AssertionError after ``timeout`` seconds."""
    deadline = time.monotonic() + timeout
    while not predicate():
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout} s: {what or getattr(predicate, '__name__', predicate)}")
        time.sleep(0.005)


def make_image(path: Path, size: int, *, seed: int | None = 0) -> Path:
    """A file of ``size`` bytes, pseudo-random by ``seed``, or sparse zeros for None."""
    with path.open("wb") as file:
        file.truncate(size)
        if seed is not None:
            generator = np.random.default_rng(seed)
            for start in range(0, size, 16 << 20):
                file.write(generator.bytes(min(16 << 20, size - start)))
    return path


class Process(subprocess.Popen[bytes]):
    """A program that runs in a lab.  Its stdout and stderr go to the file ``log``."""

    def __init__(self, arguments: Sequence[str], log: Path) -> None:
        self.log = log
        with log.open("wb") as output:
            # A session of its own: Ctrl-C reaches the test alone, which then ends everything in its order.
            super().__init__(
                arguments, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
            )

    @property
    def output(self) -> str:
        """What it has written so far."""
        return self.log.read_text(errors="replace")

    def stop(self, number: signal.Signals = signal.SIGTERM, timeout: float = 10.0) -> int:
        """Signal it (also when it is stopped) and wait; killed after ``timeout`` seconds.  The exit code."""
        if self.poll() is None:
            self.send_signal(number)
            self.send_signal(signal.SIGCONT)
            try:
                self.wait(timeout)
            except subprocess.TimeoutExpired:
                self.kill()
        return self.wait()


class Side:
    """One network namespace of a lab, with the mount namespace of its holder."""

    def __init__(self, name: str, namespace: str, holder: int) -> None:
        self.name = name
        self.namespace = namespace
        self.holder = holder
        self.interfaces: list[str] = []

    @property
    def enter(self) -> list[str]:
        """The command prefix that runs something here; it is replaced by the program, so that the pid is that one's."""
        return ["nsenter", "-t", str(self.holder), "-m", "-n", "--"]

    @property
    def root(self) -> Path:
        """The files of this side as this process sees them."""
        return Path(f"/proc/{self.holder}/root")

    def packet_sockets(self) -> int:
        """How many sockets are bound to the ethertype of AoE here."""
        lines = Path(f"/proc/{self.holder}/net/packet").read_text().splitlines()[1:]
        return sum(line.split()[3] == f"{ETHERTYPE:04x}" for line in lines)


class Capture:
    """Every frame that one interface sent or received since this was made, in order."""

    def __init__(self, interface: str, file: Path) -> None:
        self.file = file
        self._frames: list[bytes] = []
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 256 << 20)
        self._socket.setblocking(False)
        self._socket.bind((interface, _ETH_P_ALL))

    def frames(self) -> list[bytes]:
        """What was seen so far; AssertionError if the kernel had to drop some of it."""
        with contextlib.suppress(BlockingIOError):
            while True:
                self._frames.append(self._socket.recv(1 << 16))
        dropped = struct.unpack("II", self._socket.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, 8))[1]
        assert not dropped, f"the capture lost {dropped} frames: capture less"
        return self._frames

    def pcap(self) -> Path:
        """The file, in pcap format, with what was seen so far."""
        write_pcap(self.file, self.frames())
        return self.file

    def tshark(self, display_filter: str, *fields: str) -> list[list[str]]:
        """One row of ``fields`` for each frame that the filter lets through."""
        return tshark(self.pcap(), display_filter, *fields)

    def close(self) -> None:
        self._socket.close()


def open_packet_socket(lab: Lab, side: str = INITIATOR, interface: str = "aoe0") -> socket.socket:
    """A plain socket for AoE frames, unlike the ones under test; it waits two seconds for a frame at most."""
    with lab.inside(side), contextlib.ExitStack() as undo:
        wire = undo.enter_context(socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0))
        wire.bind((interface, ETHERTYPE))
        wire.settimeout(2.0)
        undo.pop_all()
    return wire


def write_pcap(file: Path, frames: Iterable[bytes]) -> Path:
    """Frames as a pcap file, one a millisecond."""
    with file.open("wb") as output:
        output.write(struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 1 << 18, 1))
        for index, frame in enumerate(frames):
            output.write(struct.pack("<IIII", index // 1000, index % 1000 * 1000, len(frame), len(frame)))
            output.write(frame)
    return file


def tshark(pcap: Path, display_filter: str, *fields: str) -> list[list[str]]:
    """One row of ``fields`` for each frame of a pcap file that the display filter lets through."""
    options = itertools.chain.from_iterable(("-e", field) for field in fields)
    command = ["tshark", "-n", "-2", "-r", str(pcap), "-Y", display_filter, "-T", "fields", *options]
    answer = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert answer.returncode == 0, f"{' '.join(command)}: {answer.stderr}"
    return [line.split("\t") for line in answer.stdout.splitlines()]


class Mount:
    """A live mount.  ``path`` is where programs of its side see it, ``here`` where this process does."""

    def __init__(self, lab: Lab, side: str, path: Path, process: Process | None, log: str) -> None:
        self.lab = lab
        self.side = side
        self.path = path
        self.process = process  # of a foreground mount
        self.log = log  # what the command wrote until the mount was live
        self.here = lab.sides[side].root / path.relative_to("/")

    @property
    def mounted(self) -> bool:
        mounts = (Path("/proc") / str(self.lab.sides[self.side].holder) / "mounts").read_text()
        return any(line.split()[1] == str(self.path) for line in mounts.splitlines())

    def file(self, name: str) -> Path:
        """A file of the mount, such as ``e0.0``, as programs of its side see it."""
        return self.path / name

    def status(self) -> dict[str, Any]:
        """What ``aoefs status --json`` prints."""
        answer: dict[str, Any] = json.loads(self.lab.aoefs("status", "--json", self.path, side=self.side).stdout)
        return answer

    def umount(self, *options: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """``aoefs umount``, which waits until the daemon is gone."""
        return self.lab.aoefs("umount", *options, self.path, side=self.side, check=check)


class Lab:
    """Namespaces ``initiator`` and ``target`` joined by ``pairs`` veth pairs of one ``mtu`` (bytes).

    The interfaces of a side are ``aoe0``, ``aoe1`` and so on, and their addresses are fixed (:meth:`mac`).
    ``directory`` is for files of the test.  Use it in a ``with`` statement.
    """

    def __init__(self, mtu: int = 1500, pairs: int = 1) -> None:
        self.mtu = mtu
        self.pairs = pairs
        self.sides: dict[str, Side] = {}
        self.directory = Path()
        self._serial = next(_serial)
        self._files = itertools.count(1)
        self._undo = contextlib.ExitStack()

    def __enter__(self) -> Lab:
        require("ip", "nsenter", "unshare")
        with self._undo:
            self.directory = Path(self._undo.enter_context(tempfile.TemporaryDirectory(prefix="aoefs-lab-")))
            self.directory.chmod(0o755)
            self.add_side(INITIATOR)
            self.add_side(TARGET)
            for _ in range(self.pairs):
                self.cable(INITIATOR, TARGET)
            self._undo = self._undo.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._undo.close()

    # ── the network ───────────────────────────────────────────────────────────────────────────────────────────────

    def add_side(self, name: str) -> Side:
        """A further network namespace, without any interface yet."""
        namespace = f"aoefs-{os.getpid()}-{self._serial}{chr(ord('a') + len(self.sides))}"
        _host("ip", "netns", "add", namespace)
        self._undo.callback(_host, "ip", "netns", "del", namespace)
        command = ["ip", "netns", "exec", namespace, "unshare", "-m", "--propagation", "private", "sleep", "infinity"]
        holder = self._undo.enter_context(subprocess.Popen(command, start_new_session=True))
        self._undo.callback(_kill_all_of, namespace, holder)
        comm = Path(f"/proc/{holder.pid}/comm")
        wait_until(functools.partial(_reads, comm, "sleep"), what=f"holder of {namespace}")
        side = self.sides[name] = Side(name, namespace, holder.pid)
        self.run(name, ["sh", "-c", "for f in all default; do echo 1 > /proc/sys/net/ipv6/conf/$f/disable_ipv6; done"])
        self.ip(name, "link", "set", "lo", "up")
        return side

    def cable(self, left: str, right: str, mtu: int | None = None) -> tuple[str, str]:
        """One more veth pair; each end takes the next number of its side.  The two names."""
        names = []
        ends: list[list[Argument]] = []
        for side in (left, right):
            name = f"aoe{len(self.sides[side].interfaces)}"
            mac = _mac(list(self.sides).index(side), len(self.sides[side].interfaces)).hex(":")
            namespace = self.sides[side].namespace
            ends.append(["name", name, "address", mac, "mtu", mtu or self.mtu, "netns", namespace])
            self.sides[side].interfaces.append(name)
            names.append(name)
        _host("ip", "link", "add", *ends[0], "type", "veth", "peer", *ends[1])
        for side, name in zip((left, right), names, strict=True):
            self.ip(side, "link", "set", name, "up")
        for side, name in zip((left, right), names, strict=True):
            carrier = self.sides[side].root / "sys/class/net" / name / "carrier"
            wait_until(functools.partial(_reads, carrier, "1"), what=f"carrier of {name} at {side}")
        return names[0], names[1]

    def switch(self, *sides: str, mtu: int | None = None) -> None:
        """Give each side one interface more, all on one bridge: for several initiators on one wire.

        A bridge that snoops on multicast sends reports of its own.
        """
        bridge = f"wire{len(self.sides)}"
        self.add_side(bridge)
        self.ip(bridge, "link", "add", "br0", "mtu", mtu or self.mtu, "type", "bridge", "mcast_snooping", "0")
        self.ip(bridge, "link", "set", "br0", "up")
        for side in sides:
            _, port = self.cable(side, bridge, mtu)
            self.ip(bridge, "link", "set", port, "master", "br0")
        for port in self.sides[bridge].interfaces:
            state = self.sides[bridge].root / "sys/class/net/br0/brif" / port / "state"
            wait_until(functools.partial(_reads, state, "3"), what=f"forwarding of {port} at {bridge}")

    def ip(self, side: str, *arguments: Argument) -> None:
        """``ip`` in the namespace of a side, such as ``lab.ip("target", "link", "set", "aoe0", "down")``."""
        _host("ip", "-n", self.sides[side].namespace, *arguments)

    def mac(self, side: str, number: int = 0) -> bytes:
        """The address of interface ``aoe<number>`` of a side."""
        return _mac(list(self.sides).index(side), number)

    @contextlib.contextmanager
    def inside(self, side: str) -> Iterator[None]:
        """Sockets that this thread opens here belong to the side's network, also after the block ended."""
        with open("/proc/thread-self/ns/net") as outer, open(f"/proc/{self.sides[side].holder}/ns/net") as inner:
            _set_namespace(inner.fileno())
            try:
                yield
            finally:
                _set_namespace(outer.fileno())

    def capture(self, side: str = INITIATOR, interface: str = "aoe0") -> Capture:
        """See every frame of an interface from now on."""
        with self.inside(side):
            capture = Capture(interface, self.directory / f"{next(self._files)}.pcap")
        self._undo.callback(capture.close)
        return capture

    # ── programs ──────────────────────────────────────────────────────────────────────────────────────────────────

    def command(self, side: str, arguments: Sequence[Argument]) -> list[str]:
        """The command line that runs ``arguments`` in a side; a program's name is looked up as :func:`require` does."""
        program = os.fspath(arguments[0]) if not isinstance(arguments[0], int) else str(arguments[0])
        if "/" not in program:
            found = find_program(program)
            assert found is not None, f"{program} is not installed; tests/run.sh installs what is missing"
            program = found
        return [*self.sides[side].enter, program, *map(str, arguments[1:])]

    def run(
        self,
        side: str,
        arguments: Sequence[Argument],
        *,
        check: bool = True,
        timeout: float = 120,
        stdin: str | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run a program to its end; AssertionError with its output if it fails (unless ``check`` is False).

        It starts in ``/``, so write file names in full.  A program that becomes a daemon may go on after the return.
        """
        command = self.command(side, arguments)
        with (self.directory / f"{next(self._files)}.stdin").open("w+") as given:  # no pipe that a daemon could hold
            given.write(stdin or "")
            given.seek(0)
            out, err = (self.directory / f"{next(self._files)}.{name}" for name in ("stdout", "stderr"))
            with out.open("wb") as out_file, err.open("wb") as err_file:
                ended = subprocess.run(
                    command, stdin=given, stdout=out_file, stderr=err_file, timeout=timeout, check=False
                )
        texts = out.read_text(errors="replace"), err.read_text(errors="replace")
        answer = subprocess.CompletedProcess(ended.args, ended.returncode, *texts)
        if check and answer.returncode:
            said = f"{answer.stdout}{answer.stderr}".rstrip()
            raise AssertionError(f"exit code {answer.returncode} of: {shlex.join(map(str, arguments))}\n{said}")
        return answer

    def popen(self, side: str, arguments: Sequence[Argument]) -> Process:
        """Start a program; it is stopped when the lab ends (SIGTERM, then SIGKILL)."""
        process = Process(self.command(side, arguments), self.directory / f"{next(self._files)}.log")
        self._undo.callback(process.stop)
        return process

    def aoefs(
        self, *arguments: Argument, side: str = INITIATOR, check: bool = True, timeout: float = 60
    ) -> subprocess.CompletedProcess[str]:
        """Run the command ``aoefs`` of the environment that runs the tests."""
        return self.run(side, [COMMANDS / "aoefs", *arguments], check=check, timeout=timeout)

    def _serve(self, side: str, sockets: int, arguments: Sequence[Argument]) -> Process:
        wanted = self.sides[side].packet_sockets() + sockets
        process = self.popen(side, arguments)
        wait_until(
            lambda: process.poll() is not None or self.sides[side].packet_sockets() >= wanted,
            what=f"{arguments[0]} listens",
        )
        assert process.poll() is None, f"{shlex.join(map(str, arguments))} ended: {process.output}"
        return process

    def vblade(
        self,
        shelf: int,
        slot: int,
        path: Path | str,
        *options: Argument,
        side: str = TARGET,
        interface: str = "aoe0",
    ) -> Process:
        """A vblade that listens when this returns; its ``options`` are ``-b``, ``-r``, ``-s``, ``-m`` and so on."""
        require("vblade")
        return self._serve(side, 1, ["vblade", *options, shelf, slot, interface, path])

    def target(self, *arguments: Argument, side: str = TARGET, interfaces: Sequence[str] = ("aoe0",)) -> Process:
        """``aoefs target`` with exports such as ``0.0=/disk`` and options; it listens when this returns."""
        links = itertools.chain.from_iterable(("-i", interface) for interface in interfaces)
        return self._serve(side, len(interfaces), [COMMANDS / "aoefs", "target", *links, *arguments])

    def mount(
        self,
        *arguments: Argument,
        side: str = INITIATOR,
        interfaces: Sequence[str] | None = None,
        foreground: bool = False,
        **options: str | int | bool,
    ) -> Mount:
        """``aoefs -i ... MOUNTPOINT`` on a new directory, live when this returns.

        ``interfaces``: all of the side unless given.  ``options`` become options of the command: ``deadsecs=5`` is
        ``--deadsecs 5``, ``read_only=True`` is ``--read-only``.  In the foreground, ``Mount.process`` is the daemon,
        and the first discovery may still be under way.
        """
        require("/dev/fuse")
        point = self.directory / f"mnt{next(self._files)}"
        point.mkdir()
        command: list[Argument] = [COMMANDS / "aoefs"]
        for interface in self.sides[side].interfaces if interfaces is None else interfaces:
            command += ["-i", interface]
        for name, value in options.items():
            if value is not False:
                command += [f"--{name.replace('_', '-')}", *([] if value is True else [value])]
        command += [*arguments, *(["-f"] if foreground else []), point]
        if not foreground:
            mount = Mount(self, side, point, None, "")
            self._undo.callback(_lazy_umount, mount)
            mount.log = self.run(side, command).stderr
        else:
            process = self.popen(side, command)
            mount = Mount(self, side, point, process, "")
            self._undo.callback(_lazy_umount, mount)
            wait_until(lambda: process.poll() is not None or mount.mounted, what="the mount is live")
            assert process.poll() is None, f"aoefs ended: {process.output}"
        return mount

    # ── disks ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def image(self, name: str, size: int, *, seed: int | None = 0) -> Path:
        """A file in the lab's directory, pseudo-random by ``seed``, or sparse zeros for None (:func:`make_image`)."""
        return make_image(self.directory / name, size, seed=seed)

    def losetup(self, path: Path | str, *options: Argument, side: str = INITIATOR) -> Path:
        """A loop device on a file as the side sees it; detached when the lab ends."""
        device = Path(self.run(side, ["losetup", "--find", "--show", *options, path]).stdout.strip())
        self._undo.callback(self.run, side, ["losetup", "--detach", device], check=False)
        return device


def _mac(side: int, number: int) -> bytes:
    return bytes((0x02, 0xAE, 0, 0, side + 1, number))


def _reads(path: Path, text: str) -> bool:
    return path.read_text().strip() == text


def _host(*arguments: Argument) -> None:
    """A command of this lab's own making, outside of its namespaces."""
    answer = subprocess.run([*map(str, arguments)], capture_output=True, text=True, check=False, timeout=30)
    assert answer.returncode == 0, f"{shlex.join(map(str, arguments))}: {answer.stderr.strip()}"


def _set_namespace(descriptor: int) -> None:
    if _libc.setns(descriptor, _CLONE_NEWNET):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def _lazy_umount(mount: Mount) -> None:
    """Let go of a mount that a test left, whatever its state; the daemon then ends."""
    if mount.mounted:
        mount.lab.run(mount.side, ["umount", "-l", mount.path], check=False)


def _pids_in(namespace: str) -> list[int]:
    answer = subprocess.run(["ip", "netns", "pids", namespace], capture_output=True, text=True, check=False, timeout=30)
    return [int(line) for line in answer.stdout.split()]


def _kill_all_of(namespace: str, holder: subprocess.Popen[bytes]) -> None:
    """End what still runs in a namespace that this process made: daemons first, then their mounts' holder."""
    for pid in _pids_in(namespace):
        if pid != holder.pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    wait_until(lambda: set(_pids_in(namespace)) <= {holder.pid}, what=f"nothing runs in {namespace}")
    holder.kill()
    holder.wait()
