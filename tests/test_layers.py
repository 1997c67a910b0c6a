"""Modules know only the floors below them, and what touches the world stays out of the pure ones.

An import inside a function or under TYPE_CHECKING counts: it is knowledge all the same.  On one floor modules may
import each other as long as nothing runs in a circle; there, what only the type checker sees is free.
"""

from __future__ import annotations

import ast
import graphlib
from collections.abc import Iterator
from pathlib import Path

import pytest

import aoefs

PACKAGE = Path(aoefs.__file__).parent

FLOORS: list[tuple[str, set[str]]] = [
    ("bytes and words", {"__init__", "errors", "wire", "ata", "smart"}),
    ("parts of the core", {"recovery", "overlap", "tags", "latency", "access", "running", "strangers", "partitions"}),
    ("the core, without any I/O", {"request", "path", "initiator", "target"}),
    ("this host", {"interfaces", "export", "options", "mountpoint", "tuning", "events", "service"}),
    ("links", {"mmsg", "link", "landing", "sending", "port", "batch"}),
    (
        "tasks",
        {"behind", "discovery", "disk", "engine", "exchange", "inplace", "readahead", "receiver", "reservation"}
        | {"roster", "server", "settings", "shard", "waiting"},
    ),
    (
        "faces",
        {"console", "control", "fs", "history", "manual", "metrics", "report", "tables", "terminal", "turns", "views"},
    ),
    ("commands", {"mount", "daemon", "companion"}),  # and all of aoefs/commands
    ("the command line", {"cli", "__main__"}),
]
PURE_FLOORS = 3  # the first so many: no I/O, no clock
IMPURE = {"trio", "socket", "select", "time", "ctypes", "numpy", "threading", "subprocess"}


def _modules() -> dict[str, ast.Module]:
    """All modules by name, without the package's: ``wire``, ``commands.mount``."""
    files = sorted(PACKAGE.rglob("*.py"))
    return {
        ".".join(file.relative_to(PACKAGE).with_suffix("").parts): ast.parse(file.read_text(), str(file))
        for file in files
    }


MODULES = _modules()


def floor_of(module: str) -> int:
    if module.startswith("commands."):
        return next(index for index, (name, _) in enumerate(FLOORS) if name == "commands")
    for index, (_, members) in enumerate(FLOORS):
        if module in members:
            return index
    pytest.fail(f"aoefs/{module}.py has no floor yet: place it in the table of tests/test_layers.py")


def _type_checking_only(tree: ast.Module) -> set[ast.AST]:
    """Every node below an ``if TYPE_CHECKING:``."""
    return {
        node
        for statement in ast.walk(tree)
        if isinstance(statement, ast.If) and ast.unparse(statement.test).endswith("TYPE_CHECKING")
        for branch in statement.body
        for node in ast.walk(branch)
    }


def imports(module: str) -> Iterator[tuple[str, ast.AST]]:
    """Each dotted name that a module imports, and where; a name that is a module of ours comes as ``aoefs.name``."""
    for node in ast.walk(MODULES[module]):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            source = node.module or ""
            if node.level:
                source = f"aoefs.{source}".rstrip(".")
            for alias in node.names:
                inner = f"{source}.{alias.name}".removeprefix("aoefs.") in MODULES
                yield (f"{source}.{alias.name}" if inner else source), node


def own_imports(module: str, *, at_run_time: bool = False) -> set[str]:
    """The modules of the package that a module imports."""
    hidden = _type_checking_only(MODULES[module]) if at_run_time else set()
    names = (name for name, node in imports(module) if node not in hidden)
    return {name.removeprefix("aoefs.") for name in names if name.startswith("aoefs.")}


def outer_imports(module: str) -> set[str]:
    return {name.split(".")[0] for name, _ in imports(module)} - {"aoefs"}


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_nothing_from_above_its_floor(module: str) -> None:
    floor = floor_of(module)
    above = {other for other in own_imports(module) if floor_of(other) > floor}
    assert not above, f"aoefs/{module}.py reaches up to {', '.join(sorted(above))}"


def test_no_floor_imports_in_a_circle() -> None:
    graph = {module: own_imports(module, at_run_time=True) for module in MODULES}
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        pytest.fail(f"imports in a circle: {' → '.join(reversed(error.args[1]))}")


@pytest.mark.parametrize(
    "module", sorted(set().union(*(members for _, members in FLOORS[:PURE_FLOORS])) & MODULES.keys())
)
def test_the_core_touches_no_socket_no_clock_and_no_task(module: str) -> None:
    assert not outer_imports(module) & IMPURE


@pytest.mark.parametrize("module", MODULES)
def test_fuse_terminal_and_metrics_stay_in_their_rooms(module: str) -> None:
    rooms = {
        "prometheus_client": module == "metrics",
        "pyfuse3": module in {"fs", "mount", "turns"},
        "rich": module in {"console", "tables"} or floor_of(module) == floor_of("mount"),
    }
    strangers = {library for library, allowed in rooms.items() if not allowed} & outer_imports(module)
    assert not strangers, f"aoefs/{module}.py imports {', '.join(sorted(strangers))}"
