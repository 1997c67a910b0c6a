"""A mount with workers: one mount to its user, whichever process serves a target, and whichever of them ends."""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from aoefs.fuse import tuning
from tests.lab import INITIATOR, Lab, Mount, Process, is_gone, opened, wait_until
from tests.mount.place import MIB, fails_as_dead, fails_with, nothing_is_left

TARGETS = 6
WORKERS = 3  # of which the first is the main process
NAMES = [f"e0.{slot}" for slot in range(TARGETS)]
HANG_SECONDS = 60.0


@pytest.fixture
def mount(lab: Lab) -> Iterator[Mount]:
    images = [lab.image(f"image{slot}", (slot + 1) * MIB, seed=slot) for slot in range(TARGETS)]
    lab.target(*(f"0.{slot}={image}" for slot, image in enumerate(images)))
    made = lab.mount(workers=WORKERS)
    directories = {path.parent for path in private_mounts(lab)}
    assert len(directories) == 1
    yield made
    if made.mounted:
        made.umount("--lazy")
    wait_until(lambda: not private_mounts(lab), what="no private mount is left")
    wait_until(lambda: not any(map(os.path.exists, directories)), what="no private directory is left")


def private_mounts(lab: Lab) -> list[Path]:
    """Where workers of this lab have their own mounts."""
    mounts = [Path(line.split()[1]) for line in lab.sides[INITIATOR].mounts() if " fuse.aoefs-worker " in line]
    return [path for path in mounts if path.is_relative_to("/run")]


def mounts_of(lab: Lab) -> str:
    return "\n".join(lab.sides[INITIATOR].mounts())


def workers(mount: Mount) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = mount.status()["workers"]
    return found


def pids(mount: Mount) -> list[int]:
    return [worker["pid"] for worker in workers(mount)]


def reads_right(mount: Mount, slot: int) -> bool:
    file, image = mount.here / f"e0.{slot}", mount.lab.directory / f"image{slot}"
    try:
        return file.read_bytes() == image.read_bytes()
    except OSError:
        return False


def holder(lab: Lab, mount: Mount, name: str) -> Process:
    process = lab.popen(INITIATOR, ["sh", "-c", f"exec 3<>{mount.file(name)}; echo open; exec sleep 1000"])
    wait_until(lambda: "open" in process.output, what="the file is open")
    return process


# ── one mount to a user ───────────────────────────────────────────────────────────────────────────────────────────────


def test_names_sizes_and_contents_are_those_of_one_mount(lab: Lab, mount: Mount) -> None:
    assert sorted(os.listdir(mount.here)) == [".aoefs", "by-serial", *NAMES]
    found = [os.stat(mount.here / name) for name in NAMES]
    assert [status.st_size for status in found] == [(slot + 1) * MIB for slot in range(TARGETS)]
    assert len({status.st_ino for status in found}) == TARGETS
    assert len({status.st_dev for status in found}) == WORKERS
    assert all(reads_right(mount, slot) for slot in range(TARGETS))
    room = os.statvfs(mount.here)
    assert room.f_blocks * room.f_frsize == sum(range(1, TARGETS + 1)) * MIB
    links = {os.readlink(path) for path in (mount.here / "by-serial").iterdir()}
    assert links == {f"../{name}" for name in NAMES}


def test_the_status_shows_every_target_and_who_serves_it(lab: Lab, mount: Mount) -> None:
    for slot in range(TARGETS):
        assert reads_right(mount, slot)
    status = json.loads(lab.aoefs("status", "--json", mount.path).stdout)
    assert [target["name"] for target in status["targets"]] == NAMES
    assert all(target["read_bytes"] >= (slot + 1) * MIB for slot, target in enumerate(status["targets"]))
    assert [worker["id"] for worker in status["workers"]] == list(range(WORKERS))
    assert status["workers"][0]["pid"] == status["pid"]
    for worker in status["workers"]:
        assert worker["targets"] == NAMES[worker["id"] :: WORKERS]
        assert worker["restarts"] == 0
        assert worker["cpu_seconds"] > 0
    assert len({shard["id"] for shard in status["shards"]}) == len(status["shards"])
    assert all(shard["id"] % WORKERS == shard["worker"] for shard in status["shards"])
    printed = lab.aoefs("status", "--once", mount.path).stdout
    for worker in status["workers"]:
        assert re.search(
            rf"^{worker['id']} +{worker['pid']} +\d+\.\ds +0 +2 +{' '.join(worker['targets'])}$", printed, re.M
        )
    lines = lab.aoefs("events", mount.path).stdout.splitlines()
    assert lines == sorted(lines)
    for name in NAMES:
        assert sum(f" {name}: " in line for line in lines) == 1


