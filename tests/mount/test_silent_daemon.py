"""A mount whose process does not answer: every command ends or says what it waits for, and none needs the process."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.lab import COMMANDS, INITIATOR, Argument, Lab, Mount, Process, is_gone, wait_until
from tests.mount.place import MIB, nothing_is_left

BOUND = 10.0  # seconds; the commands take about two, and the mount process never goes on


@dataclass
class Stopped:
    """A mount over e0.0 whose process is stopped."""

    lab: Lab
    mount: Mount
    pid: int

    def aoefs(self, *arguments: Argument, code: int = 0) -> tuple[str, str]:
        """What a command writes to stdout and stderr; AssertionError if it does not end in time, with this code."""
        answer = self.lab.aoefs(*arguments, check=False, timeout=BOUND)
        assert answer.returncode == code, answer.stderr
        return answer.stdout, answer.stderr

    def start(self, *arguments: Argument) -> Process:
        return self.lab.popen(INITIATOR, [COMMANDS / "aoefs", *arguments])

    def go_on(self) -> None:
        os.kill(self.pid, signal.SIGCONT)


@pytest.fixture
def stopped(lab: Lab) -> Iterator[Stopped]:
    lab.vblade(0, 0, lab.image("disk", MIB))
    mount = lab.mount()
    pid = mount.pid
    os.kill(pid, signal.SIGSTOP)
    try:
        yield Stopped(lab, mount, pid)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        wait_until(lambda: is_gone(pid), what="the mount process is gone")


def test_a_lazy_umount_detaches_it_and_says_which_process_may_have_to_be_killed(stopped: Stopped) -> None:
    _, said = stopped.aoefs("umount", "--lazy", stopped.mount.path)
    assert said.startswith(
        f"aoefs: {stopped.mount.path} is detached, but its mount process (pid {stopped.pid}) does not"
    )
    assert "kill" in said
    assert said.count("\n") == 1
    assert not stopped.mount.mounted
    stopped.go_on()
    wait_until(lambda: is_gone(stopped.pid), what="the mount process ends, once it goes on")
    assert nothing_is_left(stopped.lab, stopped.mount)


def test_a_umount_says_what_it_waits_for_and_goes_on_with_the_mount_process(stopped: Stopped) -> None:
    umount = stopped.start("umount", stopped.mount.path)
    wait_until(lambda: umount.output, timeout=BOUND, what="it says what it waits for")
    assert f"mount process of {stopped.mount.path} (pid {stopped.pid}), which does not answer" in umount.output
    assert "--lazy" in umount.output
    assert umount.poll() is None
    assert stopped.mount.mounted
    stopped.go_on()
    assert umount.wait(BOUND) == 0
    assert nothing_is_left(stopped.lab, stopped.mount)


def test_a_umount_that_waits_can_be_interrupted(stopped: Stopped) -> None:
    umount = stopped.start("umount", stopped.mount.path)
    wait_until(lambda: umount.output, timeout=BOUND, what="it says what it waits for")
    assert umount.stop(signal.SIGINT) == 130
    assert stopped.mount.mounted


def test_the_doctor_warns_of_it(stopped: Stopped) -> None:
    path = stopped.mount.path
    printed, said = stopped.aoefs("doctor")
    advice = f"wait for it, or 'aoefs umount --lazy {path}' and kill it"
    assert f"warn  mount {path}: its daemon (pid {stopped.pid}) does not answer: {advice}\n" in printed
    assert said == ""


def test_the_next_start_says_so_in_one_line(stopped: Stopped) -> None:
    path = stopped.mount.path
    _, said = stopped.aoefs("-i", "aoe0", path, code=1)
    advice = f"'aoefs umount --lazy {path}' first"
    assert said == f"aoefs: {path} is mounted already, and its daemon (pid {stopped.pid}) does not answer: {advice}\n"
    assert stopped.mount.mounted


@pytest.mark.parametrize("how", ["--once", "--json"])
def test_the_status_says_so(stopped: Stopped, how: str) -> None:
    printed, said = stopped.aoefs("status", how, stopped.mount.path, code=1)
    assert printed == ""
    assert said.startswith(f"aoefs: {stopped.mount.path} does not report its status: its daemon does not answer")
    assert said.count("\n") == 1


def test_the_events_say_so(stopped: Stopped) -> None:
    printed, said = stopped.aoefs("events", stopped.mount.path, code=1)
    assert printed == ""
    assert said.startswith(f"aoefs: {stopped.mount.path} does not report its events: its daemon does not answer")
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    ("command", "shows"), [(("status", "--watch", "0.1"), '"targets"'), (("events", "-f"), "info e0.0")]
)
def test_what_follows_a_mount_says_that_it_waits_and_goes_on(
    stopped: Stopped, command: tuple[str, ...], shows: str
) -> None:
    follower = stopped.start(*command, stopped.mount.path)
    wait_until(lambda: follower.output, timeout=BOUND, what="it says what it waits for")
    assert follower.output == f"aoefs: waiting for the daemon of {stopped.mount.path}, which does not answer\n"
    stopped.go_on()
    wait_until(lambda: shows in follower.output, timeout=BOUND, what="it goes on")
    assert follower.output.count("does not answer") == 1


def test_a_follower_that_waits_can_be_interrupted(stopped: Stopped) -> None:
    follower = stopped.start("events", "-f", stopped.mount.path)
    wait_until(lambda: follower.output, timeout=BOUND, what="it says what it waits for")
    assert follower.stop(signal.SIGINT) == 0
