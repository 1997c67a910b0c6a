"""The slowest of many: p99 and p99.9 of small requests, alone and beside a stream of large reads."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path

from tests.benchmark.contenders import Client, Results, note
from tests.benchmark.workloads import direct, fio, fio_side
from tests.lab import Lab

Start = Callable[[Lab, Path, Path], AbstractContextManager[Client]]

_STREAM = direct("read", "1M", 4)[1:]


def measure(
    lab: Lab, starts: Mapping[str, Start], results: Results, prefix: str, turns: int, mebibytes: int, seconds: float
) -> None:
    """Each contender with two targets, by turns."""
    disks = [lab.image(f"tail{number}", mebibytes << 20) for number in range(2)]
    for _ in range(turns):
        for name, start in starts.items():
            with start(lab, disks[0], disks[1]) as client:
                assert client.other is not None
                streams = {
                    "alone": [],
                    "beside a stream of another target": [client.other],
                    "beside a stream of the same": [client.file],
                }
                for kind in ("read", "write"):
                    for depth in (1, 16):
                        small = client.file, direct(f"rand{kind}", "4k", depth)[1:]
                        for where, files in streams.items():
                            jobs = [small, *((file, _STREAM) for file in files)]
                            late = fio_side(fio(lab, jobs, mebibytes, seconds)[0])["clat_ns"]["percentile"]
                            for label, key in (("p99", "99.000000"), ("p99.9", "99.900000")):
                                workload = f"{prefix}: {label} of a 4 KiB {kind}, depth {depth}, {where} (ms)"
                                note(results, workload, name, late[key] / 1e6)
