"""``aoefs status`` into a pipe; on a terminal it is driven in tmux (tests/mount/test_console.py)."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from tests.cli.commandline import aoefs
from tests.host.livemount import standin
from tests.lab.tmux import terminal


def test_status_prints_the_status_file_or_tables(tmp_path: Path) -> None:
    path = tmp_path / "mnt"
    with standin(path) as process:
        status = json.loads(aoefs("status", "--json", path).stdout)
        assert status["pid"] == process.pid
        printouts = [aoefs("status", *options, path).stdout for options in (["--once"], [])]
    assert printouts[0] == printouts[1]  # a pipe is no terminal to draw in
    targets, paths = printouts[0].split("\n\n")
    assert targets.splitlines()[0].split()[:6] == ["target", "state", "size", "model", "serial", "read"]
    assert targets.splitlines()[1].split()[:9] == [
        "e0.0",
        "up",
        "1.00",
        "MiB",
        "Stand-in\\x1b[2J",
        "S1",
        "4.00",
        "KiB",
        "0",
    ]
    assert len(targets.splitlines()) == 3
    assert [line.split()[:4] for line in paths.splitlines()[1:]] == [
        ["e0.1", "silent", "aoe0", "02:ae:00:00:02:00"],
        ["e0.0", "ok", "aoe0", "02:ae:00:00:02:00"],
    ]


def test_the_screen_of_a_mount_that_answers_nothing_says_so_and_can_be_left(tmp_path: Path) -> None:
    path = tmp_path / "mnt"
    with (
        standin(path, "deaf"),
        terminal(tmp_path, [sys.executable, "-m", "aoefs", "status", str(path)], (80, 24)) as screen,
    ):
        screen.wait_for("the mount has not answered for")
        screen.press("q")
        assert screen.exit_code() == 0
