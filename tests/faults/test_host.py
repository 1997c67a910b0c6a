"""Changes of the host while disks are in use: interfaces that appear, vanish and change, full queues, a stopped daemon,
a clock that is set."""

from __future__ import annotations

import contextlib
import os
import signal
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from aoefs.protocol.wire import Address, AoeCommand, ConfigArgument, Flag, Header, encode
from tests.faults.live import Worker, log_of, mount_until, path_of, pattern, read, write
from tests.lab import INITIATOR, TARGET, Lab, Mount, open_packet_socket, opened, require, wait_until
from tests.lab.forwarder import BLACK_HOLE, Wire

SIZE = 8 << 20


def work_on(file: int, contents: bytes, at: int = 6 << 20) -> Callable[[int], None]:
    """A step of a :class:`Worker`: a large read below ``at``, then a write at ``at`` that is read back."""

    def work(step: int) -> None:
        offset = step % (at >> 20) << 20
        assert read(file, 1 << 20, offset) == contents[offset : offset + (1 << 20)]
        write(file, pattern(step, 65536), at)
        assert read(file, 65536, at) == pattern(step, 65536)

    return work


@contextlib.contextmanager
def working(mount: Mount, image: Path) -> Iterator[Worker]:
    """A disk in use; its I/O must succeed until the end of the block."""
    contents = image.read_bytes()
    with opened(mount.here / "e0.0") as file, Worker(work_on(file, contents)) as worker:
        worker.wait_for_steps(3)
        yield worker
        worker.wait_for_steps(3)
    found = mount.target()
    assert (found["errors"], found["state"]) == (0, "up")
    assert "is down" not in log_of(mount)


@contextlib.contextmanager
def during(lab: Lab, begin: str, end: str) -> Iterator[None]:
    """Run one shell line in the initiator's namespace now and another one at the end of the block.

    One process runs both, since none may be started meanwhile: see :func:`tests.lab.opened`.
    """
    begun, over = lab.directory / "begun", lab.directory / "over"
    wait = f"until [ -e {over} ]; do sleep 0.02; done"
    shell = lab.popen(INITIATOR, ["sh", "-ec", f"{begin}; touch {begun}; {wait}; {end}"])
    wait_until(lambda: begun.exists() or shell.poll() is not None)
    assert shell.poll() is None, shell.output
    yield
    over.touch()
    assert shell.wait(60) == 0, shell.output


# ── interfaces ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_an_interface_that_appears_on_a_live_mount_carries_io_until_it_is_gone(lab: Lab, wire: Wire) -> None:
    disk = lab.image("disk", SIZE)
    lab.vblade(0, 0, disk)
    mount = mount_until(lab, "e0.0", interfaces=[])
    with working(mount, disk) as worker:
        near, far = lab.cable(INITIATOR, TARGET)
        lab.vblade(0, 0, disk, interface=far)
        wait_until(lambda: len(mount.target()["paths"]) == 2, what="the new interface is a path")
        wait_until(lambda: path_of(mount, interface=near)["answered"] > 100, what="it carries I/O")
        assert {link["interface"] for link in mount.status()["links"]} == {"aoe0", near}
        lab.ip(INITIATOR, "link", "del", near)
        wait_until(lambda: len(mount.target()["paths"]) == 1, what="it is gone")
        worker.wait_for_steps(3)
    assert f"{near} is gone" in log_of(mount)


@pytest.mark.parametrize("reserve", [False, True])
def test_the_only_interface_may_be_taken_away_and_put_back(lab: Lab, wire: Wire, reserve: bool) -> None:
    """As an adapter that is unplugged and plugged in: it is another interface then, with the same name."""
    disk = lab.image("disk", SIZE)
    lab.vblade(0, 0, disk)
    mount = mount_until(lab, "e0.0", reserve=reserve)
    drawer = lab.add_side("drawer")
    with working(mount, disk):
        name, home = wire.left, lab.sides[INITIATOR].holder
        away = f"ip link set {name} netns {drawer.holder}"
        back = f"nsenter -t {drawer.holder} -n ip link set {name} netns {home}; ip link set {name} up"
        with during(lab, away, back):
            wait_until(lambda: f"{name} is gone" in log_of(mount))
            assert mount.target()["paths"] == []
        wait_until(lambda: len(mount.target()["paths"]) == 1, what="it is a path again")


