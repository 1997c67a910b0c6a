"""The console of a mount, drawn from the statistics of a real engine: what it shows, and that it always fits."""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console

from aoefs.status import columns
from aoefs.status.columns import MEANINGS
from aoefs.status.console import KEYS, SORTS, View, draw, plain
from aoefs.status.history import History
from tests.status.records import statuses

SIZES = [(80, 24), (200, 50)]


def history_of(snapshots: Sequence[dict[str, Any]] | None = None) -> History:
    history = History()
    for number, status in enumerate(statuses() if snapshots is None else snapshots):
        history.add(status, float(number))
    return history


def many(count: int) -> History:
    """A mount of so many targets, in the states and with the loads of those of the play."""
    snapshots = []
    for status in statuses():
        targets = []
        for number in range(count):
            target = status["targets"][number % len(status["targets"])]
            where = {"name": f"e{number // 16}.{number % 16}", "shelf": number // 16, "slot": number % 16}
            targets.append({**target, **where, "read_bytes": target["read_bytes"] * (number + 1)})
        snapshots.append({**status, "targets": targets})
    return history_of(snapshots)


def drawn(
    history: History, width: int, height: int | None = None, view: View | None = None, *, notice: str = ""
) -> list[str]:
    """The lines as a terminal shows them, without colours; blanks at their ends are cut."""
    console = Console(width=width, height=height, color_system=None, force_terminal=True, legacy_windows=False)
    with console.capture() as capture:
        console.print(draw(history, view or View(), width, height, notice=notice), end="")
    return [line.rstrip() for line in capture.get().split("\n")]


def record_of(name: str) -> dict[str, Any]:
    """A target at the end of the play."""
    return next(target for target in statuses()[-1]["targets"] if target["name"] == name)


def words(text: str) -> list[str]:
    return text.split()


def rows(lines: Sequence[str], heading: str) -> list[list[str]]:
    """The words of the lines below a heading, up to the next blank line, heading or the footer."""
    start = next(number for number, line in enumerate(lines) if line.startswith(heading))
    found = []
    for line in lines[start + 1 :]:
        if not line or line.split()[0].rstrip("▲▼") in ("TARGET", "PATH", "SHARD", "LINK", "EVENT", "q"):
            break
        found.append(line.split())
    return found


# ── what it shows ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_at_80_columns_the_whole_mount_is_shown() -> None:
    lines = drawn(history_of(), 80, 24)
    assert lines[0].split()[:8] == ["aoefs", "/mnt/aoe", "4", "targets,", "1", "down,", "1", "degraded"]
    assert lines[1].split() == words("TARGET▲ STATE READ/s WRITE/s IOPS p50 p99 AVGQ ERR")
    targets = {row[0]: row for row in rows(lines, "TARGET")}
    assert targets["e0.0"][1:4] == ["up", "640", "KiB"]  # 10 reads of 64 KiB in the last second
    assert targets["e0.0"][4] == "▃▄▅▅▆▆▇"  # 4 to 10 reads a second
    assert targets["e0.1"][1:3] == ["up", "1/2"]
    assert targets["e0.2"][1] == "down"
    assert targets["e0.2"][-1] == str(record_of("e0.2")["errors"]) != "0"
    assert [row[:2] for row in rows(lines, "SHARD")] == [["0", "active"], ["1", "active"]]
    assert [row[:2] for row in rows(lines, "LINK")] == [["seg0", "up"], ["seg1", "up"]]
    assert "e0.2 is down: not one answer for 3 s" in " ".join(rows(lines, "EVENT")[0])
    assert lines[-1] == " q quits  sort by Name▲ State siZe Read Write Iops Latency Errors  ? help"


def test_at_200_columns_nothing_is_left_out() -> None:
    lines = drawn(history_of(), 200, 50)
    assert lines[1].split() == (
        words("TARGET▲ STATE SIZE MODEL SERIAL READ/s WRITE/s IOPS p50 p99 r-p99 w-p99 UTIL AVGQ QUEUE RTT RESENT ERR")
    )
    target = next(row for row in rows(lines, "TARGET") if row[0] == "e0.1")
    assert target[-2:] == [str(record_of("e0.1")["retransmits"]), "0"]
    assert target[-2] != "0"
    paths = {(row[0], row[2]): row for row in rows(lines, "PATH")}
    assert [paths["e0.1", link][1] for link in ("seg0", "seg1")] == ["ok", "silent"]
    assert paths["e0.0", "seg0"][1:8] == ["ok", "seg0", "02:aa:00:00:00:00", "640", "KiB/s", "0", "1024"]


def test_a_path_in_trouble_comes_first_however_little_room_there_is() -> None:
    paths = rows(drawn(many(40), 80, 24), "PATH")
    assert paths[0][1] == "silent"


def test_a_target_that_is_down_has_no_good_path() -> None:
    paths = [row for row in rows(drawn(history_of(), 200, 50), "PATH") if row[0] == "e0.2"]
    assert [row[1] for row in paths] == ["silent"]


def test_the_last_events_come_first() -> None:
    status = copy.deepcopy(statuses()[-1])
    status["events"] = [{"time": 1.7e9 + n, "level": "info", "text": f"event {n}"} for n in range(50)]
    shown = [row[-1] for row in rows(drawn(history_of([status]), 80, 24), "EVENT")]
    assert shown[:2] == ["49", "48"]
    assert shown[-1] == "more"


def test_a_mount_without_targets_and_events_says_so() -> None:
    status = {**statuses()[-1], "targets": [], "events": []}
    del status["events"]
    lines = drawn(history_of([status]), 80, 24)
    assert lines[0].split() == ["aoefs", "/mnt/aoe", "0", "targets"]
    assert lines[2] == "no target answers yet"
    assert not [line for line in lines if line.startswith(("PATH", "EVENT"))]


def test_a_notice_is_in_the_first_line() -> None:
    for width in (80, 200):
        assert "no answer for 7 s" in drawn(history_of(), width, 24, notice="no answer for 7 s")[0]


def test_leaving_that_ends_the_mount_is_announced() -> None:
    assert drawn(history_of(), 80, 24, View(ends_mount=True))[-1].startswith(" q ends the mount ")


def test_text_from_the_network_cannot_command_the_terminal() -> None:
    status = copy.deepcopy(statuses()[-1])
    status["targets"][0]["model"] = "\x1b[2Jgone\r\n"
    status["events"] = [{"time": 0, "level": "info", "text": "\x1b]0;title\x07\x9b2J"}]
    text = "".join(drawn(history_of([status]), 200, 50))
    assert r"\x1b[2Jgone\x0d\x0a" in text
    assert r"\x1b]0;title\x07\x9b2J" in text
    assert not [char for char in text if not char.isprintable()]


# ── that it fits ──────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("targets", [0, 1, 4, 36, 1000])
@pytest.mark.parametrize(("width", "height"), SIZES)
def test_a_screen_has_exactly_the_size_of_the_screen(targets: int, width: int, height: int) -> None:
    lines = drawn(many(targets), width, height)
    assert len(lines) == height
    assert max(map(cell_len, lines)) <= width


@given(
    width=st.integers(1, 250),
    height=st.integers(1, 70),
    targets=st.sampled_from([0, 1, 4, 36]),
    sort=st.sampled_from(sorted(SORTS)),
)
def test_no_screen_is_too_small(width: int, height: int, targets: int, sort: str) -> None:
    lines = drawn(many(targets), width, height, View(sort=sort))
    assert len(lines) == height
    assert max(map(cell_len, lines)) <= width


def test_wide_characters_count_as_the_two_cells_that_they_take() -> None:
    status = copy.deepcopy(statuses()[-1])
    status["targets"][0]["model"] = "磁碟機" * 20
    for width in range(80, 200):
        assert max(map(cell_len, drawn(history_of([status]), width, 24))) <= width


def test_figures_stay_in_their_place_whatever_they_are() -> None:
    snapshots = statuses()
    first, last = (drawn(history_of(snapshots[:number]), 80, 24)[2] for number in (2, 11))
    assert first.index("KiB") == last.index("KiB")
    assert len(first) == len(last) == 80


@pytest.mark.parametrize(("height", "seen"), [(6, 2), (12, 5), (24, 11), (44, 27)])
def test_more_targets_than_lines_are_counted(height: int, seen: int) -> None:
    lines = drawn(many(36), 80, height)
    assert len([row for row in rows(lines, "TARGET") if row[0] != "…"]) == seen
    assert f"… and {36 - seen} more" in lines


# ── what keys do ──────────────────────────────────────────────────────────────────────────────────────────────────


def names(history: History, view: View, height: int = 24) -> list[str]:
    return [row[0] for row in rows(drawn(history, 80, height, view), "TARGET") if row[0] != "…"]


@pytest.mark.parametrize(
    ("key", "first"),
    [
        ("n", "e0.0"),
        ("r", "e0.0"),
        ("W", "e0.1"),
        ("s", "e0.2"),
        ("e", "e0.2"),
        ("i", "e0.0"),
        ("z", "e0.0"),
        ("l", "e0.0"),
    ],
)
def test_a_key_sorts_and_the_same_key_turns_the_order_round(key: str, first: str) -> None:
    history, view = history_of(), View()
    if key != "n":
        view.press(key)
    order = names(history, view)
    assert order[0] == first
    view.press(key)
    assert [SORTS[key.lower()].value(history.targets[name]) for name in names(history, view)] == [
        SORTS[key.lower()].value(history.targets[name]) for name in reversed(order)
    ]


def test_names_are_sorted_by_their_numbers() -> None:
    assert names(many(40), View())[:3] == ["e0.0", "e0.1", "e0.2"]
    view = View()
    view.press("n")
    assert names(many(40), view)[0] == "e2.7"


def test_sorting_decides_which_of_many_targets_are_seen() -> None:
    view = View(sort="r")
    assert names(many(1000), view)[0] == "e62.4"  # the largest multiple of what e0.0 reads
    assert all(name in names(many(1000), View(sort="s")) for name in ("e0.2", "e0.6"))


def test_the_list_scrolls_and_stops_at_its_ends() -> None:
    history, view = many(36), View()
    page = len(names(history, view))
    view.press("up")
    assert names(history, view)[0] == "e0.0"
    view.press("down")
    assert names(history, view)[0] == "e0.1"
    view.press("page down")
    assert names(history, view)[0] == f"e0.{page + 1}"
    view.press("end")
    assert names(history, view)[-1] == "e2.3"
    assert f"… and {36 - page} more ({36 - page} above)" in drawn(history, 80, 24, view)
    view.press("page up")
    view.press("home")
    assert names(history, view)[0] == "e0.0"
    view.press("F1")
    assert names(history, view)[0] == "e0.0"


def test_a_list_that_fits_does_not_scroll() -> None:
    history, view = history_of(), View()
    view.press("end")
    assert names(history, view) == ["e0.0", "e0.1", "e0.2", "e5.14"]


def test_graphs_have_one_scale_for_their_column_and_rows_do_not_fuse() -> None:
    lines = drawn(many(40), 120, 40)
    reads = {row[0]: row[6] for row in rows(lines, "TARGET") if row[0] in ("e0.0", "e0.4", "e0.8")}
    assert max(reads["e0.0"]) <= max(reads["e0.4"]) <= max(reads["e0.8"]) < "▇"  # e1.4 and others read more
    assert "█" not in "".join(lines)


def test_the_space_bar_pauses_and_the_title_says_so() -> None:
    view = View()
    view.press(" ")
    assert view.paused
    assert "paused: the space bar goes on" in drawn(history_of(), 120, 40, view)[0]
    view.press(" ")
    assert not view.paused


@pytest.mark.parametrize(("width", "height"), [(80, 24), (120, 40), (200, 50)])
def test_the_help_explains_every_column_and_key_at_any_size(width: int, height: int) -> None:
    view, seen = View(), set[str]()
    view.press("?")
    for _ in range(10):
        lines = drawn(history_of(), width, height, view)
        assert len(lines) == height
        seen.update(line[:21].strip() for line in lines[2:])
        assert not [line for line in lines[2:-1] if line.endswith("…")]
        view.press("page down")
    assert {*KEYS, *MEANINGS} <= seen
    view.press("x")
    assert drawn(history_of(), width, height, view)[1].startswith("TARGET")


def test_every_column_of_every_table_has_its_meaning() -> None:
    history, live = history_of(), [True, False]
    tables: list[Any] = [columns.intervals(), *(table for each in live for table in (columns.targets(history, each),))]
    tables += [
        table for each in live for table in (columns.paths(each), columns.shards(each, True), columns.links(each))
    ]
    tables += [columns.workers(each) for each in live]
    known = {word.removesuffix("/s") for key in MEANINGS for word in key.split(", ")}
    known |= {"DONE", "COMPLETED", "BATCHES", "LONGEST", "MAC", "MTU", "READ", "WRITE", ""}
    titles = {
        column.title.removesuffix("/s").removeprefix("r-").removeprefix("w-") for table in tables for column in table
    }
    assert titles <= known


def test_enter_shows_one_target_and_arrows_go_to_the_next() -> None:
    history, view = history_of(), View()
    view.press("\n")
    lines = drawn(history, 120, 40, view)
    assert [row[0] for row in rows(lines, "TARGET") if row and row[0].startswith("e")] == ["e0.0"]
    text = "\n".join(lines)
    assert re.search(r"^serial +serial e0\.0$", text, re.MULTILINE)
    assert re.search(r"^ *LATENCY +READS +WRITES$", text, re.MULTILINE)
    assert re.search(r"^ *< 1\.02ms +55 ▇+ +0$", text, re.MULTILINE)
    assert "EVENT" not in text  # none is about it
    view.press("down")
    view.press("down")
    text = "\n".join(drawn(history, 120, 40, view))
    assert re.search(r"^e0\.2 +down", text, re.MULTILINE)
    assert "e0.2 is down: not one answer for 3 s" in text
    view.press("\n")
    assert names(history, view, 40) == ["e0.0", "e0.1", "e0.2", "e5.14"]


def test_the_title_has_the_use_of_the_processor_uptime_and_the_clock() -> None:
    snapshots = [
        {**status, "time": 1.7e9 + number, "uptime_seconds": 3 * 86400.0 + 7300 + number, "cpu_seconds": number * 0.25}
        for number, status in enumerate(statuses())
    ]
    title = drawn(history_of(snapshots), 120, 40)[0]
    assert re.search(r"cpu  25 %  up 3 d 2 h  \d\d:\d\d:\d\d", title)


@pytest.mark.parametrize("count", [1, 5, 40])
@pytest.mark.parametrize(("width", "height"), [(80, 24), (120, 40)])
def test_workers_are_shown_with_their_use_of_the_processor(count: int, width: int, height: int) -> None:
    history = History()
    for second, status in enumerate(statuses()):
        targets = [{**status["targets"][0], "name": f"e0.{number}"} for number in range(count)]
        workers = [
            {"id": number, "pid": 100 + number, "targets": [each["name"] for each in targets[number::3]]}
            | {"cpu_seconds": second * 0.25 * number, "restarts": number}
            for number in range(3)
        ]
        shards = [{**shard, "worker": 2} for shard in status["shards"]]
        history.add({**status, "targets": targets, "workers": workers, "shards": shards}, float(second))
    lines = drawn(history, width, height)
    assert max(map(cell_len, lines)) <= width
    assert len(lines) == height
    start = next(number for number, line in enumerate(lines) if line.startswith("WORKER"))
    assert words(lines[start])[:5] == ["WORKER", "PID", "CPU", "RESTARTS", "TARGETS"]
    for number, line in enumerate(lines[start + 1 : start + 4]):
        names = [f"e0.{each}" for each in range(number, count, 3)]
        assert words(line)[:5] == [str(number), str(100 + number), f"{25 * number}%", str(number), str(len(names))]
        assert words(line)[5:6] == names[:1]
    printed = {titles[0]: (titles, rows) for titles, rows in plain(history)}
    assert printed["worker"][1][2][:5] == ["2", "102", "5.0s", "2", str(len(range(2, count, 3)))]
    titles, rows = printed["shard"]
    assert {row[titles.index("worker")] for row in rows} == {"2"}


def test_one_process_has_no_table_of_workers() -> None:
    alone = [{**status, "workers": [{"id": 0, "pid": 1, "targets": [], "cpu_seconds": 1.0}]} for status in statuses()]
    assert drawn(history_of(alone), 120, 40) == drawn(history_of(), 120, 40)


def test_shards_are_shown_only_where_nothing_else_needs_the_room() -> None:
    assert [line for line in drawn(history_of(), 80, 24) if line.startswith("SHARD")]
    assert not [line for line in drawn(many(40), 120, 40) if line.startswith("SHARD")]


# ── a single printout ─────────────────────────────────────────────────────────────────────────────────────────────


def test_a_single_printout_has_totals_in_place_of_rates_and_all_rows() -> None:
    lines = drawn(history_of(statuses()[-1:]), 80)
    assert lines[1].split() == words("TARGET▲ STATE SIZE READ WRITE p50 p99 FLIGHT RESENT ERR")
    assert rows(lines, "TARGET")[0][:6] == ["e0.0", "up", "256", "KiB", "3.44", "MiB"]
    assert not [line for line in lines if "quits" in line or "more" in line]


def test_plain_tables_have_every_column_and_no_graph() -> None:
    tables = list(plain(history_of(statuses()[-1:])))
    assert [titles[0] for titles, _ in tables] == ["target", "path", "shard", "link", "event"]
    titles, cells = tables[0]
    first = dict(zip(titles, cells[0], strict=True))
    assert first["target"] == "e0.0"
    assert first["serial"] == "serial e0.0"
    assert first["read"] == "3.44 MiB"
    assert "iops" not in first
    assert not set("".join(map("".join, cells))) & set("▁▂▃▄▅▆▇")
