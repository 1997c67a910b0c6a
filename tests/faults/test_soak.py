"""One minute of the soak; ``python -m tests.soak`` runs longer ones."""

from __future__ import annotations

import pytest

from tests.lab import Lab, require
from tests.soak import soak

SECONDS = 50  # a minute with the start, the end and the last verification


@pytest.mark.parametrize("lab", [9000], indirect=True)
def test_a_minute_of_all_faults_at_once_ends_without_an_error_and_with_every_byte_right(lab: Lab) -> None:
    require("fio", "vblade")
    soak(lab, SECONDS, seed=20261123)  # tests do the same each time; for others: python -m tests.soak --seed N
