"""Mount points: what is refused, what is replaced, who holds a mount; on real mounts of a stand-in file system."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aoefs.errors import UserError
from aoefs.host import mountpoint
from aoefs.host.mountpoint import Mount, find_mount, holders, parse_mountinfo
from aoefs.host.mountreader import Liveness
from tests.host import livemount
from tests.lab import require

MOUNTINFO = r"""22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/root rw
90 22 0:47 / /mnt/with\040space\134 rw - fuse.aoefs any rw,user_id=0
91 22 0:48 / /mnt/plain rw - autofs systemd-1 rw
92 22 0:49 / /mnt/plain rw master:5 propagate_from:2 - fuse.sshfs host: rw,xuser_id=7,user_id=1000,group_id=5
many 22 0:49 / /x rw - ext4 x rw
torn line
93 22 0:50 - x
"""


@pytest.fixture
def standin(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A live mount on ``tmp_path / "mnt"``."""
    with livemount.standin(tmp_path / "mnt") as process:
        yield process


@pytest.fixture
def mounted(standin: subprocess.Popen[bytes], tmp_path: Path) -> Mount:
    mount = find_mount(str(tmp_path / "mnt"))
    assert mount is not None
    return mount


@contextlib.contextmanager
def python(program: str, directory: str = "/") -> Iterator[int]:
    """Another process that runs a program; it is ready when this returns its pid."""
    code = f"import mmap, os, time\n{program}\nprint('ready', flush=True)\ntime.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, cwd=directory) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        yield process.pid
        process.kill()


# ── mountinfo ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_mountinfo_is_read_with_its_escapes_and_torn_lines_are_passed_over() -> None:
    assert parse_mountinfo(MOUNTINFO) == [
        Mount("/", "ext4", "/dev/root", "254:0", 22),
        Mount("/mnt/with space\\", "fuse.aoefs", "any", "0:47", 90, 0),
        Mount("/mnt/plain", "autofs", "systemd-1", "0:48", 91),
        Mount("/mnt/plain", "fuse.sshfs", "host:", "0:49", 92, 1000),
    ]


@given(st.text())
def test_no_mountinfo_makes_the_parser_fail(text: str) -> None:
    parse_mountinfo(text)


def test_the_topmost_mount_of_a_path_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "mountinfo").write_text(MOUNTINFO)
    monkeypatch.setattr(mountpoint, "MOUNTINFO", str(tmp_path / "mountinfo"))
    found = find_mount("/mnt/../mnt/plain/")
    assert found is not None
    assert found.type == "fuse.sshfs"
    assert find_mount("/mnt") is None


# ── what can be mounted on ────────────────────────────────────────────────────────────────────────────────────────


def test_an_empty_directory_is_good_and_comes_back_resolved(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    assert mountpoint.check(str(tmp_path / "link")) == str((tmp_path / "real").resolve())


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("missing", "does not exist: 'mkdir -p"),
        ("file", "is not a directory"),
        ("file/below", "cannot be used as a mount point: Not a directory"),
        (".", "is not empty"),
        ("loop", "cannot be used as a mount point: Too many levels"),
    ],
)
def test_what_cannot_be_mounted_on_is_refused_in_one_line(tmp_path: Path, name: str, says: str) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(UserError) as refused:
        mountpoint.check(str(tmp_path / name))
    assert says in str(refused.value)
    assert "\n" not in str(refused.value)


def test_other_mounts_are_left_alone() -> None:
    with pytest.raises(UserError, match=r"/proc is mounted already \(proc\): choose another directory"):
        mountpoint.check("/proc")
    with pytest.raises(UserError, match=r"/proc is not an aoefs mount: proc is mounted there"):
        mountpoint.require_mount("/proc")


