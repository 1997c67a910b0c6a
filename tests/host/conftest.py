"""What tests of the log share."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from aoefs.host.systemlog import log


@pytest.fixture
def quiet_log() -> Iterator[logging.Logger]:
    """The log of aoefs without any handler, put back afterwards."""
    handlers, level = log.handlers[:], log.level
    log.handlers[:] = []
    yield log
    log.handlers[:] = handlers
    log.setLevel(level)
