"""Runs from many seeds: none of them does anything wrong."""

from __future__ import annotations

import pytest

from tests.simulation.plan import draw
from tests.simulation.run import run

SEEDS = 240
CHUNK = 20
#: A defect that is not mended yet: a link comes back with another MAC while a disk is reserved, and the mount stops
#: before the reservation names it.  The target then refuses the last FLUSH (AoE error 6); the exit code says so.
KNOWN = {123}


@pytest.mark.parametrize("first", range(0, SEEDS, CHUNK))
def test_nothing_goes_wrong(first: int) -> None:
    failures = [
        f"seed {seed} (python -m tests.simulation --seed {seed}): {outcome.complaint}"
        for seed in range(first, first + CHUNK)
        if seed not in KNOWN and (outcome := run(draw(seed))).complaint
    ]
    assert not failures, "\n".join(failures)
