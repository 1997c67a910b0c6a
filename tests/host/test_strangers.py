"""Mounts of other users, which lie: root unmounts them, and believes, waits for and touches nothing that they name."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from aoefs.cli.commands import doctor
from aoefs.errors import UserError
from aoefs.host import mountpoint
from aoefs.host.mountreader import MOST_BYTES, MountReader
from tests.cli.commandline import aoefs, aoefs_in_time
from tests.host.livemount import NOBODY, is_mounted, standin, strangers_standin
from tests.lab import require


@pytest.fixture
def bystander() -> Iterator[subprocess.Popen[bytes]]:
    """A process of root that has nothing to do with any mount."""
    with subprocess.Popen(["sleep", "600"], cwd="/") as process:
        yield process
        process.kill()


@pytest.fixture
def fifo(tmp_path: Path) -> Path:
    """Opening it waits for ever."""
    os.mkfifo(tmp_path / "fifo")
    return tmp_path / "fifo"


def children() -> set[str]:
    return set(Path(f"/proc/self/task/{os.getpid()}/children").read_text().split())


# ── umount ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_umount_asks_the_mount_of_another_user_nothing(
    tmp_path: Path, fifo: Path, bystander: subprocess.Popen[bytes]
) -> None:
    path = tmp_path / "a/mnt"
    for words in ((f"pid={bystander.pid}",), ("name=../../fifo",), ("deaf",), ("dead",), ("endless",)):
        with strangers_standin(path, *words):
            answer = aoefs_in_time("umount", path)
            says = f"aoefs: {path} is unmounted, but it belongs to user {NOBODY}, whose process may still be flushing\n"
            assert (answer.returncode, answer.stderr) == (0, says), words
            assert not is_mounted(path)
    with strangers_standin(path, "deaf"):
        assert aoefs_in_time("umount", "--lazy", path).returncode == 0
        assert not is_mounted(path)


def test_names_of_targets_are_addresses_and_nothing_else(tmp_path: Path, fifo: Path) -> None:
    """Not even when the mount is ours: e0.0p1/../../../fifo is no name of a target."""
    path = tmp_path / "a/mnt"
    path.mkdir(parents=True)
    for name in ("../../fifo", str(fifo), "e0.1/../../../fifo", "E0.1", "0.1", "e0.1p1"):
        with standin(path, f"name={name}"):
            answer = aoefs_in_time("umount", path)
            assert (answer.returncode, answer.stderr.count("\n")) == (0, 1), name
            assert "cannot be watched" in answer.stderr
            assert not is_mounted(path)


def test_a_pid_that_is_not_of_the_mount_process_is_not_waited_for(
    tmp_path: Path, bystander: subprocess.Popen[bytes]
) -> None:
    """As of a mount process in a container, where pids are others."""
    path = tmp_path / "mnt"
    for pid in (bystander.pid, 1, os.getpid(), 0, -1, 1 << 40):
        with standin(path, f"pid={pid}"):
            answer = aoefs_in_time("umount", path)
            assert answer.returncode == 0
            assert "cannot be watched (the pid that it gives is of another process)" in answer.stderr
            assert not is_mounted(path)


# ── the start ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_start_replaces_no_mount_of_another_user_whatever_it_says(tmp_path: Path) -> None:
    path = tmp_path / "mnt"
    with strangers_standin(path, "dead") as process:
        says = rf"mounted already \(fuse\.aoefs, by user {NOBODY}\): choose another directory"
        with pytest.raises(UserError, match=says):
            mountpoint.check(str(path))
        assert is_mounted(path)
        process.kill()
        process.wait()
        with pytest.raises(UserError, match=says):
            mountpoint.check(str(path))
        assert is_mounted(path)
        assert aoefs("umount", path).returncode == 0
        assert not is_mounted(path)


@pytest.mark.parametrize("arguments", [["umount"], ["--check", "-i", "lo"]])
def test_a_parent_that_becomes_a_link_makes_nobody_unmount_something_else(arguments: list[str]) -> None:
    require("mount", "umount")
    with tempfile.TemporaryDirectory() as directory:  # pytest's own is closed to others
        parent, elsewhere = Path(directory, "parent"), Path(directory, "elsewhere")
        for place in (elsewhere / "mnt", parent):
            place.mkdir(parents=True)
        os.chmod(directory, 0o777)
        os.chown(parent, NOBODY, NOBODY)
        subprocess.run(["mount", "-t", "tmpfs", "tmpfs", elsewhere / "mnt"], check=True)
        try:
            with strangers_standin(parent / "mnt", "dead", f"swap={parent}:{elsewhere}"):
                aoefs(*arguments, parent / "mnt")
                assert os.path.ismount(elsewhere / "mnt")
        finally:
            subprocess.run(["umount", elsewhere / "mnt"], check=True)


@pytest.mark.parametrize("lazy", [False, True])
def test_the_mount_that_was_found_is_unmounted_wherever_it_is_by_then(tmp_path: Path, lazy: bool) -> None:
    require("mount", "umount")
    parent, elsewhere = tmp_path / "parent", tmp_path / "elsewhere"
    (elsewhere / "mnt").mkdir(parents=True)
    parent.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", elsewhere / "mnt"], check=True)
    try:
        with standin(parent / "mnt"):
            mount = mountpoint.require_mount(str(parent / "mnt"))
            parent.rename(tmp_path / "moved")
            parent.symlink_to(elsewhere)
            try:
                mountpoint.unmount(mount, lazy=lazy)
                assert os.path.ismount(elsewhere / "mnt")
                assert not is_mounted(tmp_path / "moved/mnt")
                with pytest.raises(OSError, match="not mounted any more"):
                    mountpoint.unmount(mount, lazy=lazy)
                assert os.path.ismount(elsewhere / "mnt")
            finally:
                parent.unlink()
                (tmp_path / "moved").rename(parent)
    finally:
        subprocess.run(["umount", elsewhere / "mnt"], check=True)


# ── doctor, status ────────────────────────────────────────────────────────────────────────────────────────────────


def test_doctor_names_a_mount_of_another_user_and_asks_it_nothing(tmp_path: Path) -> None:
    path = tmp_path / "mnt"
    with strangers_standin(path, "deaf"):
        before = children()
        found = {finding.check: finding for finding in doctor.examine()}[f"mount {path}"]
        assert (found.state, found.text) == ("ok", f"of user {NOBODY}, so it was not looked at")
        assert children() == before, "one that asks can not be ended"


def test_a_link_is_not_followed_out_of_a_mount(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text(json.dumps({"pid": 1, "targets": [], "secret": 1}))
    with strangers_standin(tmp_path / "mnt", f"link={secret}"):
        answer = aoefs_in_time("status", "--json", tmp_path / "mnt")
        assert (answer.returncode, answer.stdout) == (1, "")
        assert answer.stderr.count("\n") == 1


def test_a_status_without_an_end_is_refused(tmp_path: Path) -> None:
    with strangers_standin(tmp_path / "mnt", "endless"), MountReader(str(tmp_path / "mnt")) as reader:
        before = children()
        with pytest.raises(OSError, match="too large"):
            reader.ask(mountpoint.STATUS_FILE, lambda: None)
        assert MOST_BYTES < 1 << 27
        assert children() == before


@pytest.mark.parametrize("text", ["", "no json", "[]", "{}", "[" * 100_000, '{"pid": "1", "targets": 0}'])
def test_a_status_that_is_none_is_one_line(tmp_path: Path, text: str) -> None:
    with pytest.raises(OSError, match="is no status"):
        mountpoint.parse_status(text.encode())


def test_a_status_is_read_of_files_alone(tmp_path: Path, fifo: Path) -> None:
    with MountReader(str(tmp_path)) as reader, pytest.raises(OSError, match="Invalid argument"):
        reader.ask("fifo")
