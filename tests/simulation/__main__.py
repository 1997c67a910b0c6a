"""Runs as many seeds as fit into the time, or one of them; the exit code is 1 if any failed."""

from __future__ import annotations

import argparse
import itertools
import os
import secrets
import sys
import time
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait

from tests.simulation.plan import Plan, draw
from tests.simulation.run import run
from tests.simulation.shrink import shrink

CHUNK = 20  # seeds that a process takes at a time
MOST_FAILURES = 10  # after so many, no more seeds are begun


def failures_among(seeds: Sequence[int], liar: bool) -> list[tuple[int, str]]:
    """The seeds that fail, and why."""
    return [(seed, outcome.complaint) for seed in seeds if (outcome := run(draw(seed, liar=liar))).complaint]


def explain(plan: Plan, complaint: str) -> None:
    """Print a failure, and the fewest actions that lead to one."""
    print(f"\nseed {plan.seed} fails: {complaint}")
    shortest, complaint, length = shrink(plan)
    print(f"the first {length} of {len(plan.actions)} actions are enough, and of these:")
    print("\n".join(map(str, shortest.actions)))
    print(f"which gives: {complaint}\nthe plan is {plan}", flush=True)


def explore(first: int, seconds: float, jobs: int, liar: bool) -> int:
    """Run seeds from ``first`` on; how many failed."""
    chunks = (range(start, start + CHUNK) for start in itertools.count(first, CHUNK))
    began = time.monotonic()
    done = failed = 0
    with ProcessPoolExecutor(jobs) as pool:
        running: set[Future[list[tuple[int, str]]]] = set()
        while True:
            while len(running) < 2 * jobs and time.monotonic() - began < seconds and failed < MOST_FAILURES:
                running.add(pool.submit(failures_among, next(chunks), liar))
            if not running:
                break
            ended, running = wait(running, return_when=FIRST_COMPLETED)
            for future in ended:
                done += CHUNK
                for seed, complaint in future.result():
                    failed += 1
                    explain(draw(seed, liar=liar), complaint)
    print(f"{done} seeds from {first} on in {time.monotonic() - began:.0f} s: {failed} failed")
    return failed


def show(seed: int, *, verbose: bool, liar: bool) -> int:
    plan = draw(seed, liar=liar)
    outcome = run(plan, verbose=verbose)
    print(f"seed {seed}: {outcome.frames} frames, {outcome.calls} calls, {outcome.good} of them good, {outcome.digest}")
    if outcome.complaint and not verbose:
        explain(plan, outcome.complaint)
    return bool(outcome.complaint)


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--minutes", type=float, help="how long to run seeds, from --seed on")
    parser.add_argument("--seed", type=int, help="the first seed (default: any); without --minutes the only one")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes")
    parser.add_argument("--liar", action="store_true", help="a hostile host lies on the first cable of each run")
    parser.add_argument("-v", "--verbose", action="store_true", help="print what happens")
    given = parser.parse_args(arguments)
    if given.minutes is None and given.seed is not None:
        return show(given.seed, verbose=given.verbose, liar=given.liar)
    first = secrets.randbits(30) if given.seed is None else given.seed
    return int(explore(first, 60 * (given.minutes or 1.0), given.jobs, given.liar) > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
