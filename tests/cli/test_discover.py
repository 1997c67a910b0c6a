"""``aoefs discover``: the table, the JSON and the lines for those that cannot be used."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence

import pytest

from aoefs.cli import main as cli
from aoefs.cli.commands.discover import table_row
from tests.lab import COMMANDS, INITIATOR, TARGET, Lab, wait_until
from tests.lab.forwarder import Wire


def target(name: str, config: str = "") -> dict[str, object]:
    paths = [
        {"interface": interface, "mac": "02:00:00:00:00:01", "bufcnt": 16, "sectors": sectors}
        for interface, sectors in (("aoe0", 2), ("aoe1", 17), ("aoe0", 2))
    ]
    text = {"model": "M", "serial": "S", "firmware": "F", "config": config, "state": "up"}
    return {"name": name, "shelf": 0, "slot": 0, "size": 10 << 30, **text, "paths": paths}


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, object]]:
    """The targets that answer; nothing is sent."""
    found: list[dict[str, object]] = []

    def discover_once(names: Sequence[str], wait: float) -> list[dict[str, object]]:
        assert (names, wait) == (["aoe0"], 0.5)
        return found

    monkeypatch.setattr("aoefs.cli.commands.discover.discover_once", discover_once)
    return found


def discover(lab: Lab, *arguments: str) -> int:
    with lab.inside(INITIATOR):
        return cli.main(["discover", "-i", "aoe0", "--timeout", "0.5", *arguments])


def test_discover_lists_what_answers(
    lab: Lab, answers: list[dict[str, object]], capsys: pytest.CaptureFixture[str]
) -> None:
    answers += [target("e0.0", "any\x1b[31m thing"), target("e1.10")]
    assert discover(lab) == 0
    assert capsys.readouterr().out.splitlines() == [
        "name   size      model  serial  interfaces  payload    state  config",
        "e0.0   10.0 GiB  M      S       aoe0,aoe1   1024/8704  up     any\\x1b[31m thing",
        "e1.10  10.0 GiB  M      S       aoe0,aoe1   1024/8704  up",
    ]
    assert discover(lab, "--json") == 0
    assert json.loads(capsys.readouterr().out) == answers


def test_discover_lists_who_answers_without_being_a_disk_and_says_why(
    lab: Lab, answers: list[dict[str, object]], capsys: pytest.CaptureFixture[str]
) -> None:
    path = {"interface": "aoe0", "mac": "02:00:00:00:00:01", "bufcnt": 16, "sectors": 2}
    stranger = {**target("e1.1"), "size": None, "model": "", "serial": "", "state": "no answer", "paths": [path]}
    answers += [target("e0.0"), {**stranger, "reason": "a mask\x1b[2J may leave this host out"}]
    assert discover(lab) == 0
    captured = capsys.readouterr()
    assert captured.out.splitlines()[2].split() == ["e1.1", "aoe0", "1024", "no", "answer"]
    assert captured.err == "aoefs: e1.1 (02:00:00:00:00:01 on aoe0): a mask\\x1b[2J may leave this host out\n"


def test_a_dead_path_shows_in_the_table() -> None:
    ways = (("aoe0", True), ("aoe1", False), ("aoe2", True), ("aoe2", False), ("aoe2", False))
    paths = [{"interface": name, "sectors": 2, "healthy": healthy} for name, healthy in ways]
    assert table_row({**target("e0.0"), "paths": paths})[4] == "aoe0,aoe1(dead),aoe2(2 of 3 dead)"


def test_discover_without_any_answer_says_what_to_check(
    lab: Lab, answers: list[dict[str, object]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert discover(lab, "--json") == 1
    captured = capsys.readouterr()
    assert captured.out == "[]\n"
    assert captured.err.startswith("aoefs: no target answered on aoe0 within 0.5 s: check the cable")
    assert captured.err.count("\n") == 1


def test_a_target_whose_first_queries_were_lost_is_found_within_the_timeout(lab: Lab) -> None:
    lab.add_side("far")
    with contextlib.closing(Wire(lab, INITIATOR, "far")) as wire:
        lab.target(f"0.0={lab.image('near', 1 << 20, seed=None)}", side=TARGET)
        lab.target(f"0.1={lab.image('far', 1 << 20, seed=None)}", side="far")
        wire.faults(loss=1.0)
        links = ["-i", "aoe0", "-i", wire.left]
        discover = lab.popen(INITIATOR, [COMMANDS / "aoefs", "discover", "--json", "--timeout", "5", *links])
        wait_until(lambda: discover.poll() is not None or wire.report()["out"].lost >= 3, what="queries are lost")
        wire.faults()
        assert discover.wait(30) == 0
    assert [found["name"] for found in json.loads(discover.output)] == ["e0.0", "e0.1"]
