"""What all tests share: the fixture ``lab``, the order of files, and the rule that a test announces its warnings."""

from __future__ import annotations

import logging
import os
import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import settings

import aoefs
from tests.lab.fixtures import lab as lab

PACKAGE = Path(aoefs.__file__).parent

# A shell ignores SIGINT in its background jobs; without this line, all that a test starts would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Under CI a failure must repeat in the next run; by hand, every run tries other examples.
settings.register_profile("ci", derandomize=True, deadline=None, database=None, print_blob=True)
settings.register_profile("by-hand", deadline=None)
settings.load_profile("ci" if os.environ.get("CI") == "true" else "by-hand")

#: The longest files (15 s and more), longest first.  With several processes they begin before all others, so that none
#: of them is still running when the others are through.
LONG_FILES = (
    "simulation/test_seeds.py",
    "cli/test_demo.py",
    "test_package.py",
    "faults/test_soak.py",
    "faults/test_stop.py",
    "faults/test_identity.py",
    "mount/test_partial.py",
    "mount/test_workers.py",
    "faults/test_silence.py",
    "mount/test_tools.py",
    "faults/test_loss.py",
    "mount/test_console.py",
    "interop/test_target_tools.py",
    "mount/test_silent_daemon.py",
    "faults/test_reserve.py",
    "cli/test_companions.py",
    "mount/test_service.py",
    "mount/test_wire.py",
    "host/test_background.py",
    "faults/test_host.py",
    "hostile/test_clone.py",
    "faults/test_behind.py",
    "test_examples.py",
    "cli/test_main.py",
    "simulation/test_mutants.py",
    "mount/test_lifecycle.py",
    "cli/test_umount.py",
    "mount/test_control.py",
    "softtarget/test_command.py",
    "faults/test_slow_flush.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """In a part of a run in several processes, the long files come first; the order is the same in each process."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        ranks = {Path(__file__).parent / name: rank for rank, name in enumerate(LONG_FILES)}
        items.sort(key=lambda item: ranks.get(item.path, len(ranks)))


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
