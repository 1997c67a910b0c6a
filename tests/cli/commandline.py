"""The command line as a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def aoefs(*arguments: str | Path, **options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "aoefs", *map(str, arguments)]
    environment = {**os.environ, **options}
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60, env=environment)
