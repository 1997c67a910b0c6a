"""``aoefs events`` over a real mount: what it lists, what it follows, and how it ends."""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aoefs.cli.commands.events import news
from tests.lab import COMMANDS, INITIATOR, Lab, Mount, Process, wait_until
from tests.mount.place import MIB

AOEFS = COMMANDS / "aoefs"


@pytest.fixture
def disk(lab: Lab) -> Process:
    """The vblade of e0.0."""
    return lab.vblade(0, 0, lab.image("disk", MIB, seed=None))


def follow(mount: Mount) -> Process:
    """The command, once it has listed the earlier events."""
    follower = mount.lab.popen(INITIATOR, [AOEFS, "events", "--follow", mount.path])
    wait_until(lambda: "info e0.0: 1.00 MiB" in follower.output, what="earlier events are listed first")
    return follower


def test_events_are_listed_one_in_a_line(lab: Lab, disk: Process) -> None:
    mount = lab.mount()
    lines = lab.aoefs("events", mount.path).stdout.splitlines()
    assert [line for line in lines if " info e0.0: 1.00 MiB" in line]
    assert lines == sorted(lines)  # each begins with its time


def test_following_prints_new_events_and_ends_with_the_mount(lab: Lab, disk: Process) -> None:
    mount = lab.mount(deadsecs=1)
    follower = follow(mount)
    disk.stop()
    lab.run(INITIATOR, ["dd", f"if={mount.file('e0.0')}", "of=/dev/null", "count=1", "iflag=direct"], check=False)
    wait_until(lambda: "e0.0: read failed" in follower.output, what="the failure is reported")
    mount.umount()
    assert follower.wait(30) == 0
    lines = follower.output.splitlines()
    assert lines[-1] == f"aoefs: {mount.path} is not mounted any more"
    assert len(set(lines)) == len(lines)  # nothing is reported twice


def test_following_ends_cleanly_with_ctrl_c(lab: Lab, disk: Process) -> None:
    follower = follow(lab.mount())
    said = follower.output
    assert follower.stop(signal.SIGINT) == 0
    assert follower.output == said


def test_a_dead_mount_is_an_error_also_while_following(lab: Lab, disk: Process) -> None:
    mount = lab.mount()
    follower = follow(mount)
    os.kill(mount.pid, signal.SIGKILL)
    assert follower.wait(30) == 1
    assert follower.output.splitlines()[-1].startswith(f"aoefs: {mount.path} does not report its events: ")


@given(st.lists(st.sampled_from("abc")), st.lists(st.sampled_from("abc")), st.integers(1, 10))
def test_news_are_what_was_added_to_a_ring(before: Sequence[str], more: Sequence[str], size: int) -> None:
    old, new = before[-size:], [*before, *more][-size:]
    found = news(old, new)
    assert [*old, *found][-size:] == new
    assert len(found) <= min(len(more), size)  # of equal lines, the fewest that explain the new ring


def test_lines_that_differ_are_each_reported_once() -> None:
    lines = [str(number) for number in range(20)]
    for first in range(20):
        for end in range(first, 20):
            assert news(lines[:first][-5:], lines[:end][-5:]) == lines[:end][-5:][-(end - first) or 5 :]


# ── the log ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_log_of_a_mount_goes_to_a_file_as_text_or_json_and_follows_when_that_is_moved(lab: Lab) -> None:
    lab.vblade(0, 0, lab.image("disk", MIB))
    text, objects = lab.directory / "text.log", lab.directory / "json.log"
    mount = lab.mount(log_file=str(text))
    wait_until(lambda: "info mounted on" in text.read_text().lower(), what="it is in the log")
    assert re.search(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} INFO mounted on ", text.read_text(), re.MULTILINE)
    assert re.search(
        r" INFO e0\.0: 1\.00 MiB, Coraid .*\n(?:.*\n)*.* INFO mounted on ", text.read_text()
    )  # from its start
    text.rename(f"{text}.1")
    mount.umount()
    mount = lab.mount(log_file=str(objects), log_format="json", deadsecs=1)
    wait_until(lambda: objects.exists() and "mounted on" in objects.read_text(), what="it is in the log")
    mount.umount()
    records = [json.loads(line) for line in objects.read_text().splitlines()]
    assert all(set(record) == {"time", "level", "text"} for record in records)
    assert [record["level"] for record in records if record["text"].startswith("mounted on")] == ["info"]


def test_the_level_of_the_log_leaves_out_what_is_less(lab: Lab) -> None:
    lab.vblade(0, 0, lab.image("disk", MIB))
    mount = lab.mount(foreground=True, log_level="error")
    wait_until(lambda: (mount.here / "e0.0").exists(), what="the target")
    mount.umount()
    assert mount.process is not None
    assert mount.process.wait(20) == 0
    assert mount.process.output == ""


def test_a_log_file_that_cannot_be_written_is_one_line(lab: Lab) -> None:
    (lab.directory / "point").mkdir()
    answer = lab.aoefs("-i", "aoe0", "--log-file", "/nowhere/log", lab.directory / "point", check=False)
    says = "aoefs: --log-file /nowhere/log cannot be written: No such file or directory\n"
    assert (answer.returncode, answer.stderr) == (1, says)
