"""Completions in parallel: 36 targets, served by 1, 2 and 4 processes (``--workers``).

On a small machine load and targets take the other processors; so all of it is measured once more with a quota for each
process of the mount, as on a machine of many slow processors.  The quota is that of the cgroup controller ``cpu``,
version 1 or 2.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.benchmark.contenders import Results, note
from tests.benchmark.workloads import direct, fio
from tests.lab import Lab, Mount

TARGETS = 36
MEBIBYTES = 8  # of each
WORKERS = (1, 2, 4)
QUOTA = 0.2  # of a processor, for each process
_PERIOD = 10_000  # microseconds: a short one, since a process that used it up waits until the next

_V1, _V2 = Path("/sys/fs/cgroup/cpu"), Path("/sys/fs/cgroup")


def _processes(mount: Mount) -> list[int]:
    status = mount.status()
    return [worker["pid"] for worker in status.get("workers", [{"pid": status["pid"]}])]


@contextlib.contextmanager
def _limited(pids: Sequence[int], share: float) -> Iterator[None]:
    """Each process in a group of its own, which may use this share of a processor."""
    root = _V1 if (_V1 / "cpu.cfs_quota_us").exists() else _V2
    groups = [root / f"aoefs-benchmark-{pid}" for pid in pids]
    try:
        for group, pid in zip(groups, pids, strict=True):
            group.mkdir()
            if root == _V1:
                (group / "cpu.cfs_period_us").write_text(str(_PERIOD))
                (group / "cpu.cfs_quota_us").write_text(str(int(share * _PERIOD)))
            else:
                (group / "cpu.max").write_text(f"{int(share * _PERIOD)} {_PERIOD}")
            (group / "cgroup.procs").write_text(str(pid))
        yield
    finally:
        for group in groups:
            with contextlib.suppress(OSError):
                for left in (group / "cgroup.procs").read_text().split():
                    (root / "cgroup.procs").write_text(left)
                group.rmdir()


def _processor_seconds(pids: Sequence[int]) -> float:
    stats = [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split() for pid in pids]
    return sum(int(fields[11]) + int(fields[12]) for fields in stats) / os.sysconf("SC_CLK_TCK")


def measure(lab: Lab, results: Results, turns: int, seconds: float) -> None:
    exports = [f"{shelf}.0={lab.image(f'worker{shelf}', MEBIBYTES << 20)}" for shelf in range(TARGETS)]
    server = lab.target(*exports)
    for _ in range(turns):
        for count in WORKERS:
            mount = lab.mount("--workers", str(count))
            try:
                pids = _processes(mount)
                assert len(pids) == count
                _measure_all(lab, mount, pids, results, "", seconds)
                with _limited(pids, QUOTA):
                    _measure_all(lab, mount, pids, results, f", {QUOTA:g} processors each", seconds)
            finally:
                mount.umount()
    server.stop()


def _measure_all(lab: Lab, mount: Mount, pids: Sequence[int], results: Results, condition: str, seconds: float) -> None:
    files = [mount.file(f"e{shelf}.0") for shelf in range(TARGETS)]
    name = f"{len(pids)} worker{'s' * (len(pids) > 1)}"
    before = _processor_seconds(pids)
    jobs = fio(lab, [(file, direct("randread", "4k", 2)[1:]) for file in files], MEBIBYTES, seconds)
    spent = _processor_seconds(pids) - before
    each = [job["read"]["iops"] for job in jobs]
    what = f"{TARGETS} targets, 4 KiB reads{condition}"
    note(results, f"{what} (IOPS)", name, sum(each))
    note(results, f"{what} (processor time of a request, us)", name, spent / sum(each) / seconds * 1e6)
    note(results, f"{what} (least share by largest)", name, min(each) / max(each))
    jobs = fio(lab, [(file, direct("read", "1M", 2)[1:]) for file in files[:4]], MEBIBYTES, seconds)
    rate = sum(job["read"]["bw_bytes"] for job in jobs) / 1e6
    note(results, f"4 targets, 1 MiB reads{condition} (MB/s)", name, rate)
