"""Targets that stop answering and answer again: a pause before deadsecs, an error after it, and no effect on others."""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import threading
import time

import pytest

from tests.faults.live import Worker, errno_of, log_of, mount_until, pattern, read, write
from tests.lab import INITIATOR, TARGET, Lab, Mount, Process, opened, wait_until
from tests.lab.forwarder import BLACK_HOLE, Wire

SIZE = 8 << 20
ASLEEP = 2.6  # seconds: above the silence after which a target must be identified again
DEADSECS = 3


def test_a_target_that_sleeps_for_a_few_seconds_causes_a_pause_and_delays_no_other(lab: Lab, wire: Wire) -> None:
    """Two vblades on one interface have the same MAC."""
    asleep = lab.vblade(0, 0, lab.image("asleep", SIZE))
    lab.vblade(0, 1, lab.image("awake", SIZE, seed=1))
    mount = mount_until(lab, "e0.0", "e0.1")
    contents = (lab.directory / "asleep").read_bytes()
    with opened(mount.here / "e0.0") as file, opened(mount.here / "e0.1") as neighbour:

        def work(step: int) -> None:
            offset = step % 64 * 4096
            write(neighbour, pattern(step), offset)
            assert read(neighbour, 4096, offset) == pattern(step)

        with Worker(work) as others:
            others.wait_for_steps(50)
            before = mount.target("e0.1")
            asleep_since = time.monotonic()
            asleep.send_signal(signal.SIGSTOP)
            answers: list[bytes] = []
            reader = threading.Thread(target=lambda: answers.append(read(file, 1 << 20)), daemon=True)
            reader.start()
            wait_until(lambda: mount.target()["retransmits"] > 3)
            others.wait_for_steps(500)
            wait_until(lambda: time.monotonic() - asleep_since > ASLEEP)
            others.wait_for_steps(50)  # the other target is still served
            assert reader.is_alive()
            assert not answers
            asleep.send_signal(signal.SIGCONT)
            reader.join(60)
            assert answers == [contents[: 1 << 20]]
            after = mount.target("e0.1")
        assert after["errors"] == 0
        commands = sum(after[kind] - before[kind] for kind in ("reads", "writes"))
        retransmits = after["retransmits"] - before["retransmits"]
        assert retransmits <= commands / 100, "frames to the other target were retransmitted"
    assert mount.target()["errors"] == 0


def queue_deeply(lab: Lab, mount: Mount, kind: str, size: str) -> Process:
    """128 requests at once for e0.0."""
    how = ["--ioengine=libaio", "--iodepth=128", "--direct=1", f"--bs={size}", f"--size={SIZE}", f"--rw={kind}"]
    return lab.popen(INITIATOR, ["fio", "--name=deep", f"--filename={mount.file('e0.0')}", *how])


@pytest.mark.parametrize("kind", ["read", "write"])
def test_a_deep_queue_of_a_silent_target_leaves_room_for_others(lab: Lab, wire: Wire, kind: str) -> None:
    """The kernel has one queue of direct I/O for the whole mount."""
    asleep = lab.vblade(0, 0, lab.image("asleep", SIZE))
    lab.vblade(0, 1, lab.image("awake", SIZE, seed=1))
    mount = mount_until(lab, "e0.0", "e0.1")
    asleep.send_signal(signal.SIGSTOP)
    deep = queue_deeply(lab, mount, kind, "64k")
    wait_until(lambda: mount.target()["retransmits"] > 3)
    with opened(mount.here / "e0.1") as neighbour, Worker(lambda _: read(neighbour, 4096)) as others:
        others.wait_for_steps(200)
        asleep.send_signal(signal.SIGCONT)
        assert deep.wait(60) == 0
    assert mount.target()["errors"] == 0


@pytest.mark.parametrize("kind", ["randread", "randwrite"])
def test_a_deep_queue_of_a_slow_target_leaves_room_for_others(lab: Lab, wire: Wire, kind: str) -> None:
    lab.cable(INITIATOR, TARGET)
    lab.vblade(0, 0, lab.image("slow", SIZE))
    lab.vblade(0, 1, lab.image("fast", SIZE, seed=1), interface="aoe1")
    mount = mount_until(lab, "e0.0", "e0.1")
    wire.faults(reorder=1.0, reorder_by=0.2)  # each frame is late
    deep = queue_deeply(lab, mount, kind, "4k")
    wait_until(lambda: mount.target()["in_flight"] > 0)
    with opened(mount.here / "e0.1") as neighbour, Worker(lambda _: read(neighbour, 4096)) as others:
        others.wait_for_steps(200)
        assert deep.poll() is None
        wire.faults()
        assert deep.wait(60) == 0
    assert mount.target()["errors"] == 0


