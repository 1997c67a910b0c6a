"""aoefs broken on purpose: each mutant must be found by the seeds that are named with it.

    python -m tests.simulation.mutants              all of them
    python -m tests.simulation.mutants NAME 150     which of the first 150 seeds find this one

They patch Python classes, so the package must not be compiled: ``test_mutants`` runs them on a copy of its sources.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import trio

from aoefs.core import life
from aoefs.core.life import Input
from aoefs.core.overlap import Claim, OverlapGuard
from aoefs.core.path import Path
from aoefs.core.quarantine import Quarantine
from aoefs.core.request import Request
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

MUTANTS: dict[str, tuple[Callable[[], None], tuple[int, ...]]] = {}  # what breaks it, and seeds that find it
_replaced: list[tuple[Any, str, Any]] = []
_ABSENT = object()


def mutant(*seeds: int) -> Callable[[Callable[[], None]], Callable[[], None]]:
    def register(change: Callable[[], None]) -> Callable[[], None]:
        MUTANTS[change.__name__] = change, seeds
        return change

    return register


def put(owner: Any, name: str, value: Any) -> None:
    """Replace an attribute of a class or module."""
    _replaced.append((owner, name, vars(owner).get(name, _ABSENT)))
    setattr(owner, name, value)


@contextmanager
def broken(name: str) -> Iterator[None]:
    change, _ = MUTANTS[name]
    change()
    try:
        yield
    finally:
        while _replaced:
            owner, attribute, value = _replaced.pop()
            if value is _ABSENT:
                delattr(owner, attribute)
            else:
                setattr(owner, attribute, value)


@mutant(42, 98, 79, 32)
def late_copies_are_not_waited_for() -> None:
    """The range of a write is given back at once, though a copy of it may still travel."""
    put(Quarantine, "release", lambda quarantine, claim, _requests: quarantine._order.release(claim))


@mutant(10, 3, 2, 11)
def fsync_is_answered_early() -> None:
    """It sends its FLUSH, and waits for nothing."""
    flush = Disk.flush

    async def flush_later(disk: Disk) -> None:
        with suppress(RequestError):
            await flush(disk)

    async def answer(disk: Disk) -> None:
        trio.lowlevel.spawn_system_task(flush_later, disk)

    put(Disk, "flush", answer)


@mutant(5, 3, 6, 8)
def a_flush_only_says_that_all_is_clean() -> None:
    async def flush(disk: Disk) -> None:
        await disk.write_behind.wait_acknowledged()
        disk.target.dirty = False

    put(Disk, "flush", flush)


@mutant(5, 3, 9, 10)
def a_write_does_not_make_its_target_dirty() -> None:
    """So close and the last flush have nothing to do."""
    put(Target, "dirty", property(lambda _target: False, lambda _target, _dirty: None))


@mutant(15, 55, 49, 41)
def a_wait_for_a_claim_is_forgotten() -> None:
    def grant_waiting(guard: OverlapGuard) -> None:
        for claim in [claim for claim in guard._waiting if guard._place(claim) >= 0][:1]:
            guard._waiting.remove(claim)
            guard._grant(claim, guard._place(claim))

    put(OverlapGuard, "_grant_waiting", grant_waiting)


@mutant(23, 74, 61, 96)
def the_stop_forgets_a_waiter() -> None:
    """All waits of a disk end but the first one."""

    def interrupt(waits: WaitGroup, error: RequestError | None) -> None:
        for wait in list(waits._waits)[1:]:
            wait.error = wait.error or error
            wait.wake()

    put(WaitGroup, "interrupt", interrupt)


@mutant(6, 24, 37, 25)
def the_stop_forgets_what_was_never_sent() -> None:
    def fail_all(target: Target, error: RequestError, spared: Any = ()) -> None:
        for request in list(target._waiting):
            if request not in spared:
                target.fail(request, error)

    put(Target, "_fail_all", fail_all)


@mutant(32, 27, 34, 29)
def overlapping_writes_fly_together() -> None:
    def acquire(_guard: OverlapGuard, claim: Claim) -> bool:
        claim.is_granted = True
        return True

    put(OverlapGuard, "acquire", acquire)
    put(OverlapGuard, "release", lambda _guard, _claim: None)


@mutant(24, 25, 44, 53)
def another_disk_is_taken_for_the_first_one() -> None:
    put(Identity, "same_disk", lambda _identity, _other: True)


@mutant(6, 8, 7)
def a_silent_target_is_not_identified_again() -> None:
    put(life, "TRANSITIONS", life.TRANSITIONS | {Input.SILENT: {}})


@mutant(51, 18)
def a_lost_write_is_not_reported() -> None:
    put(WriteStream, "report", lambda _stream, **_once: None)


@mutant(18, 51)
def a_lost_write_is_not_noticed() -> None:
    def end(behind: WriteBehind, request: Request) -> None:
        del behind.pending[request]
        for wait in behind._waiting:
            wait.wake()

    put(WriteBehind, "end", end)


@mutant(68, 48, 67)
def a_read_does_not_wait_for_a_write_that_was_answered_early() -> None:
    wait = WriteBehind.wait_acknowledged

    async def wait_for_all(behind: WriteBehind, *sectors: int) -> None:
        if not sectors:
            await wait(behind)

    put(WriteBehind, "wait_acknowledged", wait_for_all)


@mutant(5, 13, 16, 12)
def what_was_read_ahead_is_never_old() -> None:
    let_go = ReadAhead._let_go_before

    def let_go_before(ahead: ReadAhead, offset: int) -> None:
        for chunk in ahead.chunks:
            chunk.generation = ahead._disk.generation
        let_go(ahead, offset)

    put(ReadAhead, "_let_go_before", let_go_before)


@mutant(17, 27, 2, 12)
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


@mutant(53, 44, 19, 65)
def the_end_of_a_quarantine_is_not_waited_for() -> None:
    """No timer is set for it."""
    put(Quarantine, "timeouts", lambda _quarantine: [])


@mutant(4, 6, 2, 0)
def a_wait_that_is_woken_early_sleeps_for_ever() -> None:
    wake = Wait.wake

    def wake_sleeper(wait: Wait, _thing: object = None) -> None:
        if wait._task is not None:
            wake(wait)

    put(Wait, "wake", wake_sleeper)


@mutant(0, 4, 2)
def deadsecs_are_forgotten() -> None:
    put(Target, "_expire", lambda _target, _now: None)


@mutant(0, 52, 70, 66)
def a_path_that_goes_keeps_its_credit() -> None:
    """What flew there counts as in flight for ever."""

    def leave(target: Target, path: Path) -> None:
        for lost, mask in path.give_up_all():
            target._queue_retransmit(lost, mask)

    put(Target, "_leave", leave)


@mutant(0, 10, 1, 7)
def the_last_flush_flushes_nothing() -> None:
    flush = Disk.flush

    async def flush_until_the_end(disk: Disk) -> None:
        if not disk.target.life.ending:
            await flush(disk)

    put(Disk, "flush", flush_until_the_end)


def complaint_of(name: str, seed: int) -> str:
    """What a run of the mutant complains about first."""
    with broken(name):
        return run(draw(seed)).complaint.partition("\n")[0]


def find(name: str) -> tuple[bool, str]:
    """Whether one of its seeds finds a mutant, and finds nothing without it; and what was found."""
    _, seeds = MUTANTS[name]
    for seed in seeds:
        if complaint := complaint_of(name, seed):
            without = run(draw(seed)).complaint
            return not without, f"seed {seed}: {complaint}" + (f"; without it: {without}" if without else "")
    return False, f"none of {seeds} finds it"


def main(arguments: Sequence[str]) -> int:
    if not arguments:
        found = True
        for name in MUTANTS:
            is_found, what = find(name)
            found &= is_found
            print(f"{name}: {'found by' if is_found else 'NOT FOUND,'} {what}", flush=True)
        return not found
    name, count = arguments
    for seed in range(int(count)):
        if complaint := complaint_of(name, seed):
            print(f"{seed}: {complaint}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
