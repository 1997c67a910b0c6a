"""The build backend that pyproject.toml names: setuptools, with the modules of the hot path compiled by mypyc.

The frames (``net.frames``, ``net.requests``) are C made by Cython, declared in pyproject.toml, and always needed:
without a compiler one line names what to install.  The Python sources run unchanged where mypyc compiles nothing: on an
interpreter that it does not know, or with ``AOEFS_PURE=1`` in the environment of pip.

What holds always: all modules that mypyc compiles are in one library, ``aoefs/hot__mypyc``.  What is built comes from
one state of the sources and carries the time of that state (tests/conftest.py does not test a library that is older
than a source).  An sdist holds no C.

Rejected: hatchling with hatch-mypyc (it moves pyproject.toml away while it builds); a setup.py (everything else is
declared); a library per module (twice the time to build, and no direct calls between modules); checking against the
types of numpy and trio here (a new release of either could break the build; ``mypy`` in tests/run.sh checks them).
"""

from __future__ import annotations

import os
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import setuptools
from setuptools.build_meta import _BuildMetaBackend
from setuptools.command.build_ext import build_ext
from setuptools.command.sdist import sdist

_STARTED_AT = time.time()  # the time of what is built: the sources are read after this

#: The compiled modules: those that every request and every frame goes through.  Measured through the library, 4 KiB at
#: MTU 9000 from vblade, medians of 7 alternating turns: two thirds of the processor time, 1.35 times the IOPS of lone
#: reads, 1.41 times with 16 at once, 1.29 times those of lone writes; 1 MiB writes 1.13 times as fast, reads the same.
#: (1.09 times of that comes from ``Final`` on the modules' constants: others are looked up in a dictionary.)
#: ``engine/inplace`` gives 1.04 times the lone reads of a mount.
#:
#: Not compiled: ``engine/engine`` (mypyc cannot compile async generators; 1.01 times), ``net/packetsocket`` (used once
#: per interface; it passes the kernel an address whose memory only a local variable holds, which compiled code frees
#: after its last use),
#: ``errors`` (``--help`` loads it), the software target, and everything from ``status`` up.
COMPILED = (
    "protocol/ata",
    "protocol/wire",
    "core/backlog",
    "core/health",
    "core/latency",
    "core/life",
    "core/lonecommand",
    "core/memory",
    "core/overlap",
    "core/path",
    "core/quarantine",
    "core/recovery",
    "core/request",
    "core/tags",
    "core/target",
    "engine/busypoll",
    "engine/clock",
    "engine/disk",
    "engine/driver",
    "engine/inplace",
    "engine/receiver",
    "engine/shards",
    "engine/slowlog",
    "engine/timer",
    "engine/waits",
    "engine/writebehind",
    "fuse/handles",
    "fuse/nodes",
    "fuse/transfers",
    "fuse/workerloop",
)


def _extensions() -> list[setuptools.Extension]:
    """The library, and a small module for each name in it; none when that is not wanted or not possible."""
    if os.environ.get("AOEFS_PURE", "0") != "0":
        return []
    options = ["--config-file=", "--no-site-packages", "--ignore-missing-imports"]
    try:
        from mypyc.build import mypycify

        made = mypycify(
            [*options, *(f"aoefs/{name}.py" for name in COMPILED)],
            group_name="aoefs.hot",
            opt_level="1",  # as fast as 3, and takes two thirds of the time to build
        )
    except (Exception, SystemExit) as failure:  # mypyc exits when it cannot compile something
        _stay_pure(failure)
        return []
    for extension in made:
        extension.extra_compile_args.append("-Wno-error")  # a newer compiler may warn about mypyc's C
    return made


def _stay_pure(reason: BaseException) -> None:
    why = textwrap.shorten(str(reason), 200)  # some list a hundred arguments
    print(f"warning: aoefs is installed as pure Python, which is slower: {why}", file=sys.stderr)


class BuildExtensions(build_ext):
    """Builds all extensions, or fails with one line."""

    def run(self) -> None:
        places = [Path(self.build_lib), Path()] if self.editable_mode else [Path(self.build_lib)]
        _remove_built(*places)
        try:
            super().run()
        except Exception as failure:  # of many kinds: the compiler is missing or fails
            _remove_built(*places)
            why = textwrap.shorten(str(failure), 200)  # some list a hundred arguments
            sys.exit(f"aoefs needs a C compiler (Debian: apt install gcc python3-dev): {why}")
        finally:
            for source in Path("aoefs/net").glob("*.pyx"):
                source.with_suffix(".c").unlink(missing_ok=True)
        for built in _built(*places):
            os.utime(built, (_STARTED_AT, _STARTED_AT))


def _built(*places: Path) -> list[Path]:
    return [path for place in places for path in (place / "aoefs").rglob("*.so")]


def _remove_built(*places: Path) -> None:
    for path in _built(*places):
        path.unlink()


class SourceDistribution(sdist):
    """An sdist that contains this file."""

    def make_release_tree(self, base_dir: str, files: list[str]) -> None:
        super().make_release_tree(base_dir, [*files, os.path.relpath(__file__)])


class _Backend(_BuildMetaBackend):
    def run_setup(self, setup_script: str = "setup.py") -> None:
        builds = {"bdist_wheel", "editable_wheel"} & set(sys.argv)
        if "editable_wheel" in builds:
            _remove_built(Path())  # in any case: those of an earlier installation are not of these sources
        commands: dict[str, Any] = {"build_ext": BuildExtensions, "sdist": SourceDistribution}
        setuptools.setup(ext_modules=_extensions() if builds else [], cmdclass=commands)


_backend = _Backend()
get_requires_for_build_wheel = _backend.get_requires_for_build_wheel
get_requires_for_build_sdist = _backend.get_requires_for_build_sdist
get_requires_for_build_editable = _backend.get_requires_for_build_editable
prepare_metadata_for_build_wheel = _backend.prepare_metadata_for_build_wheel
prepare_metadata_for_build_editable = _backend.prepare_metadata_for_build_editable
build_wheel = _backend.build_wheel
build_sdist = _backend.build_sdist
build_editable = _backend.build_editable