def test_every_control_file_works_for_every_target(lab: Lab, mount: Mount) -> None:
    control = mount.here / ".aoefs"
    for slot, name in enumerate(NAMES):
        assert len((control / name / "ident").read_bytes()) == 512
        assert json.loads((control / name / "stats").read_bytes())["size"] == (slot + 1) * MIB
        (control / name / "config").write_bytes(b"of " + name.encode())
        assert (control / name / "config").read_bytes() == b"of " + name.encode() + b"\n"
    (control / "revalidate").write_text("e0.0 e0.1,e0.2")
    (control / "revalidate").write_text("all")
    (control / "discover").write_text("\n")
    fails_with(errno.EINVAL, lambda: (control / "revalidate").write_text("e0.7"))
    fails_with(errno.EBUSY, lambda: (control / "flush").write_text("e0.4"))
    lab.aoefs(mount.path, "-o", "remount,deadsecs=7")
    wait_until(lambda: "options: deadsecs 7" in lab.aoefs("events", mount.path).stdout, what="a worker took it over")
    events = lab.aoefs("events", mount.path).stdout
    wait_until(lambda: lab.aoefs("events", mount.path).stdout.count("options: ") == WORKERS, what="all did")
    assert "cannot" not in events


def test_a_worker_starts_when_the_first_target_of_its_share_is_found(lab: Lab) -> None:
    lab.vblade(0, 0, lab.image("image0", MIB))
    mount = lab.mount(workers=WORKERS)
    assert len(workers(mount)) == 1
    lab.vblade(0, 1, lab.image("image1", MIB, seed=1))
    file = mount.here / "e0.1"
    wait_until(file.exists, what="its name appears")
    assert reads_right(mount, 1), "it can be read as soon as it is there"
    assert [worker["id"] for worker in workers(mount)] == [0, 1]
    mount.umount()
    assert nothing_is_left(lab, mount)


