"""Some thousand random inputs for each decoder and the control files; ``tests.hostile.fuzz`` feeds a million."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import aoefs
from tests.hostile.fuzz import COVERED, PARTS, fuzz

INPUTS = 2400
FEW = {"claims": 480}  # each of its examples waits for a fifth of a second


@pytest.mark.parametrize("part", PARTS)
def test_any_bytes_are_decoded_or_refused(part: str, caplog: pytest.LogCaptureFixture) -> None:
    inputs = FEW.get(part, INPUTS)
    assert fuzz(part, inputs) >= inputs // 2
    caplog.clear()  # what it warns of depends on the bytes


def test_each_decoder_of_foreign_bytes_is_fed() -> None:
    found = {
        node.name
        for source in Path(aoefs.__file__).parent.rglob("*.py")
        for node in ast.walk(ast.parse(source.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.endswith("_untrusted")
    }
    assert found == set(COVERED)
    assert set(COVERED.values()) <= set(PARTS)
