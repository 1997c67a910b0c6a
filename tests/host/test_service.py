"""A mount as a service: notifications for systemd, and the pid file."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from aoefs.errors import UserError
from aoefs.host.service import NOTIFY_VARIABLE, PidFile, notify


@pytest.mark.parametrize("abstract", [False, True])
def test_systemd_gets_all_assignments_in_one_datagram(
    abstract: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = f"@aoefs-test-{os.getpid()}" if abstract else str(tmp_path / "notify")
    monkeypatch.setenv(NOTIFY_VARIABLE, path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind("\0" + path[1:] if abstract else path)
        notify("READY=1", "STATUS=2 targets")
        assert receiver.recv(1000) == b"READY=1\nSTATUS=2 targets"


@pytest.mark.parametrize("address", [None, "", "vsock:2:1234", "/nowhere/at/all"])
def test_without_systemd_nothing_is_sent_and_nothing_fails(
    address: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(NOTIFY_VARIABLE, raising=False)
    if address is not None:
        monkeypatch.setenv(NOTIFY_VARIABLE, address)
    notify("READY=1")


def test_a_systemd_that_does_not_read_stops_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(NOTIFY_VARIABLE, str(tmp_path / "notify"))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(str(tmp_path / "notify"))
        for _ in range(1000):
            notify("STATUS=" + "x" * 1000)


def test_the_pid_is_in_its_file_while_the_mount_is_live(tmp_path: Path) -> None:
    path = tmp_path / "aoefs.pid"
    with PidFile(str(path)) as file:
        assert not path.exists()
        file.write()
        assert path.read_text() == f"{os.getpid()}\n"
        assert path.stat().st_mode & 0o777 == 0o644
    assert list(tmp_path.iterdir()) == []


def test_a_mount_that_never_got_live_leaves_the_file_of_another_alone(tmp_path: Path) -> None:
    path = tmp_path / "aoefs.pid"
    path.write_text("4711\n")
    with PidFile(str(path)):
        assert path.read_text() == "4711\n"
    assert [each.read_text() for each in tmp_path.iterdir()] == ["4711\n"]


def test_the_file_that_a_killed_process_left_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "aoefs.pid"
    path.write_text("4711\n")
    with PidFile(str(path)) as file:
        file.write()
        assert path.read_text() == f"{os.getpid()}\n"
    assert not path.exists()


def test_a_file_that_another_mount_put_in_the_place_stays(tmp_path: Path) -> None:
    path = tmp_path / "aoefs.pid"
    with PidFile(str(path)) as file:
        file.write()
        path.unlink()
        path.write_text("4711\n")
    assert path.read_text() == "4711\n"


def test_a_file_that_cannot_be_written_is_one_line_at_once(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^--pid-file .*/missing/aoefs\.pid cannot be written: No such file"):
        PidFile(str(tmp_path / "missing" / "aoefs.pid"))
