"""What is measured: fio and dd runs, each of which gives one figure for a mounted file.

All of them use the same range of the same file; random ones run for a time, sequential ones transfer an amount.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.lab import INITIATOR, Argument, Lab


@dataclass(frozen=True)
class Workload:
    """One run of a program.  ``figure`` is MB/s or IOPS; ``yardstick`` is the C client's run to compare it with."""

    name: str
    arguments: tuple[str, ...]
    figure: str = "MB/s"
    yardstick: str | None = None

    def measure(self, lab: Lab, file: Path, mebibytes: int, seconds: float) -> tuple[float, int]:
        """The figure, and the number of requests (0 if it is not known)."""
        if self.arguments[0] != "fio":
            return self._copy(lab, file, mebibytes), 0
        (job,) = fio(lab, [(file, self.arguments[1:])], mebibytes, seconds if self.figure == "IOPS" else 0)
        side = fio_side(job)
        return float(side["iops"] if self.figure == "IOPS" else side["bw_bytes"] / 1e6), int(side["total_ios"])

    def _copy(self, lab: Lab, file: Path, mebibytes: int) -> float:
        """dd, cat or cp through the page cache, which is empty before and clean afterwards."""
        lab.run(INITIATOR, ["sh", "-c", "echo 1 > /proc/sys/vm/drop_caches"])
        words = [word.format(file=file, mebibytes=mebibytes, blocks=mebibytes * 256) for word in self.arguments]
        began = time.perf_counter()
        lab.run(INITIATOR, words)
        return mebibytes * 1.048576 / (time.perf_counter() - began)


def fio(lab: Lab, jobs: list[tuple[Path, tuple[str, ...]]], mebibytes: int, seconds: float) -> list[dict[str, Any]]:
    """fio's report on each of the jobs (file, arguments); they run for ``seconds``, or once if that is 0."""
    limits = ["--time_based", f"--runtime={seconds}"] if seconds else []
    words: list[Argument] = ["fio", "--output-format=json", "--randseed=1", f"--size={mebibytes}M", *limits]
    for number, (file, arguments) in enumerate(jobs):
        words += [f"--name={number}", f"--filename={file}", *arguments]
    result: list[dict[str, Any]] = json.loads(lab.run(INITIATOR, words).stdout)["jobs"]
    return result


def fio_side(job: dict[str, Any]) -> dict[str, Any]:
    """The half of a job's report, read or write, that is not empty."""
    side: dict[str, Any] = max((job["read"], job["write"]), key=lambda half: half["total_ios"])
    return side


def direct(kind: str, size: str, depth: int = 1) -> tuple[str, ...]:
    """A fio run without page cache."""
    engine = "psync" if depth == 1 else "libaio"
    return ("fio", f"--rw={kind}", f"--bs={size}", "--direct=1", f"--ioengine={engine}", f"--iodepth={depth}")


_IOPS = "IOPS"
_DD_WRITE = ("dd", "if=/dev/zero", "of={file}", "conv=notrunc,fsync")
WORKLOADS = (
    Workload("1 MiB direct read", direct("read", "1M"), yardstick="read"),
    Workload("1 MiB direct write", direct("write", "1M"), yardstick="write"),
    Workload("128 KiB direct read", direct("read", "128k")),
    Workload("128 KiB direct write", direct("write", "128k")),
    Workload("buffered dd read", ("dd", "if={file}", "of=/dev/null", "bs=1M", "count={mebibytes}")),
    Workload("buffered dd write", (*_DD_WRITE, "bs=1M", "count={mebibytes}")),
    Workload("buffered dd write of 4 KiB", (*_DD_WRITE, "bs=4k", "count={blocks}")),
    Workload("cat", ("sh", "-c", "cat {file} > /dev/null")),
    *(
        Workload(f"4 KiB random {kind}, depth {depth}", direct(f"rand{kind}", "4k", depth), figure=_IOPS)
        for kind in ("read", "write")
        for depth in (1, 16, 64)
    ),
)
