"""aoefs as a part of a host: installed, mounted by mount(8), run by systemd, scraped by Prometheus.

The host is one side of a lab.  An overlay of the lab lies over /usr there, so that ``aoefs install`` writes to the real
places and nothing of it is left.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from aoefs.cli.commands.install import HELPERS
from tests.lab import COMMANDS, INITIATOR, TARGET, Lab, Process, is_gone, opened, require, wait_until
from tests.mount.place import MIB, fails_with, random_bytes

AOEFS = COMMANDS / "aoefs"
UNITS = Path("/usr/local/lib/systemd/system")


@pytest.fixture(scope="module")
def host() -> Iterator[Lab]:
    """A lab whose initiator has aoefs installed, and two disks to find: e0.0 and e7.1."""
    with Lab() as lab:
        layers = lab.directory / "layers"
        layers.mkdir()
        lab.run(INITIATOR, ["mount", "-t", "tmpfs", "tmpfs", layers])
        lab.run(INITIATOR, ["mkdir", layers / "upper", layers / "work"])
        words = f"lowerdir=/usr,upperdir={layers}/upper,workdir={layers}/work"
        lab.run(INITIATOR, ["mount", "-t", "overlay", "overlay", "-o", words, "/usr"])
        lab.aoefs("install")
        for name, (shelf, slot) in {"e0.0": (0, 0), "e7.1": (7, 1)}.items():
            lab.vblade(shelf, slot, lab.image(name, MIB))
        yield lab


@pytest.fixture
def point(host: Lab) -> Iterator[Path]:
    """A mount point; nothing is mounted on it afterwards."""
    path = host.directory / "point"
    path.mkdir()
    yield path
    host.run(INITIATOR, ["sh", "-c", f"while mountpoint -q {path}; do umount -l {path}; done"])
    path.rmdir()


def here(lab: Lab, path: Path) -> Path:
    """A path of the host as this process sees it."""
    return lab.sides[INITIATOR].root / path.relative_to("/")


def mounted(lab: Lab, point: Path) -> str:
    """The line of the mount table, or nothing."""
    return next((line for line in lab.sides[INITIATOR].mounts() if line.split()[1] == str(point)), "")


# ── mount(8) ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "words",
    [
        ["-t", "aoefs"],
        ["-t", "fuse.aoefs"],
        ["-t", "aoefs", "-n", "-v", "-o", "deadsecs=30,noatime"],
        ["-t", "aoefs", "-s", "-o", "grpid,frob=1"],
    ],
)
def test_mount_mounts_and_umount_unmounts(host: Lab, point: Path, words: list[str]) -> None:
    host.run(INITIATOR, ["mount", *words, "aoe0", point])
    assert sorted(os.listdir(here(host, point))) == [".aoefs", "by-serial", "e0.0", "e7.1"]
    assert mounted(host, point).startswith("aoe0 ")
    host.run(INITIATOR, ["umount", point])
    assert not mounted(host, point)


@pytest.mark.parametrize("kind", ["aoefs", "fuse.aoefs"])
def test_a_line_of_fstab_is_enough(host: Lab, point: Path, kind: str) -> None:
    table = host.directory / "fstab"
    table.write_text(f"aoe0 {point} {kind} ro,_netdev,noauto,x-systemd.automount,deadsecs=30 0 0\n")
    host.run(INITIATOR, ["mount", "-T", table, point])
    assert " fuse.aoefs ro," in mounted(host, point)
    fails_with(30, lambda: os.open(here(host, point) / "e0.0", os.O_RDWR))
    host.aoefs("umount", point)


def test_fstab_may_name_a_disk_and_a_partition_by_serial(host: Lab, point: Path) -> None:
    require("sfdisk", "mkfs.ext2")
    serials = {one["name"]: one["serial"] for one in json.loads(host.aoefs("discover", "--json").stdout)}
    links = [f"{point}/by-serial/{serials['e0.0']}", f"{point}/by-serial/{serials['e7.1']}-part1"]
    places, table = [host.directory / "files", host.directory / "part"], host.directory / "fstab"
    lines = [f"aoe0 {point} aoefs _netdev 0 0\n"]
    for link, place in zip(links, places, strict=True):
        place.mkdir()
        lines.append(f"{link} {place} ext2 loop,_netdev 0 0\n")
    table.write_text("".join(lines))
    images = {name: host.directory / name for name in ("e0.0", "e7.1")}
    before = {name: image.read_bytes() for name, image in images.items()}
    host.run(INITIATOR, ["mkfs.ext2", "-q", "-F", images["e0.0"]])
    host.run(INITIATOR, ["sfdisk", "--quiet", "--no-reread", images["e7.1"]], stdin="label: dos\nstart=64, size=1600\n")
    host.run(INITIATOR, ["mkfs.ext2", "-q", "-F", "-E", f"offset={64 * 512}", images["e7.1"], "800k"])
    try:
        host.run(INITIATOR, ["mount", "-a", "-T", table])
        assert [host.run(INITIATOR, ["readlink", link]).stdout for link in links] == ["../e0.0\n", "../e7.1p1\n"]
        assert [host.run(INITIATOR, ["ls", place]).stdout for place in places] == ["lost+found\n"] * 2
        host.run(INITIATOR, ["umount", *places])
        host.aoefs("umount", point)
    finally:
        for name, image in images.items():
            image.write_bytes(before[name])
        for place in places:
            place.rmdir()


def test_mount_changes_the_options_of_a_live_mount_and_says_in_one_line_what_it_cannot(host: Lab, point: Path) -> None:
    table = host.directory / "fstab"
    table.write_text(f"aoe0 {point} aoefs deadsecs=60,maxout=9 0 0\n")
    host.run(INITIATOR, ["mount", "-T", table, point])

    def options(*names: str) -> list[object]:
        read = json.loads((here(host, point) / ".aoefs/options").read_text())
        return [read[name] for name in names]

    host.run(INITIATOR, ["mount", "-v", "-o", "remount,deadsecs=30", point])
    assert options("deadsecs", "maxout") == [30, 9]
    host.run(INITIATOR, ["mount", "-T", table, "-o", "remount,maxout=5", point])  # with the words of fstab
    assert options("deadsecs", "maxout", "interfaces") == [60, 5, ["aoe0"]]
    answer = host.run(INITIATOR, ["mount", "-o", "remount,ro,umask=022", point], check=False)
    says = f"aoefs: read-only, umask cannot be changed while {point} is mounted: 'aoefs umount' first\n"
    assert (answer.returncode, answer.stderr) == (32, says)
    answer = host.run(INITIATOR, ["mount", "-o", "remount,deadsec=3", point], check=False)
    says = f"aoefs: {point}: unknown word 'deadsec=3' in the -o list: did you mean deadsecs?\n"
    assert (answer.returncode, answer.stderr) == (1, says)
    assert options("deadsecs", "maxout") == [60, 5]


def test_a_fake_mount_checks_everything_and_mounts_nothing(host: Lab, point: Path) -> None:
    host.run(INITIATOR, ["mount", "-f", "-t", "aoefs", "aoe0", point])
    host.aoefs("--check", "-i", "aoe0", point)
    assert not mounted(host, point)
    assert host.run(INITIATOR, ["/sbin/mount.aoefs", "nowhere0", point, "-f"], check=False).returncode == 32


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["aoe0", "{}", "-o", "rw,frob"], 1, "unknown word 'frob' in the -o list"),
        (["aoe0", "{}", "-N", "/proc/1/ns/mnt"], 1, "unrecognized arguments: -N"),
        (["aoe0"], 1, "required: MOUNTPOINT"),
        (["nowhere0", "{}"], 32, "interface nowhere0 does not exist"),
        (["aoe0", "{}/missing"], 32, "does not exist"),
    ],
)
def test_the_helper_fails_with_the_codes_of_mount(
    host: Lab, point: Path, arguments: list[str], code: int, says: str
) -> None:
    for helper in HELPERS:
        words = [argument.format(point) for argument in arguments]
        answer = host.run(INITIATOR, [f"/sbin/{helper}", *words], check=False)
        assert answer.returncode == code
        assert answer.stderr.startswith("aoefs: ")
        assert says in answer.stderr
        assert answer.stderr.count("\n") == 1


# ── the configuration file, the pid file ──────────────────────────────────────────────────────────────────────────


def test_a_mount_takes_its_options_from_a_file(host: Lab, point: Path) -> None:
    config = host.directory / "aoefs.toml"
    config.write_text('interface = ["aoe0"]\nread-only = true\numask = "027"\n')
    host.aoefs("--config", config, point)
    assert " fuse.aoefs ro," in mounted(host, point)
    assert os.stat(here(host, point) / "e0.0").st_mode & 0o777 == 0o440
    host.aoefs("umount", point)
    config.write_text("frob = 1\n")
    answer = host.aoefs("-i", "aoe0", "--config", config, point, check=False)
    assert (answer.returncode, answer.stderr) == (2, f"aoefs: {config}: frob: no such option (see aoefs --help)\n")


def test_the_pid_is_in_its_file_while_the_mount_is_live(host: Lab, point: Path) -> None:
    file = host.directory / "aoefs.pid"
    file.write_text("an old one\n")  # of a process that was killed
    host.aoefs("-i", "aoe0", "--pid-file", file, point)
    pid = int(file.read_text())
    assert str(point) in Path(f"/proc/{pid}/cmdline").read_text()
    host.aoefs("umount", point)
    assert is_gone(pid)
    assert not list(host.directory.glob("aoefs.pid*"))


def test_a_pid_file_that_cannot_be_written_is_reported_before_anything_is_mounted(host: Lab, point: Path) -> None:
    file = host.directory / "missing" / "pid"
    answer = host.aoefs("-i", "aoe0", "--pid-file", file, point, check=False)
    said = f"aoefs: --pid-file {file} cannot be written: No such file or directory\n"
    assert (answer.returncode, answer.stderr) == (1, said)
    assert not mounted(host, point)


# ── metrics ───────────────────────────────────────────────────────────────────────────────────────────────────────


def scrape(lab: Lab, place: str) -> dict[tuple[str, ...], float]:
    """Every sample by its name and the values of its labels, in the order of the labels."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with lab.inside(INITIATOR), opener.open(f"http://{place}/metrics", timeout=30) as answer:
        text = answer.read().decode()
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_prometheus_gets_the_counters_of_a_live_mount(host: Lab, point: Path) -> None:
    host.aoefs("-i", "aoe0", "--metrics", "9100", point)
    before = scrape(host, "127.0.0.1:9100")
    with open(here(host, point) / "e0.0", "r+b", buffering=0) as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        os.pwrite(file.fileno(), random_bytes(64 << 10), 0)
        os.pread(file.fileno(), 4096, 512 << 10)
    key = ("aoefs_target_bytes_total", "write", "e0.0")
    wait_until(lambda: scrape(host, "127.0.0.1:9100")[key] != before[key], what="a snapshot of after the write")
    after = scrape(host, "127.0.0.1:9100")
    assert after["aoefs_target_up", "e0.0"] == after["aoefs_target_up", "e7.1"] == 1
    assert after["aoefs_target_size_bytes", "e0.0"] == MIB
    [who] = [name for name in after if name[0] == "aoefs_target_info" and name[-1] == "e0.0"]
    assert who[2] == "Coraid EtherDrive vblade"
    assert after[key] - before[key] == 64 << 10
    key = ("aoefs_target_requests_total", "read", "e0.0")
    assert after[key] - before[key] >= 1
    histogram = [value for name, value in after.items() if name[0] == "aoefs_target_latency_seconds_bucket"]
    assert len(histogram) == 2 * 2 * 22
    for operation in ("read", "write"):
        counts = [
            (float(name[1]), value)
            for name, value in after.items()
            if name[0] == "aoefs_target_latency_seconds_bucket" and name[2:] == (operation, "e0.0")
        ]
        assert sorted(counts) == counts
        assert [value for _, value in counts] == sorted(value for _, value in counts)
        assert counts[-1] == (float("inf"), after["aoefs_target_requests_total", operation, "e0.0"])
    assert after["aoefs_link_sent_frames_total", "aoe0"] > before["aoefs_link_sent_frames_total", "aoe0"]
    assert after["aoefs_path_healthy", "aoe0", host.mac("target").hex(":"), "e0.0"] == 1
    assert after["process_cpu_seconds_total",] > 0
    host.aoefs("umount", point)
    fails_with(111, lambda: _connect(host))


