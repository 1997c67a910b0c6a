"""The command line as a process of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def aoefs(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "aoefs", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
