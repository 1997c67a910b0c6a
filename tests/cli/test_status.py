"""``aoefs status`` into a pipe; on a terminal it is driven in tmux (tests/mount/test_console.py)."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from aoefs.cli.main import main
from aoefs.host import mountpoint
from tests.cli.commandline import aoefs
from tests.host.livemount import standin
from tests.lab import Process, wait_until
from tests.lab.tmux import terminal

DEAD = "its daemon is dead: 'aoefs umount' removes it"


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


def test_without_a_mount_point_each_mount_is_a_line_and_check_is_one_line_with_a_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    everything = mountpoint.aoefs_mounts

    def ours() -> list[mountpoint.Mount]:
        return [mount for mount in everything() if mount.path.startswith(f"{tmp_path}/")]

    monkeypatch.setattr(mountpoint, "aoefs_mounts", ours)
    assert main(["status"]) == 1
    assert capsys.readouterr().err == "aoefs: aoefs has nothing mounted here\n"
    assert main(["status", "--check"]) == 2
    assert main(["status", "--check", "/nowhere"]) == 2
    assert capsys.readouterr().out.splitlines() == [
        "AOEFS CRITICAL - nothing is mounted",
        "AOEFS CRITICAL - /nowhere is not mounted",
    ]
    one, two, three = (tmp_path / name for name in ("one", "two", "three"))
    with standin(one), standin(two, "name=e0.1"), standin(three) as dead:
        dead.kill()
        dead.wait()
        assert main(["status"]) == 0
        lines = [line.split(maxsplit=3) for line in capsys.readouterr().out.splitlines()]
        assert lines == [
            ["mount", "state", "source", "targets"],
            [str(one), "down", "standin", "e0.1 is down"],
            [str(two), "ok", "standin", "2 targets up"],
            [
                str(three),
                "down",
                "standin",
                "does not report its status: its daemon is dead: 'aoefs umount' removes it",
            ],
        ]
        assert [main(["status", "--check", str(path)]) for path in (one, two, three)] == [2, 0, 2]
        assert capsys.readouterr().out.splitlines()[1] == f"AOEFS OK - {two}: 2 targets up"
        assert main(["status", "--check"]) == 2
        assert f"AOEFS CRITICAL - {one}: e0.1 is down; {three}: does not" in capsys.readouterr().out


def test_wait_returns_when_all_are_up_by_address_or_serial_and_says_what_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    everything = mountpoint.aoefs_mounts
    monkeypatch.setattr(
        mountpoint, "aoefs_mounts", lambda: [one for one in everything() if one.path.startswith(f"{tmp_path}/")]
    )
    assert main(["wait", "0.0", "--timeout", "0"]) == 1
    assert capsys.readouterr().err == "aoefs: after 0 s e0.0 is not there\n"
    with standin(tmp_path / "mnt"):
        assert main(["wait", "0.0", "e0.0", "S1", "--timeout", "10"]) == 0
        assert main(["wait", "0.0", "0.1", "S2", "--timeout", "0.1"]) == 1
        assert capsys.readouterr().err == "aoefs: after 0.1 s e0.1 is down, S2 is not there\n"


def test_wait_waits_for_a_mount_that_comes_later(tmp_path: Path) -> None:
    waiting = Process([sys.executable, "-m", "aoefs", "wait", "0.0", "--timeout", "30"], tmp_path / "log")
    with standin(tmp_path / "mnt"):
        assert waiting.wait(20) == 0


def test_interval_prints_a_table_each_time_until_the_mount_ends(tmp_path: Path) -> None:
    path = tmp_path / "mnt"
    with standin(path) as process:
        status = Process([sys.executable, "-m", "aoefs", "status", "--interval", "0.2", str(path)], tmp_path / "log")
        wait_until(lambda: status.output.count("TARGET") >= 2, timeout=20, what="two tables")
        process.kill()
        assert status.wait(10) == 1
    lines = status.output.splitlines()
    assert lines[0].split() == [
        "TARGET",
        "STATE",
        "IOPS",
        "READ",
        "WRITE",
        "p50",
        "p99",
        "UTIL",
        "AVGQ",
        "QUEUE",
        "RESENT/s",
    ]
    assert [line[:27].rstrip() for line in lines[1:5]] == [
        "e0.0",
        "  aoe0 02:ae:00:00:02:00",
        "e0.1",
        "  aoe0 02:ae:00:00:02:00",
    ]
    assert lines[-1].endswith("its daemon is dead: 'aoefs umount' removes it")


def test_the_screen_of_a_mount_that_answers_nothing_says_so_and_can_be_left(tmp_path: Path) -> None:
    path = tmp_path / "mnt"
    with (
        standin(path, "deaf"),
        terminal(tmp_path, [sys.executable, "-m", "aoefs", "status", str(path)], (80, 24)) as screen,
    ):
        screen.wait_for("the mount has not answered for")
        screen.press("q")
        assert screen.exit_code() == 0
