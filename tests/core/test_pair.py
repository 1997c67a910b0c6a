"""The core and the target back to back over a segment that misbehaves: nothing acknowledged is lost or mixed.

Hypothesis draws what users do and what the wire does; ``check_history`` (``tests.pair``) is the model of a disk.  What
the wire does has bounds: no frame lives longer than half a second (``core.path``), and a duplicate that the network
makes comes with its original.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from aoefs.core.life import State
from aoefs.core.path import FRAME_LIFETIME
from aoefs.core.recovery import MIN_RTO
from aoefs.errors import TargetLost
from tests.memorystore import answer_at_once
from tests.pair import LATENCY, RTT, Operation, Pair, check_at_rest, check_history, stamp
from tests.segment import Faults, Segment, is_answer, is_request, is_write

SECTORS = 24
LONGEST_HOLD = FRAME_LIFETIME * 0.9  # seconds: all that a segment adds to its latency


@dataclass(frozen=True)
class Step:
    """``pause`` seconds, then a read or a write."""

    pause: float
    write: bool
    lba: int
    sectors: int


def faults() -> st.SearchStrategy[Faults]:
    some = st.sampled_from([0.0, 0.0, 0.05, 0.2, 0.5, 0.9])
    return st.builds(
        Faults,
        loss=some,
        burst=st.integers(1, 6),
        loss_of_requests=st.sampled_from([0.0, 0.0, 0.3, 1.0]),
        loss_of_answers=st.sampled_from([0.0, 0.0, 0.3, 1.0]),
        duplicate=some,
        reorder=some,
        reorder_by=st.sampled_from([RTT, MIN_RTO, 2 * MIN_RTO, 0.2, LONGEST_HOLD / 2]),
        jitter=st.sampled_from([0.0, 0.0, RTT, MIN_RTO, LONGEST_HOLD / 2]),
    )


def schedules() -> st.SearchStrategy[list[tuple[float, Faults]]]:
    """Phases of faults with their ends, in order; after the last one all is well."""

    def add_up(phases: list[tuple[float, Faults]]) -> list[tuple[float, Faults]]:
        now, schedule = 0.0, []
        for duration, fault in phases:
            now += duration
            schedule.append((now, fault))
        return schedule

    durations = st.sampled_from([0.002, 0.02, 0.3, 1.0, 4.0])
    return st.lists(st.tuples(durations, faults()), min_size=1, max_size=4).map(add_up)


def plans(most: int = 24) -> st.SearchStrategy[list[Step]]:
    step = st.builds(
        Step,
        pause=st.sampled_from([0.0, 0.0, 0.0, RTT / 2, RTT, MIN_RTO, 0.1]),
        write=st.booleans(),
        lba=st.integers(0, SECTORS - 1),
        sectors=st.integers(1, 8),
    )
    return st.lists(step, min_size=1, max_size=most)


def follow(pair: Pair, plan: list[Step], target: int = 0) -> list[Operation]:
    """Start the operations of a plan, each at its time; they fill as time goes by."""
    at, started = pair.now, list[Operation]()
    for number, step in enumerate(plan, 1):
        at += step.pause
        sectors = min(step.sectors, SECTORS - step.lba)

        def start(number: int = number, lba: int = step.lba, sectors: int = sectors, write: bool = step.write) -> None:
            started.append(
                pair.write(lba, stamp(number, sectors), target) if write else pair.read(lba, sectors, target)
            )

        pair.call(at, start)
    pair.run(at)
    return started


def read_all(pair: Pair, target: int = 0) -> Operation:
    """Read the whole disk; it must work, and agree with what is on it."""
    read = pair.read(0, SECTORS, target)
    pair.finish(read)
    assert read.data == pair.stores[target].data
    return read


# ── nothing is lost, nothing is mixed ─────────────────────────────────────────────────────────────────────────────────


@settings(max_examples=150)
@given(plan=plans(), schedule=schedules(), seed=st.integers(0, 1 << 16), lag=st.sampled_from([0.0, RTT / 3, MIN_RTO]))
def test_every_acknowledged_write_is_what_a_later_read_returns_whatever_the_faults(
    plan: list[Step], schedule: list[tuple[float, Faults]], seed: int, lag: float
) -> None:
    pair = Pair(Segment(latency=LATENCY, schedule=schedule, seed=seed), sectors=SECTORS, shard_delay=lag)
    operations = follow(pair, plan)
    pair.run(schedule[-1][0] + 60.0, done=operations)
    assert all(operation.good for operation in operations), f"at {pair.now}: {operations}"
    read_all(pair)
    check_history(pair.operations[0])
    pair.run()
    check_at_rest(pair)


@settings(max_examples=80)
@given(plan=plans(), schedules=st.tuples(schedules(), schedules()), seed=st.integers(0, 1 << 16))
def test_two_paths_with_faults_of_their_own_are_one_disk(
    plan: list[Step], schedules: tuple[list[tuple[float, Faults]], ...], seed: int
) -> None:
    segments = [Segment(latency=LATENCY, schedule=schedule, seed=seed) for schedule in schedules]
    pair = Pair(*segments, sectors=SECTORS, payload=3, bufcnt=5)
    operations = follow(pair, plan)
    pair.run(max(schedule[-1][0] for schedule in schedules) + 60.0, done=operations)
    assert all(operation.good for operation in operations), f"at {pair.now}: {operations}"
    read_all(pair)
    check_history(pair.operations[0])
    pair.run()
    check_at_rest(pair)


@settings(max_examples=80)
@given(plan=plans(), schedule=schedules(), seed=st.integers(0, 1 << 16), deadsecs=st.sampled_from([0.05, 0.3, 1.0]))
def test_requests_that_fail_break_no_promise_to_those_that_did_not(
    plan: list[Step], schedule: list[tuple[float, Faults]], seed: int, deadsecs: float
) -> None:
    lag = RTT / 3
    segment = Segment(latency=LATENCY, schedule=schedule, seed=seed)
    pair = Pair(segment, sectors=SECTORS, deadsecs=deadsecs, shard_delay=lag)
    operations = follow(pair, plan)
    pair.run(schedule[-1][0] + 60.0, done=operations)
    for operation in operations:
        assert operation.ended_at is not None
        assert operation.good or isinstance(operation.error, TargetLost)
        assert operation.request is not None
        if operation.request.first_sent_at is not None:
            assert operation.ended_at <= operation.request.first_sent_at + deadsecs + lag
    event(f"failed: {any(operation.error for operation in operations)}")
    pair.run(max(pair.now, schedule[-1][0]) + 2.0)  # identified again
    assert pair.target.life.state is State.UP
    read_all(pair)
    check_history(pair.operations[0])
    pair.run()
    check_at_rest(pair)


@settings(max_examples=40)
@given(plan=plans(12), schedule=schedules(), seed=st.integers(0, 1 << 16))
def test_targets_behind_one_mac_are_disks_of_their_own(
    plan: list[Step], schedule: list[tuple[float, Faults]], seed: int
) -> None:
    pair = Pair(Segment(latency=LATENCY, schedule=schedule, seed=seed), sectors=SECTORS, targets=3)
    operations = [operation for target in range(3) for operation in follow(pair, plan[target:] or plan, target)]
    pair.run(schedule[-1][0] + 60.0, done=operations)
    for target in range(3):
        assert all(operation.good for operation in pair.operations[target])
        read_all(pair, target)
        check_history(pair.operations[target])


# ── late duplicates ───────────────────────────────────────────────────────────────────────────────────────────────────


def overwritten(seed: int, *, quarantine: bool) -> tuple[Pair, list[Operation]]:
    """Writers of the same sectors on a segment that keeps every third write back, for up to a frame's lifetime."""
    dice = Random(seed)
    segment = Segment(latency=LATENCY)
    pair = Pair(segment, sectors=SECTORS, quarantine=quarantine)
    for _ in range(3):
        pair.finish(pair.read(0, 1))
    segment.hold = lambda frame: dice.uniform(MIN_RTO, LONGEST_HOLD) if is_write(frame) and dice.random() < 0.3 else 0.0
    plan = [Step(dice.choice([0.0, RTT, MIN_RTO]), True, dice.randrange(4), dice.randrange(1, 6)) for _ in range(12)]
    operations = follow(pair, plan)
    pair.finish(*operations)
    pair.run()
    read_all(pair)
    return pair, operations