@pytest.mark.parametrize("lab", [9000], indirect=True)
@pytest.mark.parametrize("kind", ["vblade", "ours"])
def test_the_mtu_may_change_under_load_and_the_payload_follows(lab: Lab, wire: Wire, kind: str) -> None:
    """vblade ends when a frame of its own is refused, so its MTU stays; at our target both ends change."""
    disk = lab.image("disk", SIZE)
    if kind == "vblade":
        lab.vblade(0, 0, disk)
    else:
        lab.target(f"0.0={disk}")
    mount = mount_until(lab, "e0.0")

    def set_mtu(mtu: int) -> None:
        lab.ip(INITIATOR, "link", "set", wire.left, "mtu", mtu)
        if kind == "ours":
            lab.ip(TARGET, "link", "set", wire.right, "mtu", mtu)

    with working(mount, disk) as worker:
        for _ in range(2):
            for mtu, sectors in ((1500, 2), (9000, 17)):
                set_mtu(mtu)
                wait_until(lambda sectors=sectors: path_of(mount)["sectors"] == sectors, 40, f"{mtu}: {sectors}")  # type: ignore[misc]
                worker.wait_for_steps(2)
    assert mount.status()["links"][0]["mtu"] == 9000


# ── queues ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_full_device_queue_causes_a_pause_and_no_error_and_no_busy_loop(lab: Lab, wire: Wire) -> None:
    """A queue of length 0 gives ENOBUFS for every frame."""
    require("tc")
    disk = lab.image("disk", SIZE)
    lab.vblade(0, 0, disk)
    mount = mount_until(lab, "e0.0")

    def full() -> int:
        count: int = mount.status()["links"][0]["tx_full"]
        return count

    with working(mount, disk) as worker:
        assert full() == 0
        began = time.monotonic()
        queue = f"dev {wire.left} root"
        with during(lab, f"tc qdisc replace {queue} pfifo limit 0", f"tc qdisc del {queue}"):
            wait_until(lambda: full() > 20)
            steps = worker.steps
            wait_until(lambda: time.monotonic() > began + 1.0)
            assert worker.steps - steps <= 1, "no frame is sent"
            assert full() / (time.monotonic() - began) < 400, "it spins"


def test_what_a_full_receive_queue_dropped_is_requested_again(lab: Lab) -> None:
    """While the daemon is stopped, another host fills its socket: there is no room for the answers to its requests."""
    lab.cable(INITIATOR, TARGET)
    disk = lab.image("disk", SIZE)
    target = lab.vblade(0, 0, disk)
    mount = mount_until(lab, "e0.0")
    daemon = mount.process
    assert daemon is not None
    header = Header(lab.mac(INITIATOR), b"\x02" + bytes(5), Address(9, 9), AoeCommand.CONFIG, 9 << 28, Flag.RESPONSE)
    filler = encode(header, ConfigArgument(0, bytes(1024), 1, 1, 1, 1))
    with working(mount, disk), open_packet_socket(lab, TARGET) as liar:
        target.send_signal(signal.SIGSTOP)  # so that requests are in flight whose answers come last
        wait_until(lambda: mount.target()["retransmits"] > 0)
        daemon.send_signal(signal.SIGSTOP)
        for _ in range(30_000):
            liar.send(filler)
        target.send_signal(signal.SIGCONT)
        time.sleep(0.1)  # so that it answers while the daemon is stopped
        daemon.send_signal(signal.SIGCONT)
        wait_until(lambda: mount.status()["links"][0]["rx_dropped"] > 0)


# ── the process and its clock ─────────────────────────────────────────────────────────────────────────────────────


