"""A lab whose cable is a faulty wire."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from tests.lab import INITIATOR, TARGET, Lab
from tests.lab.forwarder import Wire


@pytest.fixture
def lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    """A lab without a cable; ``indirect`` parameters give its MTU (1500)."""
    with Lab(mtu=getattr(request, "param", 1500), pairs=0) as made:
        yield made


@pytest.fixture
def wire(lab: Lab) -> Iterator[Wire]:
    """``aoe0`` of the initiator and of the target, joined by a faulty wire that has no faults yet."""
    with contextlib.closing(Wire(lab, INITIATOR, TARGET)) as made:
        yield made
