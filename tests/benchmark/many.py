"""36 targets at once: memory, throughput, what shards bring, and whether a target starves.

The case of the Linux driver's change "perform I/O completions in parallel", from which the shards have their name.  In
one interpreter they bring isolation, order and batches, but no second processor: these figures show it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from tests.benchmark.contenders import Client, Results, note, note_processor
from tests.benchmark.workloads import direct, fio, fio_side
from tests.lab import Lab, Mount

TARGETS = 36
MEBIBYTES = 8  # of each


@contextlib.contextmanager
def _mounted(lab: Lab, *options: str) -> Iterator[tuple[Mount, list[Path]]]:
    exports = [f"{shelf}.0={lab.image(f'small{shelf}', MEBIBYTES << 20)}" for shelf in range(TARGETS)]
    server = lab.target(*exports)
    mount = lab.mount(*options)
    try:
        yield mount, [mount.file(f"e{shelf}.0") for shelf in range(TARGETS)]
    finally:
        mount.umount()
        server.stop()


def measure(lab: Lab, results: Results, turns: int, seconds: float) -> None:
    for _ in range(turns):
        _measure_memory(lab, results)
        for shards in (1, 2, TARGETS):
            _measure_shards(lab, results, shards, seconds)
        _measure_processor(lab, results, seconds)
        _measure_fairness(lab, results, seconds)


def _measure_memory(lab: Lab, results: Results) -> None:
    """The daemon's peak memory, and the throughput, with large requests to all targets at once."""
    with _mounted(lab) as (mount, files):
        for kind in ("read", "write"):
            jobs = fio(lab, [(file, direct(kind, "1M", 2)[1:]) for file in files], MEBIBYTES, 0)
            seconds = max(job[kind]["runtime"] for job in jobs) / 1000
            rate = sum(job[kind]["io_bytes"] for job in jobs) / 1e6 / seconds
            note(results, f"{TARGETS} targets: 1 MiB direct {kind} (MB/s)", "aoefs", rate)
        client = Client(mount.path, mount.pid)
        note(results, f"{TARGETS} targets: peak memory (MiB)", "aoefs", client.peak_memory_mib())


def _measure_shards(lab: Lab, results: Results, shards: int, seconds: float) -> None:
    """4 KiB reads of all targets, and how equal their shares are (the smallest by the largest)."""
    with _mounted(lab, "--shards", str(shards)) as (_, files):
        jobs = fio(lab, [(file, direct("randread", "4k", 2)[1:]) for file in files], MEBIBYTES, seconds)
        each = [job["read"]["iops"] for job in jobs]
        name = f"{shards} shard{'' if shards == 1 else 's'}"
        note(results, f"{TARGETS} targets: 4 KiB reads (IOPS)", name, sum(each))
        note(results, f"{TARGETS} targets: 4 KiB reads (least share by largest)", name, min(each) / max(each))


def _measure_processor(lab: Lab, results: Results, seconds: float) -> None:
    """What a 4 KiB read costs when as many as can be fly to all targets, and to one."""
    with _mounted(lab) as (mount, files):
        client = Client(mount.path, mount.pid)
        loads = (
            (f"{TARGETS} targets, depth 2", files, 2),
            (f"one target, {TARGETS} jobs, depth 2", files[:1] * TARGETS, 2),  # the same load, but for the targets
            ("one target, depth 64", files[:1], 64),
        )
        for name, some, depth in loads:
            before = client.processor()
            jobs = fio(lab, [(file, direct("randread", "4k", depth)[1:]) for file in some], MEBIBYTES, seconds)
            requests = sum(fio_side(job)["total_ios"] for job in jobs)
            note_processor(results, "4 KiB reads", name, client, before, requests)


def _measure_fairness(lab: Lab, results: Results, seconds: float) -> None:
    """The latency of small reads of one target beside a stream from another one."""
    with _mounted(lab) as (_, files):
        small = (files[0], direct("randread", "4k")[1:])
        stream = (files[1], direct("read", "1M", 4)[1:])
        for name, jobs in (("alone", [small]), ("beside a stream", [small, stream])):
            job = fio(lab, jobs, MEBIBYTES, seconds)[0]
            late = job["read"]["clat_ns"]["percentile"]["99.000000"] / 1e6
            note(results, "36 targets: latency of a 4 KiB read, p99 (ms)", name, late)
