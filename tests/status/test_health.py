"""How well a mount is, as monitoring sees it, and what ``--interval`` counts; of the play of tests/status/records."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from aoefs.status.columns import Lane, intervals, lanes
from aoefs.status.health import Health, health
from aoefs.status.history import History
from tests.status.records import statuses


def mount(**states: str) -> dict[str, Any]:
    """A mount of targets in these states; ``degraded`` and ``conflict`` are up, but for that."""
    targets = []
    for name, state in states.items():
        paths = [{"healthy": True}, {"healthy": state != "degraded"}]
        conflict = "two disks answer" if state == "conflict" else ""
        up = "up" if state in ("degraded", "conflict") else state
        targets.append({"name": name, "state": up, "paths": paths, "conflict": conflict})
    return {"targets": targets}


@pytest.mark.parametrize(
    ("states", "grade", "text"),
    [
        ({"e0": "up"}, Health.OK, "1 target up"),
        ({"e0": "up", "e1": "flushing", "e2": "held"}, Health.OK, "3 targets up"),
        ({}, Health.WARNING, "no target answers yet"),
        ({"e0": "up", "e1": "degraded"}, Health.WARNING, "e1 has 1 of 2 paths"),
        ({"e0": "stalled", "e1": "suspended"}, Health.WARNING, "e0 is stalled, e1 is suspended"),
        ({"e0": "conflict"}, Health.WARNING, "e0 takes no writes: two disks answer"),
        ({"e0": "degraded", "e1": "down"}, Health.CRITICAL, "e1 is down, e0 has 1 of 2 paths"),
        ({"e0": "replaced"}, Health.CRITICAL, "e0 is replaced"),
    ],
)
def test_the_worst_target_decides_and_comes_first(states: dict[str, str], grade: Health, text: str) -> None:
    assert health(mount(**states)) == (grade, text)


def test_an_interval_has_the_rates_of_each_target_and_of_its_paths_below_it() -> None:
    history = History()
    for number, status in enumerate(statuses()):
        history.add(status, float(number))
    rows = [lane for target in history.targets.values() for lane in (Lane(target), *lanes(history, target))]
    names = [row.record.get("name", row.record.get("interface")) for row in rows]
    assert names[:3] == ["e0.0", "seg0", "e0.1"]
    cells = [{column.title: column.cell(row, column.width)[0].strip() for column in intervals()} for row in rows]
    assert (cells[0]["IOPS"], cells[0]["READ"], cells[0]["RESENT/s"]) == ("10", "640 KiB/s", "0")
    assert cells[1]["READ"] == "640 KiB/s"  # its only path carries it all
    assert (cells[1]["p99"], cells[1]["QUEUE"]) == ("", "")
    assert {row.share for row in rows if row.path is None} == {1.0}


def test_a_path_that_was_found_again_begins_a_trend_of_its_own() -> None:
    status = copy.deepcopy(statuses()[-1])
    history = History()
    history.add(status, 0.0)
    again = copy.deepcopy(status)
    again["targets"][0]["paths"][0].update(sent=0, answered=0)
    history.add(again, 1.0)
    path = again["targets"][0]["paths"][0]
    assert history.paths["e0.0", path["interface"], path["mac"]].per_second("answered") is None