@pytest.mark.parametrize("seed", range(30))
def test_a_write_that_arrives_late_never_overwrites_a_newer_one(seed: int) -> None:
    pair, _ = overwritten(seed, quarantine=True)
    assert pair.wires[0].segment.injected.held
    check_history(pair.operations[0])
    check_at_rest(pair)


def test_without_the_quarantine_late_writes_do_overwrite_newer_ones() -> None:
    """The test above tests something: take the guard away, and it fails."""
    broken = 0
    for seed in range(30):
        pair, _ = overwritten(seed, quarantine=False)
        try:
            check_history(pair.operations[0])
        except AssertionError:
            broken += 1
    assert broken > 10


def test_one_late_copy_and_one_newer_write_in_detail() -> None:
    def last_data(*, quarantine: bool) -> bytes:
        segment = Segment(latency=LATENCY)
        pair = Pair(segment, sectors=SECTORS, quarantine=quarantine)
        pair.finish(pair.read(0, 1), pair.read(0, 1))
        first_copies = iter([0.3])
        segment.hold = lambda frame: next(first_copies, 0.0) if is_write(frame) else 0.0
        pair.finish(pair.write(0, stamp(1)), pair.write(0, stamp(2)))
        pair.run()
        return bytes(pair.stores[0].data[:512])

    assert last_data(quarantine=True) == stamp(2)
    assert last_data(quarantine=False) == stamp(1)


