"""The package as users get it: wheel and sdist, built without network from a copy of the sources.

The wheel holds the compiled modules and all sources; with ``AOEFS_PURE=1`` the frames alone are compiled.
"""

from __future__ import annotations

import os
import re
import runpy
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

from aoefs import __version__, is_compiled

ROOT = Path(__file__).parent.parent
BACKEND = ROOT / ".build/backend.py"
COMPILED = runpy.run_path(str(BACKEND))["COMPILED"]
FRAMES = ("net/frames", "net/requests")  # by Cython, always
SUFFIX = sysconfig.get_config_var("EXT_SUFFIX")
SOURCES = ("pyproject.toml", "README.md", "LICENSE", ".build", "aoefs")


def run(*arguments: str | Path, cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "AOEFS_PURE": "0", **variables}
    answer = subprocess.run(
        arguments, cwd=cwd, env=environment, capture_output=True, text=True, check=False, timeout=600
    )
    assert answer.returncode == 0, answer.stdout + answer.stderr
    return answer


def wanted() -> set[str]:
    """Every file of the package in the repository, without what is generated."""
    files = (
        path for path in (ROOT / "aoefs").rglob("*") if path.is_file() and path.suffix not in (".pyc", ".so", ".c")
    )
    return {str(path.relative_to(ROOT)) for path in files}


def held(wheel: Path) -> set[str]:
    """The files of the package in a wheel."""
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if not name.endswith("/")}
    return {name for name in names if not name.startswith(f"aoefs-{__version__}.dist-info/")}


def copy_sources(path: Path) -> None:
    run("cp", "-a", *(ROOT / name for name in SOURCES), path, cwd=path)


def build(path: Path, *arguments: str, **variables: str) -> str:
    """Build the sources in ``path`` into ``path/dist``, without optimization: that halves the time; the output."""
    compiler = path / "cc"  # mypyc puts options of its own behind CFLAGS
    compiler.write_text('#!/bin/sh\nexec cc "$@" -O0\n')
    compiler.chmod(0o755)
    variables = {"CC": str(compiler), **variables}
    answer = run(sys.executable, "-m", "build", "--no-isolation", *arguments, path, cwd=path, **variables)
    return answer.stdout + answer.stderr


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the sdist, and the wheel that was built from it."""
    path = tmp_path_factory.mktemp("build")
    copy_sources(path)
    said = build(path)
    assert "Warning" not in said, said
    assert "deprecated" not in said.lower(), said
    return path / "dist"


def test_wheel_and_sdist_hold_every_file_and_no_other(built: Path) -> None:
    [wheel], [sdist] = built.glob("*.whl"), built.glob("*.tar.gz")
    assert held(wheel) == {*wanted(), *(f"aoefs/{name}{SUFFIX}" for name in (*COMPILED, *FRAMES, "hot__mypyc"))}
    assert "-none-any" not in wheel.name
    with tarfile.open(sdist) as archive:
        names = {member.name.partition("/")[2] for member in archive if member.isfile()}
    assert names >= {*wanted(), ".build/backend.py", "pyproject.toml", "README.md", "LICENSE"}
    assert not {name for name in names if name.endswith((".c", ".h", ".so"))}


def check_only_frames_are_compiled(path: Path) -> None:
    [wheel] = (path / "dist").iterdir()
    assert held(wheel) == {*wanted(), *(f"aoefs/{name}{SUFFIX}" for name in FRAMES)}


def test_with_aoefs_pure_only_the_frames_are_compiled(tmp_path: Path) -> None:
    copy_sources(tmp_path)
    assert "mypyc" not in build(tmp_path, "--wheel", AOEFS_PURE="1")
    check_only_frames_are_compiled(tmp_path)


def test_without_a_compiler_one_line_names_what_to_install(tmp_path: Path) -> None:
    copy_sources(tmp_path)
    command = (sys.executable, "-m", "build", "--no-isolation", "--wheel", tmp_path)
    environment = {**os.environ, "AOEFS_PURE": "0", "CC": "no-such-compiler"}
    answer = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert answer.returncode != 0
    said = answer.stdout + answer.stderr
    assert re.search("^aoefs needs a C compiler .Debian: apt install gcc python3-dev.: .*no-such-compiler", said, re.M)
    assert not list((tmp_path / "dist").glob("*.whl"))


def test_a_source_that_mypyc_refuses_is_installed_uncompiled(tmp_path: Path) -> None:
    copy_sources(tmp_path)
    with (tmp_path / "aoefs/core/latency.py").open("a") as source:
        source.write("\n\nBUCKETS: str\n")
    assert "warning: aoefs is installed as pure Python, which is slower: " in build(tmp_path, "--wheel")
    check_only_frames_are_compiled(tmp_path)


def test_the_tested_modules_are_compiled_unless_aoefs_pure_is_set() -> None:
    assert is_compiled() == (os.environ.get("AOEFS_PURE", "0") == "0")


def test_the_uncompiled_sources_pass_the_tests_of_the_compiled_modules(tmp_path: Path) -> None:
    run("cp", "-a", ROOT / "aoefs", ROOT / "tests", ROOT / "pyproject.toml", tmp_path, cwd=tmp_path)
    for name in (*COMPILED, "hot__mypyc"):
        (tmp_path / f"aoefs/{name}{SUFFIX}").unlink(missing_ok=True)
    tests = [path for name in COMPILED if (path := tmp_path / f"tests/{name.replace('/', '/test_')}.py").exists()]
    python = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    run(*python, *tests, cwd=tmp_path, PYTHONPATH=str(tmp_path), AOEFS_PURE="1")


def test_a_wheel_in_an_empty_environment_is_a_command(built: Path, tmp_path: Path) -> None:
    venv.create(tmp_path / "venv", with_pip=False, symlinks=True)
    python = tmp_path / "venv/bin/python"
    pip = [sys.executable, "-m", "pip", "--python", str(python), "--disable-pip-version-check", "install"]
    run(*pip, "--no-deps", "--no-index", *built.glob("*.whl"), cwd=tmp_path)
    command = tmp_path / "venv/bin/aoefs"
    assert run(command, "--version", cwd=tmp_path).stdout == f"aoefs {__version__} (compiled)\n"
    assert "usage: aoefs [SOURCE] MOUNTPOINT" in run(command, "--help", cwd=tmp_path).stdout
    help_of = run(command, "install", "--help", cwd=tmp_path).stdout
    assert "--dry-run" in help_of
