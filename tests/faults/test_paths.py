"""Two cables to one target: a fault of one of them causes no error and does not disturb the other."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator

import pytest

from tests.faults.live import Worker, mount_until, path_of, pattern, read, set_link, write
from tests.lab import INITIATOR, TARGET, Lab, opened, wait_until
from tests.lab.forwarder import BLACK_HOLE, NOTHING_WRONG, Wire

SIZE = 8 << 20
PIECE = 16384


@pytest.fixture
def second(lab: Lab, wire: Wire) -> Iterator[Wire]:
    """``aoe1`` of both sides."""
    with contextlib.closing(Wire(lab, INITIATOR, TARGET, seed=2)) as made:
        yield made


def pull(lab: Lab, wire: Wire) -> None:
    """The initiator's interface loses its carrier."""
    set_link(lab, wire.side, "aoe0", up=False)


def plug(lab: Lab, wire: Wire) -> None:
    set_link(lab, wire.side, "aoe0", up=True)


def switch_off(lab: Lab, wire: Wire) -> None:
    set_link(lab, INITIATOR, wire.left, up=False)


def switch_on(lab: Lab, wire: Wire) -> None:
    set_link(lab, INITIATOR, wire.left, up=True)


def swallow(lab: Lab, wire: Wire) -> None:
    wire.misbehave(BLACK_HOLE)


def swallow_answers(lab: Lab, wire: Wire) -> None:
    wire.misbehave(out=NOTHING_WRONG, back=BLACK_HOLE)


def swallow_requests(lab: Lab, wire: Wire) -> None:
    wire.misbehave(out=BLACK_HOLE, back=NOTHING_WRONG)


def end_faults(lab: Lab, wire: Wire) -> None:
    wire.faults()


Act = Callable[[Lab, Wire], None]


@pytest.mark.parametrize(
    ("fail", "repair"),
    [
        (pull, plug),
        (switch_off, switch_on),
        (swallow, end_faults),
        (swallow_answers, end_faults),
        (swallow_requests, end_faults),
    ],
)
def test_io_goes_on_over_the_other_path_and_the_degraded_one_is_used_again(
    lab: Lab, wire: Wire, second: Wire, fail: Act, repair: Act
) -> None:
    disk = lab.image("disk", SIZE)
    lab.target(f"0.0={disk}", interfaces=["aoe0", "aoe1"])
    mount = mount_until(lab, "e0.0")
    wait_until(lambda: len(mount.target()["paths"]) >= 2)

    def sent(interface: str) -> int:
        count: int = path_of(mount, interface=interface)["answered"]
        return count

    with opened(mount.here / "e0.0") as file:
        numbers = itertools.count()

        def work(_step: int) -> None:
            number = next(numbers)
            offset = number % 32 * PIECE
            write(file, pattern(number, PIECE), offset)
            assert read(file, PIECE, offset) == pattern(number, PIECE)

        with Worker(work) as worker:
            worker.wait_for_steps(20)
            assert sent("aoe0")
            assert sent("aoe1")
            fail(lab, second)
            worker.wait_for_steps(100)
            wait_until(lambda: not path_of(mount, interface="aoe1")["healthy"], what="the path is degraded")
            assert path_of(mount, interface="aoe0")["healthy"]
            worker.wait_for_steps(20)
            repair(lab, second)
            wait_until(lambda: path_of(mount, interface="aoe1")["healthy"], 60, "the path is used again")
            before = sent("aoe1")
            worker.wait_for_steps(50)
            assert sent("aoe1") > before
    found = mount.target()
    assert found["errors"] == 0
    assert found["state"] == "up"


@pytest.mark.parametrize(("fail", "repair"), [(pull, plug), (switch_off, switch_on)])
def test_a_target_whose_only_cable_is_pulled_is_found_again(lab: Lab, wire: Wire, fail: Act, repair: Act) -> None:
    disk = lab.image("disk", SIZE)
    lab.vblade(0, 0, disk)
    mount = mount_until(lab, "e0.0")
    with opened(mount.here / "e0.0") as file, Worker(lambda step: write(file, pattern(step))) as worker:
        worker.wait_for_steps(5)
        fail(lab, wire)
        wait_until(lambda: not path_of(mount)["healthy"])
        repair(lab, wire)
        worker.wait_for_steps(5)
    assert mount.target()["errors"] == 0