def test_what_is_not_mounted_is_no_mount(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not mounted"):
        mountpoint.require_mount(str(tmp_path))


def test_below_an_automounter_nothing_is_looked_into(monkeypatch: pytest.MonkeyPatch) -> None:
    mount = Mount("/missing/auto", "autofs", "systemd-1", "0:48", 91)
    monkeypatch.setattr(mountpoint, "_mounts", lambda: [mount])
    assert mountpoint.check("/missing/auto") == "/missing/auto"


def test_a_live_mount_is_not_mounted_over(mounted: Mount) -> None:
    with pytest.raises(UserError, match=r"mounted already \(fuse.aoefs\): 'aoefs umount "):
        mountpoint.check(mounted.path)
    assert mountpoint.require_mount(mounted.path) == mounted


def test_a_mount_that_its_process_left_is_replaced(mounted: Mount, standin: subprocess.Popen[bytes]) -> None:
    assert mounted.liveness() is Liveness.LIVE
    standin.kill()
    standin.wait()
    assert mounted.liveness() is Liveness.DEAD
    with pytest.raises(OSError, match="not connected"):
        os.listdir(mounted.path)
    assert mountpoint.check(mounted.path) == mounted.path
    assert find_mount(mounted.path) is None


# ── mounts that do not answer ─────────────────────────────────────────────────────────────────────────────────────

_ASK = """
from aoefs.host import mountpoint
mount = mountpoint.find_mount(PATH)
print(mount and mount.path, mount and mount.liveness().name, mount and mount.pid_note())
"""


def test_a_mount_that_answers_nothing_is_found_by_any_name_and_is_silent(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "mnt")
    (tmp_path / "relative").symlink_to("./x/../link")
    names = ["{0}/mnt", "{0}/mnt/", "{0}/mnt/.", "{0}/x/../mnt", "{0}/link", "{0}/relative", "mnt", "{0}/mnt/../mnt"]
    with livemount.standin(tmp_path / "mnt", "deaf") as daemon:
        asking = {}
        for name in names:
            program = _ASK.replace("PATH", repr(name.format(tmp_path)))
            command = [sys.executable, "-c", program]
            asking[name] = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True)
        deadline = time.monotonic() + 10
        for process in asking.values():
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0, deadline - time.monotonic()))
        daemon.kill()  # which ends whatever waits for it
        said = {name: process.communicate()[0].strip() for name, process in asking.items()}
        assert said == dict.fromkeys(names, f"{tmp_path}/mnt SILENT  (pid {daemon.pid})")


def test_a_path_inside_a_mount_that_answers_nothing_is_not_looked_at(tmp_path: Path) -> None:
    with livemount.standin(tmp_path / "mnt", "deaf") as daemon:
        program = _ASK.replace("PATH", repr(f"{tmp_path}/mnt/e0.0"))
        asking = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
        with contextlib.suppress(subprocess.TimeoutExpired):
            asking.wait(10)
        code = asking.poll()
        daemon.kill()
        assert asking.communicate()[0] == "None None None\n"
        assert code == 0


def test_a_mount_that_is_stopped_is_silent_and_lives_when_it_goes_on(
    mounted: Mount, standin: subprocess.Popen[bytes]
) -> None:
    standin.send_signal(signal.SIGSTOP)
    assert mounted.liveness() is Liveness.SILENT
    assert mounted.pid_note() == f" (pid {standin.pid})"
    assert mountpoint.clear_dead(mounted.path) == (mounted, Liveness.SILENT)
    says = r"mounted already, and its daemon \(pid \d+\) does not answer: 'aoefs umount --lazy "
    with pytest.raises(UserError, match=says):
        mountpoint.check(mounted.path)
    with pytest.raises(TimeoutError, match="does not answer"):
        mountpoint.read_status(mounted.path)
    standin.send_signal(signal.SIGCONT)
    assert mounted.liveness() is Liveness.LIVE


def test_an_answer_is_waited_for_if_somebody_hears_of_the_silence(
    mounted: Mount, standin: subprocess.Popen[bytes]
) -> None:
    standin.send_signal(signal.SIGSTOP)
    silences = []

    def go_on() -> None:
        silences.append("silent")
        standin.send_signal(signal.SIGCONT)

    assert mounted.liveness(go_on) is Liveness.LIVE
    assert mountpoint.read_status(mounted.path, go_on)["pid"] == standin.pid
    assert silences == ["silent"]


# ── FUSE itself ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_without_fuse_device_the_advice_is_to_load_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(mountpoint, "FUSE_DEVICE", str(tmp_path / "fuse"))
    with pytest.raises(UserError, match="fuse is missing: 'modprobe fuse'"):
        mountpoint.require_fuse()
    (tmp_path / "fuse").mkdir()
    with pytest.raises(UserError, match="fuse does not work: Is a directory"):
        mountpoint.require_fuse()


