"""A lab of three hosts on one switch."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.lab import ATTACKER, INITIATOR, TARGET, Lab, require


@pytest.fixture
def lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    """At MTU 9000.  The switch knows who is where, so no host gets the frames of another; ``indirect`` parameter False:
    it learns that from the frames, as most switches do.
    """
    require("bridge")
    with Lab(mtu=9000, pairs=0) as made:
        made.add_side(ATTACKER)
        made.switch(INITIATOR, TARGET, ATTACKER, pinned=getattr(request, "param", True))
        yield made