@pytest.mark.parametrize(("most", "processes"), [(1, 1), (3, 2)])
def test_all_processes_together_keep_the_bounds_of_the_mount(lab: Lab, most: int, processes: int) -> None:
    images = [lab.image(f"image{slot}", MIB, seed=slot) for slot in range(TARGETS)]
    lab.target(*(f"0.{slot}={image}" for slot, image in enumerate(images)))
    mount = lab.mount(workers=2, max_targets=most)
    status = mount.status()
    assert len(status["targets"]) == most
    assert len(status.get("workers", [status])) == processes
    assert any(
        "targets" in stranger["reason"] and "--max-targets" in stranger["reason"] for stranger in status["strangers"]
    )
    devices = {os.stat(mount.here / name).st_dev for name in os.listdir(mount.here)}
    assert {limit_of(lab, device) for device in devices} == {tuning.MAX_BACKGROUND // processes}
    mount.umount()
    assert nothing_is_left(lab, mount)


def limit_of(lab: Lab, device: int) -> int:
    """``max_background`` of a FUSE mount."""
    script = f"mount -t fusectl none {tuning.FUSECTL}; cat {tuning.FUSECTL}/{os.minor(device)}/max_background"
    return int(lab.run(INITIATOR, ["unshare", "-m", "sh", "-c", script]).stdout)


def test_a_serial_that_disks_of_two_processes_have_leads_to_none_of_them_and_an_event_says_so(lab: Lab) -> None:
    """Among them two of one worker, which has no link for them itself."""
    same, other = lab.image("same", MIB), lab.image("other", MIB)
    lab.target("--read-only", f"0.0={same}", f"0.1={same}", f"0.2={other}", f"0.3={same}")
    mount = lab.mount(workers=2)
    status = {target["name"]: target["serial"] for target in mount.status()["targets"]}
    assert len({status[name] for name in ("e0.0", "e0.1", "e0.3")}) == 1
    links = {path.name: os.readlink(path) for path in (mount.here / "by-serial").iterdir()}
    assert links == {status["e0.2"]: "../e0.2"}
    lines = [line for line in lab.aoefs("events", mount.path).stdout.splitlines() if "have the same serial" in line]
    assert len(lines) == 2
    assert re.search("e0.0, e0.1, e0.3 have the same serial .*: by-serial leads to none of them", lines[-1])
    mount.umount()
    assert nothing_is_left(lab, mount)


def test_what_is_written_to_any_target_is_on_its_disk(lab: Lab, mount: Mount) -> None:
    for slot, name in enumerate(NAMES):
        data = os.urandom(MIB // 2)
        with opened(mount.here / name, os.O_RDWR) as file:
            os.pwrite(file, data, 4096)
            os.fsync(file)
        assert (lab.directory / f"image{slot}").read_bytes()[4096 : 4096 + len(data)] == data


def test_a_placeholder_takes_no_open_and_no_write(lab: Lab, mount: Mount) -> None:
    """What a mount namespace without the binds sees."""
    for flags in ("<", ">", "<>"):
        script = f"umount -l {mount.file('e0.1')}; exec 3{flags}{mount.file('e0.1')}"
        answer = lab.run(INITIATOR, ["unshare", "-m", "--propagation", "private", "sh", "-c", script], check=False)
        assert os.strerror(errno.ENXIO) in answer.stderr
    assert reads_right(mount, 1)


def resident_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


def test_metrics_are_those_of_all_targets(lab: Lab, mount: Mount) -> None:
    point = lab.directory / "with metrics"
    point.mkdir()
    lab.aoefs("-i", "aoe0", "--workers", 2, "--metrics", 9955, point)
    script = "from urllib.request import urlopen; print(urlopen('http://127.0.0.1:9955').read().decode())"
    text = lab.run(INITIATOR, [sys.executable, "-c", script]).stdout
    status = json.loads(lab.aoefs("status", "--json", point).stdout)
    memory = [resident_bytes(worker["pid"]) for worker in status["workers"]]
    lab.aoefs("umount", point)
    shown = dict(re.findall(r"^(process_\w+) (\S+)$", text, re.M))
    assert max(memory) * 1.3 < float(shown["process_resident_memory_bytes"]) < sum(memory) * 1.3, "of both processes"
    assert (
        status["workers"][0]["cpu_seconds"] < float(shown["process_cpu_seconds_total"]) <= status["cpu_seconds"] + 0.1
    )
    assert re.findall(r'^aoefs_worker_cpu_seconds_total{worker="(\d)"} \d', text, re.M) == ["0", "1"]
    sizes = dict(re.findall(r'^aoefs_target_size_bytes{target="(e0\.\d)"} (\d+)$', text, re.M))
    assert sizes == {name: str((slot + 1) * MIB) for slot, name in enumerate(NAMES)}
    assert text.count("# TYPE aoefs_target_up ") == 1


def test_plain_umount_works_with_our_helper(lab: Lab, mount: Mount) -> None:
    running = pids(mount)
    helper = lab.directory / "umount.fuse.aoefs"
    helper.write_text(f"#!{sys.executable}\nfrom aoefs.cli.main import main\nraise SystemExit(main())\n")
    helper.chmod(0o755)
    process = holder(lab, mount, "e0.1")
    answer = lab.run(INITIATOR, [helper, mount.path, "-v"], check=False)
    assert (answer.returncode, "is busy" in answer.stderr) == (32, True)
    lab.run(INITIATOR, [helper, mount.path, "-l"])
    process.stop()
    wait_until(lambda: all(map(is_gone, running)), what="all processes end", timeout=30)


# ── the end ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_umount_ends_all_processes(lab: Lab, mount: Mount) -> None:
    running = pids(mount)
    with opened(mount.here / "e0.1", os.O_RDWR) as file:
        os.pwrite(file, b"last", 0)
    mount.umount()
    assert all(map(is_gone, running))
    assert nothing_is_left(lab, mount)
    assert (lab.directory / "image1").read_bytes()[:4] == b"last"


@pytest.mark.parametrize("name", ["e0.0", "e0.1"])
def test_umount_of_a_mount_with_a_busy_file_changes_nothing(lab: Lab, mount: Mount, name: str) -> None:
    process = holder(lab, mount, name)
    answer = mount.umount(check=False)
    assert answer.returncode == 1
    assert re.search(rf"is busy: used by \w+ \(pid {process.pid}\)", answer.stderr)
    assert all(reads_right(mount, slot) for slot in range(TARGETS))
    process.stop()
    mount.umount()
    assert nothing_is_left(lab, mount)


def test_what_a_failed_umount_r_took_away_comes_back(lab: Lab, mount: Mount) -> None:
    process = holder(lab, mount, "e0.1")
    answer = lab.run(INITIATOR, ["umount", "-R", mount.path], check=False)
    assert answer.returncode
    wait_until(lambda: all(reads_right(mount, slot) for slot in range(TARGETS)), what="all are back", timeout=30)
    process.stop()
    lab.run(INITIATOR, ["umount", "-R", mount.path])
    wait_until(lambda: nothing_is_left(lab, mount), what="all processes end", timeout=30)


def test_open_files_live_on_after_a_lazy_umount(lab: Lab, mount: Mount) -> None:
    running = pids(mount)
    with opened(mount.here / "e0.1", os.O_RDWR) as file, opened(mount.here / "e0.2", os.O_RDWR) as other:
        mount.umount("--lazy")
        assert not mount.mounted
        os.pwrite(file, b"late", 0)
        os.pwrite(other, b"late", 0)
    wait_until(lambda: all(map(is_gone, running)), what="all processes end", timeout=30)
    assert [(lab.directory / f"image{slot}").read_bytes()[:4] for slot in (1, 2)] == [b"late"] * 2


@pytest.mark.parametrize("to_all", [False, True], ids=["to the main process", "to all, as systemd does"])
def test_sigterm_ends_all_processes_when_their_files_are_closed(lab: Lab, mount: Mount, to_all: bool) -> None:
    running = pids(mount)
    with opened(mount.here / "e0.1", os.O_RDWR) as file:
        for pid in running if to_all else running[:1]:
            os.kill(pid, signal.SIGTERM)
        wait_until(lambda: not mount.mounted, what="it is unmounted")
        os.pwrite(file, b"late", 0)
    wait_until(lambda: all(map(is_gone, running)), what="all processes end", timeout=30)
    assert (lab.directory / "image1").read_bytes()[:4] == b"late"


def test_a_second_sigterm_ends_all_processes_at_once(lab: Lab) -> None:
    """And not when the time for open files is over: then the log would have no line of a second signal of both."""
    lab.target(f"0.0={lab.image('image0', MIB)}", f"0.1={lab.image('image1', MIB)}")
    log = lab.directory / "log"
    mount = lab.mount(workers=2, log_file=str(log))
    running = pids(mount)
    with opened(mount.here / "e0.1", os.O_RDWR) as file:
        os.kill(running[0], signal.SIGTERM)
        wait_until(lambda: log.read_text().count("open files are served") == 1, what="it stops")
        os.kill(running[0], signal.SIGTERM)
        wait_until(lambda: all(map(is_gone, running)), what="all processes end", timeout=HANG_SECONDS)
        fails_with(errno.ENOTCONN, lambda: os.pread(file, 4096, 0))
    assert log.read_text().count("a second signal: ending at once") == 2
    assert nothing_is_left(lab, mount)


def test_a_second_mount_over_a_lazily_unmounted_one_gets_none_of_its_files(lab: Lab, mount: Mount) -> None:
    running = pids(mount)
    with opened(mount.here / "e0.0", os.O_RDONLY):
        mount.umount("--lazy")
        lab.aoefs("-i", "aoe0", "--workers", WORKERS, mount.path)
        os.kill(pids(mount)[1], signal.SIGKILL)
        wait_until(lambda: reads_right(mount, 1), what="it is back")
        files = [line for line in lab.sides[INITIATOR].mounts() if f" {mount.path}/" in line]
        assert len(files) == TARGETS - TARGETS // WORKERS
    wait_until(lambda: all(map(is_gone, running)), what="the first one ends")
    mount.umount()


# ── death ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def returns(call: Callable[[], object]) -> None:
    """Whether with an error or not; the thread is only for a call that never would."""

    def run() -> None:
        try:
            call()
        except OSError as error:
            codes.append(error.errno)

    codes: list[int | None] = []
    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(HANG_SECONDS)
    assert not thread.is_alive()
    assert set(codes) <= {errno.ENOTCONN, errno.ECONNABORTED, errno.EIO, errno.ENXIO}


def test_a_worker_that_is_killed_takes_down_its_share_only_and_comes_back(lab: Lab, mount: Mount) -> None:
    running = pids(mount)
    inodes = {os.stat(mount.here / name).st_ino for name in NAMES}
    spent = mount.status()["cpu_seconds"]
    with opened(mount.here / "e0.1", os.O_RDWR) as file, opened(mount.here / "e0.2", os.O_RDWR) as other:
        os.kill(running[1], signal.SIGKILL)
        wait_until(lambda: is_gone(running[1]), what="it is dead")
        returns(lambda: os.pread(file, 4096, 0))
        assert len(os.pread(other, 4096, 0)) == 4096
        assert reads_right(mount, 0)
    wait_until(lambda: all(reads_right(mount, slot) for slot in range(TARGETS)), what="all are back", timeout=30)
    again = workers(mount)
    assert [worker["restarts"] for worker in again] == [0, 1, 0]
    assert mount.status()["cpu_seconds"] >= spent, "what ended has used the processor too"
    assert is_gone(running[1])
    assert inodes.isdisjoint({os.stat(mount.here / name).st_ino for name in NAMES[1::WORKERS]})
    assert "worker 1 was killed by signal 9" in lab.aoefs("events", mount.path).stdout
    mount.umount()
    assert nothing_is_left(lab, mount)


@pytest.mark.parametrize("held", [False, True], ids=["unused", "with an open file"])
def test_workers_end_when_the_main_process_is_killed(lab: Lab, mount: Mount, held: bool) -> None:
    running = pids(mount)
    with opened(mount.here / "e0.1", os.O_RDWR) as file:
        os.pwrite(file, b"last", 0)
        if not held:
            os.close(file)
        os.kill(running[0], signal.SIGKILL)
        if held:
            wait_until(lambda: f"{mount.path}/" not in mounts_of(lab), what="the binds are taken away", timeout=30)
            os.pwrite(file, b"late", 0)
    wait_until(lambda: all(map(is_gone, running)), what="all processes end", timeout=30)
    assert (lab.directory / "image1").read_bytes()[:4] == (b"late" if held else b"last")
    wait_until(lambda: f"{mount.path}/" not in mounts_of(lab), what="the binds are taken away")
    fails_as_dead(lambda: os.listdir(mount.here))
    assert "dead already" in mount.umount().stderr
    assert nothing_is_left(lab, mount)


def test_the_next_mount_removes_what_is_left_when_all_were_killed(lab: Lab, mount: Mount) -> None:
    running = pids(mount)
    for number in (signal.SIGSTOP, signal.SIGKILL):  # so that none of them sees that another one ends
        for pid in running:
            os.kill(pid, number)
    wait_until(lambda: not lab.sides[INITIATOR].packet_sockets(), what="all are dead")
    assert private_mounts(lab)
    lab.aoefs("-i", "aoe0", "--workers", WORKERS, mount.path)
    assert all(reads_right(mount, slot) for slot in range(TARGETS))
    mount.umount()
    assert nothing_is_left(lab, mount)
