"""Where the time of a request goes, by module: a mount that runs under Python's own profiler.

The profiler slows calls down, but not system calls: take the order, not the figures.  It does not see into compiled
modules: install with AOEFS_PURE=1.
"""

from __future__ import annotations

import json
import pstats
import sys
from collections import Counter
from pathlib import Path

from rich.console import Console
from rich.table import Table

import aoefs
from tests.benchmark.workloads import Workload, direct
from tests.lab import INITIATOR, Argument, Lab, wait_until

_LOADS = (
    (Workload("4 KiB random read, depth 1", direct("randread", "4k"), figure="IOPS"), 4096),
    (Workload("4 KiB random read, depth 16", direct("randread", "4k", 16), figure="IOPS"), 4096),
    (Workload("1 MiB direct read", direct("read", "1M")), 1 << 20),
    (Workload("1 MiB direct write", direct("write", "1M")), 1 << 20),
)
_SECONDS = 3.0
_PACKAGE = Path(aoefs.__file__).parent
_SYSTEM_CALLS = ("'poll'", "'sendmsg'", "'recv_into'")  # sendmmsg and recvmmsg are in net/frames, FUSE's in pyfuse3
_LEAST = 0.01  # share of a module that is worth a line


def measure(console: Console, mtu: int, mebibytes: int) -> None:
    for load, size in _LOADS:
        with Lab(mtu=mtu) as lab:
            lab.vblade(0, 0, lab.image("disk", mebibytes << 20))
            kept, point = lab.directory / "profile", lab.directory / "mnt"
            point.mkdir()
            daemon = lab.popen(
                INITIATOR,
                [sys.executable, "-m", "cProfile", "-o", kept, "-m", "aoefs", "-f", "-i", "aoe0", point],
            )
            _wait_for(lab, point / "e0.0")
            load.measure(lab, point / "e0.0", mebibytes, _SECONDS)
            (target,) = json.loads(lab.aoefs("status", "--json", point).stdout)["targets"]
            lab.run(INITIATOR, ["umount", point])
            daemon.wait(20)
            requests = target["reads"] + target["writes"]
            _show(console, f"MTU {mtu}: {load.name} ({size} bytes)", pstats.Stats(str(kept)), requests)


def _wait_for(lab: Lab, file: Path) -> None:
    seen: list[Argument] = ["test", "-s", file]
    wait_until(lambda: lab.run(INITIATOR, seen, check=False).returncode == 0, what=f"{file} is there")


def _show(console: Console, title: str, stats: pstats.Stats, requests: int) -> None:
    places: Counter[str] = Counter()
    for (file, _, name), (_, _, own, *_) in stats.stats.items():  # type: ignore[attr-defined]
        if (place := _place(Path(file), name)) is not None:
            places[place] += own
    total = sum(places.values())
    table = Table("module", "us per request", "share", title=title)
    for place, seconds in places.most_common():
        if seconds >= _LEAST * total:
            table.add_row(place, f"{seconds / requests * 1e6:.1f}", f"{seconds / total:.0%}")
    console.print(table)


def _place(file: Path, name: str) -> str | None:
    """A module of ours, a library that works for each request, or a system call; None for all that only starts need."""
    if file.is_relative_to(_PACKAGE):
        return str(file.relative_to(_PACKAGE))
    if file.parent.name in ("trio", "_core", "pyfuse3"):
        return file.parent.name.replace("_core", "trio")
    return name if str(file) == "~" and any(word in name for word in _SYSTEM_CALLS) else None
