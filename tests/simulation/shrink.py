"""From a plan that fails to the fewest actions of it that do."""

from __future__ import annotations

import time

from tests.simulation.plan import Plan
from tests.simulation.run import run

PATIENCE = 60.0  # seconds of real time


def shrink(plan: Plan, patience: float = PATIENCE) -> tuple[Plan, str, int]:
    """(what is left, what is wrong with it, length of the shortest prefix that fails)."""
    until = time.monotonic() + patience
    shortest, complaint = _shortest_prefix(plan)
    length = len(shortest.actions)
    index = length - 1
    while index >= 0 and time.monotonic() < until:
        less = shortest.without(index)
        if found := run(less).complaint:
            shortest, complaint = less, found
        index -= 1
    return shortest, complaint, length


def _shortest_prefix(plan: Plan) -> tuple[Plan, str]:
    """By halving: what fails with some actions mostly fails with more of them."""
    complaint = run(plan).complaint
    good, bad = 0, len(plan.actions)
    while good < bad:
        middle = (good + bad) // 2
        if found := run(plan.prefix(middle)).complaint:
            bad, complaint = middle, found
        else:
            good = middle + 1
    return plan.prefix(bad), complaint
