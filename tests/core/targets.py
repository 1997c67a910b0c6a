"""Targets under test: in a pair that has seen a round trip, or driven by hand.

In a :class:`tests.pair.Pair`, times are those of a network of ``RTT`` seconds.  Latencies are powers of two, so that
sums are exact and times are compared exactly.
"""

from __future__ import annotations

from collections.abc import Callable

from aoefs.core.request import Request, Run
from aoefs.core.target import Target
from tests.pair import LATENCY, Pair, check_invariants
from tests.segment import Segment


def drop_link(target: Target, link: object) -> None:
    """As the engine does when an interface is gone."""
    for path in [path for path in target.paths if path.link is link]:
        target.drop_path(path)


def pair(*segments: Segment, warm: bool = True, **options: int | float | bool) -> Pair:
    """A pair whose path has seen a round trip, at a time that is a power of two."""
    made = Pair(*(segments or (Segment(latency=LATENCY),)), **options)  # type: ignore[arg-type]
    if warm:
        for _ in range(2 * len(made.wires)):
            made.finish(*(made.read(0, 1, target) for target in range(len(made.targets))))
        made.run(1.0)
        made.sent.clear()
    return made


def segments(count: int) -> list[Segment]:
    return [Segment(latency=LATENCY, seed=number) for number in range(count)]


class Losing:
    """Loses the first ``times`` frames of the kind that ``chosen`` names."""

    def __init__(self, chosen: Callable[[bytes], bool], times: int = 1) -> None:
        self.chosen = chosen
        self.times = times

    def __call__(self, frame: bytes) -> bool:
        if self.times and self.chosen(frame):
            self.times -= 1
            return True
        return False


def ask(sectors: int = 8, lba: int = 0, *, write: bool = False) -> tuple[Request, list[Request]]:
    """A request, and the list that it is put into at its end."""
    ended: list[Request] = []
    buffer = memoryview(bytearray(sectors * 512))
    return Request(lba, sectors, buffer, write=write, on_end=ended.append), ended


def drain(target: Target, now: float) -> list[Run]:
    runs = []
    while (run := target.next_run(now)) is not None:
        runs.append(run)
        check_invariants(target)
    return runs


def answer(target: Target, run: Run, now: float, first: int = 0, count: int | None = None) -> None:
    count = run.count - first if count is None else count
    if target.receive(run, first, count, now):
        target.complete(run, first, count)
    check_invariants(target)
