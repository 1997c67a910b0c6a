"""A request's bits, and how a run cuts a request into commands."""

from __future__ import annotations

from typing import cast

from hypothesis import given
from hypothesis import strategies as st

from aoefs.core.link import Link
from aoefs.core.path import Path
from aoefs.core.request import Request, Run, bits
from aoefs.errors import TargetLost
from aoefs.protocol.wire import Address

PATH = Path(cast(Link, object()), "eth0", Address(0, 0), (bytes(6), bytes(6)), 2, 16)


def request(sectors: int = 8) -> Request:
    return Request(0, sectors, memoryview(bytearray(sectors * 512)), write=False, on_end=lambda _request: None)


def test_bits_are_a_row_of_ones() -> None:
    assert bits(0, 0) == 0
    assert bits(0, 3) == 0b111
    assert bits(2, 3) == 0b11100


def test_a_new_request_waits_for_each_of_its_sectors() -> None:
    made = request(5)
    assert made.todo == 0b11111
    assert not made.ended


def test_a_request_ended_with_its_last_sector_or_with_an_error() -> None:
    made = request()
    made.todo = 0
    assert made.ended
    made = request()
    made.error = TargetLost("gone")
    assert made.ended


@given(st.integers(1, 600), st.integers(1, 64), st.integers(0, 50))
def test_the_commands_of_a_run_cover_its_sectors_once_in_order(sectors: int, step: int, sector: int) -> None:
    run = Run(request(), PATH, sector, sectors, step, 0.0)
    pieces = [run.sectors_of(index, 1) for index in range(run.count)]
    assert [first + index for first, count in pieces for index in range(count)] == [*range(sector, sector + sectors)]
    assert all(1 <= count <= step for _, count in pieces)
    assert run.flying == bits(0, run.count)


@given(st.integers(1, 100), st.integers(1, 20), st.data())
def test_the_sectors_of_several_commands_are_those_of_each(sectors: int, step: int, data: st.DataObject) -> None:
    run = Run(request(), PATH, 3, sectors, step, 0.0)
    first = data.draw(st.integers(0, run.count - 1))
    count = data.draw(st.integers(1, run.count - first))
    start, total = run.sectors_of(first, count)
    single = [run.sectors_of(index, 1) for index in range(first, first + count)]
    assert start == single[0][0]
    assert total == sum(size for _, size in single)


def test_a_late_answer_of_another_size_lands_all_of_its_sectors() -> None:
    """Sent as one command of four sectors, then again as four of one: the first small answer must not keep it out."""
    buffer = bytearray(4 * 512)
    request = Request(0, 4, memoryview(buffer), write=False, on_end=lambda _request: None)
    request.land(0, b"a" * 512)
    request.todo &= ~1
    request.land(0, b"b" * 2048)
    assert buffer == b"b" * 2048


def test_nothing_lands_after_the_end() -> None:
    buffer = bytearray(512)
    request = Request(0, 1, memoryview(buffer), write=False, on_end=lambda _request: None)
    request.todo = 0
    request.land(0, b"x" * 512)
    assert buffer == bytes(512)
