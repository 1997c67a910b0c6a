"""The figures of ``aoefs ping``, in memory that does not grow."""

from __future__ import annotations

import dataclasses
import random
import statistics
import sys

import pytest

from aoefs.cli.commands.ping import Tally
from tests.cli.inprocess import RunAt
from tests.lab import INITIATOR, Lab


def test_the_summary_counts_what_was_decided() -> None:
    assert Tally().summary("e0.0") == "--- e0.0 ---\n0 sent, 0 answered, 0% lost"
    tally = Tally(sent=8, errors=1, duplicates=2)
    for seconds in (0.001, 0.002, 0.003):
        tally.add(seconds)
    assert tally.summary("e0.0").splitlines()[1:] == [
        "8 sent, 3 answered, 1 refused, 2 duplicate, 50% lost",
        "min/avg/max/stddev = 1.000/2.000/3.000/0.816 ms",
    ]


@pytest.mark.parametrize("base", [0.0001, 1000.0])  # far from 0, sums of squares would lose the deviation
def test_ten_thousand_answers_are_kept_as_a_few_numbers_that_agree_with_statistics(base: float) -> None:
    chance = random.Random(9)
    times = [base + chance.expovariate(1000) for _ in range(10_000)]
    tally = Tally(sent=len(times))
    for seconds in times:
        tally.add(seconds)
    kept = [getattr(tally, field.name) for field in dataclasses.fields(tally)]
    assert all(type(value) in (int, float) for value in kept), kept
    assert sum(map(sys.getsizeof, kept)) < 1000
    figures = (min(times), statistics.fmean(times), max(times), statistics.pstdev(times))
    expected = "/".join(f"{1000 * figure:.3f}" for figure in figures)
    assert tally.summary("e0.0").splitlines()[-1] == f"min/avg/max/stddev = {expected} ms"


def test_one_answer_has_no_deviation() -> None:
    tally = Tally(sent=1)
    tally.add(0.0125)
    assert tally.summary("e0.0").endswith("min/avg/max/stddev = 12.500/12.500/12.500/0.000 ms")


def test_the_name_of_an_interface_does_not_command_the_terminal(lab: Lab, run_at: RunAt) -> None:
    lab.target(f"0.0={lab.image('disk', 1 << 20)}")
    lab.ip(INITIATOR, "link", "set", "aoe0", "down")
    lab.ip(INITIATOR, "link", "set", "aoe0", "name", "a\x1b[2J")
    lab.ip(INITIATOR, "link", "set", "a\x1b[2J", "up")
    answer = run_at(lab)("ping", "0.0", "-c", "1", "-i", "a\x1b[2J")
    assert answer.code == 0
    assert answer.out.splitlines()[0] == "PING e0.0 on a\\x1b[2J: config queries"
    assert "\x1b" not in answer.out + answer.err
