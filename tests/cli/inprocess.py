"""Commands in this process, on the initiator's side of a lab."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tests.lab import Lab


@dataclass
class Result:
    code: int
    out: str
    err: str


Run = Callable[..., Result]
RunAt = Callable[[Lab], Run]
