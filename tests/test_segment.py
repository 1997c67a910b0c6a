"""The segment injects the faults that are configured, as often as configured, and no others."""

from __future__ import annotations

import pytest

from aoefs.protocol.ata import transfer_registers
from aoefs.protocol.wire import Address, AoeCommand, Flag, Header, encode
from tests.segment import Faults, Injected, Segment, is_answer, is_request, is_write, lba_of

FRAMES = 2000
A, B = bytes.fromhex("020000000001"), bytes.fromhex("020000000002")


def frame(number: int, *, answer: bool = False, write: bool = False, data: bytes = b"") -> bytes:
    flags = Flag.RESPONSE if answer else 0
    header = Header(B, A, Address(0, 0), AoeCommand.ATA, number, flags)
    return encode(header, transfer_registers(number, 1, write=write, lba48=True), data)


REQUESTS = [frame(number) for number in range(FRAMES)]


def run_through(segment: Segment, frames: list[bytes] = REQUESTS, gap: float = 0.0001) -> list[bytes]:
    """Send frames at equal distances; what arrives, in the order of arrival."""
    for number, sent in enumerate(frames):
        segment.send(sent, number * gap)
    return segment.deliver(float("inf"))


def test_without_faults_every_frame_arrives_once_unchanged_in_order_after_the_latency() -> None:
    segment = Segment(latency=0.5)
    assert segment.transmit(REQUESTS[0], 1.0) == [(1.5, REQUESTS[0])]
    assert run_through(segment) == REQUESTS
    assert segment.injected == Injected(sent=FRAMES + 1)


def test_frames_arrive_at_their_time_and_not_before() -> None:
    segment = Segment(latency=0.5)
    assert segment.next_delivery() is None
    segment.send(REQUESTS[0], 0.0)
    segment.send(REQUESTS[1], 0.25)
    assert segment.next_delivery() == 0.5
    assert segment.deliver(0.49) == []
    assert segment.deliver(0.5) == [REQUESTS[0]]
    assert segment.next_delivery() == 0.75


@pytest.mark.parametrize(
    ("faults", "counter"),
    [
        (Faults(loss=0.2), "lost"),
        (Faults(loss_of_requests=0.2), "lost"),
        (Faults(duplicate=0.2), "duplicated"),
        (Faults(reorder=0.2), "reordered"),
        (Faults(corrupt=0.2), "corrupted"),
    ],
)
def test_a_rate_of_a_fifth_strikes_about_a_fifth_of_the_frames(faults: Faults, counter: str) -> None:
    segment = Segment(faults)
    run_through(segment)
    struck = getattr(segment.injected, counter)
    assert 0.17 * FRAMES < struck < 0.23 * FRAMES
    assert segment.injected == Injected(sent=FRAMES, **{counter: struck})


def test_a_lost_frame_does_not_arrive() -> None:
    segment = Segment(Faults(loss=0.2))
    arrived = run_through(segment)
    assert len(arrived) == FRAMES - segment.injected.lost
    assert set(arrived) < set(REQUESTS)


def test_a_burst_takes_that_many_frames_in_a_row() -> None:
    segment = Segment(Faults(loss=0.01, burst=5))
    numbers = {lba_of(sent) for sent in run_through(segment)}
    lost = [number for number in range(FRAMES) if number not in numbers]
    assert segment.injected.lost == len(lost) > 0
    rows: list[list[int]] = []
    for number in lost:
        if rows and rows[-1][-1] == number - 1:
            rows[-1].append(number)
        else:
            rows.append([number])
    assert all(len(row) % 5 == 0 for row in rows[:-1])  # two bursts may touch, the last may be cut off


def test_a_burst_ends_with_the_phase_of_its_faults() -> None:
    segment = Segment(schedule=[(1.0, Faults(loss=1.0, burst=5))])
    assert segment.transmit(REQUESTS[0], 0.5) == []
    assert segment.transmit(REQUESTS[1], 1.0) != []


def test_a_chosen_frame_is_lost_and_no_other() -> None:
    segment = Segment()
    segment.lose = lambda sent: lba_of(sent) == 7
    assert run_through(segment) == [sent for sent in REQUESTS if lba_of(sent) != 7]
    assert segment.injected.lost == 1


