"""The package as others get it: wheel and sdist, built without network from a copy of the sources."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

from aoefs import __version__

ROOT = Path(__file__).parent.parent
SOURCES = ("pyproject.toml", "README.md", "LICENSE", "aoefs")


def run(*arguments: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    answer = subprocess.run(arguments, cwd=cwd, capture_output=True, text=True, check=False, timeout=300)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    return answer


def wanted() -> set[str]:
    """Every file of the package."""
    files = (path for path in (ROOT / "aoefs").rglob("*") if path.is_file() and path.suffix != ".pyc")
    return {str(path.relative_to(ROOT)) for path in files}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the sdist, and with the wheel that was built from that."""
    path = tmp_path_factory.mktemp("build")
    run("cp", "-r", *(ROOT / name for name in SOURCES), path, cwd=path)
    answer = run(sys.executable, "-m", "build", "--no-isolation", "--outdir", path / "dist", path, cwd=path)
    said = answer.stdout + answer.stderr
    assert "Warning" not in said, said
    assert "deprecated" not in said.lower(), said
    return path / "dist"


def test_wheel_and_sdist_hold_every_file_and_no_other(built: Path) -> None:
    [wheel], [sdist] = built.glob("*.whl"), built.glob("*.tar.gz")
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if not name.endswith("/")}
    info = f"aoefs-{__version__}.dist-info/"
    assert {name for name in held if not name.startswith(info)} == wanted()
    with tarfile.open(sdist) as archive:
        held = {member.name.partition("/")[2] for member in archive if member.isfile()}
    assert held >= {*wanted(), "pyproject.toml", "README.md", "LICENSE"}


def test_a_wheel_in_an_empty_environment_is_a_command(built: Path, tmp_path: Path) -> None:
    venv.create(tmp_path / "venv", with_pip=False, symlinks=True)
    python = tmp_path / "venv/bin/python"
    pip = [sys.executable, "-m", "pip", "--python", str(python), "--disable-pip-version-check", "install"]
    run(*pip, "--no-deps", "--no-index", *built.glob("*.whl"), cwd=tmp_path)
    command = tmp_path / "venv/bin/aoefs"
    assert run(command, "--version", cwd=tmp_path).stdout == f"aoefs {__version__}\n"
    assert "usage: aoefs [SOURCE] MOUNTPOINT" in run(command, "--help", cwd=tmp_path).stdout
    help_of = run(command, "install", "--help", cwd=tmp_path).stdout
    assert "--dry-run" in help_of
