"""Point: queues.  Thousands of hosts that answer to queries but are none keep no disk from being found."""

from __future__ import annotations

import signal

from tests.faults.live import Worker, mount_until, read
from tests.hostile.attack import attacking
from tests.lab import Lab, opened, wait_until

SIZE = 4 << 20
FIRST = 4500  # lies, then a hundred a second
QUIET = 8.0  # seconds for which the target is stopped: the IDENTIFY that its silence caused is over then
SOON = 15.0  # seconds; a silent target is asked for after 1, 2, 3, 5, 7, 11, 15 and 23 seconds


def test_a_new_target_is_found_while_lies_come(lab: Lab) -> None:
    lab.target(f"0.0={lab.image('disk', SIZE)}")
    mount = mount_until(lab, "e0.0")
    with attacking(lab, "starve", first=FIRST) as attack:
        attack.until("strangers", FIRST)
        lab.target(f"0.1={lab.image('new', SIZE, seed=1)}")
        wait_until((mount.here / "e0.1").exists, SOON, "the new target appears")


def test_a_silent_target_comes_back_while_lies_come(lab: Lab) -> None:
    disk = lab.image("disk", SIZE)
    target = lab.target(f"0.0={disk}")
    mount = mount_until(lab, "e0.0")
    contents = disk.read_bytes()

    def work(step: int) -> None:
        offset = step % 256 * 16384
        assert read(file, 16384, offset) == contents[offset : offset + 16384]

    with (
        opened(mount.here / "e0.0") as file,
        Worker(work) as worker,
        attacking(lab, "starve", first=FIRST) as attack,
    ):
        attack.until("strangers", FIRST)
        worker.wait_for_steps(5)
        target.send_signal(signal.SIGSTOP)
        attack.goes_on(QUIET)
        target.send_signal(signal.SIGCONT)
        worker.wait_for_steps(5, SOON)
    assert mount.target()["errors"] == 0
