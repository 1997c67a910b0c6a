"""The memory of requests: when a read gets it, how long it is kept, how targets share it."""

from __future__ import annotations

import random
import weakref
from typing import cast

import pytest

from aoefs.core.link import Link
from aoefs.core.lonecommand import LoneCommand
from aoefs.core.request import Memory, Request, Run
from aoefs.core.tags import TagTable
from aoefs.core.target import Target
from aoefs.errors import TargetLost
from aoefs.protocol.ata import Identity
from aoefs.protocol.wire import Address
from tests.core.targets import answer, drain, pair


def test_a_read_gets_its_memory_when_its_first_command_goes_out() -> None:
    made = pair(bufcnt=4)
    asked: list[int] = []
    requests = []
    for number in range(2):

        def make(number: int = number) -> memoryview:
            asked.append(number)
            return memoryview(bytearray(8 * 512))

        request = Request(8 * number, 8, make, write=False, on_end=lambda _request: None)
        requests.append(request)
        made.target.submit(request, 0.0)
    made.target.paths[0].window.size = 4
    (first,) = drain(made.target, 0.0)
    assert asked == [0]
    memory = requests[0].buffer
    answer(made.target, first, 0.001)
    assert requests[0].take_result() is memory
    drain(made.target, 0.001)
    assert asked == [0, 1]


@pytest.mark.parametrize("write", [False, True])
def test_a_request_that_ended_keeps_no_memory_however_long_late_answers_to_it_may_come(write: bool) -> None:
    class Memory(bytearray):
        """Can be referred to weakly."""

    made = pair(bufcnt=4)
    memory = Memory(8 * 512)
    alive = weakref.ref(memory)
    buffers = [memoryview(memory)]
    buffer = buffers.pop() if write else buffers.pop
    request = Request(0, 8, buffer, write=write, on_end=lambda _request: None)
    made.target.submit(request, 0.0)
    lost = drain(made.target, 0.0)
    made.target.handle_timeout(1.0)
    del buffer, memory
    now = 1.0
    while again := drain(made.target, now):  # a window of one command, which grows
        now += 0.001
        for run in again:
            answer(made.target, run, now)
    assert request.ended
    assert all(run.lost for run in lost), "may still be answered late"
    assert (request.take_result().nbytes == 0) is write
    assert alive() is None


def test_reads_share_a_bounded_memory_but_no_target_goes_without() -> None:
    memory = Memory(3 * 8 * 512)
    tags: TagTable[Run | LoneCommand] = TagTable(random.Random(7).randbytes)
    identity = Identity(sectors=64, serial="S", model="M", firmware="F")
    targets = []
    ended: list[Request] = []
    for slot in range(2):
        target = Target(Address(0, slot), identity, tags, memory=memory)
        target.set_bufcnt(64)
        target.add_path(cast(Link, object()), "fake0", (b"\2\0\0\0\0\1", b"\2\0\0\0\0\2"), 2).window.size = 64
        targets.append(target)
    busy, other = targets

    def ask_lazily(target: Target) -> None:
        target.submit(Request(0, 8, lambda: memoryview(bytearray(8 * 512)), write=False, on_end=ended.append), 0.0)

    for _ in range(5):
        ask_lazily(busy)
    runs = drain(busy, 0.0)
    assert len(runs) == 3, "the memory is used up"
    ask_lazily(other)
    (neighbour,) = drain(other, 0.0)
    assert memory.used == 4 * 8 * 512, "one read is always possible"
    answer(busy, runs[0], 0.001)
    assert drain(busy, 0.001) == [], "still more than the limit"
    answer(other, neighbour, 0.001)
    assert len(drain(busy, 0.001)) == 1
    busy.give_up(TargetLost("gone"))
    assert memory.used == 0
    assert len(ended) == 6
