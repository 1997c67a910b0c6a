"""A path that loses only large frames, as behind a switch without jumbo frames."""

from __future__ import annotations

import contextlib

import pytest

from tests.faults.live import Worker, log_of, mount_until, path_of, pattern, read, write
from tests.lab import INITIATOR, TARGET, Lab, opened, wait_until
from tests.lab.forwarder import Misdeeds, Wire
from tests.segment import Faults

SIZE = 8 << 20
JUMBO = pytest.mark.parametrize("lab", [9000], indirect=True)
NO_JUMBO = Misdeeds(Faults(longest=1514))


@JUMBO
def test_a_path_without_jumbo_frames_is_measured_before_it_is_used(lab: Lab, wire: Wire) -> None:
    wire.misbehave(NO_JUMBO)
    disk = lab.image("disk", SIZE)
    lab.vblade(0, 0, disk)
    mount = mount_until(lab, "e0.0")
    assert path_of(mount)["sectors"] == 2
    with opened(mount.here / "e0.0") as file:
        assert read(file, 1 << 20) == disk.read_bytes()[: 1 << 20]
        assert path_of(mount)["retransmits"] == 0


@JUMBO
@pytest.mark.parametrize("direction", ["both", "out", "back"])
def test_a_path_that_stops_carrying_jumbo_frames_steps_down_and_io_goes_on(
    lab: Lab, wire: Wire, direction: str
) -> None:
    """With both directions there is another path, which carries none at first; in the end both paths carry them."""
    disk = lab.image("disk", SIZE)
    lab.vblade(0, 0, disk)
    names = ["e0.0"]
    with contextlib.ExitStack() as stack:
        if direction == "both":
            narrow = stack.enter_context(contextlib.closing(Wire(lab, INITIATOR, TARGET)))
            narrow.misbehave(NO_JUMBO)
            lab.vblade(0, 1, disk, "-r", interface=narrow.right)
            names.append("e0.1")
        mount = mount_until(lab, *names)
        contents = disk.read_bytes()
        file = stack.enter_context(opened(mount.here / "e0.0"))

        def work(step: int) -> None:
            offset = step % 4 << 20
            assert read(file, 1 << 20, offset) == contents[offset : offset + (1 << 20)]
            write(file, pattern(step, 65536), 6 << 20)
            assert read(file, 65536, 6 << 20) == pattern(step, 65536)

        with Worker(work) as worker:
            worker.wait_for_steps(4)
            assert path_of(mount)["sectors"] == 17
            if direction == "both":
                assert path_of(mount, "e0.1", narrow.left)["sectors"] == 2
                narrow.faults()
                wire.misbehave(NO_JUMBO)
            else:
                wire.misbehave(**{direction: NO_JUMBO})
            worker.wait_for_steps(4)
            assert path_of(mount)["sectors"] < 17
            wire.faults()
            worker.wait_for_steps(1)
            if direction == "both":  # once is enough
                for name, interface in (("e0.0", wire.left), ("e0.1", narrow.left)):
                    wait_until(
                        lambda name=name, interface=interface: path_of(mount, name, interface)["sectors"] == 17,  # type: ignore[misc]
                        60,
                        f"a larger payload is tried again with {name}",
                    )
                worker.wait_for_steps(2)
        assert mount.target()["errors"] == 0
        assert "sectors per frame" in log_of(mount)
