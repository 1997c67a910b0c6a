"""A mount as a service: notifications for systemd, and the pid file."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from aoefs.errors import UserError
from aoefs.host.service import NOTIFY_VARIABLE, PidFile, notify
from tests.lab import INITIATOR, Lab


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


NOBODY = 65534


@pytest.mark.parametrize(
    ("owner", "mode"),
    [(0, 0o777), (0, 0o1777), (0, 0o775), (0, 0o757), (NOBODY, 0o755)],
    ids=["all", "all, sticky", "a group", "others", "its owner"],
)
def test_a_directory_in_which_others_may_write_is_refused(tmp_path: Path, owner: int, mode: int) -> None:
    """They could have put a file or a link there before, and could put another pid there later."""
    place = tmp_path / "run"
    place.mkdir()
    place.chmod(mode)
    os.chown(place, owner, owner)
    with pytest.raises(UserError, match=r"^--pid-file .*/run/pid: others may write in .*/run: choose a directory"):
        PidFile(str(place / "pid"))
    assert list(place.iterdir()) == []


@pytest.mark.parametrize("kind", ["file", "link", "directory"])
def test_what_others_own_is_not_replaced(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "pid"
    {"file": path.touch, "link": lambda: path.symlink_to("/nowhere"), "directory": path.mkdir}[kind]()
    os.chown(path, NOBODY, NOBODY, follow_symlinks=False)
    with pytest.raises(UserError, match=r"^--pid-file .*/pid belongs to user 65534: remove it, or name another"):
        PidFile(str(path))
    assert path.lstat().st_uid == NOBODY
    assert list(tmp_path.iterdir()) == [path]


def test_a_directory_of_this_name_is_reported_at_once(tmp_path: Path) -> None:
    (tmp_path / "pid").mkdir()
    with pytest.raises(UserError, match=r"^--pid-file .*/pid cannot be written: Is a directory"):
        PidFile(str(tmp_path / "pid"))


def test_a_draft_that_a_killed_process_left_is_not_written_to(tmp_path: Path) -> None:
    path, victim = tmp_path / "pid", tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / f"pid.{os.getpid()}").hardlink_to(victim)
    with PidFile(str(path)) as file:
        file.write()
        assert path.read_text() == f"{os.getpid()}\n"
    assert victim.read_text() == "precious"
    assert list(tmp_path.iterdir()) == [victim]


def test_the_file_stays_in_the_directory_that_was_looked_at(tmp_path: Path) -> None:
    place, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    place.mkdir()
    elsewhere.mkdir()
    with PidFile(str(place / "pid")) as file:
        place.rename(tmp_path / "moved")
        place.symlink_to("elsewhere")
        file.write()
        assert (tmp_path / "moved/pid").read_text() == f"{os.getpid()}\n"
    assert list(elsewhere.iterdir()) == list((tmp_path / "moved").iterdir()) == []


def test_a_file_that_is_never_written_leaves_nothing(tmp_path: Path) -> None:
    with PidFile(str(tmp_path / "pid")):
        pass
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(UserError, match="cannot be written: No such file"):
        PidFile(str(tmp_path / "missing/pid"))


def test_check_looks_at_the_pid_file_too(lab: Lab) -> None:
    point = lab.directory / "point"
    point.mkdir()
    answer = lab.aoefs("--check", "-i", "aoe0", "--pid-file", "/tmp/aoefs.pid", point, side=INITIATOR, check=False)
    assert (answer.returncode, answer.stderr.count("\n")) == (1, 1)
    assert "others may write in /tmp" in answer.stderr