def test_a_user_needs_fusermount3_and_for_allow_other_the_word_of_root(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(mountpoint, "FUSE_DEVICE", "/dev/null")
    monkeypatch.setattr(mountpoint, "FUSE_CONFIGURATION", str(tmp_path / "fuse.conf"))
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="fusermount3 is missing: install"):
        mountpoint.require_fuse()
    (tmp_path / "fusermount3").touch(mode=0o755)
    mountpoint.require_fuse()
    for content in (None, "#user_allow_other\n"):
        if content:
            (tmp_path / "fuse.conf").write_text(content)
        with pytest.raises(UserError, match="'user_allow_other'"):
            mountpoint.require_fuse(allow_other=True)
    (tmp_path / "fuse.conf").write_text("#\n user_allow_other # yes\n")
    mountpoint.require_fuse(allow_other=True)


# ── holders and unmounting ────────────────────────────────────────────────────────────────────────────────────────


def test_an_idle_mount_has_no_holders_and_can_be_unmounted(mounted: Mount, standin: subprocess.Popen[bytes]) -> None:
    assert holders(mounted) == []
    mountpoint.unmount(mounted)
    assert find_mount(mounted.path) is None
    assert standin.wait(10) == 0


@pytest.mark.parametrize(
    "program",
    [
        "file = open('{}/e0.0')",
        "os.chdir('{}')",
        "file = open('{}/e0.0', 'rb'); m = mmap.mmap(file.fileno(), 4096, prot=mmap.PROT_READ); file.close()",
        "os.chroot('{}')",
    ],
    ids=["file", "cwd", "mmap", "root"],
)
def test_each_kind_of_use_is_found_and_keeps_the_mount(mounted: Mount, program: str) -> None:
    with python(program.format(mounted.path)) as pid:
        [holder] = holders(mounted)
        assert holder.endswith(f" (pid {pid})")
        with pytest.raises(OSError, match="busy") as refused:
            mountpoint.unmount(mounted)
        assert refused.value.errno == errno.EBUSY
        assert find_mount(mounted.path) == mounted
        mountpoint.unmount(mounted, lazy=True)
        assert find_mount(mounted.path) is None


def test_a_loop_device_and_a_mount_inside_are_found(mounted: Mount) -> None:
    require("losetup", "mount")
    file = f"{mounted.path}/e0.0"
    device = subprocess.run(["losetup", "-f", "-r", "--show", file], check=True, capture_output=True, text=True)
    try:
        assert holders(mounted) == [device.stdout.strip()]
    finally:
        subprocess.run(["losetup", "-d", device.stdout.strip()], check=True)
    subprocess.run(["mount", "--bind", "/etc/hostname", file], check=True)
    try:
        assert holders(mounted) == [f"the mount on {file}"]
    finally:
        subprocess.run(["umount", file], check=True)


def test_a_directory_with_a_longer_name_is_not_inside(mounted: Mount) -> None:
    neighbour = Path(mounted.path + "2")
    neighbour.mkdir()
    with python("", directory=str(neighbour)):
        assert holders(mounted) == []


def test_a_user_unmounts_by_fusermount3(mounted: Mount, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    program = tmp_path / "fusermount3"
    program.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/said\n')
    program.chmod(0o755)
    mountpoint.unmount(mounted, lazy=True)
    assert (tmp_path / "said").read_text() == f"-u -z -- {mounted.path}\n"
    program.write_text("#!/bin/sh\necho 'fusermount3: failed to unmount /mnt/x: Device or resource busy' >&2; exit 1\n")
    with pytest.raises(OSError, match="failed to unmount") as refused:
        mountpoint.unmount(mounted)
    assert refused.value.errno == errno.EBUSY
    program.write_text("#!/bin/sh\necho 'fusermount3: entry for /mnt/x not found in /etc/mtab' >&2; exit 1\n")
    with pytest.raises(PermissionError, match="not found in /etc/mtab"):
        mountpoint.unmount(mounted)


def test_the_status_is_read_from_the_mount_itself(mounted: Mount, standin: subprocess.Popen[bytes]) -> None:
    assert mountpoint.read_status(mounted.path)["pid"] == standin.pid
    standin.send_signal(signal.SIGTERM)
    assert standin.wait(10) == 0
    with pytest.raises(FileNotFoundError):
        mountpoint.read_status(mounted.path)
