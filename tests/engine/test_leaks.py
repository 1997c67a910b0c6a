"""An engine at rest holds what it held before, however much it did."""

from __future__ import annotations

import logging

import pytest
from trio.testing import MockClock

from tests.engine import leaks


async def test_nothing_is_left_of_many_requests_and_of_many_deaths(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL, "aoefs")  # what the log fixture keeps is no leak
    before, after = await leaks.check(2000, 20)
    assert not after.exceeds(before), f"{before} became {after}"
