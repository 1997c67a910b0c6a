"""What all tests share: the fixture ``lab``, async tests in trio, and the rule that a test announces its warnings."""

from __future__ import annotations

import logging
import os
import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import settings
from pytest_trio.enable_trio_mode import *  # type: ignore[import-untyped]  # noqa: F403 (async tests run in trio)

import aoefs
from tests.lab.fixtures import lab as lab

PACKAGE = Path(aoefs.__file__).parent

# A shell ignores SIGINT in its background jobs; without this line, all that a test starts would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Under CI a failure must repeat in the next run; by hand, every run tries other examples.
settings.register_profile("ci", derandomize=True, deadline=None, database=None, print_blob=True)
settings.register_profile("by-hand", deadline=None)
settings.load_profile("ci" if os.environ.get("CI") == "true" else "by-hand")


def pytest_sessionstart() -> None:
    """Refuse modules that were compiled in place from older sources."""
    for built in PACKAGE.rglob("*.so"):
        name = built.name.partition(".")[0]
        for source in (built.with_name(f"{name}.py"), built.with_name(f"{name}.pyx"), built.with_name("mmsg.pxd")):
            if source.exists() and source.stat().st_mtime > built.stat().st_mtime:
                pytest.exit(f"{source.name} is newer than its library: pip install -e . (tests/run.sh does)", 4)


@pytest.fixture(autouse=True)
def log_as_before() -> Iterator[None]:
    """Commands that run within a test, or within a fixture of a module, choose where the log of aoefs goes.

    Each test begins with the log as an import leaves it, and a test has no part in what another one chose.
    """
    log = logging.getLogger("aoefs")
    handlers, level = log.handlers[:], log.level
    log.handlers[:] = []
    log.setLevel(logging.NOTSET)
    log.propagate = True
    yield
    log.handlers[:] = handlers
    log.setLevel(level)


@pytest.fixture(autouse=True)
def announce(caplog: pytest.LogCaptureFixture) -> Iterator[Callable[[str], None]]:
    """``announce(pattern)``: this test makes something log a warning or worse that matches the pattern.

    A warning that was not announced fails the test, and so does an announced one that did not come.
    """
    patterns: list[str] = []
    yield patterns.append
    records = [*caplog.get_records("setup"), *caplog.get_records("call")]
    logged = [record.getMessage() for record in records if record.levelno >= logging.WARNING]
    surprises = [text for text in logged if not any(re.search(pattern, text) for pattern in patterns)]
    missing = [pattern for pattern in patterns if not any(re.search(pattern, text) for text in logged)]
    assert not surprises, f"logged without being announced: {surprises}"
    assert not missing, f"announced, but not logged: {missing}; logged: {logged}"
