"""``python -m tests.lab``: what it prints works, and nothing of it is left, however it ends."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from pathlib import Path

import pytest

from tests.lab import is_gone, python_module, require
from tests.lab.__main__ import WELCOME
from tests.lab.tmux import terminal

COMMAND = python_module("tests.lab")
SHOWN = re.findall(r"^    (.+)$", WELCOME, re.MULTILINE)


@pytest.fixture(autouse=True)
def _needs() -> None:
    require("ip", "nsenter", "unshare", "vblade", "losetup", "mkfs.ext4", "/dev/fuse")


def is_all_gone(lab: int, directory: Path) -> bool:
    """Whether a lab has ended and left nothing: ``lab`` is its pid, ``directory`` that of its shell."""
    loops = [file.read_text() for file in Path("/sys/block").glob("loop*/loop/backing_file")]
    return (
        is_gone(lab)
        and not [name for name in os.listdir("/run/netns") if name.startswith(f"aoefs-{lab}-")]
        and not directory.parent.exists()
        and not [file for file in loops if str(directory) in file]
        and str(directory) not in Path("/proc/self/mounts").read_text()
    )


def test_what_is_shown_works_and_nothing_is_left_when_stdin_ends() -> None:
    discover, mount, umount = SHOWN
    mess = """
        mkfs.ext4 -q -E nodiscard mnt/e0.0; mkdir files; mount -o loop mnt/e0.0 files; echo hello > files/file
        losetup --find mnt/e0.1
        sleep 1000 & echo "pid $!"
        aoefs status --json mnt | sed -n 's/^ *"pid": \\([0-9]*\\),$/pid \\1/p'
        cat files/file
        (exit 3)
    """
    script = "\n".join(("set -e", "pwd", discover, mount, umount, mount.replace("mkdir mnt;", ""), mess))
    with subprocess.Popen(COMMAND, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as lab:
        said, _ = lab.communicate(script, timeout=120)
    assert lab.returncode == 3, said
    directory, *lines = said.partition("removes all of it.\n\n")[2].splitlines()
    assert [line.split()[0] for line in lines[:3]] == ["name", "e0.0", "e0.1"]
    assert lines[-1] == "hello"
    pids = [int(line.split()[1]) for line in lines if line.startswith("pid ")]
    assert len(pids) == 2
    assert all(map(is_gone, pids))
    assert is_all_gone(lab.pid, Path(directory))


@pytest.mark.parametrize("end", ["C-d", "SIGTERM", "SIGHUP"])
def test_in_a_terminal_ctrl_c_goes_on_and_each_end_leaves_nothing(tmp_path: Path, end: str) -> None:
    with terminal(tmp_path, COMMAND) as screen:
        screen.wait_for("(aoefs lab) #")
        screen.type("mkdir mnt; aoefs -i aoe0 mnt; echo in $PWD; sleep 1000")
        screen.wait_for("in /")
        (directory,) = [Path(line[3:]) for line in screen.lines() if line.startswith("in /")]
        lab = screen.pid
        screen.press("C-c")
        screen.type("findmnt -n -o FSTYPE $PWD/mnt")
        screen.wait_until(lambda: "fuse.aoefs" in screen.lines(), "the shell goes on")
        if end == "C-d":
            screen.press(end)
        else:
            os.kill(lab, signal.Signals[end])
        assert screen.exit_code() == {"C-d": 0, "SIGTERM": 128 + signal.SIGTERM, "SIGHUP": 128 + signal.SIGHUP}[end]
    assert is_all_gone(lab, directory)
