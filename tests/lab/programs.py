"""The programs and files that a test needs: where they are, and what happens if one is missing."""

from __future__ import annotations

import os
import random
import shutil
import sys
from pathlib import Path

COMMANDS = Path(sys.executable).parent  # of the virtual environment that runs the tests
SYSTEM_PATH = os.pathsep.join((os.environ.get("PATH", ""), "/usr/local/sbin", "/usr/sbin", "/sbin"))
REPOSITORY = Path(__file__).resolve().parent.parent.parent

Argument = str | os.PathLike[str] | int  # of a command line


def find_program(name: str) -> str | None:
    """The path of a program: of the virtual environment's, the PATH's or one in a sbin directory, in this order."""
    return shutil.which(name, path=f"{COMMANDS}{os.pathsep}{SYSTEM_PATH}")


def missing(*needed: str, root: bool = True) -> list[str]:
    """Those of the programs (or files, if written with a slash) that are missing; root rights count as one."""
    absent = [name for name in needed if not (Path(name).exists() if "/" in name else find_program(name))]
    return [*absent, *(["root rights"] if root and os.geteuid() != 0 else [])]


def require(*needed: str, root: bool = True) -> None:
    """Skip the test when something is :func:`missing`; fail it under CI, which installs everything."""
    if not (absent := missing(*needed, root=root)):
        return
    import pytest  # here: processes that a lab starts import this module, and need no test framework

    reason = f"needs {', '.join(absent)}; tests/run.sh installs what is missing"
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)


def python_module(module: str, *arguments: str | int) -> list[str]:
    """The command line that runs a module of this repository with the interpreter of the tests."""
    return ["env", f"PYTHONPATH={REPOSITORY}", sys.executable, "-m", module, *map(str, arguments)]


def make_image(path: Path, size: int, *, seed: int | None = 0) -> Path:
    """A file of ``size`` bytes, pseudo-random by ``seed``, or sparse zeros for None."""
    with path.open("wb") as file:
        file.truncate(size)
        if seed is not None:
            generator = random.Random(seed)
            for start in range(0, size, 16 << 20):
                file.write(generator.randbytes(min(16 << 20, size - start)))
    return path
