"""Going into the background, with real processes: a stand-in for the mount behind the real command line."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import time
from pathlib import Path

import pytest

from aoefs.host import background
from aoefs.host.background import READY_VARIABLE, Ready
from aoefs.host.systemlog import log_to_stderr
from tests.host import standin
from tests.lab import COMMANDS, INITIATOR, Lab, Process, require, wait_until

# ── both ends of the pipe ─────────────────────────────────────────────────────────────────────────────────────────


def said_on_pipe(monkeypatch: pytest.MonkeyPatch, *, message: str) -> bytes:
    read_end, write_end = os.pipe()
    os.set_inheritable(write_end, True)
    monkeypatch.setenv(READY_VARIABLE, str(write_end))
    ready = Ready.from_environment()
    assert ready.is_daemon
    assert READY_VARIABLE not in os.environ
    assert not os.get_inheritable(write_end)
    ready.fail(message, 3)
    with open(read_end, "rb") as pipe:
        return pipe.read()


def test_whatever_the_message_one_line_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    assert said_on_pipe(monkeypatch, message="a\nb\r\n  c \udc80") == b"error 3 a b c ?\n"


def test_a_parent_that_has_gone_stops_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    Ready(write_end).fail("nobody listens")
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.close(write_end)


def test_without_a_pipe_it_is_said_on_stderr(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], quiet_log: logging.Logger, announce: object
) -> None:
    assert callable(announce)
    announce("a hint")
    announce("an end")
    monkeypatch.delenv(READY_VARIABLE, raising=False)
    log_to_stderr()
    ready = Ready.from_environment()
    ready.ok()
    ready.ok("a\nhint")
    ready.fail("an end")
    assert capsys.readouterr().err == "aoefs: a hint\naoefs: an end\n"


# ── parent and child ──────────────────────────────────────────────────────────────────────────────────────────────


def command(lab: Lab, *words: str) -> tuple[list[str], Path]:
    """``aoefs MOUNTPOINT`` with the stand-in behind it, and the mount point."""
    require("/dev/fuse")
    path = lab.directory / "mnt"
    path.mkdir(exist_ok=True)
    variables = [f"{name}={value}" for name, value in standin.environment(lab.directory, *words).items()]
    return ["env", *variables, sys.executable, "-m", "aoefs", str(path)], path


def is_mounted(lab: Lab, path: Path) -> bool:
    mounts = Path(f"/proc/{lab.sides[INITIATOR].holder}/mounts").read_text()
    return any(line.split()[1] == str(path) for line in mounts.splitlines())


def processes(path: Path) -> list[int]:
    """The processes that have the path on their command line."""
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if os.fsencode(path) in file.read_bytes().split(b"\0"):
                found.append(int(file.parent.name))
    return found


def test_the_command_returns_when_the_mount_is_live_and_the_daemon_stands_alone(lab: Lab) -> None:
    start, path = command(lab)
    answer = lab.run(INITIATOR, ["env", "-C", lab.directory, *start[1:]])
    assert answer.stdout + answer.stderr == ""
    assert is_mounted(lab, path)
    [pid] = processes(path)
    assert os.getsid(pid) == pid
    assert os.readlink(f"/proc/{pid}/cwd") == "/"
    assert [os.readlink(f"/proc/{pid}/fd/{number}") for number in (0, 1, 2)] == ["/dev/null"] * 3
    assert not any("pipe:" in os.readlink(link) for link in Path(f"/proc/{pid}/fd").iterdir())
    lab.run(INITIATOR, [sys.executable, "-m", "aoefs", "umount", str(path)])
    assert not is_mounted(lab, path)
    wait_until(lambda: not processes(path), what="the daemon is gone")


def test_what_lies_in_the_current_directory_is_not_run(lab: Lab) -> None:
    start, path = command(lab)
    (lab.directory / "here").mkdir()
    (lab.directory / "here" / "aoefs.py").write_text("raise SystemExit('somebody else ran')")
    program = [str(COMMANDS / "aoefs"), "../mnt"]
    lab.run(INITIATOR, ["env", "-C", lab.directory / "here", *start[1:3], *program])
    assert is_mounted(lab, path)


def test_a_hint_is_relayed_as_one_line(lab: Lab) -> None:
    start, _ = command(lab, "hint")
    assert lab.run(INITIATOR, start).stderr == "aoefs: a hint of two lines\n"


@pytest.mark.parametrize(
    ("word", "code", "says"),
    [
        ("user-error", 7, "aoefs: the stand-in does not want\n"),
        ("defect", 1, "aoefs: unexpected ZeroDivisionError: in the stand-in (-f -v says where)\n"),
        ("silent-exit", 1, "aoefs: the mount process ended with code 5 before the mount was live: try -f -v\n"),
        ("killed", 1, "aoefs: the mount process was killed by signal 9 before the mount was live: try -f -v\n"),
    ],
)
def test_a_failure_of_the_child_is_one_line_and_its_code(lab: Lab, word: str, code: int, says: str) -> None:
    start, path = command(lab, word)
    answer = lab.run(INITIATOR, start, check=False)
    assert (answer.returncode, answer.stdout, answer.stderr) == (code, "", says)
    assert not processes(path)
    foreground = lab.run(INITIATOR, [*start, "-f"], check=False)
    assert "Traceback" not in foreground.stderr
    if word in ("user-error", "defect"):
        assert foreground.returncode == code
        assert foreground.stderr.count("\n") == 1


def test_with_verbose_the_place_of_a_defect_is_shown(lab: Lab) -> None:
    start, _ = command(lab, "defect")
    for options in (["-v"], ["-f", "-v"]):
        stderr = lab.run(INITIATOR, [*start, *options], check=False).stderr
        assert "ZeroDivisionError: in the stand-in" in stderr
        assert "standin.py" in stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("words", [("hang",), ("hang", "stubborn"), ("hang-mounted", "stubborn")])
def test_an_interrupted_command_leaves_nothing(lab: Lab, number: signal.Signals, words: tuple[str, ...]) -> None:
    start, path = command(lab, *words)
    process: Process = lab.popen(INITIATOR, start)
    wait_until(lambda: len(processes(path)) == 2, what="the child runs")
    time.sleep(0.3)  # long enough for the child to be in its sleep
    started = time.monotonic()
    process.send_signal(number)
    assert process.wait(10) == 130
    assert time.monotonic() - started < (8 if "stubborn" in words else background.STOP_SECONDS)
    assert not processes(path)
    assert not is_mounted(lab, path)


def test_a_killed_daemon_is_replaced_by_the_next_start(lab: Lab) -> None:
    start, path = command(lab)
    lab.run(INITIATOR, start)
    [pid] = processes(path)
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not processes(path))
    assert is_mounted(lab, path)
    lab.run(INITIATOR, start)
    assert lab.run(INITIATOR, ["ls", path]).stdout.split() == ["e0.0", "e0.1"]
    assert lab.run(INITIATOR, start, check=False).stderr.startswith(f"aoefs: {path} is mounted already")


def test_a_defect_after_the_mount_was_live_ends_with_code_1(lab: Lab) -> None:
    start, path = command(lab, "defect-later")
    process = lab.popen(INITIATOR, [*start, "-f"])
    wait_until(lambda: is_mounted(lab, path), what="the stand-in is mounted")
    lab.run(INITIATOR, ["umount", path])
    assert process.wait(10) == 1
    assert process.output == "aoefs: unexpected ZeroDivisionError: after the mount (-v says where)\n"
