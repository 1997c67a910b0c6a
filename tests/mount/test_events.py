"""``aoefs events`` over a real mount: what it lists, what it follows, and how it ends."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aoefs.cli.commands.events import news
from tests.lab import COMMANDS, INITIATOR, Lab, Mount, Process, wait_until
from tests.mount.place import MIB, pid_of

AOEFS = COMMANDS / "aoefs"


@pytest.fixture
def disk(lab: Lab) -> Process:
    """The vblade of e0.0."""
    return lab.vblade(0, 0, lab.image("disk", MIB, seed=None))


def follow(mount: Mount) -> Process:
    """The command, once it has listed what there was."""
    follower = mount.lab.popen(INITIATOR, [AOEFS, "events", "--follow", mount.path])
    wait_until(lambda: "info e0.0: 1048576 bytes" in follower.output, what="what was before is listed first")
    return follower


def test_what_happened_is_listed_a_line_each(lab: Lab, disk: Process) -> None:
    mount = lab.mount()
    lines = lab.aoefs("events", mount.path).stdout.splitlines()
    assert [line for line in lines if " info e0.0: 1048576 bytes" in line]
    assert lines == sorted(lines)  # each begins with its time


def test_following_tells_what_happens_and_ends_when_the_mount_goes(lab: Lab, disk: Process) -> None:
    mount = lab.mount(deadsecs=1)
    follower = follow(mount)
    disk.stop()
    lab.run(INITIATOR, ["dd", f"if={mount.file('e0.0')}", "of=/dev/null", "count=1", "iflag=direct"], check=False)
    wait_until(lambda: "e0.0: read failed" in follower.output, what="the failure is told")
    mount.umount()
    assert follower.wait(30) == 0
    lines = follower.output.splitlines()
    assert lines[-1] == f"aoefs: {mount.path} is not mounted any more"
    assert len(set(lines)) == len(lines)  # nothing is told twice


def test_following_ends_cleanly_with_ctrl_c(lab: Lab, disk: Process) -> None:
    follower = follow(lab.mount())
    said = follower.output
    assert follower.stop(signal.SIGINT) == 0
    assert follower.output == said


def test_a_dead_mount_is_an_error_also_while_following(lab: Lab, disk: Process) -> None:
    mount = lab.mount()
    follower = follow(mount)
    os.kill(pid_of(mount), signal.SIGKILL)
    assert follower.wait(30) == 1
    assert follower.output.splitlines()[-1].startswith(f"aoefs: {mount.path} does not tell its events: ")


@given(st.lists(st.sampled_from("abc")), st.lists(st.sampled_from("abc")), st.integers(1, 10))
def test_news_are_what_a_ring_got_since(before: Sequence[str], more: Sequence[str], size: int) -> None:
    old, new = before[-size:], [*before, *more][-size:]
    told = news(old, new)
    assert [*old, *told][-size:] == new
    assert len(told) <= min(len(more), size)  # of equal lines, the fewest that explain what is there


def test_lines_that_differ_are_each_told_once() -> None:
    lines = [str(number) for number in range(20)]
    for first in range(20):
        for end in range(first, 20):
            assert news(lines[:first][-5:], lines[:end][-5:]) == lines[:end][-5:][-(end - first) or 5 :]
