"""One minute of the soak; ``python -m tests.soak`` runs it for longer."""

from __future__ import annotations

import pytest

from tests.lab import Lab, require
from tests.soak import soak

SECONDS = 50  # with start, end and the last verification a minute


@pytest.mark.parametrize("lab", [9000], indirect=True)
def test_a_minute_of_all_faults_at_once_ends_without_an_error_and_with_every_byte_right(lab: Lab) -> None:
    require("fio", "vblade")
    soak(lab, SECONDS, seed=20261123)  # the tests are the same each time; others: python -m tests.soak --seed N
