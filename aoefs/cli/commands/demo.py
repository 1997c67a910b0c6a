"""``aoefs demo``: a target, a mount, and a tour that uses them, on one machine.

Two network namespaces stand for two hosts, joined by a veth pair with jumbo frames.  ``aoefs target`` serves two sparse
files in one of them.  The mount process has the network of the other one and the mount namespace of the caller, so that
the caller sees the mount; therefore nsenter(1) and not ``ip netns exec``.

Without root the demo runs in a user namespace of its own (unshare(1) starts this command again), where it may make
networks and mounts that other processes do not see.  It may not use loop devices there: mkfs fills the file system and
debugfs reads it, without a mount.  ``--keep`` needs root, since other processes could not see the mount.

What always holds: every command of the tour is a real one, and its output is shown as it came.  No frame leaves the two
namespaces.  Whatever was made is removed at the end, also after Ctrl-C or an error: one ExitStack undoes it in reverse
order, and touches only what has the names and process ids of this run.

Rejected: children in the process group of the terminal (Ctrl-C would reach all at once, and the target would end before
the mount could flush), and reading back through the page cache (it would prove nothing).
"""

from __future__ import annotations

import argparse
import contextlib
import os
import select
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import NoReturn

from aoefs.errors import UserError
from aoefs.host import interfaces, mountpoint
from aoefs.host.background import own_command, wait_or_kill
from aoefs.status.text import to_stderr

MIB = 1 << 20
MTU = 9000
INTERFACE = "aoe0"  # on both sides
DISKS = {"0.0": 512 * MIB, "7.1": 256 * MIB}  # sparse files
RANDOM_MIB = 32
SPEED_MIB = 256
NEEDED_BYTES = 400 * MIB  # that the tour writes at most, in the directory for temporary files

_TARGET_SECONDS = 10.0  # until the target serves, and until it has stopped
_CLEANUP_SECONDS = 8.0  # for one command of the clean-up
_DISCOVER_SECONDS = 2.0  # which discover always takes
_DISK_SECONDS = 10.0  # for a disk to answer, on a very busy machine
_MOUNT_STOP_SECONDS = 25.0  # for a mount process after SIGTERM: it serves open files for 10 s, then flushes
_POLL_SECONDS = 0.05
_UNPRIVILEGED_VARIABLE = "AOEFS_DEMO_UNPRIVILEGED"  # set for the process in the user namespace
_STYLES = {"heading": "1;38;5;31", "command": "1;38;5;28", "output": "", "note": "38;5;243"}  # legible on any ground

# With the directories of mkfs and ip, which are not in every PATH.
_PATH = os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/local/sbin", "/usr/sbin", "/sbin"))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    what = "an empty directory (default: a temporary one)"
    parser.add_argument("mountpoint", nargs="?", metavar="DIR", help=what)
    parser.add_argument("--keep", action="store_true", help="leave everything up after the tour, until Ctrl-C")


def run(arguments: argparse.Namespace) -> int:
    """Set up, show, clean up; the exit code."""
    if os.geteuid() != 0:
        _enter_user_namespace(arguments)
    unprivileged = os.environ.pop(_UNPRIVILEGED_VARIABLE, "") == "1"
    for program, package in (("ip", "iproute2"), ("nsenter", "util-linux")):
        if find_program(program) is None:
            raise UserError(f"the demo needs the command {program}: install the package {package}")
    mountpoint.require_fuse()
    interfaces.require_packet_socket()
    path = None if arguments.mountpoint is None else mountpoint.check(arguments.mountpoint)
    with _Interrupts() as interrupts, contextlib.ExitStack() as stack:
        demo = _Demo(stack, interrupts, path, unprivileged=unprivileged)
        try:
            demo.set_up()
            demo.tour()
            if arguments.keep:
                demo.keep()
        finally:
            interrupts.ignore()  # each step of the clean-up has a time limit
    return 1 if demo.is_something_left else 0


# ── without root ──────────────────────────────────────────────────────────────────────────────────────────────────


