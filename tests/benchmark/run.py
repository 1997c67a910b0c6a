"""The benchmark: ``python -m tests.benchmark.run`` (as root; needs fio, vblade, nbdkit and nbdfuse).

Measures aoefs beside nbdfuse, with the same file over the same veth pair, by turns: A B, A B, ...  At an MTU of 9000
the target is vblade, at 1500 the embedded one, which is the faster of the two there.  Prints medians, spread, ratios:
take the ratios, since both ends share the cores of one machine.

``--against DIRECTORY`` adds the aoefs of another checkout (its ``.venv/bin/aoefs``, with its own target) to the turns,
as "before".  ``--yardstick PROGRAM`` adds a compiled C client.  ``--output`` keeps every figure as JSON, ``--chart``
draws the medians, ``--profile`` shows where the time of a request goes instead.

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
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.table import Table

from aoefs.protocol.wire import payload_sectors
from tests.benchmark import contenders, curve, many, profile, tails, workers
from tests.benchmark.chart import draw
from tests.benchmark.contenders import Client, Results, note, note_processor
from tests.benchmark.workloads import WORKLOADS, Workload
from tests.lab import COMMANDS, Lab


def _programs(options: argparse.Namespace) -> dict[str, Path]:
    """The commands of aoefs to compare."""
    before = {"before": options.against / ".venv/bin/aoefs"} if options.against else {}
    return {"aoefs": COMMANDS / "aoefs", **before}


def _clients(lab: Lab, options: argparse.Namespace) -> dict[str, Callable[..., AbstractContextManager[Client]]]:
    """What starts each contender; at an MTU of 1500 with the embedded target."""
    ours = {
        name: partial(contenders.aoefs, program=program, embedded=lab.mtu < 9000)
        for name, program in _programs(options).items()
    }
    return {**ours, "nbdfuse": contenders.nbdfuse}


def _measure_files(lab: Lab, options: argparse.Namespace, disk: Path, results: Results, prefix: str) -> None:
    clients = _clients(lab, options)
    wanted = [load for load in WORKLOADS if not options.only or options.only in load.name]
    for turn in range(options.turns):
        for name, start in clients.items():
            with start(lab, disk) as client:
                note(results, f"{prefix}: requests received by splice (1: yes)", name, client.receives_by_splice())
                for load in wanted:
                    before = client.processor()
                    figure, requests = load.measure(lab, client.file, options.mebibytes, options.seconds)
                    note(results, f"{prefix}: {load.name} ({load.figure})", name, figure)
                    if requests:
                        note_processor(results, f"{prefix}: {load.name}", name, client, before, requests)
        if options.yardstick:
            _measure_yardstick(lab, options, disk, results, prefix, [load for load in wanted if load.yardstick])
        print(f"{prefix}: turn {turn + 1} of {options.turns} done", file=sys.stderr)


def _measure_yardstick(
    lab: Lab, options: argparse.Namespace, disk: Path, results: Results, prefix: str, loads: list[Workload]
) -> None:
    embedded = lab.mtu < 9000
    server = lab.target(f"0.0={disk}") if embedded else lab.vblade(0, 0, disk)
    for load in loads:
        write = load.yardstick == "write"
        figures = contenders.yardstick(
            lab,
            options.yardstick,
            window=64 if embedded else 16,  # as many as the target lets us have
            sectors=payload_sectors(lab.mtu),
            mebibytes=options.mebibytes,
            write=write,
        )
        if figures is not None:
            note(results, f"{prefix}: {load.name} ({load.figure})", "C", figures["mb_per_second"])
    server.stop()


def _measure_targets(lab: Lab, options: argparse.Namespace, disk: Path, results: Results, prefix: str) -> None:
    """The embedded target beside vblade, both read by the C program."""
    for _ in range(options.turns):
        for name in ("aoefs", "vblade"):
            server = lab.target(f"0.0={disk}") if name == "aoefs" else lab.vblade(0, 0, disk)
            figures = contenders.yardstick(
                lab,
                options.yardstick,
                window=16,  # vblade's buffer count
                sectors=payload_sectors(lab.mtu),
                mebibytes=options.mebibytes,
                write=False,
            )
            server.stop()
            if figures is not None:
                note(results, f"{prefix}: target: C client reads (frames/s)", name, figures["frames_per_second"])


def _measure_starts(lab: Lab, options: argparse.Namespace, disk: Path, results: Results) -> None:
    """How long the command line and a mount take to start."""
    server = lab.vblade(0, 0, disk)
    for _ in range(options.turns):
        for name, program in _programs(options).items():
            with lab.using(program):
                began = time.perf_counter()
                lab.aoefs("--help")
                note(results, "aoefs --help (s)", name, time.perf_counter() - began)
                began = time.perf_counter()
                mount = lab.mount()
                note(results, "mount ready (s)", name, time.perf_counter() - began)
                mount.umount()
    server.stop()


def print_results(results: Results, console: Console) -> None:
    """Medians, the spread of aoefs, its ratio to the other contenders; then the figures that compare settings of it."""
    beside = {workload: row for workload, row in results.items() if "aoefs" in row}
    names = list(dict.fromkeys(name for row in beside.values() for name in row if name != "aoefs"))
    table = Table("workload", title="medians")
    for column in ("aoefs", "min to max", *(cell for name in names for cell in (name, f"aoefs / {name}"))):
        table.add_column(column, justify="right")
    for workload, row in beside.items():
        ours = row["aoefs"]
        cells = [workload, _figure(statistics.median(ours)), f"{_figure(min(ours))} to {_figure(max(ours))}"]
        for name in names:
            theirs = statistics.median(row[name]) if name in row else None
            cells.append("" if theirs is None else _figure(theirs))
            cells.append("" if not theirs else f"{statistics.median(ours) / theirs:.2f}")
        table.add_row(*cells)
    console.print(table)
    for workload in sorted(results.keys() - beside.keys()):
        medians = (f"{name} {_figure(statistics.median(figures))}" for name, figures in results[workload].items())
        console.print(f"{workload}: {', '.join(medians)}")


def _figure(value: float) -> str:
    return f"{value:.3g}" if value < 10 else f"{value:.0f}"


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmark.run", description=__doc__)
    parser.add_argument("--turns", type=int, default=5, help="how often each contender has its turn")
    parser.add_argument("--mtu", type=int, action="append", help="1500 and 9000 unless given")
    parser.add_argument("--mebibytes", type=int, default=256, help="how much a sequential workload transfers")
    parser.add_argument("--seconds", type=float, default=3, help="how long a random workload runs")
    parser.add_argument("--against", type=Path, metavar="DIRECTORY", help="another checkout (see above)")
    parser.add_argument("--yardstick", type=Path, metavar="PROGRAM", help="a compiled C client (see above)")
    parser.add_argument(
        "--only",
        default="",
        help="only workloads whose names contain this; 'many' for 36 targets, 'workers' for --workers, 'tails' for p99",
    )
    parser.add_argument(
        "--many", action="store_const", const="workers", dest="only", help="only 36 targets with 1, 2 and 4 workers"
    )
    parser.add_argument("--profile", action="store_true", help="show where the time of a request goes")
    parser.add_argument("--output", type=Path, help="keep all figures here, as JSON")
    parser.add_argument("--chart", type=Path, help="draw the medians here, as SVG (--many: a curve)")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    options = _parse(arguments)
    console = Console(width=None if sys.stdout.isatty() else 150)
    if options.profile:
        for mtu in options.mtu or [9000]:
            profile.measure(console, mtu, options.mebibytes)
        return 0
    results: Results = {}
    try:
        _measure(options, results)
    finally:  # also what was measured until Ctrl-C
        print_results(results, console)
        if options.output:
            about = {"kernel": platform.release(), "cpus": os.cpu_count(), "turns": options.turns}
            options.output.write_text(json.dumps({"about": about, "results": results}, indent=1) + "\n")
        if options.chart:
            options.chart.write_text((curve.draw if options.only == "workers" else draw)(results))
    return 0


def _measure(options: argparse.Namespace, results: Results) -> None:
    for mtu in options.mtu or [9000, 1500]:
        if options.only in ("", "tails"):
            with Lab(mtu=mtu) as lab:
                limits = options.turns, options.mebibytes, options.seconds
                tails.measure(lab, _clients(lab, options), results, f"MTU {mtu}", *limits)
        if options.only not in ("many", "tails", "workers"):
            with Lab(mtu=mtu) as lab:
                disk = lab.image("disk", options.mebibytes << 20)
                _measure_files(lab, options, disk, results, f"MTU {mtu}")
                if options.yardstick and not options.only:
                    _measure_targets(lab, options, disk, results, f"MTU {mtu}")
    with Lab(mtu=9000) as lab:
        if not options.only:
            _measure_starts(lab, options, lab.image("disk", 16 << 20), results)
        if options.only in ("", "many"):
            many.measure(lab, results, options.turns, options.seconds)
        if options.only in ("", "workers"):
            workers.measure(lab, results, options.turns, options.seconds)


if __name__ == "__main__":
    sys.exit(main())
