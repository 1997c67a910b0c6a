"""``aoefs umount`` on mounts of the stand-in: what it waits for, and what it refuses."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from aoefs.cli.commands import umount
from aoefs.cli.main import main
from aoefs.host import mountpoint
from tests.cli.commandline import aoefs, aoefs_in_time
from tests.host.livemount import NOBODY, is_mounted, standin
from tests.lab import Process, require, wait_until


def test_umount_returns_when_the_daemon_has_ended(tmp_path: Path) -> None:
    path = tmp_path / "mnt"
    with standin(path, "slow-exit") as process:
        started = time.monotonic()
        answer = aoefs("umount", path)
        assert time.monotonic() - started >= 0.5
        assert (answer.returncode, answer.stdout + answer.stderr) == (0, "")
        assert process.wait(0.5) == 0
        assert not is_mounted(path)


def test_umount_of_a_busy_mount_names_the_holders_and_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "mnt"
    with standin(path) as process:
        with subprocess.Popen(["sleep", "60"], cwd=path) as holder:
            answer = aoefs("umount", path)
            says = f"aoefs: {path} is busy: used by sleep (pid {holder.pid}); end that, or see --lazy\n"
            assert (answer.returncode, answer.stderr) == (1, says)
            assert is_mounted(path)
            answer = aoefs("umount", "--lazy", path)
            assert (answer.returncode, answer.stderr) == (0, "")
            assert not is_mounted(path)
            assert process.poll() is None
            holder.kill()
        assert process.wait(10) == 0


def test_the_name_of_a_process_does_not_command_the_terminal(tmp_path: Path) -> None:
    path = tmp_path / "mnt"
    rename = "import ctypes, time; ctypes.CDLL(None).prctl(15, b'\\x1b[2J\\n'); print(flush=True); time.sleep(60)"
    with standin(path), subprocess.Popen([sys.executable, "-c", rename], cwd=path, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        answer = aoefs("umount", path)
        holder.kill()
        says = f"aoefs: {path} is busy: used by \\x1b[2J (pid {holder.pid}); end that, or see --lazy\n"
        assert (answer.returncode, answer.stderr) == (1, says)


def test_umount_reports_a_target_that_could_not_be_flushed(tmp_path: Path) -> None:
    path = tmp_path / "mnt"
    with standin(path, "flush-fails") as process:
        answer = aoefs("umount", path)
        says = f"aoefs: {path}/e0.0 could not be flushed: Input/output error: its last writes may be lost\n"
        assert (answer.returncode, answer.stderr) == (1, says)
        assert process.wait(10) == 0


def test_umount_clears_what_a_killed_daemon_left(tmp_path: Path) -> None:
    path = tmp_path / "mnt"
    with standin(path) as process:
        process.kill()
        process.wait()
        assert aoefs("status", path).stderr == (
            f"aoefs: {path} does not report its status: its daemon is dead: 'aoefs umount' removes it\n"
        )
        answer = aoefs("umount", path)
        says = f"aoefs: the mount process of {path} was dead already: unmounted\n"
        assert (answer.returncode, answer.stderr) == (0, says)
        assert not is_mounted(path)
        assert aoefs("umount", path).stderr == f"aoefs: {path} is not mounted\n"


def test_a_lazy_umount_detaches_a_mount_that_answers_nothing(tmp_path: Path) -> None:
    path = tmp_path / "mnt"
    with standin(path, "deaf") as process:
        answer = aoefs_in_time("umount", "--lazy", path)
        assert (answer.returncode, answer.stderr) == (
            0,
            f"aoefs: {path} is detached, but its mount process (pid {process.pid}) does not answer and may have to be "
            "killed: then what it has not flushed is lost\n",
        )
        assert not is_mounted(path)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT], ids=["the daemon is killed", "Ctrl-C"])
def test_a_umount_that_waits_for_a_mount_that_answers_nothing_ends_when(tmp_path: Path, number: signal.Signals) -> None:
    path = tmp_path / "mnt"
    with standin(path, "deaf") as process:
        umount = Process([sys.executable, "-m", "aoefs", "umount", str(path)], tmp_path / "log")
        wait_until(lambda: umount.output, timeout=10, what="it says what it waits for")
        assert f"waiting for the mount process of {path} (pid {process.pid}), which does not answer" in umount.output
        (process if number == signal.SIGKILL else umount).send_signal(number)
        assert umount.wait(10) == (0 if number == signal.SIGKILL else 130)
        assert ("was dead already: unmounted" in umount.output) == (number == signal.SIGKILL)
        assert is_mounted(path) == (number == signal.SIGINT)


def test_umount_says_what_it_waits_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(umount, "PATIENCE_SECONDS", 0.05)
    with standin(tmp_path / "mnt", "slow-exit") as process:
        assert main(["umount", str(tmp_path / "mnt")]) == 0
    says = f"aoefs: waiting for the mount process (pid {process.pid}), which is still flushing\n"
    assert capsys.readouterr().err == says


def test_umount_says_every_ten_seconds_what_it_waits_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(umount, "PATIENCE_SECONDS", 0.05)
    monkeypatch.setattr(umount, "EVERY_SECONDS", 0.1)
    with standin(tmp_path / "mnt", "slow-exit"):
        assert main(["umount", str(tmp_path / "mnt")]) == 0
    assert capsys.readouterr().err.count("which is still flushing\n") >= 3


def test_another_mount_that_got_the_device_number_is_no_copy(tmp_path: Path) -> None:
    require("unshare")
    with standin(tmp_path / "mnt"), subprocess.Popen(["unshare", "--mount", "sleep", "60"]) as holder:
        try:
            wait_until(lambda: Path(f"/proc/{holder.pid}/comm").read_text() == "sleep\n", what="it has its copy")
            mount = mountpoint.find_mount(str(tmp_path / "mnt"))
            assert mount is not None
            assert f"sleep (pid {holder.pid})" in mountpoint.copies(mount)
            assert mountpoint.copies(mount._replace(source="another")) == []
            assert mountpoint.copies(mount._replace(path="/mnt/another")) == []
        finally:
            holder.kill()


def test_a_copy_of_the_mount_in_another_namespace_is_named_and_not_waited_for_without_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    require("unshare")
    monkeypatch.setattr(umount, "PATIENCE_SECONDS", 0.05)
    monkeypatch.setattr(umount, "COPY_SECONDS", 0.3)
    path = tmp_path / "mnt"
    with standin(path) as process:
        with subprocess.Popen(["unshare", "--mount", "sleep", "60"]) as holder:
            try:
                wait_until(lambda: Path(f"/proc/{holder.pid}/comm").read_text() == "sleep\n", what="it has its copy")
                assert main(["umount", str(path)]) == 1
                lines = capsys.readouterr().err.splitlines()
            finally:
                holder.kill()
        assert process.wait(10) == 0
    who = f"sleep (pid {holder.pid})"
    waits = f"since {who} keeps a copy of the mount in another namespace"
    assert lines[0] == f"aoefs: waiting for the mount process (pid {process.pid}), {waits}"
    assert lines[-1] == (
        f"aoefs: {path} is unmounted and flushed, but {who} keeps a copy of it in another namespace: "
        f"the mount process (pid {process.pid}) ends when that does"
    )


def test_a_timeout_bounds_the_wait_for_the_mount_process(tmp_path: Path) -> None:
    path = tmp_path / "mnt"
    with standin(path, "slow-exit") as process:
        answer = aoefs_in_time("umount", path, "--timeout", "0.1")
        says = f"aoefs: {path} is unmounted, but its process (pid {process.pid}) has not ended within 0.1 s\n"
        assert (answer.returncode, answer.stderr) == (1, says)


def test_a_timeout_bounds_a_flush_that_nothing_answers_and_the_mount_stays(tmp_path: Path) -> None:
    path = tmp_path / "mnt"
    with standin(path, "flush-hangs"):
        answer = aoefs_in_time("umount", path, "--timeout", "3")
        first, last = answer.stderr.splitlines()
        assert first.startswith("aoefs: waiting for e0.0 to flush its last writes, for 2 s so far: until it answers")
        assert last == f"aoefs: {path} stays mounted: e0.0 did not flush within 3 s"
        assert answer.returncode == 1
        assert is_mounted(path)


def test_without_a_mount_point_the_only_mount_is_meant_and_of_several_one_is_to_be_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with standin(tmp_path / "one") as one, standin(tmp_path / "two"):
        everything = mountpoint.aoefs_mounts()  # others may have mounts, too
        ours = [mount for mount in everything if mount.path.startswith(f"{tmp_path}/")]
        monkeypatch.setattr(mountpoint, "aoefs_mounts", lambda: ours)
        assert main(["umount"]) == 1
        assert capsys.readouterr().err == f"aoefs: name one of the mounts: {tmp_path}/one, {tmp_path}/two\n"
        monkeypatch.setattr(mountpoint, "aoefs_mounts", lambda: ours[:1])
        assert main(["umount"]) == 0
        assert one.wait(10) == 0
        assert is_mounted(tmp_path / "two")


def test_a_user_learns_whose_mount_it_is(tmp_path: Path) -> None:
    require("setpriv")
    path = tmp_path / "mnt"
    user = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", sys.executable, "-m", "aoefs"]
    with standin(path):
        for command, says in {
            "umount": "was mounted by root: only that user and root can unmount it",
            "status": f"does not report its status: it was mounted by root: 'sudo aoefs status {path}'",
        }.items():
            answer = subprocess.run([*user, command, path], capture_output=True, text=True, check=False)
            assert (answer.returncode, answer.stderr) == (1, f"aoefs: {path} {says}\n")


def test_an_interrupt_ends_a_command_with_130(tmp_path: Path) -> None:
    path = tmp_path / "mnt"
    with standin(path, "slow-exit"), subprocess.Popen([sys.executable, "-m", "aoefs", "umount", path]) as process:
        wait_until(lambda: not is_mounted(path), what="unmounted")
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 130