def _connect(lab: Lab) -> None:
    with lab.inside(INITIATOR), socket.create_connection(("127.0.0.1", 9100), timeout=10):
        pass


def test_idle_connections_cost_a_mount_few_descriptors_and_no_scrape(host: Lab, point: Path) -> None:
    host.aoefs("-i", "aoe0", "--metrics", "9100", point)
    with host.inside(INITIATOR), contextlib.ExitStack() as stack:
        idle = [stack.enter_context(socket.create_connection(("127.0.0.1", 9100), timeout=30)) for _ in range(64)]
        assert scrape(host, "127.0.0.1:9100")["process_open_fds",] < 64
        for connection in idle:
            assert connection.recv(1) == b""


def test_metrics_are_on_loopback_by_default_and_an_address_in_use_is_one_line(host: Lab, point: Path) -> None:
    other = host.directory / "other"
    other.mkdir(exist_ok=True)
    host.aoefs("-i", "aoe0", "--metrics", "[::1]:9100", point, check=False)  # the lab has no IPv6
    assert not mounted(host, point)
    host.aoefs("-i", "aoe0", "--metrics", "0.0.0.0:9100", point)
    assert scrape(host, "127.0.0.2:9100")
    answer = host.aoefs("-i", "aoe0", "--metrics", "9100", other, check=False)
    assert answer.returncode == 1
    says = "Address already in use: each mount needs a port of its own"
    assert answer.stderr == f"aoefs: metrics at 127.0.0.1 port 9100: {says}\n"
    assert not mounted(host, other)
    host.aoefs("umount", point)
    host.aoefs("-i", "aoe0", "--metrics", "9100", point)
    with pytest.raises(OSError, match="refused"):
        scrape(host, "127.0.0.2:9100")


