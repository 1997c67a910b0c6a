"""``aoefs demo`` for real: it shows what it promises, and leaves nothing behind, however it ends."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from aoefs.cli.commands import demo as demo_command
from aoefs.cli.main import main
from aoefs.host import mountpoint
from tests.lab import Process, require, wait_until

COMMAND = [sys.executable, "-P", "-m", "aoefs", "demo"]


def needs_demo(*more: str) -> None:
    require("ip", "nsenter", "/dev/fuse", *more)


@contextlib.contextmanager
def demo(tmp_path: Path, *arguments: str | Path) -> Iterator[Process]:
    """A running demo, whose temporary files are below ``tmp_path``."""
    command = ["env", f"TMPDIR={tmp_path}", *COMMAND, *map(str, arguments)]
    with Process(command, tmp_path / "demo.log") as process:
        try:
            yield process
        finally:
            process.stop(signal.SIGINT, 60)


def remains(process: Process, tmp_path: Path) -> list[str]:
    """Whatever of a demo is still there: namespaces, mounts, loop devices, processes, files."""
    name = f"aoefs-demo-{process.pid}"
    namespaces = os.listdir("/run/netns") if Path("/run/netns").exists() else []
    found = [namespace for namespace in namespaces if namespace.startswith(name)]
    found += [line for line in Path("/proc/self/mounts").read_text().splitlines() if str(tmp_path) in line]
    for file in Path("/sys/block").glob("loop*/loop/backing_file"):
        with contextlib.suppress(OSError):
            found += [text for text in [file.read_text()] if str(tmp_path) in text]
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            line = Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
            if str(tmp_path) in line and int(pid) != process.pid:
                found.append(line)
    return found + [str(path) for path in tmp_path.glob("aoefs-demo-*")]


def test_the_tour_does_real_work_and_leaves_nothing_behind(tmp_path: Path) -> None:
    needs_demo("mkfs.ext4", "e2fsck", "/dev/loop-control")
    with demo(tmp_path) as process:
        assert process.wait(60) == 0, process.output
        text = process.output
        assert "\x1b" not in text  # no colours in a file
        assert re.search(r"^   e0\.0 +512 MiB +aoefs software target .* up$", text, re.MULTILINE)
        assert re.search(r"^   -rw------- .* 268435456 .* e7\.1$", text, re.MULTILINE)
        sums = re.findall(r"^   ([0-9a-f]{64})  -$", text, re.MULTILINE)
        assert len(sums) == 3
        assert len(set(sums)) == 1
        assert "skipped" not in text
        assert re.search(r"e2fsck -f -n .*\n   .*files.*blocks", text)
        assert len(re.findall(r"^   268435456 bytes .* copied, ", text, re.MULTILINE)) == 2
        assert text.endswith("everything is removed\n")
        assert remains(process, tmp_path) == []


def test_a_kept_demo_is_there_for_its_user_until_ctrl_c(tmp_path: Path) -> None:
    needs_demo()
    point = tmp_path / "point"
    point.mkdir()
    with demo(tmp_path, point, "--keep") as process:
        wait_until(lambda: process.poll() is not None or "until Ctrl-C" in process.output, 60, "the tour is over")
        assert process.poll() is None, process.output
        assert sorted(path.name for path in point.iterdir()) == [
            ".aoefs",
            "by-serial",
            "e0.0",
            "e7.1",
        ]  # seen from out here
        with (point / "e7.1").open("rb") as user:
            process.send_signal(signal.SIGINT)
            wait_until(lambda: "is in use by" in process.output, what="the demo waits for the user of the mount")
            assert f"(pid {os.getpid()})" in process.output
            assert user.read(1) == b"\0"
        assert process.wait(60) == 0
        assert remains(process, tmp_path) == []
        assert list(point.iterdir()) == []


@pytest.mark.parametrize("milestone", ["1. Two", "aoefs discover", "aoefs -i aoe0", "ls -l", "mkfs.ext4", "status"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_demo_leaves_nothing_behind(tmp_path: Path, milestone: str, number: signal.Signals) -> None:
    needs_demo("mkfs.ext4")
    with demo(tmp_path) as process:
        wait_until(lambda: process.poll() is not None or milestone in process.output, 60, milestone)
        assert process.stop(number, 60) == 130, process.output
        assert remains(process, tmp_path) == []


def test_a_demo_whose_mount_process_is_killed_says_so_and_cleans_up(tmp_path: Path) -> None:
    needs_demo()
    with demo(tmp_path) as process:
        directory = tmp_path / f"aoefs-demo-{process.pid}"
        wait_until(lambda: process.poll() is not None or "/urandom" in process.output, 60, "it is mounted")
        assert process.poll() is None, process.output
        os.kill(mountpoint.read_status(str(directory / "mnt"))["pid"], signal.SIGKILL)
        assert process.wait(60) == 1
        assert process.output.splitlines()[-1].startswith("aoefs: ")
        assert remains(process, tmp_path) == []


def test_a_demo_whose_reader_goes_away_cleans_up(tmp_path: Path) -> None:
    needs_demo()
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    with subprocess.Popen(COMMAND, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.wait(60) == 141
        assert process.stderr is not None
        assert process.stderr.read() == b""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("missing", ["ip", "nsenter"])
def test_a_missing_program_is_one_line(
    missing: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(demo_command, "find_program", lambda program: None if program == missing else program)
    assert main(["demo"]) == 1
    assert re.fullmatch(rf"aoefs: the demo needs the command {missing}: install .*\n", capsys.readouterr().err)


# ── without root ──────────────────────────────────────────────────────────────────────────────────────────────────

# In a mount namespace of its own: a /dev/fuse as it is on most machines, and ways for anybody to this interpreter and
# this checkout, which may lie in root's home.  Then nobody runs the demo.
AS_NOBODY = """
set -e
mknod "$DIRECTORY/fuse" c 10 229
chmod 666 "$DIRECTORY/fuse"
mount --bind "$DIRECTORY/fuse" /dev/fuse
for path in $NEEDED; do
    mkdir -p "$DIRECTORY/kept$path"
    mount --bind "$path" "$DIRECTORY/kept$path"
