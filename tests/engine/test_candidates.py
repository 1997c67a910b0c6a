"""Candidates: whose examination begins when more endpoints ask for it than there are places."""

from __future__ import annotations

from typing import cast

from aoefs.core.link import Endpoint, Link
from aoefs.engine.candidates import MAX_WAITING, PLACES, Candidates, Need
from aoefs.protocol.wire import Address
from tests.scene import target_mac

LINK = cast(Link, object())


def endpoint(mac: int, number: int = 0) -> Endpoint:
    return Endpoint(LINK, target_mac(mac), Address(number >> 7, number & 0x7F))


def full(need: Need = Need.NEW) -> Candidates:
    """All places of this need are taken, by MACs from 10,000 on."""
    candidates = Candidates()
    assert all(candidates.add(endpoint(10_000 + number), need) for number in range(PLACES[need]))
    return candidates


def follower(candidates: Candidates, number: int) -> Endpoint | None:
    """Who takes the place of this one of :func:`full`."""
    following = candidates.end(endpoint(10_000 + number))
    return None if following is None else following[0]


def test_one_that_made_room_comes_again_behind_the_others() -> None:
    candidates = full()
    candidates.add(endpoint(1), Need.NEW)
    assert candidates.end(endpoint(10_000)) == (endpoint(1), False)
    candidates.add(endpoint(10_000), Need.NEW, second=True)
    candidates.add(endpoint(2), Need.NEW)
    assert candidates.end(endpoint(10_001)) == (endpoint(10_000), True)
    assert candidates.end(endpoint(10_002)) == (endpoint(2), False)


def test_an_endpoint_is_examined_once_at_a_time() -> None:
    candidates = Candidates()
    assert candidates.add(endpoint(1), Need.NEW)
    assert not candidates.add(endpoint(1), Need.NEW)
    assert candidates.end(endpoint(1)) is None
    assert candidates.add(endpoint(1), Need.NEW)


def test_a_known_endpoint_never_waits() -> None:
    candidates = full()
    assert all(candidates.add(endpoint(number), Need.KNOWN) for number in range(5000))
    assert not candidates.add(endpoint(6000), Need.NEW)
    assert candidates.end(endpoint(1)) is None, "its place is no place of the others"


def test_one_that_may_be_a_silent_target_does_not_wait_for_new_ones() -> None:
    candidates = full()
    assert candidates.add(endpoint(1), Need.MISSED)


def test_the_macs_take_turns_whatever_the_number_of_their_endpoints() -> None:
    candidates = full()
    for number in range(100):
        candidates.add(endpoint(1, number), Need.NEW)
    candidates.add(endpoint(2), Need.NEW)
    candidates.add(endpoint(3), Need.NEW)
    followers = [follower(candidates, number) for number in range(5)]
    assert followers == [endpoint(1), endpoint(2), endpoint(3), endpoint(1, 1), endpoint(1, 2)]
    assert candidates.waiting == 97


def test_one_that_others_wait_for_is_told_so() -> None:
    candidates = full()
    assert not candidates.is_awaited(endpoint(10_000))
    candidates.add(endpoint(1), Need.NEW)
    candidates.add(endpoint(2), Need.MISSED)
    assert candidates.is_awaited(endpoint(10_000))
    assert not candidates.is_awaited(endpoint(2))


def test_a_mac_with_many_endpoints_leaves_room_to_one_with_a_single_one() -> None:
    candidates = full()
    for number in range(MAX_WAITING + 50):
        candidates.add(endpoint(1, number), Need.NEW)
    assert (candidates.waiting, candidates.dropped) == (MAX_WAITING, 50)
    candidates.add(endpoint(2), Need.NEW)
    assert (candidates.waiting, candidates.dropped) == (MAX_WAITING, 51)
    assert [follower(candidates, number) for number in range(2)] == [endpoint(1), endpoint(2)]