# ── systemd ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_systemd_is_notified_of_what_happens(host: Lab, point: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.settimeout(30)
        listener.bind(str(host.directory / "notify"))
        late = host.image("late", MIB)
        process = host.popen(
            INITIATOR, ["env", f"NOTIFY_SOCKET={host.directory}/notify", AOEFS, "-f", "-i", "aoe0", point]
        )
        assert _until(listener, "READY=1") == "READY=1\nSTATUS=2 targets"
        extra = host.vblade(1, 1, late)
        assert _until(listener, "STATUS=3 targets") == "STATUS=3 targets"
        extra.stop()
        process.terminate()
        assert _until(listener, "STOPPING=1") == "STOPPING=1"
        assert process.wait(30) == 0, process.output


def _until(listener: socket.socket, wanted: str) -> str:
    """The next datagram that has this in it."""
    while wanted not in (text := listener.recv(4096).decode()):
        pass
    return text


def test_a_background_mount_that_a_service_started_notifies_nobody(host: Lab, point: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as listener:
        listener.bind(str(host.directory / "quiet"))
        host.run(INITIATOR, ["env", f"NOTIFY_SOCKET={host.directory}/quiet", AOEFS, "-i", "aoe0", point])
        host.aoefs("umount", point)
        with pytest.raises(BlockingIOError):
            listener.recv(4096)


def test_systemd_finds_nothing_wrong_with_the_unit(host: Lab) -> None:
    require("systemd-analyze")
    own_run = ["unshare", "-m", "sh", "-c", 'mount -t tmpfs tmpfs /run && exec "$@"', "sh"]  # it leaves a stamp there
    answer = host.run(INITIATOR, [*own_run, "systemd-analyze", "verify", "--man=no", UNITS / "aoefs@.service"])
    assert answer.stdout + answer.stderr == ""


# Process 1 of these namespaces is a real systemd with no units but ours.  It can write to nothing outside of them.
SYSTEM = """
set -e
mount --make-rprivate /
mount -t proc proc /proc
mount --bind /proc/sys /proc/sys
mount -o remount,bind,ro /proc/sys
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount -t tmpfs -o mode=755 tmpfs /run
for place in /usr/lib/systemd/system-generators /etc/systemd /usr/lib/systemd/system; do
    mount -t tmpfs tmpfs $place
done
mount -o remount,bind,ro /
exec env -i container=aoefs-test PATH="$PATH" SYSTEMD_UNIT_PATH="$UNITS" \
    /usr/lib/systemd/systemd --system --unit=aoefs-test.target --show-status=no --default-standard-output=null
"""


class System:
    """The systemd of a lab."""

    def __init__(self, process: Process) -> None:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        wait_until(lambda: process.poll() is not None or children.read_text(), what="systemd is forked")
        assert process.poll() is None, process.output
        self.pid = int(children.read_text().split()[0])
        self.root = Path(f"/proc/{self.pid}/root")
        socket = self.root / "run/systemd/private"
        wait_until(lambda: process.poll() is not None or socket.exists(), 30, f"systemd runs: {process.output}")
        assert process.poll() is None, process.output
        running = self.systemctl("is-system-running", "--wait", check=False)
        assert running == "running", running

    def systemctl(self, *arguments: str, check: bool = True) -> str:
        enter = ["nsenter", "-t", str(self.pid), "-m", "-p", "-n", "-i", "-u", "-C", "--", "systemctl", *arguments]
        answer = subprocess.run(enter, capture_output=True, text=True, timeout=60, check=False)
        assert not check or answer.returncode == 0, f"systemctl {arguments}: {answer.stdout}{answer.stderr}"
        return answer.stdout.strip()

    def property(self, unit: str, name: str) -> str:
        return self.systemctl("show", "--value", "--property", name, unit)


@pytest.fixture
def system(host: Lab) -> Iterator[System]:
    """A real systemd that runs on the host of the lab."""
    require("/usr/lib/systemd/systemd", "systemctl", "systemd-escape")
    units = host.directory / "units"
    units.mkdir(exist_ok=True)
    for name in ("aoefs-test", "sysinit", "basic", "shutdown", "network-online"):
        (units / f"{name}.target").write_text("[Unit]\nDefaultDependencies=no\n")
    groups = host.directory / "groups"
    groups.mkdir(exist_ok=True)
    host.run(INITIATOR, ["mount", "-t", "cgroup2", "cgroup2", groups])
    group = groups / f"aoefs-test-{os.getpid()}"
    host.run(INITIATOR, ["mkdir", group])
    start = f"echo $$ > {group}/cgroup.procs"  # by the shell itself, whose only child becomes process 1
    start += '; exec unshare --mount --pid --fork --kill-child --uts --ipc --cgroup sh -c "$SYSTEM"'
    process = host.popen(INITIATOR, ["env", f"SYSTEM={SYSTEM}", f"UNITS={UNITS}:{units}", "sh", "-c", start])
    try:
        yield System(process)
    finally:
        process.stop(signal.SIGKILL)  # unshare ignores other signals; systemd dies with it
        tidy = f"find {group} -depth -type d -exec rmdir {{}} + && umount {groups}"
        wait_until(
            lambda: host.run(INITIATOR, ["sh", "-c", tidy], check=False).returncode == 0, what="no group is left"
        )


def bounding_set() -> int:
    """The capabilities that any process of this machine can have."""
    return int(Path("/proc/self/status").read_text().partition("CapBnd:")[2].split()[0], 16)


def test_the_unit_starts_is_ready_when_live_and_flushes_when_stopped(host: Lab, point: Path, system: System) -> None:
    unit = "aoefs@" + subprocess.check_output(["systemd-escape", "--path", point], text=True).strip()
    system.systemctl("start", unit)
    assert system.property(unit, "ActiveState") == "active"
    assert system.property(unit, "StatusText") == "2 targets"
    status = (system.root / "proc" / system.property(unit, "MainPID") / "status").read_text()
    granted = sum(1 << number for number in (12, 13, 21, 24))  # CAP_NET_ADMIN, _NET_RAW, _SYS_ADMIN, _SYS_RESOURCE
    assert f"CapEff:\t{granted & bounding_set():016x}" in status
    assert "NoNewPrivs:\t1" in status
    assert "Seccomp:\t2" in status
    inside = system.root / point.relative_to("/")
    assert sorted(os.listdir(inside)) == [".aoefs", "by-serial", "e0.0", "e7.1"]
    data = random_bytes(100_000)
    with (inside / "e0.0").open("r+b") as file:
        file.write(data)
    system.systemctl("stop", unit)
    assert system.property(unit, "Result") == "success"
    assert system.property(unit, "ExecMainStatus") == "0"
    assert os.listdir(inside) == []
    assert (host.directory / "e0.0").read_bytes()[: len(data)] == data


def test_a_reload_of_the_unit_reads_the_configuration_file_again(host: Lab, point: Path, system: System) -> None:
    unit = "aoefs@" + subprocess.check_output(["systemd-escape", "--path", point], text=True).strip()
    config = host.directory / "reload.toml"
    config.write_text("deadsecs = 20\n")
    drop_in = host.directory / "units" / "aoefs@.service.d" / "config.conf"
    drop_in.parent.mkdir()
    try:
        drop_in.write_text(f"[Service]\nExecStart=\nExecStart={AOEFS} -f --config {config} %f\n")
        system.systemctl("daemon-reload")
        system.systemctl("start", unit)
        options = system.root / point.relative_to("/") / ".aoefs/options"
        assert json.loads(options.read_text())["deadsecs"] == 20
        config.write_text("deadsecs = 40\n")
        system.systemctl("reload", unit)
        wait_until(lambda: json.loads(options.read_text())["deadsecs"] == 40, what="the file was read again")
        system.systemctl("stop", unit)
        assert system.property(unit, "Result") == "success"
    finally:
        drop_in.unlink()
        drop_in.parent.rmdir()


def reaches(lab: Lab, side: str, address: str) -> bool:
    """Whether a scrape of this address, from this side, is answered within a moment."""
    try:
        with lab.inside(side), socket.create_connection((address, 9100), timeout=1) as connection:
            connection.sendall(b"GET / HTTP/1.0\r\n\r\n")
            return connection.recv(15) == b"HTTP/1.1 200 OK"
    except (TimeoutError, ConnectionError):
        return False


def test_the_unit_may_do_no_more_than_a_mount_needs(host: Lab, point: Path, system: System) -> None:
    unit = "aoefs@" + subprocess.check_output(["systemd-escape", "--path", point], text=True).strip()
    drop_in = host.directory / "units" / "aoefs@.service.d" / "metrics.conf"
    drop_in.parent.mkdir()
    for side, address in ((INITIATOR, "192.0.2.1/24"), (TARGET, "192.0.2.2/24")):
        host.ip(side, "address", "add", address, "dev", "aoe0")
    try:
        drop_in.write_text(f"[Service]\nExecStart=\nExecStart={AOEFS} -f --metrics 0.0.0.0:9100 --reserve %f\n")
        system.systemctl("daemon-reload")
        system.systemctl("start", unit)
        process = system.root / "proc" / system.property(unit, "MainPID")
        limits = (process / "limits").read_text().splitlines()
        assert [line.split()[4:6] for line in limits if line.startswith("Max core file size")] == [["0", "0"]]
        assert 0 < int(system.property(unit, "TasksMax")) <= 768
        allowed = set(system.property(unit, "SystemCallFilter").split())
        assert {"mount", "umount2", "prctl", "setitimer", "pipe2"} <= allowed
        forbidden = """io_uring_setup chown shmget add_key mlockall sched_setaffinity setuid chroot pivot_root
            process_vm_readv userfaultfd bpf ptrace reboot init_module"""
        assert not allowed & set(forbidden.split())
        # A firewall on the unit's sockets: on the wire of the disks there are frames of AoE and nothing of IP.
        assert set(system.property(unit, "IPAddressDeny").split()) == {"::/0", "0.0.0.0/0"}
        assert set(system.property(unit, "IPAddressAllow").split()) == {"127.0.0.0/8", "::1/128"}
        assert reaches(host, INITIATOR, "127.0.0.1")
        assert not reaches(host, TARGET, "192.0.2.1")
        with (system.root / point.relative_to("/") / "e0.0").open("r+b") as file:
            file.write(random_bytes(4096))
            file.flush()
            os.fsync(file.fileno())
        events = (system.root / point.relative_to("/") / ".aoefs/events").read_text().splitlines()
        denied = [line for line in events if "Operation not permitted" in line]
        assert [line for line in denied if "IO_FLUSHER" not in line] == []  # that needs a right that a container lacks
        assert not denied or not bounding_set() >> 24 & 1
        system.systemctl("stop", unit)
        assert system.property(unit, "Result") == "success"
    finally:
        drop_in.unlink()
        drop_in.parent.rmdir()
        for side in (INITIATOR, TARGET):
            host.ip(side, "address", "flush", "dev", "aoe0")


def test_a_unit_with_workers_is_one_service(host: Lab, point: Path, system: System) -> None:
    unit = "aoefs@" + subprocess.check_output(["systemd-escape", "--path", point], text=True).strip()
    config = host.directory / "workers.toml"
    config.write_text("deadsecs = 20\n")
    drop_in = host.directory / "units" / "aoefs@.service.d" / "workers.conf"
    drop_in.parent.mkdir()
    inside = system.root / point.relative_to("/")
    try:
        drop_in.write_text(
            f"[Service]\nExecStart=\nExecStart={AOEFS} -f --workers 2 --config {config} %f\nRestartSec=0.1\n"
            "StandardError=append:/run/aoefs.log\n"
        )
        system.systemctl("daemon-reload")
        system.systemctl("start", unit)
        target = host.vblade(1, 2, host.image("e1.2", MIB))  # the share of the worker
        wait_until(lambda: system.property(unit, "StatusText") == "3 targets", what="the status is that of all")
        config.write_text("deadsecs = 40\n")
        system.systemctl("reload", unit)
        wait_until(lambda: "options: deadsecs 40" in (inside / ".aoefs/events").read_text(), what="reloaded")
        before = system.property(unit, "MainPID")
        with opened(inside / "e1.2", os.O_RDWR) as file:
            system.systemctl("kill", "--kill-whom=main", "--signal=KILL", unit)
            wait_until(lambda: system.property(unit, "ActiveState") != "active", what="it is dead")
            os.pwrite(file, b"late", 0)
        wait_until(lambda: system.property(unit, "MainPID") not in ("0", before), what="it is started again")
        wait_until(lambda: system.property(unit, "ActiveState") == "active", what="it is active again")
        wait_until((inside / "e1.2").exists, what="the file of the worker is back")
        assert (host.directory / "e1.2").read_bytes().startswith(b"late"), "the worker served and flushed"
        system.systemctl("stop", unit)
        assert system.property(unit, "Result") == "success", (system.root / "run/aoefs.log").read_text()
        assert os.listdir(inside) == []
        target.stop()
    finally:
        drop_in.unlink()
        drop_in.parent.rmdir()