@pytest.mark.parametrize("deadsecs", [0, 60])
def test_a_target_that_does_not_answer_for_two_seconds_is_stalled_and_reported(
    lab: Lab, wire: Wire, deadsecs: int
) -> None:
    target = lab.vblade(0, 0, lab.image("disk", SIZE))
    mount = mount_until(lab, "e0.0", deadsecs=deadsecs)
    contents = (lab.directory / "disk").read_bytes()
    with opened(mount.here / "e0.0") as file:
        read(file, 4096)
        target.send_signal(signal.SIGSTOP)
        began = time.monotonic()
        answers: list[bytes] = []
        readers = [
            threading.Thread(target=lambda: answers.append(read(file, 4096, 1 << 20)), daemon=True) for _ in range(3)
        ]
        for reader in readers:
            reader.start()
        wait_until(lambda: mount.target()["state"] != "up", 10)
        assert mount.target()["state"] == "stalled"
        assert time.monotonic() - began > 1.9
        status = lab.aoefs("status", "--json", mount.path)
        assert [one["state"] for one in json.loads(status.stdout)["targets"]] == ["stalled"]
        assert "stalled" in lab.aoefs("status", mount.path, check=False).stdout
        wait_until(lambda: "does not answer" in log_of(mount), 10)
        time.sleep(3)
        assert all(reader.is_alive() for reader in readers)
        until = r", down in 5\d s" if deadsecs else ""
        (line,) = [line for line in log_of(mount).splitlines() if "does not answer" in line]
        assert re.search(rf"e0\.0 does not answer: 3 requests wait{until}$", line), line
        target.send_signal(signal.SIGCONT)
        for reader in readers:
            reader.join(60)
        assert answers == [contents[1 << 20 : (1 << 20) + 4096]] * 3
        wait_until(lambda: mount.target()["state"] == "up", what="it is identified")
        wait_until(lambda: "answers again" in log_of(mount), 10)
        silent = time.monotonic() - began
    found = re.search(r"e0\.0 answers again after (\d+) s", log_of(mount))
    assert found
    assert 4 < int(found[1]) <= silent + 1
    assert mount.target()["errors"] == 0
    assert "is back" not in log_of(mount), "it was never down"


@pytest.mark.parametrize("kind", ["vblade", "ours"])
def test_a_target_restarted_during_a_copy_causes_a_pause(lab: Lab, wire: Wire, kind: str) -> None:
    source = lab.image("source", SIZE)
    disk = lab.image("disk", SIZE, seed=None)

    def start() -> Process:
        return lab.vblade(0, 0, disk) if kind == "vblade" else lab.target(f"0.0={disk}")

    target = start()
    mount = mount_until(lab, "e0.0")
    command = ["dd", f"if={source}", f"of={mount.file('e0.0')}", "bs=4k", "oflag=direct", "conv=fsync"]
    with lab.repeating(INITIATOR, command):
        wait_until(lambda: mount.target()["writes"] > 200)
        target.stop(signal.SIGKILL)
        written = mount.target()["writes"]
        wait_until(lambda: mount.target()["retransmits"] > 3)
        start()
        wait_until(lambda: mount.target()["writes"] > written, 60, "it is found again")
    assert disk.read_bytes() == source.read_bytes()
    assert mount.target()["errors"] == 0


def test_a_target_that_is_silent_for_deadsecs_fails_its_io_and_open_files_go_on_when_it_is_back(
    lab: Lab, wire: Wire
) -> None:
    target = lab.vblade(0, 0, lab.image("disk", SIZE))
    lab.vblade(0, 1, lab.image("other", SIZE))
    mount = mount_until(lab, "e0.0", "e0.1", deadsecs=DEADSECS)
    contents = (lab.directory / "disk").read_bytes()
    with opened(mount.here / "e0.0") as file, opened(mount.here / "e0.1") as neighbour:
        assert read(file, 4096) == contents[:4096]
        target.send_signal(signal.SIGSTOP)
        began = time.monotonic()
        assert errno_of(lambda: read(file, 4096)) == errno.EIO
        assert DEADSECS - 0.5 < time.monotonic() - began < 60, "as long as the default deadsecs"
        wait_until(lambda: mount.target()["state"] == "down")
        began = time.monotonic()
        for _ in range(3):
            assert errno_of(lambda: read(file, 4096)) == errno.EIO
            assert errno_of(lambda: write(file, pattern(1))) == errno.EIO
            assert errno_of(lambda: os.fsync(file)) == errno.EIO
        assert time.monotonic() - began < 9 * DEADSECS / 2, "new I/O waits for a target that is down"
        assert read(neighbour, 4096) == contents[:4096]
        assert mount.target("e0.1")["state"] == "up"
        assert "e0.0" in os.listdir(mount.here)
        target.send_signal(signal.SIGCONT)
        wait_until(lambda: mount.target()["state"] == "up", 60, "it is found again")
        write(file, pattern(2))
        assert read(file, 4096) == pattern(2)
        os.fsync(file)
    assert "e0.0 is down" in log_of(mount)
    assert "e0.0 is back" in log_of(mount)


def test_with_deadsecs_0_a_request_waits_until_it_is_answered(lab: Lab, wire: Wire) -> None:
    lab.vblade(0, 0, lab.image("disk", SIZE))
    mount = mount_until(lab, "e0.0", deadsecs=0)
    with opened(mount.here / "e0.0") as file:
        wire.misbehave(BLACK_HOLE)
        with Worker(lambda _step: read(file, 4096)) as worker:
            wait_until(lambda: mount.target()["retransmits"] > 5)
            assert worker.steps == 0
            wire.faults()
            worker.wait_for_steps(10)
    assert mount.target()["errors"] == 0


def test_a_stop_with_io_in_flight_ends_within_its_bound(lab: Lab, wire: Wire) -> None:
    lab.vblade(0, 0, lab.image("disk", SIZE))
    mount = mount_until(lab, "e0.0", deadsecs=0)
    wire.misbehave(BLACK_HOLE)
    reader = lab.popen(INITIATOR, ["dd", f"if={mount.file('e0.0')}", "of=/dev/null", "iflag=direct", "bs=4k"])
    wait_until(lambda: mount.target()["retransmits"] > 2)
    daemon = mount.process
    assert daemon is not None
    daemon.send_signal(signal.SIGTERM)
    wait_until(lambda: not mount.mounted)
    assert daemon.poll() is None, "open files are served for a while"
    daemon.send_signal(signal.SIGTERM)
    daemon.wait(30)
    assert reader.wait(30) == 1
    assert "Input/output error" in reader.output or "Software caused connection abort" in reader.output
