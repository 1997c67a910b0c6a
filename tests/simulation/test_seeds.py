"""Runs from many seeds: none of them does anything wrong."""

from __future__ import annotations

import pytest

from tests.simulation.plan import draw
from tests.simulation.run import run

SEEDS = 160  # each of the mutants is found by some of the first 100; for others: python -m tests.simulation
CHUNK = 20
FOUND = (800858, 801076, 1000589, 1000782, 1001126)  # each failed once, by a defect of its own


@pytest.mark.parametrize("seed", FOUND)
def test_what_was_found_once_stays_right(seed: int) -> None:
    assert not run(draw(seed)).complaint


@pytest.mark.parametrize("first", range(0, SEEDS, CHUNK))
def test_nothing_goes_wrong(first: int) -> None:
    failures = [
        f"seed {seed} (python -m tests.simulation --seed {seed}): {outcome.complaint}"
        for seed in range(first, first + CHUNK)
        if (outcome := run(draw(seed))).complaint
    ]
    assert not failures, "\n".join(failures)
