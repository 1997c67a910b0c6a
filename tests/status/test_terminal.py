"""Keys as terminals send them; the rest of the terminal is driven in tmux (tests/mount/test_console.py)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aoefs.status.terminal import keys


@pytest.mark.parametrize(
    ("typed", "names"),
    [
        ("q", ["q"]),
        ("rw", ["r", "w"]),
        ("\x1b[A\x1b[B", ["up", "down"]),
        ("\x1bOA\x1bOB", ["up", "down"]),  # application mode
        ("\x1b[5~\x1b[6~", ["page up", "page down"]),
        ("\x1b[H\x1b[F\x1b[1~\x1b[4~", ["home", "end", "home", "end"]),
        ("\x1b[15~q", ["q"]),  # F5
        ("\x1b[1;5A", []),  # Ctrl-up
        ("\x1b", []),
        ("ä", ["ä"]),
    ],
)
def test_sequences_are_keys_with_names_and_unknown_ones_are_nothing(typed: str, names: list[str]) -> None:
    assert keys(typed) == names


@given(st.text())
def test_whatever_is_typed_becomes_letters_or_names(typed: str) -> None:
    named = {"up", "down", "home", "end", "page up", "page down"}
    assert all(len(key) == 1 or key in named for key in keys(typed))
