"""What tests of the log share."""

from __future__ import annotations

import logging

import pytest

from aoefs.host.systemlog import log


@pytest.fixture
def quiet_log() -> logging.Logger:
    """The log of aoefs without any handler; put back afterwards, as for each test."""
    log.handlers[:] = []
    return log
