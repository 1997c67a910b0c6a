"""Tables of commands, in a pipe and on a terminal."""

from __future__ import annotations

import re
import sys

import pytest

from aoefs.status.tables import print_table


def test_in_a_pipe_the_columns_are_aligned_and_the_cells_printable(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(("name", "model", "state"), [["e0.0", "a\x1b[2J", "up"], ["e10.10", "", "down"]])
    assert capsys.readouterr().out.splitlines() == [
        "name    model     state",
        "e0.0    a\\x1b[2J  up",
        "e10.10            down",
    ]


def test_on_a_terminal_the_table_fits_and_markup_stays_text(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "1")
    print_table(("name", "config"), [["e0.0", "[red]x[/red] " + "long " * 12]])
    lines = re.sub(r"\x1b\[\d*m", "", capsys.readouterr().out).splitlines()
    assert max(map(len, lines)) <= 40
    assert "[red]x[/red]" in lines[1]
