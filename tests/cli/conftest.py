"""What tests of commands share."""

from __future__ import annotations

import pytest

from aoefs.cli import main as cli
from tests.cli.inprocess import Result, Run, RunAt
from tests.lab import INITIATOR, Lab


@pytest.fixture
def run_at(capfd: pytest.CaptureFixture[str]) -> RunAt:
    """``run_at(lab)("ping", "e0.1")``: a command in this process, on the initiator's side of a lab."""

    def at(lab: Lab) -> Run:
        def run_command(*arguments: str) -> Result:
            with lab.inside(INITIATOR):
                code = cli.main([*arguments])
            said = capfd.readouterr()
            assert code == 0 or said.err.count("\n") <= 1, said.err
            return Result(code, said.out, said.err)

        return run_command

    return at
