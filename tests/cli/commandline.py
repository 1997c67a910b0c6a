"""The command line as a process of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path


def aoefs(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "aoefs", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def aoefs_in_time(*arguments: str | Path, seconds: float = 10.0) -> subprocess.CompletedProcess[str]:
    """As :func:`aoefs`; AssertionError if it has not ended by then.  It is not waited for: maybe nothing can end it."""
    command = [sys.executable, "-m", "aoefs", *map(str, arguments)]
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=err)
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            os.kill(process.pid, signal.SIGKILL)
            process.returncode = -signal.SIGKILL
            raise AssertionError(f"not within {seconds} s: {' '.join(command)}") from None
        texts = []
        for file in (out, err):
            file.seek(0)
            texts.append(file.read())
        return subprocess.CompletedProcess(command, code, *texts)
