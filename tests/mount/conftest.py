"""The place of a module: what it exports is the module's ``SIZES``, where it runs its ``pytestmark = places(...)``."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.mount.place import Place, open_place


@pytest.fixture(scope="module")
def place(request: pytest.FixtureRequest) -> Iterator[Place]:
    """One lab and one mount for all tests of a module; ``SIZES`` says which disks, by name in bytes."""
    kind, mtu = request.param
    with open_place(kind, mtu, request.module.SIZES, seed=getattr(request.module, "SEED", 0)) as made:
        yield made