def test_a_late_copy_of_a_failed_write_does_not_overwrite_a_newer_one() -> None:
    segment = Segment(latency=LATENCY)
    pair = Pair(segment, sectors=SECTORS, deadsecs=0.1)
    pair.finish(pair.read(0, 1))
    segment.hold = lambda frame: 0.3 if is_write(frame) and pair.now < 0.05 else 0.0
    segment.lose = lambda frame: is_request(frame) and 0.001 < pair.now < 0.15
    failed = pair.write(0, stamp(1))
    pair.run(1.0, done=[failed])
    assert isinstance(failed.error, TargetLost)
    pair.run(pair.now + 0.11)  # identified again, and the late copy still travels
    pair.target.come_up(pair.now)
    newer = pair.write(0, stamp(2))
    assert newer.started_at is None
    pair.finish(newer)
    pair.run()
    assert pair.stores[0].data[:512] == stamp(2)


# ── loss, order, corruption ───────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("burst", [1, 4])
@pytest.mark.parametrize("paths", [1, 2])
def test_a_fifth_of_all_frames_lost_for_a_minute_ends_without_an_error(burst: int, paths: int) -> None:
    segments = [Segment(Faults(loss=0.2 / burst, burst=burst), latency=LATENCY, seed=9 + path) for path in range(paths)]
    pair = Pair(*segments, sectors=256, deadsecs=30.0)
    operations = []
    dice = Random(burst)
    number = 0
    while pair.now < 60.0:
        number += 1
        lba = dice.randrange(240)
        operations.append(pair.write(lba, stamp(number, 8)) if number % 2 else pair.read(lba, 16))
        pair.run(pair.now + 0.25)
    pair.run(pair.now + 10.0, done=operations)
    assert all(operation.good for operation in operations)
    check_history(pair.operations[0])


def test_with_a_twentieth_lost_no_request_takes_a_second_unless_it_waits_for_a_late_duplicate() -> None:
    pair = Pair(Segment(Faults(loss=0.05), latency=LATENCY, seed=5), sectors=2048, bufcnt=64)
    operations = []
    for number in range(400):
        operations.append(
            pair.read(number * 37 % 1024, 256) if number % 2 else pair.write(number * 5, stamp(number, 5))
        )
        pair.run(pair.now + 0.005)
    pair.finish(*operations)
    waits = [op.ended_at - op.started_at for op in operations if op.ended_at is not None and op.started_at is not None]
    assert len(waits) == 400
    assert max(waits) < 1.0


@pytest.mark.parametrize("loss", [0.01, 0.05])
def test_loss_costs_a_bounded_part_of_the_throughput(loss: float) -> None:
    """1 %: at least half of the loss-free throughput; 5 %: at least a fifth."""

    def seconds(rate: float) -> float:
        pair = Pair(Segment(Faults(loss=rate), latency=0.0001, seed=3), sectors=2048, bufcnt=16)
        for _ in range(12):
            pair.finish(pair.read(0, 2048))
        return pair.now

    assert seconds(0.0) / seconds(loss) >= {0.01: 0.5, 0.05: 0.2}[loss]


@pytest.mark.parametrize("by", [RTT / 2, RTT, 4 * RTT, 30 * RTT])
def test_reordering_alone_causes_few_retransmissions_and_no_error(by: float) -> None:
    pair = Pair(Segment(Faults(reorder=0.05, reorder_by=by), latency=LATENCY, seed=2), sectors=2048)
    commands = 0
    for _ in range(10):
        pair.finish(pair.read(0, 1024))
        commands += 512
    assert len(pair.sent) - commands <= 0.02 * commands
    assert pair.target.paths[0].losses <= 1  # the other retransmissions were answered late


