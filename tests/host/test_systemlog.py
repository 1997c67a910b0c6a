"""The log of a mount: on stderr and in the system log, where nothing that goes wrong may stop the mount."""

from __future__ import annotations

import io
import logging
import os
import socket
import sys
from pathlib import Path

import pytest

from aoefs.host.systemlog import LogLimit, SyslogHandler, log_to, log_to_stderr


def test_the_system_log_gets_one_datagram_each(tmp_path: Path, quiet_log: logging.Logger, announce: object) -> None:
    assert callable(announce)
    announce("disk e0.0")
    path = str(tmp_path / "log")
    log_to(SyslogHandler([str(tmp_path / "missing"), path]))
    quiet_log.setLevel(logging.INFO)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(path)
        quiet_log.warning("disk e0.0:\n%s", "is silent")
        quiet_log.getChild("part").info("fine")
        quiet_log.debug("not this")
        assert receiver.recv(1000) == f"<28>aoefs[{os.getpid()}]: disk e0.0: is silent".encode()
        assert receiver.recv(1000) == f"<30>aoefs[{os.getpid()}]: fine".encode()
    os.unlink(path)
    quiet_log.info("the log has gone, which harms nobody")
    log_to(logging.NullHandler())


def test_text_of_the_network_cannot_command_the_terminal_that_shows_a_log(
    tmp_path: Path, quiet_log: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    log_to_stderr(1)
    quiet_log.info("e0.0 is %s", "\x1b[2J")
    assert capsys.readouterr().err == "aoefs: e0.0 is \\x1b[2J\n"
    path = str(tmp_path / "log")
    log_to(SyslogHandler([path]))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(path)
        quiet_log.info("e0.0 is %s", "\x1b[2J")
        assert receiver.recv(1000).endswith(b"e0.0 is \\x1b[2J")
    log_to(logging.NullHandler())


def test_a_log_that_is_stuck_stops_nothing(tmp_path: Path, quiet_log: logging.Logger) -> None:
    path = str(tmp_path / "log")
    log_to(SyslogHandler([path]))
    quiet_log.setLevel(logging.INFO)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(path)
        for _ in range(1000):
            quiet_log.info("x" * 1000)
    log_to(logging.NullHandler())


def test_a_stderr_that_has_gone_stops_nothing(monkeypatch: pytest.MonkeyPatch, quiet_log: logging.Logger) -> None:
    stderr = io.StringIO()
    stderr.close()
    monkeypatch.setattr(sys, "stderr", stderr)
    log_to_stderr(1)
    quiet_log.info("nobody reads this")


def test_a_flood_of_log_lines_is_cut_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr("aoefs.host.systemlog.time.monotonic", lambda: now)
    limit = LogLimit(lines_per_second=3)

    def line(text: str) -> logging.LogRecord:
        return logging.LogRecord("aoefs", logging.ERROR, __file__, 1, "%s failed", (text,), None)

    assert [limit.filter(line(str(number))) for number in range(10)] == [True] * 3 + [False] * 7
    back = logging.LogRecord("aoefs", logging.INFO, __file__, 1, "%s is back", ("e0.0",), None)
    assert limit.filter(back), "another kind of line passes"
    now = 1.0
    record = line("next")
    assert limit.filter(record)
    assert record.getMessage() == "next failed (before this, 7 such lines were left out)"
