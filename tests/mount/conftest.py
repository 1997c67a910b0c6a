"""The fixture ``place``: the module's ``SIZES`` name its disks, ``pytestmark = places(...)`` the kinds of target."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.mount.place import Place, open_place


@pytest.fixture(scope="module")
def place(request: pytest.FixtureRequest) -> Iterator[Place]:
    """One lab and one mount for all tests of a module; ``SIZES`` are its disks: bytes by name."""
    kind, mtu = request.param
    with open_place(kind, mtu, request.module.SIZES, seed=getattr(request.module, "SEED", 0)) as made:
        yield made
