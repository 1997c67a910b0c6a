"""How requests become runs, and what the windows allow."""

from __future__ import annotations

import pytest

from aoefs.core.tags import BLOCK_TAGS
from aoefs.core.target import SILENCE
from tests.core.targets import answer, ask, drain, pair, segments
from tests.pair import RTT, Pair, check_at_rest, check_invariants, stamp


def test_a_request_is_cut_into_commands_of_the_payload_with_consecutive_tags() -> None:
    made = pair()
    made.finish(made.read(3, 7))
    assert [(sent.lba, sent.sectors) for sent in made.sent] == [(3, 2), (5, 2), (7, 2), (9, 1)]
    assert [sent.tag ^ made.sent[0].tag for sent in made.sent] == [0, 1, 2, 3]
    assert {sent.at for sent in made.sent} == {1.0}
    assert made.now == 1.0 + RTT


def test_what_is_written_is_what_is_read() -> None:
    made = pair()
    write = made.write(5, stamp(1, 33))
    made.finish(write)
    read = made.read(5, 33)
    made.finish(read)
    assert read.data == write.data
    assert made.target.writes == 1
    assert made.target.write_bytes == len(write.data)
    check_at_rest(made)


@pytest.mark.parametrize("bufcnt", [0, 1, 2, 7, 16, 100])
@pytest.mark.parametrize("paths", [1, 2])
def test_what_is_in_flight_never_exceeds_the_buffer_count_over_all_paths(bufcnt: int, paths: int) -> None:
    made = pair(*segments(paths), bufcnt=bufcnt)
    most = 0
    operations = [made.read(number, 32) for number in range(12)]
    while not all(operation.ended_at for operation in operations):
        made.step()
        most = max(most, made.target.in_flight)
    assert most == min(max(1, bufcnt), 64)  # 64: our own bound, --maxout
    assert all(operation.good for operation in operations)


def test_a_run_has_no_more_commands_than_a_block_has_tags() -> None:
    made = Pair(bufcnt=1000, maxout=1000)
    made.target.set_bufcnt(1000)
    made.target.paths[0].window.size = 1000
    request, _ = ask(sectors=400)
    made.target.submit(request, 0.0)
    assert [run.count for run in drain(made.target, 0.0)] == [BLOCK_TAGS] * 3 + [200 - 3 * BLOCK_TAGS]


def test_a_smaller_buffer_count_holds_for_what_is_sent_next() -> None:
    made = pair(bufcnt=16)
    made.read(0, 64)
    made.target.set_bufcnt(1)
    read = made.read(100, 20)
    made.run(1.0 + 1.5 * RTT)
    assert made.target.in_flight <= 1
    made.finish(read)


def test_what_the_socket_did_not_take_goes_out_first_with_other_tags() -> None:
    made = pair()
    target = made.target
    request, ended = ask(8)
    target.submit(request, 1.0)
    (run,) = drain(target, 1.0)
    target.unsent(run, 1)
    check_invariants(target)
    assert target.in_flight == 1
    (rest,) = drain(target, 1.0)
    assert rest.sectors_of(0, rest.count) == (2, 6)
    assert rest.tag != run.tag
    answer(target, rest, 1.0 + RTT)
    answer(target, run, 1.0 + RTT, 0, 1)
    assert ended == [request]
    assert len(made.tags) == 0


def test_a_run_of_which_nothing_left_leaves_no_tag_behind() -> None:
    made = pair()
    request, _ = ask(8)
    made.target.submit(request, 1.0)
    (run,) = drain(made.target, 1.0)
    made.target.unsent(run, 0)
    assert made.target.in_flight == len(made.tags) == 0
    assert made.target.next_timeout() == 1.0 + SILENCE, "only the silence is watched"
    made.target.unsent(run, run.count)  # nothing more to take back


def test_less_than_half_a_window_is_not_sent_while_more_room_is_on_its_way() -> None:
    """Each batch costs two system calls and a few array expressions, whatever its size."""
    made = pair(bufcnt=16)
    made.target.paths[0].window.size = 16
    request, _ = ask(sectors=200)
    made.target.submit(request, 0.0)
    (first,) = drain(made.target, 0.0)
    assert first.count == 16
    for answered in range(7):
        made.target.receive(first, answered, 1, 0.001)
        assert drain(made.target, 0.001) == []
    made.target.receive(first, 7, 1, 0.001)
    assert [run.count for run in drain(made.target, 0.001)] == [8]


def test_what_fits_is_sent_however_little_room_there_is() -> None:
    made = pair(bufcnt=16)
    made.target.paths[0].window.size = 16
    large, _ = ask(sectors=30)
    small, _ = ask(sectors=2)
    for request in (large, small):
        made.target.submit(request, 0.0)
    assert [run.count for run in drain(made.target, 0.0)] == [15, 1]
