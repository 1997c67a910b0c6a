"""What is made again, and when."""

from __future__ import annotations

from dataclasses import replace

from aoefs.core.statistics import TargetStatistics
from aoefs.status.sparing import CREDIT, SHARE, PerTarget, Sparing
from tests.status.snapshots import target


def test_only_a_target_that_changed_is_made_again() -> None:
    made: list[str] = []

    def make(statistics: TargetStatistics) -> int:
        made.append(statistics.name)
        return statistics.reads

    per_target = PerTarget(make)
    one, two = target(name="e0.0"), target(name="e0.1")
    assert list(per_target.of([one, two])) == [3, 3]
    assert list(per_target.of([replace(one), replace(two, reads=4)])) == [3, 4]
    assert made == ["e0.0", "e0.1", "e0.1"]
    assert list(per_target.of([two])) == [3]
    assert list(per_target.of([one])) == [3]
    assert made == ["e0.0", "e0.1", "e0.1", "e0.1", "e0.0"]


class Costly:
    """Making takes ``cost`` seconds; what is made is the time."""

    def __init__(self, cost: float) -> None:
        self.cost, self.now, self.count = cost, 0.0, 0
        self.sparing = Sparing(self.make, lambda: self.now)

    def make(self) -> float:
        made_at = self.now
        self.now += self.cost
        self.count += 1
        return made_at


def test_a_cheap_one_is_always_new() -> None:
    costly = Costly(0.0005)
    for _ in range(100):
        costly.now += 0.01
        now = costly.now
        assert costly.sparing() == now


def test_a_few_at_once_are_new_however_little_time_is_between_them() -> None:
    costly = Costly(0.002)
    for _ in range(25):
        now = costly.now
        assert costly.sparing() == now


def test_a_loop_takes_its_share_of_the_time_and_what_it_gets_is_not_old() -> None:
    for cost in (0.0001, 0.01, 0.1):
        costly = Costly(cost)
        oldest = 0.0
        while costly.now < 10:
            oldest = max(oldest, costly.now - costly.sparing())
            costly.now += 0.0001
        assert costly.count * cost <= SHARE * (10 + CREDIT) + 2 * cost
        assert oldest <= cost / SHARE + 2 * cost