@settings(max_examples=60)
@given(plan=plans(12), rate=st.sampled_from([0.05, 0.2, 0.5]), seed=st.integers(0, 1 << 16))
def test_a_corrupted_header_never_yields_wrong_data(plan: list[Step], rate: float, seed: int) -> None:
    """MACs, type, flags, error, shelf, slot, command: errors may come of it, wrong data never.

    Tag, registers and payload are left alone: AoE has no checksum of its own, and a flipped bit of an LBA is an order
    to write elsewhere.
    """
    damage = Faults(corrupt=rate, corrupt_end=20)
    pair = Pair(Segment(latency=LATENCY, schedule=[(1.0, damage)], seed=seed), sectors=SECTORS)
    operations = follow(pair, plan)
    pair.run(60.0, done=operations)
    assert all(operation.ended_at is not None for operation in operations)
    pair.run(max(pair.now, 1.0) + 1.0)
    read_all(pair)
    check_history(pair.operations[0])


@settings(max_examples=40)
@given(plan=plans(12), rate=st.sampled_from([0.05, 0.2, 0.5]), seed=st.integers(0, 1 << 16))
def test_corruption_that_the_checksum_finds_is_a_loss_and_no_more(plan: list[Step], rate: float, seed: int) -> None:
    segment = Segment(latency=LATENCY, schedule=[(1.0, Faults(corrupt=rate))], seed=seed, checked=True)
    pair = Pair(segment, sectors=SECTORS)
    pair.finish(*follow(pair, plan))
    read_all(pair)
    check_history(pair.operations[0])


@given(frames=st.lists(st.binary(max_size=80), max_size=20), data=st.data())
@settings(max_examples=40)
def test_garbage_on_the_wire_disturbs_no_request(frames: list[bytes], data: st.DataObject) -> None:
    pair = Pair(sectors=SECTORS)
    read = pair.read(0, 20)
    wire = pair.wires[0]
    heads = [b"", wire.remote + wire.mac + b"\x88\xa2", pair.target.paths[0].answer_head]
    for garbage in frames:
        frame = data.draw(st.sampled_from(heads)) + garbage
        if len(frame) > 14 and is_answer(frame):
            wire.segment.send(frame, pair.now)
        else:
            pair.target.heard(pair.now)
            for export in wire.exports:
                answer_at_once(export, frame, mac=wire.remote, max_sectors=wire.max_sectors)
    pair.finish(read)
    assert read.data == bytes(20 * 512)


# ── the model itself ──────────────────────────────────────────────────────────────────────────────────────────────────


def done(kind: str, start: float, end: float | None, number: int, error: bool = False) -> Operation:
    operation = Operation(0, bytearray(stamp(number)), write=kind == "write")
    operation.asked_at = operation.started_at = start
    operation.ended_at = end
    operation.error = TargetLost("failed") if error else None
    return operation


@pytest.mark.parametrize(
    "history",
    [
        [done("write", 0, 1, 1), done("read", 2, 3, 0)],  # the old data after the write
        [done("write", 0, 1, 1), done("write", 2, 3, 2), done("read", 4, 5, 1)],
        [done("read", 0, 1, 1), done("write", 2, 3, 1)],  # before it was written
        [done("write", 0, 9, 1), done("read", 1, 2, 1), done("read", 3, 4, 0)],  # there and gone again
        [done("write", 0, 5, 1), done("write", 4, 6, 2)],  # two at once
        [done("read", 0, 1, 77)],  # from nowhere
    ],
)
def test_the_model_finds_what_no_disk_would_do(history: list[Operation]) -> None:
    with pytest.raises(AssertionError):
        check_history(history)


@pytest.mark.parametrize(
    "history",
    [
        [done("write", 0, 1, 1), done("read", 2, 3, 1)],
        [done("write", 0, 3, 1), done("read", 1, 2, 0)],  # at the same time: either
        [done("write", 0, 3, 1), done("read", 1, 2, 1)],
        [done("write", 0, 1, 1, error=True), done("read", 2, 3, 0), done("read", 4, 5, 1)],  # failed, and done late
    ],
)
def test_the_model_allows_what_a_disk_may_do(history: list[Operation]) -> None:
    check_history(history)
