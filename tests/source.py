"""A module of aoefs from its source, even if it is compiled: a compiled class takes no stand-ins of other classes."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import aoefs


def from_source(name: str) -> Any:
    """``name`` within the package, such as ``engine.timer``; what it imports is as it is installed."""
    alias = f"source of {name}"
    if alias not in sys.modules:
        path = Path(aoefs.__file__).parent.joinpath(*name.split(".")).with_suffix(".py")
        spec = importlib.util.spec_from_file_location(alias, path)
        assert spec is not None
        assert spec.loader is not None
        sys.modules[alias] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[alias])
    return sys.modules[alias]
