"""Runs with a hostile host on the segment: none of its lies is believed."""

from __future__ import annotations

from tests.simulation.plan import draw
from tests.simulation.run import run

SEEDS = 16


def test_a_liar_changes_nothing() -> None:
    failures = [
        f"seed {seed} (python -m tests.simulation --seed {seed} --liar): {outcome.complaint}"
        for seed in range(SEEDS)
        if (outcome := run(draw(seed, liar=True))).complaint
    ]
    assert not failures, "\n".join(failures)
