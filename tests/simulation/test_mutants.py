"""The simulation finds aoefs broken on purpose, each time in another way."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import aoefs
import tests
from tests.simulation.mutants import MUTANTS


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What ``tests.simulation.mutants`` says of each, in a copy of the sources, where only the frames are compiled."""
    directory = tmp_path_factory.mktemp("uncompiled")
    source = Path(aoefs.__file__).parent
    shutil.copytree(source, directory / "aoefs", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    for built in (*source.glob("net/frames.*.so"), *source.glob("net/requests.*.so")):
        shutil.copy(built, directory / "aoefs/net")
    (directory / "tests").symlink_to(Path(next(iter(tests.__path__))))
    command = [sys.executable, "-m", "tests.simulation.mutants"]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(command, cwd=directory, env=environment, capture_output=True, text=True)
    lines = (line.partition(": ") for line in done.stdout.splitlines())
    assert not done.stderr, done.stderr
    return {name: what for name, _, what in lines}


@pytest.mark.parametrize("name", MUTANTS)
def test_it_is_found(name: str, found: dict[str, str]) -> None:
    assert found[name].startswith("found by seed"), found[name]
