"""All faults at random, for as long as you like, while two targets are in full use: what was written must be there.

    python -m tests.soak [--minutes 10] [--seed N] [--workers N]

Two targets (vblade on one cable, ours on two) are written by fio with checksums, by writers whose ranges overlap, in
streams that are read back past the page cache, and with fsync.  Meanwhile the wires lose, duplicate, reorder, hold back
or swallow frames, answer falsely, or lose only large frames; targets sleep or are killed and started again; the daemon
is stopped for seconds; interfaces are switched off or get a small MTU.  In the end all I/O must have succeeded, the
status must show no error, and the mount must show what is in the images.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import mmap
import os
import random
import secrets
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.faults.live import log_of, mount_until
from tests.lab import INITIATOR, TARGET, Lab, Mount, Process, python_module, wait_until
from tests.lab.forwarder import BLACK_HOLE, NOTHING_WRONG, Misdeeds, Wire
from tests.segment import Faults

SIZE = 16 << 20
HALF = SIZE // 2  # below it fio writes, above it the writers
WRITERS = 4
RANGE = 64 << 10  # bytes that one pair of writers shares
STREAM = HALF + (1 << 20)  # where the range of a stream begins
STREAM_BYTES = 1 << 20
SECTOR = 512
MIN_TURNS = 3  # of each pair of writers, however slow the machine is

MENU: dict[str, Callable[[random.Random], Misdeeds]] = {
    "nothing": lambda dice: NOTHING_WRONG,
    "loss": lambda dice: Misdeeds(Faults(loss=dice.choice((0.01, 0.05, 0.2)))),
    "bursts": lambda dice: Misdeeds(Faults(loss=0.005, burst=dice.randrange(2, 8))),
    "doubles": lambda dice: Misdeeds(Faults(duplicate=0.2)),
    "disorder": lambda dice: Misdeeds(Faults(reorder=0.1, reorder_by=dice.choice((0.0005, 0.003, 0.02)))),
    "jitter": lambda dice: Misdeeds(Faults(jitter=dice.choice((0.0003, 0.005)))),
    "corruption": lambda dice: Misdeeds(Faults(corrupt=0.02)),
    "no jumbo": lambda dice: Misdeeds(Faults(longest=1514)),
    "held back": lambda dice: Misdeeds(hold_writes=0.03, hold_by=dice.choice((0.05, 0.3))),
    "lies": lambda dice: Misdeeds(Faults(loss=0.01, reorder=0.05), lies=dice.choice((0.05, 0.5))),
    "all": lambda dice: Misdeeds(
        Faults(loss=0.02, burst=2, duplicate=0.05, reorder=0.05, jitter=0.0003, corrupt=0.01), 0.01, 0.3, (), 0.05
    ),
}


# ── the writers' process ──────────────────────────────────────────────────────────────────────────────────────────


def stamp(writer: int, turn: int) -> bytes:
    """A range of sectors, each with the number of its writer, its turn and its place."""
    sectors = (
        b"".join(number.to_bytes(8, "little") for number in (writer, turn, sector)) for sector in range(RANGE // SECTOR)
    )
    return b"".join(sector.ljust(SECTOR, b"\xa5") for sector in sectors)


def write_in_pairs(path: Path, pair: int, until: float, seed: int) -> None:
    """Two writers write one range at once, in pieces of any size: each sector is then from one of them, of this turn.

    The range behind it has one writer, of any bytes, so that all of it is known.
    """
    dice = random.Random(seed)
    start = HALF + pair * 2 * RANGE
    model = bytearray(RANGE)
    with path.open("r+b", buffering=0) as file:
        descriptor = file.fileno()

        def write(data: bytes, order: Sequence[tuple[int, int]]) -> None:
            for first, end in order:
                assert os.pwrite(descriptor, data[first:end], start + first) == end - first

        for turn in itertools.count(1):
            if time.monotonic() > until and turn > MIN_TURNS:
                break
            stamps = [stamp(writer, turn) for writer in range(2)]
            failures: list[BaseException] = []
            threads = []
            for data in stamps:
                edges = sorted({0, RANGE, *(dice.randrange(RANGE // SECTOR) * SECTOR for _ in range(6))})
                order = list(itertools.pairwise(edges))
                dice.shuffle(order)
                threads.append(threading.Thread(target=_noting(write, failures), args=(data, order)))
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert not failures, failures
            if turn % 3 == 0:
                os.fsync(descriptor)
            found = os.pread(descriptor, RANGE, start)
            for at in range(0, RANGE, SECTOR):
                sector = found[at : at + SECTOR]
                assert sector in [data[at : at + SECTOR] for data in stamps], f"pair {pair}, turn {turn}: byte {at}"
            for _ in range(4):
                first = dice.randrange(RANGE)
                data = dice.randbytes(dice.randrange(1, min(9000, RANGE - first) + 1))
                assert os.pwrite(descriptor, data, start + RANGE + first) == len(data)
                model[first : first + len(data)] = data
            if turn == 1:
                assert os.pwrite(descriptor, model, start + RANGE) == RANGE
            assert os.pread(descriptor, RANGE, start + RANGE) == model, f"pair {pair}, turn {turn}: partial sectors"
        os.fsync(descriptor)


def write_streams(path: Path, until: float, seed: int) -> None:
    """Blocks in order, which are answered early: a read past the page cache must find them."""
    dice = random.Random(seed)
    buffer = mmap.mmap(-1, STREAM_BYTES)
    beside = os.open(path, os.O_RDONLY | os.O_DIRECT)
    with path.open("r+b", buffering=0) as file:
        for turn in itertools.count(1):
            if time.monotonic() > until and turn > MIN_TURNS:
                break
            block = dice.choice((512, 4096, 4096, 16384, 65536))
            start = dice.randrange(0, STREAM_BYTES // 2, block)
            data = dice.randbytes(min(STREAM_BYTES - start, 64 * block))
            file.seek(STREAM + start)
            for first in range(0, len(data), block):
                piece = data[first : first + block]
                assert file.write(piece) == len(piece)
                if dice.random() < 0.05:
                    assert os.preadv(beside, [memoryview(buffer)[: len(piece)]], STREAM + start + first) == len(piece)
                    assert buffer[: len(piece)] == piece, f"stream, turn {turn}: byte {start + first}"
            if dice.random() < 0.5:
                os.fsync(file.fileno())
            assert os.preadv(beside, [memoryview(buffer)[: len(data)]], STREAM + start) == len(data)
            assert buffer[: len(data)] == data, f"stream, turn {turn}"
    os.close(beside)


def _noting(call: Callable[..., object], failures: list[BaseException]) -> Callable[..., None]:
    def run(*arguments: object) -> None:
        try:
            call(*arguments)
        except BaseException as error:
            failures.append(error)

    return run


def write_all(path: Path, seconds: float, seed: int) -> int:
    """All pairs of writers of one target, and its stream; the exit code."""
    until = time.monotonic() + seconds
    failures: list[BaseException] = []
    run = _noting(write_in_pairs, failures)
    threads = [threading.Thread(target=run, args=(path, pair, until, seed + pair)) for pair in range(WRITERS)]
    threads.append(threading.Thread(target=_noting(write_streams, failures), args=(path, until, seed + WRITERS)))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for failure in failures:
        print(f"{path}: {failure!r}", flush=True)
    return 1 if failures else 0


# ── the soak ──────────────────────────────────────────────────────────────────────────────────────────────────────


def start_target(lab: Lab, images: list[Path], number: int) -> Process:
    if number == 0:
        return lab.vblade(0, 0, images[0])
    return lab.target(f"0.1={images[1]}", interfaces=["aoe0", "aoe1"])


@dataclass
class Soak:
    """What runs, and the faults that :meth:`step` makes."""

    lab: Lab
    wires: list[Wire]
    images: list[Path]
    dice: random.Random
    processes: list[int]  # of the mount
    targets: list[Process]
    jobs: list[Process] = field(default_factory=list)
    made: dict[str, int] = field(default_factory=dict)

    def start_jobs(self, mount: Mount, seconds: float) -> None:
        for number in range(2):
            path = mount.file(f"e0.{number}")
            seed = str(self.dice.randrange(1 << 30))
            self.jobs.append(
                self.lab.popen(INITIATOR, python_module("tests.soak", "--writer", str(path), str(seconds), seed))
            )
            self.jobs.append(self.lab.popen(INITIATOR, self._fio(path, seconds)))

    def _fio(self, path: Path, seconds: float) -> list[str]:
        """One pass of writing and verifying after another."""
        options = (
            f"--name=verify --filename={path} --rw=randwrite --bsrange=4k-64k --size=2M --direct=1 --ioengine=libaio"
            f" --iodepth=8 --verify=crc32c --do_verify=1 --verify_fatal=1 --verify_dump=0 --allow_file_create=0"
            f" --aux-path={self.lab.directory} --fsync=64 --minimal"
        )
        loop = (
            "until=$(($(date +%s) + $1)); while [ $(date +%s) -lt $until ]; do"
            " fio $2 --randseed=$$$n || exit 1; n=$((n+1)); done"
        )
        return ["sh", "-c", loop, "fio", str(int(seconds)), options]

    def _set_link(self, interface: str, *, up: bool) -> None:
        self.lab.ip(INITIATOR, "link", "set", interface, "up" if up else "down")

    def step(self) -> None:
        """Make one fault, for seconds or until the next one."""
        others = ("one way", "black hole", "asleep", "restart", "stopped", "interface off", "small mtu")
        kind = self.dice.choice([*MENU, *MENU, *others])
        self.made[kind] = self.made.get(kind, 0) + 1
        wire = self.dice.choice(self.wires)
        if kind in MENU:
            wire.misbehave(MENU[kind](self.dice))
            time.sleep(self.dice.uniform(0.2, 2.0))
        elif kind == "one way":
            direction = self.dice.choice(("out", "back"))
            wire.misbehave(**{direction: BLACK_HOLE})
            time.sleep(self.dice.uniform(0.1, 1.0))
            wire.misbehave(NOTHING_WRONG)
        elif kind == "black hole":
            wire.misbehave(BLACK_HOLE)
            time.sleep(self.dice.uniform(0.1, 3.0))
            wire.misbehave(NOTHING_WRONG)
        elif kind == "stopped":
            process = self.dice.choice(self.processes)
            os.kill(process, signal.SIGSTOP)
            time.sleep(self.dice.uniform(0.0, 3.0))
            os.kill(process, signal.SIGCONT)
        elif kind == "interface off":
            self._set_link(wire.left, up=False)
            time.sleep(self.dice.uniform(0.0, 1.0))
            self._set_link(wire.left, up=True)
        elif kind == "small mtu":
            self.lab.ip(INITIATOR, "link", "set", wire.left, "mtu", 1500)
            time.sleep(self.dice.uniform(0.2, 2.0))
            self.lab.ip(INITIATOR, "link", "set", wire.left, "mtu", self.lab.mtu)
        else:
            number = self.dice.randrange(2)
            if kind == "asleep":
                self.targets[number].send_signal(signal.SIGSTOP)
                time.sleep(self.dice.uniform(0.1, 3.0))
                self.targets[number].send_signal(signal.SIGCONT)
            else:
                self.targets[number].stop(signal.SIGKILL)
                time.sleep(self.dice.uniform(0.0, 1.0))
                self.targets[number] = start_target(self.lab, self.images, number)


def soak(lab: Lab, seconds: float, seed: int, say: Callable[[str], object] = print) -> None:
    """Run it in a lab without cables; AssertionError if anything went wrong."""
    dice = random.Random(seed)
    with contextlib.ExitStack() as stack:
        wires = [
            stack.enter_context(contextlib.closing(Wire(lab, INITIATOR, TARGET, seed=seed + number)))
            for number in range(2)
        ]
        images = [lab.image(f"disk{number}", SIZE, seed=number) for number in range(2)]
        targets = [start_target(lab, images, number) for number in range(2)]
        mount = mount_until(lab, "e0.0", "e0.1")
        processes = [worker["pid"] for worker in mount.status().get("workers", [{"pid": mount.pid}])]
        run = Soak(lab, wires, images, dice, processes, targets)
        run.start_jobs(mount, seconds)
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            run.step()
            ended = [job for job in run.jobs if job.poll() not in (None, 0)]
            assert not ended, f"seed {seed}: {ended[0].output}\n{log_of(mount)}"
        for wire in wires:
            wire.faults()
        for job in run.jobs:
            assert job.wait(180) == 0, f"seed {seed}: {job.output}\n{log_of(mount)}"
        for wire in wires:
            wait_until(wire.is_quiet)
        found = mount.status()
        for target in found["targets"]:
            assert target["errors"] == 0, f"seed {seed}: {target}\n{log_of(mount)}"
            assert target["state"] == "up"
            assert target["in_flight"] == target["queued"] == 0
            assert target["retransmits"] > 0
        for number, image in enumerate(images):
            command = ["dd", f"if={mount.file(f'e0.{number}')}", f"of={lab.directory}/copy", "bs=1M", "iflag=direct"]
            lab.run(INITIATOR, command)
            assert (lab.directory / "copy").read_bytes() == image.read_bytes(), f"seed {seed}: e0.{number} differs"
        answer = mount.umount()
        assert answer.returncode == 0
        say(f"seed {seed}: {run.made}")
        for target in found["targets"]:
            counters = ("reads", "writes", "flushes", "retransmits")
            say(f"{target['name']}: " + ", ".join(f"{target[name]} {name}" for name in counters))


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.soak")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=secrets.randbits(30))
    parser.add_argument("--mtu", type=int, default=9000)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--writer", nargs=3, metavar=("PATH", "SECONDS", "SEED"), help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.writer:
        path, seconds, seed = given.writer
        return write_all(Path(path), float(seconds), int(seed))
    with Lab(mtu=given.mtu, pairs=0) as lab:
        lab.workers = given.workers
        soak(lab, given.minutes * 60, given.seed)
    print("all bytes are right")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
