"""Columns and sections that share too little room."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.style import Style

from aoefs.status import columns, console, layout
from aoefs.status.layout import Column, Section, allot, fit, row_line

NAME: Column[str] = Column("NAME", lambda row, _: (row, ""), width=4, most=8, rank=0, left=True)
SIZE: Column[str] = Column("SIZE", lambda row, _: (str(len(row)), ""), width=4, rank=1)
NOTE: Column[str] = Column("NOTE", lambda row, _: ("-", ""), width=4, most=6, rank=2)


def section(rows: int, *, least: int, rank: int) -> Section[str]:
    return Section([NAME], [f"row {number}" for number in range(rows)], least=least, rank=rank)


@pytest.mark.parametrize(
    ("width", "fitted"),
    [
        (3, [("NAME", 4)]),  # one that stays
        (8, [("NAME", 8)]),
        (9, [("NAME", 4), ("SIZE", 4)]),
        (14, [("NAME", 4), ("SIZE", 4), ("NOTE", 4)]),
        (17, [("NAME", 5), ("SIZE", 4), ("NOTE", 6)]),
        (99, [("NAME", 8), ("SIZE", 4), ("NOTE", 6)]),
    ],
)
def test_columns_of_high_rank_go_first_and_the_rest_grows(width: int, fitted: list[tuple[str, int]]) -> None:
    assert [(column.title, room) for column, room in fit([NAME, SIZE, NOTE], width)] == fitted


@given(st.text(), st.integers(1, 40))
def test_whatever_the_row_its_line_is_printable_and_has_its_width(text: str, width: int) -> None:
    line = row_line(fit([NAME, SIZE, NOTE], width), text, width)
    assert line.cell_len == width
    assert line.plain.isprintable()


def test_a_text_that_does_not_fit_ends_with_a_mark() -> None:
    assert row_line([(NAME, 4), (SIZE, 4)], "a long name", 9).plain == "a l…   11"


@pytest.mark.parametrize(
    ("room", "sizes"),
    [
        (0, [0, 0]),
        (2, [1, 0]),  # a heading and a row of the most important one
        (4, [3, 0]),
        (6, [5, 0]),
        (7, [3, 2]),
        (9, [5, 2]),
        (99, [9, 5]),
    ],
)
def test_sections_get_their_least_by_rank_and_then_more_from_the_top(room: int, sizes: list[int]) -> None:
    first, second = section(9, least=3, rank=0), section(5, least=2, rank=1)
    allot([first, second], room)
    assert [first.size, second.size] == sizes


def test_a_section_with_too_little_room_says_how_many_rows_are_left_out() -> None:
    made = section(9, least=3, rank=0)
    allot([made], 4)
    made.offset = 2
    lines = [line.plain.rstrip() for line in made.lines(30, {"NAME": "▲"})]
    assert lines == ["NAME▲", "row 2", "row 3", "… and 7 more (2 above)"]


def test_a_section_without_rows_says_so_or_takes_no_room() -> None:
    empty, noted = section(0, least=3, rank=0), Section([NAME], [], least=3, rank=1, none="no rows yet")
    allot([empty, noted], 10)
    assert empty.size == 0
    assert [line.plain.rstrip() for line in noted.lines(20, {})] == ["NAME", "no rows yet"]


# ── colours ───────────────────────────────────────────────────────────────────────────────────────────────────────


def luminance(colour: Sequence[int]) -> float:
    """As WCAG 2 defines it."""
    parts = [value / 255 / 12.92 if value <= 10 else ((value / 255 + 0.055) / 1.055) ** 2.4 for value in colour]
    return sum(share * part for share, part in zip((0.2126, 0.7152, 0.0722), parts, strict=True))


def contrast(one: Sequence[int], other: Sequence[int]) -> float:
    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize(
    "name", ["GOOD", "BAD", "NOTE", "QUIET", "ACCENT", "HEADING", "MARK", "READ", "WRITE", "TITLE", "ALARM"]
)
def test_every_colour_is_legible_in_a_light_and_in_a_dark_terminal(name: str) -> None:
    [text] = {getattr(module, name) for module in (layout, columns, console) if hasattr(module, name)}
    style = Style.parse(text)
    assert style.color is not None
    assert style.color.number is not None
    assert style.color.number >= 16, "themes change the first 16 colours"
    grounds: list[Sequence[int]] = (
        [(0, 0, 0), (255, 255, 255)] if style.bgcolor is None else [style.bgcolor.get_truecolor()]
    )
    for ground in grounds:
        assert contrast(style.color.get_truecolor(), ground) >= 3.8