def _enter_user_namespace(arguments: argparse.Namespace) -> NoReturn:
    """Start this command again, in place of this process, as root of a user namespace."""
    if arguments.keep or arguments.mountpoint:
        raise UserError("without root other processes cannot see the demo's mount: --keep and DIR need sudo")
    mountpoint.require_fuse()
    unshare = find_program("unshare")
    if unshare is None:
        raise UserError("without root the demo needs the command unshare: install the package util-linux, or use sudo")
    # ip(8) keeps its namespaces in /run/netns: one of our own, below /run if it is not there yet.
    place = "/run/netns" if os.path.isdir("/run/netns") else "/run"
    prepare = f"mount -t tmpfs tmpfs {place} && mkdir -p /run/netns && ip link set lo up"
    command = [unshare, "--user", "--map-root-user", "--net", "--mount", "--", "sh", "-c"]
    environment = {**os.environ, "PATH": _PATH, "LC_ALL": "C"}
    probe = subprocess.run(  # noqa: S603 (words of ours)
        [*command, prepare], stdin=subprocess.DEVNULL, capture_output=True, text=True, env=environment
    )
    if probe.returncode:
        said = probe.stderr.strip().splitlines()
        reason = said[-1].removeprefix("unshare: ") if said else f"exit code {probe.returncode}"
        raise UserError(f"the demo needs root, since user namespaces are not allowed here ({reason}): sudo aoefs demo")
    verbose = ["-v"] * arguments.verbose
    again = [f'{prepare} && exec "$@"', "sh", *own_command(), "demo", *verbose]
    environment[_UNPRIVILEGED_VARIABLE] = "1"
    os.execve(unshare, [*command, *again], environment)  # noqa: S606 (words of ours)


# ── signals and programs ──────────────────────────────────────────────────────────────────────────────────────────


class _Interrupts:
    """Inside this block SIGTERM and SIGHUP act as Ctrl-C does, until :meth:`ignore`.

    A :meth:`hold` keeps two steps together: to make something, and to register it for the clean-up.
    """

    _NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def __enter__(self) -> _Interrupts:
        self._old = {number: signal.signal(number, self._interrupt) for number in self._NUMBERS}
        self._holds = 0
        self._ignored = self._pending = False
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)

    def ignore(self) -> None:
        self._ignored = True

    @contextlib.contextmanager
    def hold(self) -> Iterator[None]:
        """Delay an interrupt until the end of the block."""
        self._holds += 1
        try:
            yield
        finally:
            self._holds -= 1
        if self._pending and not self._holds:
            self._pending = False
            raise KeyboardInterrupt

    def _interrupt(self, _number: int, _frame: FrameType | None) -> None:
        if self._ignored:
            return
        if not self._holds:
            raise KeyboardInterrupt
        self._pending = True


def find_program(program: str) -> str | None:
    return shutil.which(program, path=_PATH)


def _typed_aoefs() -> str:
    """The name of the command for a shell: the short one if the shell finds it."""
    beside = os.path.join(os.path.dirname(sys.executable), "aoefs")
    return "aoefs" if find_program("aoefs") or not os.path.exists(beside) else beside


def _start(command: Sequence[str], output: int) -> subprocess.Popen[bytes]:
    """Start a program in a new session, which Ctrl-C at the terminal does not reach."""
    return subprocess.Popen(  # noqa: S603 (each command is shown before it runs)
        command,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        env={**os.environ, "PATH": _PATH, "LC_ALL": "C"},
        start_new_session=True,
    )


def _stop(child: subprocess.Popen[bytes]) -> None:
    child.terminate()
    wait_or_kill(child, _TARGET_SECONDS)


def _reason(code: int, said: str) -> str:
    """Why a program failed: the last line that it wrote."""
    return said.splitlines()[-1].removeprefix("aoefs: ") if said else f"exit code {code}"


def _fail(typed: str, code: int, said: str) -> NoReturn:
    raise UserError(f"'{typed}' failed: {_reason(code, said)}")


# ── the demo ──────────────────────────────────────────────────────────────────────────────────────────────────────