def test_a_daemon_that_was_stopped_for_longer_than_deadsecs_goes_on_without_an_error(lab: Lab, wire: Wire) -> None:
    """As by a debugger, a frozen container, or a laptop that sleeps."""
    disk = lab.image("disk", SIZE)
    lab.vblade(0, 0, disk)
    mount = mount_until(lab, "e0.0", deadsecs=2)
    daemon = mount.process
    assert daemon is not None

    def write_durably(step: int) -> None:
        write(file, pattern(step), 7 << 20)
        os.fsync(file)

    with working(mount, disk), opened(mount.here / "e0.0") as file, Worker(write_durably) as flusher:
        flusher.wait_for_steps(3)
        daemon.send_signal(signal.SIGSTOP)
        time.sleep(4.5)  # above deadsecs, with a margin
        daemon.send_signal(signal.SIGCONT)
        flusher.wait_for_steps(10)
    assert path_of(mount)["rto_us"] < 4_000_000


def test_signals_that_interrupt_system_calls_cause_no_error(lab: Lab, wire: Wire) -> None:
    """SIGSTOP and SIGCONT interrupt system calls that wait (EINTR)."""
    disk = lab.image("disk", SIZE)
    lab.vblade(0, 0, disk)
    mount = mount_until(lab, "e0.0")
    daemon = mount.process
    assert daemon is not None
    with working(mount, disk):
        for _ in range(200):
            daemon.send_signal(signal.SIGSTOP)
            time.sleep(0.001)
            daemon.send_signal(signal.SIGCONT)
            time.sleep(0.002)


SHIFTED_CLOCK = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <time.h>

static int64_t shift(void) {
    static volatile int64_t *seconds;
    if (!seconds) {
        int file = open(getenv("SHIFTED_CLOCK"), O_RDONLY);
        void *page = mmap(NULL, 8, PROT_READ, MAP_SHARED, file, 0);
        if (page == MAP_FAILED) abort();
        seconds = page;
    }
    return *seconds;
}

int clock_gettime(clockid_t id, struct timespec *at) {
    static int (*real)(clockid_t, struct timespec *);
    if (!real) real = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
    int result = real(id, at);
    if (id == CLOCK_REALTIME || id == CLOCK_REALTIME_COARSE || id == CLOCK_TAI) at->tv_sec += shift();
    return result;
}

int gettimeofday(struct timeval *restrict at, void *restrict zone) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    at->tv_sec = now.tv_sec, at->tv_usec = now.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *at) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (at) *at = now.tv_sec;
    return now.tv_sec;
}
"""
YEAR = 365 * 86400


def test_a_clock_that_is_set_changes_nothing(lab: Lab, wire: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
    """A preloaded library shifts the daemon's time of day: no test may set the clock of the machine."""
    require("gcc")
    source, library, shift = (lab.directory / name for name in ("clock.c", "clock.so", "shift"))
    source.write_text(SHIFTED_CLOCK)
    subprocess.run(["gcc", "-shared", "-fPIC", "-O1", "-o", library, source, "-ldl"], check=True, timeout=60)
    shift.write_bytes(struct.pack("=q", 10 * YEAR))
    disk = lab.image("disk", SIZE)
    lab.vblade(0, 0, disk)
    with monkeypatch.context() as environment:
        environment.setenv("LD_PRELOAD", str(library))
        environment.setenv("SHIFTED_CLOCK", str(shift))
        mount = mount_until(lab, "e0.0", deadsecs=30)
    assert (mount.here / "e0.0").stat().st_mtime > time.time() + 9 * YEAR, "the daemon has another time of day"
    with working(mount, disk) as worker, shift.open("r+b", buffering=0) as shifted:
        for years in (20, -20, 0, 30):
            wire.misbehave(BLACK_HOLE)
            retransmits = mount.target()["retransmits"]
            wait_until(lambda retransmits=retransmits: mount.target()["retransmits"] > retransmits)  # type: ignore[misc]
            os.pwrite(shifted.fileno(), struct.pack("=q", years * YEAR), 0)
            time.sleep(0.1)
            wire.faults()
            worker.wait_for_steps(3)
    assert path_of(mount)["rto_us"] < 4_000_000
