"""A shell in a ready lab, to play with: ``sudo .venv/bin/python -m tests.lab`` (from the top of the checkout).

Two network namespaces are joined by a veth pair.  On one side vblade exports e0.0 and ``aoefs target`` exports e0.1.
The shell runs on the other side, with the ``aoefs`` of this checkout on its PATH; commands may also come from stdin.

What always holds: when the shell ends, or this process gets SIGTERM or SIGHUP, all that was made in the lab is removed:
mounts, loop devices, processes, files below the lab's directory, namespaces.  The exit code is the shell's.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import FrameType
from typing import NoReturn

from tests.lab.lab import Lab
from tests.lab.programs import COMMANDS, SYSTEM_PATH, find_program, missing
from tests.lab.side import INITIATOR, Side

SIZE = 64 << 20  # bytes of each disk

WELCOME = """\
A lab with an MTU of {lab.mtu}; no frame leaves this machine.  This shell is the initiator, its interface is aoe0.
On the other side of the cable: e0.0 (vblade) and e0.1 (aoefs target), {mebibytes} MiB each.  Try:

    aoefs discover -i aoe0
    mkdir mnt; aoefs -i aoe0 mnt; ls -l mnt; aoefs status mnt
    aoefs umount mnt

Another terminal joins with: sudo nsenter -t {holder} -m -n
"exit" or Ctrl-D ends the lab and removes all of it.
"""


def run_shell(lab: Lab) -> int:
    """A shell at the initiator, in the lab's directory; its exit code."""
    side = lab.sides[INITIATOR]
    shell = ["bash", "--norc"] if find_program("bash") else ["sh"]
    path = f"{COMMANDS}{os.pathsep}{SYSTEM_PATH}"
    environment = {**os.environ, "PATH": path, "PS1": "(aoefs lab) # ", "HISTFILE": ""}
    before = mount_points(side)
    home = lab.directory / "shell"
    home.mkdir()
    command = [*side.enter, "sh", "-c", 'cd "$0" && exec "$@"', str(home), *shell]
    with subprocess.Popen(command, env=environment) as process:
        try:
            return process.wait()
        finally:
            process.send_signal(signal.SIGHUP)  # an interactive bash ignores SIGTERM
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(5)
            process.kill()
            unmount(lab, [point for point in mount_points(side) if point not in before])


def mount_points(side: Side) -> list[str]:
    """The mount points of a side, as the kernel writes them, oldest first."""
    return [line.split()[1] for line in side.mounts()]


def unmount(lab: Lab, points: list[str]) -> None:
    """Detach loop devices on files of the lab and take down these mounts, newest first."""
    for file in Path("/sys/block").glob("loop*/loop/backing_file"):  # before the umount, which takes away the paths
        with contextlib.suppress(OSError):  # detached meanwhile
            if file.read_text().startswith(f"{lab.directory}/"):
                lab.run(INITIATOR, ["losetup", "--detach", Path("/dev") / file.parts[3]], check=False)
    for point in reversed(points):
        lab.run(INITIATOR, ["umount", "-l", point.encode().decode("unicode_escape")], check=False)


def end(number: int, _frame: FrameType | None) -> NoReturn:
    """End as Ctrl-D does, once."""
    for each in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(each, signal.SIG_IGN)
    sys.exit(128 + number)


def main() -> int:
    if absent := missing("ip", "nsenter", "unshare", "vblade", "/dev/fuse"):
        print(f"tests.lab: missing: {', '.join(absent)}; tests/run.sh installs what it can", file=sys.stderr)
        return 1
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, end)
    signal.signal(signal.SIGINT, lambda *_: None)  # Ctrl-C is meant for what runs in the shell
    with Lab(mtu=9000) as lab:
        lab.vblade(0, 0, lab.image("vblade.img", SIZE, seed=None))
        lab.target(f"0.1={lab.image('target.img', SIZE, seed=None)}")
        print(WELCOME.format(lab=lab, mebibytes=SIZE >> 20, holder=lab.sides[INITIATOR].holder), flush=True)
        return run_shell(lab)


if __name__ == "__main__":
    sys.exit(main())