@pytest.mark.parametrize("answers", [True, False])
def test_one_way_loss_leaves_the_other_way_alone(answers: bool) -> None:
    segment = Segment(Faults(loss_of_answers=1.0) if answers else Faults(loss_of_requests=1.0))
    both = [frame(number, answer=bool(number % 2)) for number in range(100)]
    expected = is_request if answers else is_answer
    assert run_through(segment, both) == [sent for sent in both if expected(sent)]


def test_only_frames_above_the_longest_are_lost() -> None:
    segment = Segment(Faults(longest=1536))
    small, large = frame(0, write=True, data=bytes(1024)), frame(1, write=True, data=bytes(2048))
    assert run_through(segment, [small, large, small]) == [small, small]
    assert segment.injected.too_long == 1


def test_a_duplicate_comes_with_its_original_or_as_late_as_configured() -> None:
    assert Segment(Faults(duplicate=1.0), latency=0.5).transmit(REQUESTS[0], 0.0) == [(0.5, REQUESTS[0])] * 2
    late = Segment(Faults(duplicate=1.0, duplicate_after=2.0), latency=0.5)
    assert late.transmit(REQUESTS[0], 0.0) == [(0.5, REQUESTS[0]), (2.5, REQUESTS[0])]


def test_a_reordered_frame_is_overtaken() -> None:
    arrived = run_through(Segment(Faults(reorder=0.2, reorder_by=0.00025)))
    assert arrived != REQUESTS
    assert sorted(arrived, key=lba_of) == REQUESTS
    assert max(abs(lba_of(sent) - place) for place, sent in enumerate(arrived)) <= 3


def test_jitter_delays_each_frame_by_less_than_its_bound() -> None:
    segment = Segment(Faults(jitter=0.25), latency=0.5)
    delays = [segment.transmit(sent, 0.0)[0][0] for sent in REQUESTS[:100]]
    assert all(0.5 <= delay <= 0.75 for delay in delays)
    assert len(set(delays)) > 90


def test_a_chosen_frame_is_held_back() -> None:
    segment = Segment(latency=0.5)
    segment.hold = lambda sent: 2.0 if is_write(sent) else 0.0
    assert segment.transmit(frame(0, write=True), 1.0)[0][0] == 3.5
    assert segment.transmit(frame(0), 1.0)[0][0] == 1.5
    assert segment.injected.held == 1


def test_corruption_flips_one_bit_in_the_bytes_named() -> None:
    segment = Segment(Faults(corrupt=1.0, corrupt_first=2, corrupt_end=20))
    struck = set()
    for sent, arrived in zip(REQUESTS, run_through(segment), strict=True):
        changed = [index for index in range(len(sent)) if sent[index] != arrived[index]]
        assert len(changed) == 1
        assert (sent[changed[0]] ^ arrived[changed[0]]).bit_count() == 1
        struck.add(changed[0])
    assert struck == set(range(2, 20))


def test_corruption_reaches_every_byte_unless_bytes_are_named() -> None:
    arrived = run_through(Segment(Faults(corrupt=1.0)))
    pairs = zip(REQUESTS, arrived, strict=True)
    assert {next(i for i in range(60) if a[i] != b[i]) for a, b in pairs} == set(range(60))


def test_a_checked_segment_drops_what_it_corrupts() -> None:
    segment = Segment(Faults(corrupt=0.2), checked=True)
    arrived = run_through(segment)
    assert set(arrived) < set(REQUESTS)
    assert len(arrived) == FRAMES - segment.injected.corrupted


def test_faults_follow_their_schedule_and_end_with_it() -> None:
    segment = Segment(schedule=[(1.0, Faults(loss=1.0)), (2.0, Faults(duplicate=1.0))], latency=0.0)
    assert segment.transmit(REQUESTS[0], 0.5) == []
    assert len(segment.transmit(REQUESTS[0], 1.0)) == 2
    assert segment.transmit(REQUESTS[0], 2.0) == [(2.0, REQUESTS[0])]


def test_the_same_seed_gives_the_same_faults_and_another_seed_others() -> None:
    faults = Faults(loss=0.1, burst=3, duplicate=0.1, reorder=0.1, jitter=0.001, corrupt=0.1)
    first, second, other = (run_through(Segment(faults, seed=seed)) for seed in (1, 1, 2))
    assert first == second != other
