"""The packages of aoefs are floors: a module imports from its own floor and those below it, and never in a circle.

``FLOORS`` is the whole rule: the packages, lowest first, and what each may touch of the world outside.  An import
inside a function or under TYPE_CHECKING counts as one: it is knowledge all the same.
"""

from __future__ import annotations

import ast
import graphlib
from collections.abc import Iterator
from pathlib import Path

import pytest

import aoefs

PACKAGE = Path(aoefs.__file__).parent

#: Lowest first.  Beside these there are modules of ``aoefs`` itself: ``errors`` below all of them, ``__main__`` above.
FLOORS: dict[str, set[str]] = {
    "protocol": set(),
    "core": set(),
    "net": {"ctypes", "fcntl", "socket", "trio"},
    "engine": {"select", "trio"},
    "softtarget": {"fcntl", "select", "trio"},
    "status": {"prometheus_client", "rich", "select", "signal", "time", "trio"},
    "host": {"ctypes", "fcntl", "signal", "socket", "subprocess", "time"},
    "fuse": {"ctypes", "pyfuse3", "signal", "subprocess", "time", "trio"},
    "cli": {"rich", "select", "signal", "socket", "subprocess", "threading", "time", "trio"},
}
#: What counts as outside: other processes, sockets, clocks, and the libraries that stand for them.
WORLD = set().union(*FLOORS.values())


def _modules() -> dict[str, ast.Module]:
    """All modules by name, without the package's: ``protocol.wire``."""
    return {
        ".".join(file.relative_to(PACKAGE).with_suffix("").parts): ast.parse(file.read_text(), str(file))
        for file in sorted(PACKAGE.rglob("*.py"))
    }


MODULES = _modules()


def floor_of(module: str) -> int:
    package = module.split(".")[0]
    if package in FLOORS:
        return list(FLOORS).index(package)
    return len(FLOORS) if package == "__main__" else -1


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
    """Each dotted name that a module imports, and where; a package of ours stands for its ``__init__``."""
    for node in ast.walk(MODULES[module]):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"aoefs/{module}: imports name the package from its top"
            source = node.module or ""
            for alias in node.names:
                name = f"{source}.{alias.name}"
                yield (name if name.removeprefix("aoefs.") in MODULES else source), node


def own_imports(module: str, *, at_run_time: bool = False) -> set[str]:
    """The modules of aoefs that a module imports."""
    hidden = _type_checking_only(MODULES[module]) if at_run_time else set()
    names = {name.removeprefix("aoefs.") for name, node in imports(module) if node not in hidden and "aoefs" in name}
    return {name if name in MODULES else f"{name}.__init__" for name in names} - {"aoefs.__init__"}


def outer_imports(module: str) -> set[str]:
    return {name.split(".")[0] for name, _ in imports(module)} - {"aoefs"}


def test_there_are_no_other_packages_and_few_modules_beside_them() -> None:
    assert {path.name for path in PACKAGE.iterdir() if path.is_dir() and path.name != "__pycache__"} == set(FLOORS)
    assert {path.stem for path in PACKAGE.glob("*.py")} == {"__init__", "__main__", "errors"}


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_nothing_from_above_its_floor(module: str) -> None:
    above = {other for other in own_imports(module) if floor_of(other) > floor_of(module)}
    assert not above, f"aoefs/{module}.py reaches up to {', '.join(sorted(above))}"


@pytest.mark.parametrize("module", MODULES)
def test_a_module_touches_of_the_world_what_its_floor_may(module: str) -> None:
    allowed = FLOORS.get(module.split(".")[0], set())
    strange = outer_imports(module) & WORLD - allowed
    assert not strange, f"aoefs/{module}.py imports {', '.join(sorted(strange))}"


def test_nothing_is_imported_in_a_circle() -> None:
    graph = {module: own_imports(module, at_run_time=True) for module in MODULES}
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        pytest.fail(f"imports in a circle: {' → '.join(reversed(error.args[1]))}")


@pytest.mark.parametrize("package", FLOORS)
def test_each_floor_says_what_it_owns_what_it_may_import_and_where_to_begin(package: str) -> None:
    said = ast.get_docstring(MODULES[f"{package}.__init__"]) or ""
    assert 3 <= len(said.splitlines()) <= 12, f"aoefs/{package}/__init__.py"
    assert "Imports" in said
    assert "Begin" in said
