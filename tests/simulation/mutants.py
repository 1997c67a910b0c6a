"""aoefs broken on purpose: each mutant must be found by some run.

    python -m tests.simulation.mutants NAME SEEDS      how many seeds it takes, at most so many

They patch Python classes, so the package must not be compiled: ``test_mutants`` runs them on a copy of its sources.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import trio

from aoefs.core import life
from aoefs.core.life import Input
from aoefs.core.overlap import Claim, OverlapGuard
from aoefs.core.quarantine import Quarantine
from aoefs.core.request import Memory, Request
from aoefs.core.target import Target
from aoefs.engine.disk import Disk
from aoefs.engine.waits import Wait, WaitGroup
from aoefs.engine.writebehind import WriteBehind, WriteStream
from aoefs.errors import RequestError
from aoefs.fuse.readahead import ReadAhead
from aoefs.protocol.ata import Identity
from aoefs.protocol.wire import SECTOR_BYTES
from tests.simulation.plan import draw
from tests.simulation.run import run

MUTANTS: dict[str, Callable[[], None]] = {}


def mutant(change: Callable[[], None]) -> Callable[[], None]:
    MUTANTS[change.__name__] = change
    return change


def put(owner: Any, name: str, value: Any) -> None:
    """Replace an attribute of a class or module."""
    setattr(owner, name, value)


@mutant
def late_copies_are_not_waited_for() -> None:
    """The range of a write is given back at once, though a copy of it may still travel."""
    put(Quarantine, "release", lambda quarantine, claim, _requests: quarantine._order.release(claim))


@mutant
def fsync_is_answered_early() -> None:
    """It sends its FLUSH, and waits for nothing."""
    flush = Disk.flush

    async def flush_later(disk: Disk) -> None:
        with suppress(RequestError):
            await flush(disk)

    async def answer(disk: Disk) -> None:
        trio.lowlevel.spawn_system_task(flush_later, disk)

    put(Disk, "flush", answer)


@mutant
def a_flush_only_says_that_all_is_clean() -> None:
    async def flush(disk: Disk) -> None:
        await disk.write_behind.wait_acknowledged()
        disk.target.dirty = False

    put(Disk, "flush", flush)


@mutant
def a_write_does_not_make_its_target_dirty() -> None:
    """So close and the last flush have nothing to do."""
    put(Target, "dirty", property(lambda _target: False, lambda _target, _dirty: None))


@mutant
def a_wait_for_a_claim_is_forgotten() -> None:
    def grant_waiting(guard: OverlapGuard) -> None:
        for claim in [claim for claim in guard._waiting if guard._is_free(claim)][:1]:
            guard._waiting.remove(claim)
            guard._grant(claim)

    put(OverlapGuard, "_grant_waiting", grant_waiting)


@mutant
def the_stop_forgets_a_waiter() -> None:
    """All waits of a disk end but the first one."""

    def interrupt(waits: WaitGroup, error: RequestError | None) -> None:
        for wait in list(waits._waits)[1:]:
            wait.error = wait.error or error
            wait.wake()

    put(WaitGroup, "interrupt", interrupt)


@mutant
def the_stop_forgets_what_was_never_sent() -> None:
    def fail_all(target: Target, error: RequestError, spared: Any = ()) -> None:
        for request in list(target._waiting):
            if request not in spared:
                target.fail(request, error)

    put(Target, "_fail_all", fail_all)


@mutant
def a_late_answer_lands_in_a_buffer_that_is_used_again() -> None:
    """An ended read keeps its buffer."""

    def let_go(request: Request, memory: Memory) -> None:
        if request.borrowed and request.error is None:
            request._result = request.buffer
        memory.used -= request.borrowed
        request.borrowed = 0

    def land(request: Request, start: int, data: bytes | memoryview) -> None:
        request.buffer[start * SECTOR_BYTES : start * SECTOR_BYTES + len(data)] = data

    put(Request, "let_go", let_go)
    put(Request, "land", land)


@mutant
def overlapping_writes_fly_together() -> None:
    def acquire(_guard: OverlapGuard, claim: Claim) -> bool:
        claim.is_granted = True
        return True

    put(OverlapGuard, "acquire", acquire)
    put(OverlapGuard, "release", lambda _guard, _claim: None)


@mutant
def another_disk_is_taken_for_the_first_one() -> None:
    put(Identity, "same_disk", lambda _identity, _other: True)


@mutant
def a_silent_target_is_not_identified_again() -> None:
    put(life, "TRANSITIONS", life.TRANSITIONS | {Input.SILENT: {}})


@mutant
def a_lost_write_is_not_reported() -> None:
    put(WriteStream, "report", lambda _stream, **_once: None)


@mutant
def a_lost_write_is_not_noticed() -> None:
    def end(behind: WriteBehind, request: Request) -> None:
        del behind.pending[request]
        for wait in behind._waiting:
            wait.wake()

    put(WriteBehind, "end", end)


@mutant
def a_read_does_not_wait_for_a_write_that_was_answered_early() -> None:
    wait = WriteBehind.wait_acknowledged

    async def wait_for_all(behind: WriteBehind, *sectors: int) -> None:
        if not sectors:
            await wait(behind)

    put(WriteBehind, "wait_acknowledged", wait_for_all)


@mutant
def what_was_read_ahead_is_never_old() -> None:
    let_go = ReadAhead._let_go_before

    def let_go_before(ahead: ReadAhead, offset: int) -> None:
        for chunk in ahead.chunks:
            chunk.generation = ahead._disk.generation
        let_go(ahead, offset)

    put(ReadAhead, "_let_go_before", let_go_before)


@mutant
def a_partial_sector_is_read_before_its_turn() -> None:
    """What others write into it meanwhile is lost."""
    write = Disk.write

    async def write_whole(disk: Disk, offset: int, data: bytes | memoryview, *, behind: bool = False) -> None:
        first, end = offset // SECTOR_BYTES, -(-(offset + len(data)) // SECTOR_BYTES)
        if offset % SECTOR_BYTES or len(data) % SECTOR_BYTES:
            disk._check_range(first, end)
            data = await disk._fill_edges(first, end, offset, data)
        await write(disk, first * SECTOR_BYTES, data, behind=behind)

    put(Disk, "write", write_whole)


@mutant
def the_end_of_a_quarantine_is_not_waited_for() -> None:
    """No timer is set for it."""
    put(Quarantine, "timeouts", lambda _quarantine: [])


@mutant
def a_wait_that_is_woken_early_sleeps_for_ever() -> None:
    wake = Wait.wake

    def wake_sleeper(wait: Wait, _thing: object = None) -> None:
        if wait._task is not None:
            wake(wait)

    put(Wait, "wake", wake_sleeper)


@mutant
def deadsecs_are_forgotten() -> None:
    put(Target, "_expire", lambda _target, _now: None)


def seeds_until_found(name: str, most: int) -> tuple[int, str]:
    """How many seeds it takes to find a mutant, and what is found; 0 if none of ``most`` does."""
    MUTANTS[name]()
    for seed in range(most):
        if complaint := run(draw(seed)).complaint:
            return seed + 1, complaint
    return 0, ""


def main(arguments: Sequence[str]) -> int:
    name, most = arguments
    seeds, complaint = seeds_until_found(name, int(most))
    print(f"{name}: {seeds} seeds: {complaint}")
    return int(not seeds)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
