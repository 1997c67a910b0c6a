"""The child process that asks a mount: its answers, its errors, and its end."""

from __future__ import annotations

import errno
import os
import signal
from pathlib import Path

import pytest

from aoefs.host import mountreader
from aoefs.host.mountreader import MountReader
from tests.host.livemount import standin
from tests.lab import is_gone, wait_until


def children() -> set[int]:
    text = Path(f"/proc/self/task/{os.getpid()}/children").read_text()
    return {int(pid) for pid in text.split() if not is_gone(int(pid))}


def test_any_number_of_questions_get_their_answers(tmp_path: Path) -> None:
    contents = {"small": b"text\nof lines\n", "empty": b"", "large": os.urandom(3 << 20)}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    with MountReader(str(tmp_path)) as one:
        for name in ("small", "empty", "large", "small"):
            assert one.ask(name) == contents[name]
            assert one.ask() == b""
        with pytest.raises(FileNotFoundError):
            one.ask("missing")
        with pytest.raises(IsADirectoryError):
            one.ask(".")
        assert one.ask("small") == contents["small"]


def test_strange_names_and_directories_that_went_away_are_no_trouble(tmp_path: Path) -> None:
    directory = tmp_path / os.fsdecode(b"\xff \n-c")
    directory.mkdir()
    (directory / "file").write_bytes(b"data")
    with MountReader(str(directory)) as one:
        assert one.ask("file") == b"data"
        (directory / "file").unlink()
        directory.rmdir()
        with pytest.raises(FileNotFoundError):
            one.ask()


def test_no_child_is_left_behind_and_the_descriptors_are_closed(tmp_path: Path) -> None:
    before, open_before = children(), len(os.listdir("/proc/self/fd"))
    with MountReader(str(tmp_path)) as one:
        assert len(children() - before) == 1
        one.ask()
    assert children() == before
    assert len(os.listdir("/proc/self/fd")) == open_before


def test_the_end_of_the_child_is_an_error(tmp_path: Path) -> None:
    before = children()
    with MountReader(str(tmp_path)) as one:
        [pid] = children() - before
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: is_gone(pid), what="it is dead")
        with pytest.raises(OSError, match="was killed") as failed:
            one.ask()
        assert failed.value.errno == errno.EIO


def test_a_child_that_nothing_can_end_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mountreader, "PATIENCE", 0.5)
    before = children()
    with standin(tmp_path / "mnt", "deaf") as daemon:
        with MountReader(str(tmp_path / "mnt")) as one, pytest.raises(TimeoutError, match="does not answer"):
            one.ask()
        [pid] = children() - before - {daemon.pid}
        daemon.kill()
        wait_until(lambda: is_gone(pid), what="it ends with the mount process")
