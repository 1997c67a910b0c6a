"""What loss costs: ``python -m tests.benchmark.loss`` (as root).

A forwarder between initiator and target drops a share of the frames of each direction, so that about twice as many
round trips fail.  Reads of 1 MiB at depth 1 over a mount of the embedded target; turns with and without loss alternate.
The forwarder is slower than a wire: take the ratios.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time

from rich.console import Console
from rich.table import Table

from tests.faults.live import mount_until, read
from tests.lab import INITIATOR, TARGET, Lab, Mount, opened
from tests.lab.forwarder import Wire

LOSSES = (0.0, 0.01, 0.05, 0.2)  # of the frames of each direction
DISK_MIB = 16


def _turn(mount: Mount, mebibytes: int) -> tuple[float, float]:
    """MB/s, and the longest that one read took (ms)."""
    longest = 0.0
    with opened(mount.here / "e0.0", os.O_RDONLY | os.O_DIRECT) as file:
        began = time.perf_counter()
        for number in range(mebibytes):
            before = time.perf_counter()
            read(file, 1 << 20, (number % DISK_MIB) << 20)
            longest = max(longest, time.perf_counter() - before)
        spent = time.perf_counter() - began
    return mebibytes * 1.048576 / spent, longest * 1000


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmark.loss", description=__doc__)
    parser.add_argument("--turns", type=int, default=5, help="how often each loss has its turn")
    parser.add_argument("--mtu", type=int, action="append", help="1500 and 9000 unless given")
    options = parser.parse_args(arguments)
    table = Table("MTU", "loss each way", "MB/s", "of loss-free", "longest 1 MiB read (ms)", title="medians")
    for mtu in options.mtu or [1500, 9000]:
        with Lab(mtu=mtu, pairs=0) as lab:
            wire = Wire(lab, INITIATOR, TARGET)
            lab.target(f"0.0={lab.image('disk', DISK_MIB << 20)}")
            mount = mount_until(lab, "e0.0")
            _turn(mount, DISK_MIB)
            turns: dict[float, list[tuple[float, float]]] = {loss: [] for loss in LOSSES}
            for _ in range(options.turns):
                for loss, figures in turns.items():
                    wire.faults(loss=loss)
                    figures.append(_turn(mount, DISK_MIB if loss < 0.1 else DISK_MIB // 4))
            wire.close()
        free = statistics.median(rate for rate, _ in turns[0.0])
        for loss, figures in turns.items():
            rate = statistics.median(rate for rate, _ in figures)
            longest = max(longest for _, longest in figures)
            table.add_row(str(mtu), f"{loss:.0%}", f"{rate:.1f}", f"{rate / free:.2f}", f"{longest:.0f}")
    Console(width=None if sys.stdout.isatty() else 100).print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
