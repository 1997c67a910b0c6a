"""The same seed is the same run, whatever the process."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
SEEDS = (1, 2, 3)


def digests(hash_seed: int) -> list[str]:
    """Those of some runs in a fresh process, and what they print."""
    lines = []
    for seed in SEEDS:
        command = [sys.executable, "-m", "tests.simulation", "--seed", str(seed)]
        environment = os.environ | {"PYTHONHASHSEED": str(hash_seed)}
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
        lines.append(done.stdout)
    return lines


def test_the_same_seed_is_the_same_run_in_another_process() -> None:
    first, second = digests(1), digests(2)
    assert first == second
    assert all(re.search(r" [0-9a-f]{32}$", line.strip()) for line in first)
    assert len(set(first)) == len(SEEDS)
