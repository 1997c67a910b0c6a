"""The lab: network namespaces joined by veth pairs, targets in one, aoefs in the other."""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import shlex
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType

from tests.lab.frames import Capture
from tests.lab.mount import Mount
from tests.lab.process import Process, wait_until
from tests.lab.programs import COMMANDS, Argument, find_program, make_image, require
from tests.lab.side import INITIATOR, TARGET, Side, open_side, reads, run_on_host

WORKERS_VARIABLE = "AOEFS_LAB_WORKERS"  # for a run of tests of mounts with --workers

_serial = itertools.count(1)


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
        self.program = COMMANDS / "aoefs"  # the command that mount, target and aoefs run
        self.workers = int(os.environ.get(WORKERS_VARIABLE, "1"))  # of each mount that does not say
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
        side = self.sides[name] = self._undo.enter_context(open_side(name, namespace))
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
        run_on_host("ip", "link", "add", *ends[0], "type", "veth", "peer", *ends[1])
        for side, name in zip((left, right), names, strict=True):
            self.ip(side, "link", "set", name, "up")
        for side, name in zip((left, right), names, strict=True):
            carrier = self.sides[side].root / "sys/class/net" / name / "carrier"
            wait_until(functools.partial(reads, carrier, "1"), what=f"carrier of {name} at {side}")
        return names[0], names[1]

    def switch(self, *sides: str, mtu: int | None = None, pinned: bool = False) -> None:
        """Give each side one interface more, all on one bridge: for several hosts on one wire.

        The bridge learns addresses from frames.  If they are ``pinned``, it knows those of the sides from the start and
        learns none: then no host sees a unicast frame to another one, whatever it sends.  A bridge that snoops on
        multicast sends reports of its own.
        """
        bridge = f"wire{len(self.sides)}"
        self.add_side(bridge)
        self.ip(bridge, "link", "add", "br0", "mtu", mtu or self.mtu, "type", "bridge", "mcast_snooping", "0")
        self.ip(bridge, "link", "set", "br0", "up")
        for side in sides:
            _, port = self.cable(side, bridge, mtu)
            self.ip(bridge, "link", "set", port, "master", "br0")
            if pinned:
                self.ip(bridge, "link", "set", port, "type", "bridge_slave", "learning", "off")
                mac = self.mac(side, len(self.sides[side].interfaces) - 1).hex(":")
                namespace = self.sides[bridge].namespace
                run_on_host("bridge", "-n", namespace, "fdb", "replace", mac, "dev", port, "master", "static")
        for port in self.sides[bridge].interfaces:
            state = self.sides[bridge].root / "sys/class/net/br0/brif" / port / "state"
            wait_until(functools.partial(reads, state, "3"), what=f"forwarding of {port} at {bridge}")

    def ip(self, side: str, *arguments: Argument) -> None:
        """``ip`` in the namespace of a side, such as ``lab.ip("target", "link", "set", "aoe0", "down")``."""
        run_on_host("ip", "-n", self.sides[side].namespace, *arguments)

    def mac(self, side: str, number: int = 0) -> bytes:
        """The address of interface ``aoe<number>`` of a side."""
        return _mac(list(self.sides).index(side), number)

    def inside(self, side: str) -> contextlib.AbstractContextManager[None]:
        """Sockets that this thread opens in the block belong to the side's network, also after the block."""
        return self.sides[side].inside()

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

    @contextlib.contextmanager
    def repeating(self, side: str, arguments: Sequence[Argument]) -> Iterator[Process]:
        """Run a program again and again while the block runs, so that it cannot be over too early on any machine.

        The last run ends with the block; AssertionError if a run fails.
        """
        over = self.directory / f"{next(self._files)}.over"
        shell = self.popen(side, ["sh", "-c", 'until [ -e "$0" ]; do "$@" || exit; done', over, *arguments])
        yield shell
        over.touch()
        assert shell.wait(120) == 0, shell.output

    def aoefs(
        self, *arguments: Argument, side: str = INITIATOR, check: bool = True, timeout: float = 60
    ) -> subprocess.CompletedProcess[str]:
        """Run the command ``aoefs``."""
        return self.run(side, [self.program, *arguments], check=check, timeout=timeout)

    @contextlib.contextmanager
    def using(self, program: Path) -> Iterator[None]:
        """In the block, :meth:`aoefs`, :meth:`target` and :meth:`mount` run the ``aoefs`` of another installation."""
        ours, self.program = self.program, program
        try:
            yield
        finally:
            self.program = ours

    def _start(self, side: str, arguments: Sequence[Argument], is_started: Callable[[Process], bool]) -> Process:
        process, command = self.popen(side, arguments), shlex.join(map(str, arguments))
        wait_until(lambda: process.poll() is not None or is_started(process), what=f"start of {command}")
        assert process.poll() is None, f"{command} ended: {process.output}"
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
        before = self.sides[side].packet_sockets()
        command: list[Argument] = ["vblade", *options, shelf, slot, interface, path]
        return self._start(side, command, lambda _process: self.sides[side].packet_sockets() > before)

    def target(self, *arguments: Argument, side: str = TARGET, interfaces: Sequence[str] = ("aoe0",)) -> Process:
        """``aoefs target`` with exports such as ``0.0=/disk`` and options; it serves when this returns."""
        links = itertools.chain.from_iterable(("-i", interface) for interface in interfaces)
        # Its first packet sockets only ask whether the addresses are free; it prints its lines when it serves.
        command = [self.program, "target", *links, *arguments]
        return self._start(side, command, lambda process: " sectors read-" in process.output)

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
        command: list[Argument] = [self.program]
        for interface in self.sides[side].interfaces if interfaces is None else interfaces:
            command += ["-i", interface]
        if self.workers != 1:
            options.setdefault("workers", self.workers)
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
        self._undo.callback(self._detach, side, device, _disk_sequence(device))
        return device

    def _detach(self, side: str, device: Path, sequence: str) -> None:
        """Unless a test has, and the device may be another's now."""
        if _disk_sequence(device) == sequence:
            self.run(side, ["losetup", "--detach", device], check=False)


def _disk_sequence(device: Path) -> str:
    """A number that a loop device has until it is detached (Linux 5.15): the next user of the device has another."""
    try:
        return Path("/sys/block", device.name, "diskseq").read_text()
    except OSError:
        return ""


def _mac(side: int, number: int) -> bytes:
    return bytes((0x02, 0xAE, 0, 0, side + 1, number))


def _lazy_umount(mount: Mount) -> None:
    """Unmount what a test left mounted, in whatever state it is; the daemon then ends."""
    if mount.mounted:
        mount.lab.run(mount.side, ["umount", "-f", "-l", mount.path], check=False)
