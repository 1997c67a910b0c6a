"""The benchmark: ``python -m tests.benchmark.run`` (as root; needs fio, vblade, nbdkit and nbdfuse).

Measures aoefs beside nbdfuse and, with ``--yardstick PROGRAM``, a compiled C client, on the same file over the same
veth pair, by turns: A B C, A B C, ...  Prints medians, spread and ratios; ``--output`` keeps every single figure as
JSON, ``--chart`` draws the medians.  Take the ratios: both ends share the cores of one machine.

The C program is called ``PROGRAM WINDOW SECTORS MEBIBYTES BATCH INTERFACE [w]`` and prints ``N fps M MB/s``.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from aoefs.wire import payload_sectors
from tests.benchmark import contenders
from tests.benchmark.chart import draw
from tests.lab import COMMANDS, INITIATOR, Lab

Results = dict[str, dict[str, list[float]]]  # workload -> contender -> one figure per turn

WINDOW = 16  # vblade's own buffer count


@dataclass(frozen=True)
class Workload:
    """One fio or dd run.  ``figure`` is MB/s or IOPS; ``yardstick`` says which C run it is compared with."""

    name: str
    arguments: tuple[str, ...]
    figure: str = "MB/s"
    yardstick: str | None = None

    def measure(self, lab: Lab, client: contenders.Client, mebibytes: int, seconds: float) -> float:
        if self.arguments[0] == "dd":
            return self._dd(lab, client, mebibytes)
        amount = (
            (f"--size={mebibytes}M",)
            if self.figure == "MB/s"
            else ("--time_based", f"--runtime={seconds}", f"--size={mebibytes}M")
        )
        common = ["fio", "--name=x", f"--filename={client.file}", "--output-format=json", "--randseed=1"]
        answer = lab.run(INITIATOR, [*common, *self.arguments, *amount])
        job = json.loads(answer.stdout)["jobs"][0]
        side = job["write" if "write" in self.arguments[0] else "read"]
        return float(side["iops"] if self.figure == "IOPS" else side["bw_bytes"] / 1e6)

    def _dd(self, lab: Lab, client: contenders.Client, mebibytes: int) -> float:
        lab.run(INITIATOR, ["sh", "-c", "echo 1 > /proc/sys/vm/drop_caches"])
        files = [f"if={client.file}", "of=/dev/null"]
        if "write" in self.name:
            files = ["if=/dev/zero", f"of={client.file}", "conv=notrunc,fsync"]
        began = time.perf_counter()
        lab.run(INITIATOR, ["dd", *files, "bs=1M", f"count={mebibytes}"])
        return mebibytes * 1.048576 / (time.perf_counter() - began)


def _direct(kind: str, size: str, depth: int = 1) -> tuple[str, ...]:
    engine = "psync" if depth == 1 else "libaio"
    return (f"--rw={kind}", f"--bs={size}", "--direct=1", f"--ioengine={engine}", f"--iodepth={depth}")


WORKLOADS = (
    Workload("1 MiB direct read", _direct("read", "1M"), yardstick="read"),
    Workload("1 MiB direct write", _direct("write", "1M"), yardstick="write"),
    Workload("128 KiB direct read", _direct("read", "128k")),
    Workload("128 KiB direct write", _direct("write", "128k")),
    Workload("buffered dd read", ("dd",)),
    Workload("buffered dd write", ("dd",)),
    Workload("4 KiB random read, depth 1", _direct("randread", "4k"), figure="IOPS"),
    Workload("4 KiB random read, depth 16", _direct("randread", "4k", 16), figure="IOPS"),
    Workload("4 KiB random read, depth 64", _direct("randread", "4k", 64), figure="IOPS"),
    Workload("4 KiB random write, depth 1", _direct("randwrite", "4k"), figure="IOPS"),
    Workload("4 KiB random write, depth 16", _direct("randwrite", "4k", 16), figure="IOPS"),
)


def _measure_files(lab: Lab, options: argparse.Namespace, disk: Path, results: Results, prefix: str) -> None:
    clients: dict[str, Callable[[Lab, Path], AbstractContextManager[contenders.Client]]] = {
        "aoefs": contenders.aoefs,
        "nbdfuse": contenders.nbdfuse,
    }
    wanted = [load for load in WORKLOADS if not options.only or options.only in load.name]
    for turn in range(options.turns):
        for name, start in clients.items():
            with start(lab, disk) as client:
                for load in wanted:
                    before = client.cpu_seconds()
                    figure = load.measure(lab, client, options.mebibytes, options.seconds)
                    key = f"{prefix}: {load.name} ({load.figure})"
                    results.setdefault(key, {}).setdefault(name, []).append(figure)
                    if load.name == "1 MiB direct read":
                        spent = (client.cpu_seconds() - before) / options.mebibytes * 1024
                        cpu = f"{prefix}: CPU of a 1 MiB direct read (s/GiB)"
                        results.setdefault(cpu, {}).setdefault(name, []).append(spent)
        if options.yardstick:
            server = lab.vblade(0, 0, disk)
            for load in wanted:
                if load.yardstick:
                    figures = contenders.yardstick(
                        lab,
                        options.yardstick,
                        window=WINDOW,
                        sectors=payload_sectors(lab.mtu),
                        mebibytes=options.mebibytes,
                        write=load.yardstick == "write",
                    )
                    key = f"{prefix}: {load.name} ({load.figure})"
                    results[key].setdefault("C", []).append(figures["mb_per_second"])
            server.stop()
        print(f"{prefix}: turn {turn + 1} of {options.turns} done", file=sys.stderr)


def _measure_targets(lab: Lab, options: argparse.Namespace, disk: Path, results: Results, prefix: str) -> None:
    """The embedded target beside vblade, both asked by the C program."""
    for _ in range(options.turns):
        for name in ("aoefs", "vblade"):
            server = lab.target(f"0.0={disk}") if name == "aoefs" else lab.vblade(0, 0, disk)
            sectors = payload_sectors(lab.mtu)
            figures = contenders.yardstick(
                lab, options.yardstick, window=WINDOW, sectors=sectors, mebibytes=options.mebibytes, write=False
            )
            server.stop()
            key = f"{prefix}: target: C client reads (frames/s)"
            results.setdefault(key, {}).setdefault(name, []).append(figures["frames_per_second"])


def _measure_starts(lab: Lab, options: argparse.Namespace, disk: Path, results: Results) -> None:
    """How long the command line and a mount take to be there."""
    for _ in range(options.turns):
        began = time.perf_counter()
        lab.run(INITIATOR, [COMMANDS / "aoefs", "--help"])
        results.setdefault("aoefs --help (s)", {}).setdefault("aoefs", []).append(time.perf_counter() - began)
        server = lab.vblade(0, 0, disk)
        began = time.perf_counter()
        mount = lab.mount()
        results.setdefault("mount ready (s)", {}).setdefault("aoefs", []).append(time.perf_counter() - began)
        mount.umount()
        server.stop()


def _measure_memory(lab: Lab, options: argparse.Namespace, results: Results) -> None:
    """36 targets busy at once: what the daemon needs at its peak, and what comes through."""
    exports = [f"{shelf}.0={lab.image(f'small{shelf}', 8 << 20)}" for shelf in range(36)]
    for _ in range(options.turns):
        server = lab.target(*exports)
        mount = lab.mount()
        client = contenders.Client(mount.path, mount.status()["pid"])
        files = ":".join(f"{mount.path}/e{shelf}.0" for shelf in range(36))
        read = ["fio", "--name=x", f"--filename={files}", "--output-format=json", "--size=288M", "--iodepth=72"]
        answer = lab.run(INITIATOR, [*read, "--rw=read", "--bs=1M", "--direct=1", "--ioengine=libaio"])
        rate = json.loads(answer.stdout)["jobs"][0]["read"]["bw_bytes"] / 1e6
        results.setdefault("36 targets: 1 MiB direct read (MB/s)", {}).setdefault("aoefs", []).append(rate)
        lab.run(INITIATOR, [*read, "--rw=write", "--bs=1M", "--direct=1", "--ioengine=libaio"])
        memory = client.peak_memory_mib()
        results.setdefault("36 targets: peak memory (MiB)", {}).setdefault("aoefs", []).append(memory)
        mount.umount()
        server.stop()


def print_results(results: Results, console: Console) -> None:
    """Medians, the spread of aoefs, and the ratio of aoefs to each other contender."""
    names = list(dict.fromkeys(name for row in results.values() for name in row if name != "aoefs"))
    table = Table(title="medians")
    table.add_column("workload")
    table.add_column("aoefs", justify="right")
    table.add_column("min to max", justify="right")
    for name in names:
        table.add_column(name, justify="right")
        table.add_column(f"aoefs / {name}", justify="right")
    for workload, row in results.items():
        ours = row["aoefs"]
        median = statistics.median(ours)
        cells = [workload, f"{median:.3g}" if median < 10 else f"{median:.0f}"]
        cells.append(f"{min(ours):.3g} to {max(ours):.3g}" if median < 10 else f"{min(ours):.0f} to {max(ours):.0f}")
        for name in names:
            theirs = statistics.median(row[name]) if name in row else None
            cells.append("" if theirs is None else f"{theirs:.3g}" if theirs < 10 else f"{theirs:.0f}")
            cells.append("" if not theirs else f"{median / theirs:.2f}")
        table.add_row(*cells)
    console.print(table)


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmark.run", description=__doc__)
    parser.add_argument("--turns", type=int, default=5, help="how often each contender has its turn")
    parser.add_argument("--mtu", type=int, action="append", help="1500 and 9000 unless given")
    parser.add_argument("--mebibytes", type=int, default=256, help="how much a sequential workload moves")
    parser.add_argument("--seconds", type=float, default=3, help="how long a random workload runs")
    parser.add_argument("--yardstick", type=Path, help="a compiled C client (see above)")
    parser.add_argument("--only", default="", help="only workloads whose names contain this")
    parser.add_argument("--output", type=Path, help="keep all figures here, as JSON")
    parser.add_argument("--chart", type=Path, help="draw the medians here, as SVG")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    options = _parse(arguments)
    results: Results = {}
    for mtu in options.mtu or [9000, 1500]:
        with Lab(mtu=mtu) as lab:
            disk = lab.image("disk", options.mebibytes << 20)
            _measure_files(lab, options, disk, results, f"MTU {mtu}")
            if options.yardstick and not options.only:
                _measure_targets(lab, options, disk, results, f"MTU {mtu}")
    if not options.only:
        with Lab(mtu=9000) as lab:
            _measure_starts(lab, options, lab.image("disk", 16 << 20), results)
            _measure_memory(lab, options, results)
    print_results(results, Console(width=None if sys.stdout.isatty() else 150))
    if options.output:
        about = {"kernel": platform.release(), "cpus": os.cpu_count(), "turns": options.turns}
        options.output.write_text(json.dumps({"about": about, "results": results}, indent=1) + "\n")
    if options.chart:
        options.chart.write_text(draw(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