done
for path in $CLOSED; do
    mount -t tmpfs -o mode=755 tmpfs "$path"
done
for path in $NEEDED; do
    mkdir -p "$path"
    mount --bind "$DIRECTORY/kept$path" "$path"
done
cd /
[ -z "$JAIL" ] || mount --rbind / "$JAIL"
exec ${JAIL:+chroot "$JAIL"} setpriv --reuid 65534 --regid 65534 --clear-groups "$@"
"""


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory that everybody can reach, which ``tmp_path`` is not; its ``tmp`` is for everybody's files."""
    with tempfile.TemporaryDirectory(prefix="aoefs-nobody-") as made:
        path = Path(made)
        path.chmod(0o755)
        (path / "tmp").mkdir()
        (path / "tmp").chmod(0o1777)
        yield path


@contextlib.contextmanager
def nobodys_demo(place: Path, *arguments: str, jail: str = "") -> Iterator[Process]:
    """A demo that the user nobody runs, in a chroot to ``jail`` (which becomes a copy of everything) if it is given."""
    require("unshare", "setpriv", "mount")
    needs_demo("mkfs.ext4", "debugfs", "e2fsck")
    needed = [sys.base_prefix, str(Path(mountpoint.__file__).parents[2])]
    parents = {parent for path in needed for parent in Path(path).parents}
    closed = sorted(str(parent) for parent in parents if not parent.stat().st_mode & 0o001)
    variables = {
        "DIRECTORY": place,
        "NEEDED": " ".join(needed if closed else []),
        "CLOSED": " ".join(path for path in closed if not any(path.startswith(f"{other}/") for other in closed)),
        "JAIL": jail,
        "TMPDIR": place / "tmp",
        "PYTHONDONTWRITEBYTECODE": 1,
    }
    command = ["env", *(f"{name}={value}" for name, value in variables.items())]
    command += ["unshare", "-m", "--propagation", "private", "sh", "-c", AS_NOBODY, "sh", *COMMAND, *arguments]
    with Process(command, place / "demo.log") as process:
        try:
            yield process
        finally:
            process.stop(signal.SIGINT, 60)


def test_without_root_the_tour_runs_in_a_user_namespace(place: Path) -> None:
    with nobodys_demo(place) as process:
        assert process.wait(60) == 0, process.output
        text = process.output
        assert "Not as root: in a user namespace" in text
        sums = re.findall(r"^   ([0-9a-f]{64})  -$", text, re.MULTILINE)
        assert len(sums) == 3
        assert len(set(sums)) == 1
        assert "Loop devices need root" in text
        assert re.search(r"diff -r .*\n   \(done in", text)
        assert re.search(r"e2fsck -f -n .*\n   .*files.*blocks", text)
        assert "skipped" not in text
        assert text.endswith("everything is removed\n")
        assert remains(process, place) == []
        assert list((place / "tmp").iterdir()) == []


def test_an_interrupted_demo_without_root_leaves_nothing_behind(place: Path) -> None:
    with nobodys_demo(place) as process:
        wait_until(lambda: process.poll() is not None or "/urandom" in process.output, 60, "it is mounted")
        assert process.stop(signal.SIGINT, 60) == 130, process.output
        assert remains(process, place) == []
        assert list((place / "tmp").iterdir()) == []


def test_where_user_namespaces_are_not_allowed_one_line_says_so(place: Path) -> None:
    jail = place / "jail"  # the kernel gives none to a process in a chroot
    jail.mkdir()
    with nobodys_demo(place, jail=str(jail)) as process:
        assert process.wait(30) == 1
        reason = r"unshare failed: Operation not permitted"
        assert re.fullmatch(
            rf"aoefs: the demo needs root, since user namespaces .* \({reason}\): sudo aoefs demo\n", process.output
        )


@pytest.mark.parametrize("arguments", [["--keep"], ["/mnt"]])
def test_without_root_nothing_can_be_kept(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert main(["demo", *arguments]) == 1
    said = "aoefs: without root other processes cannot see the demo's mount: --keep and DIR need sudo\n"
    assert capsys.readouterr().err == said


def test_a_mount_point_that_will_not_do_is_refused_before_anything_is_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    needs_demo()
    (tmp_path / "file").touch()
    assert main(["demo", str(tmp_path)]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err == f"aoefs: {tmp_path} is not empty: name an empty directory\n"