class _Demo:
    """One run of the demo; ``stack`` undoes what it makes."""

    def __init__(
        self, stack: contextlib.ExitStack, interrupts: _Interrupts, path: str | None, *, unprivileged: bool
    ) -> None:
        self._unprivileged = unprivileged
        self.is_something_left = False
        self._stack = stack
        self._interrupts = interrupts
        self._daemon: int | None = None  # a pidfd of the mount process
        self._path = path or ""
        self._directory = Path(tempfile.gettempdir(), f"aoefs-demo-{os.getpid()}")
        self._host, self._target = (f"aoefs-demo-{os.getpid()}-{side}" for side in ("host", "target"))
        self._steps = 0
        self._in_colour = sys.stdout.isatty() and "NO_COLOR" not in os.environ

    # ── output ────────────────────────────────────────────────────────────────────────────────────────────────────

    def _say(self, text: str, kind: str = "output") -> None:
        style = _STYLES[kind] if self._in_colour else ""
        print(f"\x1b[{style}m{text}\x1b[m" if style else text, flush=True)

    def _heading(self, text: str) -> None:
        self._steps += 1
        self._say(f"\n{self._steps}. {text}", "heading")

    def _show(
        self,
        command: Sequence[str],
        *,
        typed: str = "",
        inside: str = "",
        last: int = 0,
        optional: bool = False,
        brief: bool = False,
    ) -> str | None:
        """Show a command, as ``typed`` if that is given, run it and show its output, which is returned.

        ``inside`` names the namespace whose network it has; ``last`` limits the output that is shown to so many lines.
        A command that fails ends the demo; if it is ``optional`` the reason is shown and None returned.
        """
        typed = typed or shlex.join(command)
        self._say(f"   $ {typed}", "command")
        before = time.monotonic()
        code, said = self._run([*self._enter(inside), *command])
        took = time.monotonic() - before
        if code and optional:
            self._say(f"   skipped, since this does not work here: {said.splitlines()[-1] if said else code}", "note")
            return None
        if code:
            _fail(typed, code, said)
        lines = said.splitlines()
        for line in lines[-last:]:
            self._say(f"   {line}")
        if not lines and not brief:
            self._say(f"   (done in {took:.2f} s)", "note")
        return said

    def _show_aoefs(self, *arguments: str, inside: str = "") -> None:
        self._show([*own_command(), *arguments], typed=shlex.join(["aoefs", *arguments]), inside=inside)

    def _show_shell(self, line: str, last: int = 0) -> str:
        return self._show(["sh", "-c", line], typed=line, last=last) or ""

    @staticmethod
    def _enter(namespace: str) -> list[str]:
        return ["nsenter", f"--net=/run/netns/{namespace}", "--"] if namespace else []

    def _run(self, command: Sequence[str], timeout: float | None = None) -> tuple[int, str]:
        """Run a program to its end; its exit code and output.  An interrupt stops it.

        The output goes through a file: a pipe would stay open as long as a daemon that the program leaves behind.
        """
        with tempfile.TemporaryFile("w+", errors="replace") as output, contextlib.ExitStack() as stack:
            with self._interrupts.hold():
                child = _start(command, output.fileno())
                stack.callback(_stop, child)
            try:
                code = child.wait(timeout)
            except subprocess.TimeoutExpired:
                return 1, f"no end within {timeout:g} s"
            output.seek(0)
            return code, output.read().rstrip()

    # ── setting up ────────────────────────────────────────────────────────────────────────────────────────────────

    def set_up(self) -> None:
        """The directory, the network and the target."""
        self._stack.callback(self._tell_what_is_left)
        if shutil.disk_usage(tempfile.gettempdir()).free < NEEDED_BYTES:
            raise UserError(f"the demo needs {NEEDED_BYTES // MIB} MiB in {tempfile.gettempdir()}: set TMPDIR")
        with self._interrupts.hold():
            self._directory.mkdir(mode=0o700)
            self._stack.callback(self._remove_directory)
        if not self._path:
            self._path = str(self._directory / "mnt")
            os.mkdir(self._path)
        self._say("aoefs demo: a target and a host that uses it, on this one machine.")
        if self._unprivileged:
            self._say("Not as root: in a user namespace, whose networks and mounts are gone with it.", "note")

        self._heading("Two network namespaces stand for two machines, with a cable between them.")
        for namespace in (self._host, self._target):
            with self._interrupts.hold():
                self._ip("netns", "add", namespace)
                self._stack.callback(self._clean, ["ip", "netns", "del", namespace])
        end = ["name", INTERFACE, "mtu", str(MTU), "netns"]
        self._ip("link", "add", *end, self._host, "type", "veth", "peer", *end, self._target)
        for namespace in (self._host, self._target):
            self._ip("-n", namespace, "link", "set", INTERFACE, "up")

        self._heading("The target machine exports two files as disks.")
        exports = []
        for address, size in DISKS.items():
            image = self._image(address)
            with image.open("wb") as file:
                file.truncate(size)
            exports.append(f"{address}={image}")
        self._start_target(["target", "-i", INTERFACE, *exports])

    def _image(self, address: str) -> Path:
        return self._directory / f"disk-{address}.img"

    def _ip(self, *arguments: str) -> None:
        self._show(["ip", *arguments], brief=True)

    def _start_target(self, arguments: Sequence[str]) -> None:
        self._say(f"   $ {shlex.join(['aoefs', *arguments])} &", "command")
        log = self._directory / "target.log"
        with log.open("wb") as output, self._interrupts.hold():
            child = _start([*self._enter(self._target), *own_command(), *arguments], output.fileno())
            self._stack.callback(_stop, child)
        deadline = time.monotonic() + _TARGET_SECONDS
        while len(lines := log.read_text(errors="replace").splitlines()) < len(DISKS):
            if child.poll() is not None or time.monotonic() > deadline:
                _fail("aoefs target", child.poll() or 0, "\n".join(lines) or "it does not start")
            time.sleep(_POLL_SECONDS)
        for line in lines:
            self._say(f"   {line}")

    # ── the tour ──────────────────────────────────────────────────────────────────────────────────────────────────

    def tour(self) -> None:
        """All steps that are shown."""
        self._heading("The host looks which disks its network has.")
        self._show_aoefs("discover", "-i", INTERFACE, "--timeout", f"{_DISCOVER_SECONDS:g}", inside=self._host)

        self._heading("It mounts them: each disk is a file of the disk's size.")
        self._mount()
        small, large = (os.path.join(self._path, f"e{address}") for address in DISKS)
        self._show_aoefs("wait", *DISKS, "--timeout", f"{_DISK_SECONDS:g}")
        self._show(["ls", "-l", self._path])

        self._heading("Random data go to a disk, and come back the same: from the disk and at the target.")
        self._compare(small)

        self._heading("The other disk gets a file system, as any disk does.")
        self._file_system(large)

        self._heading("How fast is it, with target and host on the same CPUs?")
        self._show_shell(f"dd if=/dev/zero of={small} bs=1M count={SPEED_MIB} oflag=direct conv=fsync", last=1)
        self._show_shell(f"dd if={small} of=/dev/null bs=1M count={SPEED_MIB} iflag=direct", last=1)

        self._heading("What the mount counted meanwhile:")
        self._show_aoefs("status", "--once", self._path)

    def _mount(self) -> None:
        self._stack.callback(self._unmount)
        self._show_aoefs("-i", INTERFACE, self._path, inside=self._host)
        self._find_daemon()

    def _compare(self, disk: str) -> None:
        data = shlex.quote(str(self._directory / "random"))
        image = shlex.quote(str(self._image("0.0")))
        quoted = shlex.quote(disk)
        self._show_shell(f"head -c {RANDOM_MIB}M /dev/urandom > {data}")
        self._show_shell(f"dd if={data} of={quoted} bs=1M conv=fsync", last=1)
        sums = [
            self._show_shell(line).split()[0]
            for line in (
                f"sha256sum < {data}",
                f"dd if={quoted} bs=1M count={RANDOM_MIB} iflag=direct status=none | sha256sum",
                f"head -c {RANDOM_MIB}M {image} | sha256sum",
            )
        ]
        if len(set(sums)) != 1:
            raise UserError(f"what came back from {disk} is not what was written")

    def _file_system(self, disk: str) -> None:
        more = ("debugfs",) if self._unprivileged else ("mount", "/dev/loop-control")
        needed = ("mkfs.ext4", "e2fsck", *more)
        missing = [name for name in needed if not (os.path.exists(name) if name[0] == "/" else find_program(name))]
        fill = self._unmounted_file_system if self._unprivileged else self._mounted_file_system
        if missing:
            self._say(f"   skipped, since this machine has no {', '.join(missing)}", "note")
        elif fill(disk):
            self._say("   And at the target, without AoE:", "note")
            self._show(["e2fsck", "-f", "-n", str(self._image("7.1"))], last=1)

    def _mounted_file_system(self, disk: str) -> bool:
        """Whether it could be mounted."""
        self._show(["mkfs.ext4", "-q", "-E", "nodiscard", disk])
        point = str(self._directory / "ext4")
        os.mkdir(point)
        with contextlib.ExitStack() as stack:
            stack.callback(self._clean_mount, point)
            if self._show(["mount", "-o", "loop", disk, point], optional=True) is None:
                return False
            source, copy = str(Path(__file__).parent), os.path.join(point, "aoefs")
            self._show(["cp", "-r", source, copy])
            self._show(["umount", point])
            self._show(["mount", "-o", "loop", disk, point])
            self._show(["diff", "-r", source, copy])
            self._show(["df", "-h", point])
            self._show(["umount", point])
        return True

    def _unmounted_file_system(self, disk: str) -> bool:
        self._say("   Loop devices need root, so it is not mounted here: mkfs fills it, debugfs reads it.", "note")
        source, copy = (str(self._directory / name) for name in ("files", "copy"))
        self._show(["cp", "-r", str(Path(__file__).parent), source])
        os.mkdir(copy)
        self._show(["mkfs.ext4", "-q", "-E", "nodiscard", "-d", source, disk])
        self._show_shell(f"debugfs -R 'rdump / {shlex.quote(copy)}' {shlex.quote(disk)} 2>&1 | tail -n +2")
        self._show(["diff", "-r", "--exclude=lost+found", source, copy])
        return True

    # ── keeping it ────────────────────────────────────────────────────────────────────────────────────────────────

    def keep(self) -> None:
        """Leave everything as it is until Ctrl-C, then until the mount is no longer in use or another Ctrl-C."""
        with contextlib.suppress(KeyboardInterrupt):
            self._tell_what_to_try()
            while True:
                signal.pause()
        with contextlib.suppress(KeyboardInterrupt):
            path, said = self._path, ""
            while (mount := mountpoint.find_mount(path)) is not None and (users := mountpoint.holders(mount)):
                names = ", ".join(users)
                if names != said:
                    said = names
                    self._say(f"\n{path} is in use by {names}: end that, or press Ctrl-C again to cut it off")
                time.sleep(10 * _POLL_SECONDS)

    def _tell_what_to_try(self) -> None:
        path, aoefs = self._path, shlex.quote(_typed_aoefs())
        self._heading("It is yours until Ctrl-C.  In another terminal, as root, try:")
        for line in (
            f"ls -l {path}",
            f"{aoefs} status {path}",
            f"hexdump -C {path}/e0.0 | head",
            f"mount -o loop {path}/e7.1 /mnt && ls /mnt && umount /mnt",
            f"ip netns exec {self._host} {aoefs} discover -i {INTERFACE} --json",
            f"ip netns exec {self._target} {aoefs} target -i {INTERFACE} 9.9=ANY-FILE   # it appears in the mount",
        ):
            self._say(f"   # {line}", "command")

    # ── clean-up ──────────────────────────────────────────────────────────────────────────────────────────────────

    def _note(self, text: str, kind: str) -> None:
        with contextlib.suppress(OSError):  # the reader of the output may be gone
            self._say(text, kind)

    def _clean(self, command: Sequence[str]) -> bool:
        """Run a command that undoes something; say so if it fails."""
        code, said = self._run(command, _CLEANUP_SECONDS)
        if code:
            self._complain(f"'{shlex.join(command)}' failed: {_reason(code, said)}")
        return not code

    def _clean_mount(self, point: str) -> None:
        if mountpoint.find_mount(point) is not None and not self._clean(["umount", point]):
            self._clean(["umount", "-l", point])

    def _find_daemon(self) -> None:
        with contextlib.suppress(OSError, ValueError, KeyError):  # it may be gone
            self._daemon = os.pidfd_open(mountpoint.read_status(self._path)["pid"])

    def _unmount(self) -> None:
        """Unmount as a person would; a mount process that does not end gets SIGTERM, then SIGKILL."""
        if mountpoint.find_mount(self._path) is None and self._daemon is None:
            return
        self._note("\nCleaning up.", "heading")
        self._note(f"   $ aoefs umount {self._path}", "command")
        if self._daemon is None:
            self._find_daemon()
        code, said = self._run([*own_command(), "umount", self._path], _CLEANUP_SECONDS)
        if code:
            self._note(f"   {said}", "output")
        if self._daemon is not None:
            for number, seconds in ((0, 1.0), (signal.SIGTERM, _MOUNT_STOP_SECONDS), (signal.SIGKILL, 5.0)):
                with contextlib.suppress(ProcessLookupError):
                    signal.pidfd_send_signal(self._daemon, number)
                if select.select([self._daemon], [], [], seconds)[0]:
                    break
            os.close(self._daemon)
        mountpoint.clear_dead(self._path)

    def _remove_directory(self) -> None:
        if any(mountpoint.find_mount(str(path)) is not None for path in self._directory.iterdir()):
            self._complain(f"{self._directory} stays: something is mounted in it")
        else:
            shutil.rmtree(self._directory)

    def _complain(self, what: str) -> None:
        self.is_something_left = True
        with contextlib.suppress(OSError):
            to_stderr(f"cleaning up: {what}")

    def _tell_what_is_left(self) -> None:
        left = "something could not be removed" if self.is_something_left else "everything is removed"
        self._note(f"   {left}", "note")
