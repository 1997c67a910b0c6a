"""The fixture ``lab``, which ``tests/conftest.py`` gives to all tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.lab.lab import Lab

both_mtus = pytest.mark.parametrize("lab", [1500, 9000], indirect=True)


@pytest.fixture
def lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    """A lab at MTU 1500; ``@both_mtus`` runs a test at 1500 and at 9000."""
    with Lab(mtu=getattr(request, "param", 1500)) as made:
        yield made
