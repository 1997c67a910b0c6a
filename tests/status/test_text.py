"""Text for people: what reaches a terminal, and how wide figures get."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aoefs.protocol.units import format_size
from aoefs.status.text import format_count, format_us, one_line, printable, sparkline, to_stderr


def test_nothing_from_the_network_is_obeyed_by_a_terminal() -> None:
    assert printable("a\x1b]0;x\x07\x9b1mÄ\u202e") == "a\\x1b]0;x\\x07\\x9b1mÄ\\x202e"


@given(st.text())
def test_whatever_the_text_one_printable_line_goes_to_stderr(text: str) -> None:
    assert printable(one_line(text)).isprintable()


def test_a_line_for_a_person_says_who_speaks(capsys: pytest.CaptureFixture[str]) -> None:
    to_stderr("e0.0 is\ncalled \x1b[2J")
    assert capsys.readouterr() == ("", "aoefs: e0.0 is called \\x1b[2J\n")


# ── figures ───────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "0.98 KiB"),
        (1024, "1.00 KiB"),
        (10 * 1024 - 1, "10.0 KiB"),
        (10 * 1024, "10.0 KiB"),
        (1023 << 20, "1.00 GiB"),
        (500 << 20, "500 MiB"),
        (1 << 57, "128 PiB"),
        (1 << 63, "8192 PiB"),
    ],
)
def test_sizes_have_three_digits_and_a_unit(size: int, text: str) -> None:
    assert format_size(size) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0"),
        (9999, "9999"),
        (9999.4, "9999"),
        (9999.5, "10.0k"),
        (12345, "12.3k"),
        (99949, "99.9k"),
        (99951, "100k"),
        (999499, "999k"),
        (999500, "1.0M"),
        (4.56e9, "4.6G"),
        (10**15, "1000T"),
    ],
)
def test_a_count_has_five_characters_at_most(count: float, text: str) -> None:
    assert format_count(count) == text
    assert len(text) <= 5


@pytest.mark.parametrize(
    ("microseconds", "text"),
    [
        (None, "-"),
        (0.0, "-"),
        (85.4, "85µs"),
        (999.4, "999µs"),
        (999.5, "1.00ms"),
        (12_340, "12.3ms"),
        (999_400, "999ms"),
        (999_500, "1.00s"),
        (123e6, "123s"),
    ],
)
def test_a_time_has_six_characters_at_most(microseconds: float | None, text: str) -> None:
    assert format_us(microseconds) == text


@given(st.floats(0, 1e15))
def test_figures_are_never_wider_than_their_columns(number: float) -> None:
    assert len(format_count(number)) <= 5
    assert len(format_us(min(number, 1e11))) <= 6 or number > 99e6


def test_a_graph_is_full_at_its_top_and_low_at_nothing() -> None:
    assert sparkline([0, 1, 50, 100], 6) == "  ▁▂▄▇"
    assert sparkline([0, 1, 50, 100], 6, 200.0) == "  ▁▂▃▄"
    assert sparkline([0, 0], 2) == "▁▁"
    assert sparkline([5, 0, 0], 2) == "▁▁"
    assert sparkline([1], 0) == ""
