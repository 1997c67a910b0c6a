"""The memory of requests: when a read gets it, how long it is kept, how targets share it."""

from __future__ import annotations

import random
import weakref
from typing import cast

import pytest

from aoefs.core.link import Link
from aoefs.core.lonecommand import LoneCommand
from aoefs.core.memory import SMALL_SECTORS, Memory
from aoefs.core.request import Request, Run
from aoefs.core.tags import TagTable
from aoefs.core.target import Target
from aoefs.errors import TargetLost
from aoefs.protocol.ata import Identity
from aoefs.protocol.wire import Address
from tests.core.targets import drain

READ = SMALL_SECTORS + 1  # sectors


def targets(*memories: Memory, bufcnt: int) -> list[Target]:
    """Targets with windows of ``bufcnt`` commands, of up to 80 sectors each."""
    tags: TagTable[Run | LoneCommand] = TagTable(random.Random(7).randbytes)
    identity = Identity(sectors=1 << 10, serial="S", model="M", firmware="F")
    made = []
    for slot, memory in enumerate(memories):
        target = Target(Address(0, slot), identity, tags, memory=memory)
        target.set_bufcnt(bufcnt)
        path = target.add_path(
            cast(Link, object()), "fake0", (b"\2\0\0\0\0\1", b"\2\0\0\0\0\2"), 80 if bufcnt > 4 else 2
        )
        path.window.size = bufcnt
        made.append(target)
    return made


def complete(target: Target, run: Run, now: float = 0.001) -> None:
    target.receive(run, 0, run.count, now)
    target.complete(run, 0, run.count)


def test_a_read_gets_its_memory_when_its_first_command_goes_out() -> None:
    asked: list[int] = []

    def make(size_bytes: int) -> memoryview:
        asked.append(size_bytes)
        return memoryview(bytearray(size_bytes))

    (target,) = targets(Memory(make), bufcnt=4)
    requests = [Request(8 * n, 8 + n, None, write=False, on_end=lambda _request: None) for n in range(2)]
    for request in requests:
        target.submit(request, 0.0)
    (first,) = drain(target, 0.0)
    assert asked == [8 * 512]
    memory = requests[0].buffer
    complete(target, first)
    assert requests[0].take_result() is memory
    drain(target, 0.001)
    assert asked == [8 * 512, 9 * 512]


@pytest.mark.parametrize("write", [False, True])
def test_a_request_that_ended_keeps_no_memory_however_long_late_answers_to_it_may_come(write: bool) -> None:
    class Buffer(bytearray):
        """Can be referred to weakly."""

    owner = Buffer(8 * 512)
    alive = weakref.ref(owner)
    buffers = [memoryview(owner)]
    (target,) = targets(Memory(lambda _size: buffers.pop()), bufcnt=4)
    request = Request(0, 8, buffers.pop() if write else None, write=write, on_end=lambda _request: None)
    target.submit(request, 0.0)
    lost = drain(target, 0.0)
    target.handle_timeout(1.0)
    del owner
    now = 1.0
    while again := drain(target, now):  # a window of one command, which grows
        now += 0.001
        for run in again:
            complete(target, run, now)
    assert request.ended
    assert all(run.lost for run in lost), "may still be answered late"
    assert (request.take_result().nbytes == 0) is write
    assert alive() is None


def test_reads_share_a_bounded_memory_but_no_target_goes_without() -> None:
    memory = Memory(limit=3 * READ)
    busy, other = targets(memory, memory, bufcnt=64)
    ended: list[Request] = []

    def ask(target: Target, sectors: int = READ) -> None:
        target.submit(Request(0, sectors, None, write=False, on_end=ended.append), 0.0)

    for _ in range(5):
        ask(busy)
    runs = drain(busy, 0.0)
    assert len(runs) == 3, "the memory is used up"
    ask(other)
    (neighbour,) = drain(other, 0.0)
    assert memory.used == 4 * READ, "one read is always possible"
    complete(busy, runs[0])
    assert drain(busy, 0.001) == [], "still more than the limit"
    complete(other, neighbour)
    assert len(drain(busy, 0.001)) == 1
    ask(other)
    ask(other, SMALL_SECTORS)
    assert [run.sectors for run in drain(other, 0.001)] == [READ, SMALL_SECTORS], "a small read never waits"
    busy.give_up(TargetLost("gone"))
    other.give_up(TargetLost("gone"))
    assert memory.used == 0
    assert len(ended) == 8
