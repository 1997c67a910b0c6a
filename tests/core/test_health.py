"""The table of a path's health."""

from __future__ import annotations

import itertools

import pytest

from aoefs.core.health import TRANSITIONS, Health, Sign
from tests.pair import Pair


@pytest.mark.parametrize(("health", "sign"), list(itertools.product(Health, Sign)))
def test_every_sign_leads_to_a_health_of_the_table(health: Health, sign: Sign) -> None:
    path = Pair().target.paths[0]
    path.health = health
    path.take(sign)
    assert path.health is TRANSITIONS[sign].get(health, health)
    assert (path.health is Health.GOOD) == (sign in (Sign.ANSWER, Sign.IDENTITY)), "each bad sign is believed"
    assert path.cuts == (sign is Sign.CUT)
