"""How well a mount is, in a word and a line: for ``aoefs status`` of all mounts, and for monitoring.

Pure: a status (the object of ``.aoefs/status.json``) in.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator, Mapping
from typing import Any


class Health(enum.IntEnum):
    """The exit codes of ``aoefs status --check``."""

    OK = 0
    WARNING = 1
    CRITICAL = 2


def degraded_paths(target: Mapping[str, Any]) -> int:
    return sum(not path.get("healthy", True) for path in target["paths"])


def _problems(status: Mapping[str, Any]) -> Iterator[tuple[Health, str]]:
    for target in status["targets"]:
        name, state, count = target["name"], target["state"], len(target["paths"])
        if state in ("down", "replaced"):
            yield Health.CRITICAL, f"{name} is {state}"
        elif state in ("stalled", "suspended"):
            yield Health.WARNING, f"{name} is {state}"
        elif target.get("conflict"):
            yield Health.WARNING, f"{name} takes no writes: {target['conflict']}"
        elif degraded := degraded_paths(target):
            yield Health.WARNING, f"{name} has {count - degraded} of {count} paths"
    if not status["targets"]:
        yield Health.WARNING, "no target answers yet"


def health(status: Mapping[str, Any]) -> tuple[Health, str]:
    """The worst problem's grade, and all problems in one line, the worst first; ``4 targets up`` if there is none."""
    problems = sorted(_problems(status), key=lambda problem: -problem[0])
    if problems:
        return problems[0][0], ", ".join(text for _, text in problems)
    count = len(status["targets"])
    return Health.OK, f"{count} target{'s' * (count != 1)} up"
