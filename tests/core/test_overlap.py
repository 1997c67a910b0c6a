"""Claims of sectors: disjoint, in order of arrival, and each of them granted in the end."""

from __future__ import annotations

from functools import partial

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from aoefs.core.overlap import Claim, OverlapGuard


def test_a_free_range_is_granted_at_once_and_its_callback_is_not_called() -> None:
    called: list[int] = []
    claim = Claim(0, 8, lambda: called.append(1))
    assert OverlapGuard().acquire(claim)
    assert claim.is_granted
    assert not called


def test_neighbours_do_not_overlap() -> None:
    guard = OverlapGuard()
    assert guard.acquire(Claim(8, 16))
    assert guard.acquire(Claim(0, 8))
    assert guard.acquire(Claim(16, 17))


def test_a_range_within_around_or_across_a_granted_one_waits() -> None:
    for first, end in ((9, 10), (0, 32), (0, 9), (15, 20), (8, 16)):
        guard = OverlapGuard()
        held = Claim(8, 16)
        guard.acquire(held)
        granted: list[int] = []
        assert not guard.acquire(Claim(first, end, partial(granted.append, 1)))
        guard.release(held)
        assert granted == [1]


def test_a_small_claim_does_not_pass_a_large_one_that_waits() -> None:
    guard = OverlapGuard()
    order: list[str] = []
    first, large = Claim(0, 1), Claim(0, 8, lambda: order.append("large"))
    small = Claim(4, 5, lambda: order.append("small"))
    assert guard.acquire(first)
    assert not guard.acquire(large)
    assert not guard.acquire(small)  # its sector is free, but it came later
    guard.release(first)
    assert order == ["large"]
    guard.release(large)
    assert order == ["large", "small"]


def test_one_release_grants_all_that_it_blocked() -> None:
    guard = OverlapGuard()
    order: list[int] = []
    large = Claim(0, 8)
    guard.acquire(large)
    for sector in range(8):
        assert not guard.acquire(Claim(sector, sector + 1, partial(order.append, sector)))
    guard.release(large)
    assert order == list(range(8))


def test_a_claim_that_stops_waiting_blocks_no_other() -> None:
    guard = OverlapGuard()
    order: list[str] = []
    held, abandoned = Claim(0, 1), Claim(0, 8, lambda: order.append("abandoned"))
    guard.acquire(held)
    guard.acquire(abandoned)
    assert not guard.acquire(Claim(4, 5, lambda: order.append("small")))
    guard.release(abandoned)
    assert order == ["small"]


def test_a_callback_may_release_and_acquire() -> None:
    guard = OverlapGuard()
    order: list[str] = []
    held, second = Claim(0, 4), Claim(0, 4)

    def on_second() -> None:
        order.append("second")
        guard.release(second)
        assert not second.is_granted

    second.granted = on_second
    guard.acquire(held)
    guard.acquire(second)
    guard.acquire(Claim(0, 4, lambda: order.append("third")))
    guard.release(held)
    assert order == ["second", "third"]


class Guarding(RuleBasedStateMachine):
    """Claims come and go in any order; a plain list of them is the model."""

    claims: Bundle[Claim] = Bundle("claims")

    def __init__(self) -> None:
        super().__init__()
        self.guard = OverlapGuard()
        self.alive: list[Claim] = []  # in order of arrival
        self.granted: list[Claim] = []

    @rule(target=claims, first=st.integers(0, 12), count=st.integers(1, 6))
    def acquire(self, first: int, count: int) -> Claim:
        claim = Claim(first, first + count)
        claim.granted = lambda: self.granted.append(claim)
        blocked = any(claim.overlaps(other) for other in self.alive)
        assert self.guard.acquire(claim) is not blocked
        self.alive.append(claim)
        return claim

    @rule(claim=consumes(claims))
    def release(self, claim: Claim) -> None:
        self.granted.clear()
        waited = [other for other in self.alive if not other.is_granted and other is not claim]
        self.guard.release(claim)
        self.alive.remove(claim)
        assert self.granted == [other for other in waited if other.is_granted]  # each once, oldest first

    @invariant()
    def a_claim_is_granted_if_no_earlier_one_overlaps_it(self) -> None:
        """Hence granted ranges are disjoint, overlapping claims go in order, and the oldest is never stuck."""
        for index, claim in enumerate(self.alive):
            assert claim.is_granted is not any(claim.overlaps(earlier) for earlier in self.alive[:index])

    @invariant()
    def it_is_idle_without_claims(self) -> None:
        assert self.guard.idle is not bool(self.alive)

    def teardown(self) -> None:
        """Each claim is granted in the end."""
        while self.alive:
            granted = next(claim for claim in self.alive if claim.is_granted)
            self.release(granted)
        assert self.guard.idle


TestGuarding = Guarding.TestCase
TestGuarding.settings = settings(max_examples=60, stateful_step_count=40)
