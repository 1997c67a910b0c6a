"""What tuning changes in this process, in one of its own; and what it does when it is refused."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from aoefs.fuse import tuning

_COUNT_PAGE_FAULTS = """
import resource, sys
from aoefs.fuse import tuning

def page_faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

if sys.argv[1] == "tuned":
    tuning.keep_freed_memory()
for turn in range(20):
    if turn == 10:
        before = page_faults()
    buffers = [bytes(1 << 20).replace(b"\\0", b"x") for _ in range(4)]
    del buffers
print(page_faults() - before)
"""


def page_faults_of_ten_turns(how: str) -> int:
    return int(subprocess.run([sys.executable, "-c", _COUNT_PAGE_FAULTS, how], capture_output=True, check=True).stdout)


def test_buffers_of_writes_come_from_memory_that_is_there_already() -> None:
    assert page_faults_of_ten_turns("tuned") < 100
    assert page_faults_of_ten_turns("plain") > 1000, "this test could not fail"


@pytest.mark.parametrize(
    ("sysctls", "seconds"),
    [
        ({}, None),
        ({"default_request_timeout": "0", "max_request_timeout": "0"}, None),
        ({"default_request_timeout": "60", "max_request_timeout": "0"}, 60.0),
        ({"default_request_timeout": "0", "max_request_timeout": "120"}, 120.0),
        ({"default_request_timeout": "60", "max_request_timeout": "30"}, 30.0),
        ({"max_request_timeout": "90"}, 90.0),
    ],
)
def test_the_smaller_request_timeout_of_the_kernel_counts_and_0_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sysctls: dict[str, str], seconds: float | None
) -> None:
    monkeypatch.setattr(tuning, "SYSCTLS", tmp_path)
    for name, value in sysctls.items():
        (tmp_path / name).write_text(f"{value}\n")
    assert tuning.request_timeout() == seconds


@pytest.mark.parametrize(
    ("deadsecs", "timeout", "bounded"),
    [(180.0, 0, 180.0), (0.0, 0, 0.0), (20.0, 60, 20.0), (180.0, 60, 45.0), (0.0, 60, 45.0)],
)
def test_a_request_waits_for_less_than_the_kernel_allows_and_a_warning_says_so(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    announce: Callable[[str], None],
    deadsecs: float,
    timeout: int,
    bounded: float,
) -> None:
    monkeypatch.setattr(tuning, "SYSCTLS", tmp_path)
    (tmp_path / "default_request_timeout").write_text(f"{timeout}\n")
    if bounded != deadsecs:
        announce("a request waits for 45 s, not .*: after 60 s the kernel would end the mount")
    assert tuning.bound_deadsecs(deadsecs) == bounded


def test_a_device_that_is_no_fuse_mount_is_complained_of(tmp_path: Path) -> None:
    background = tuning.Background(os.stat(tmp_path).st_dev)
    assert background.complaint
    assert "max_background stays at the kernel's default" in background.complaint


def test_a_limit_that_the_kernel_does_not_grant_leaves_things_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tuning, "FUSECTL", tmp_path)
    connection = tmp_path / "7"
    connection.mkdir()
    readers = {}
    for name in ("max_background", "congestion_threshold"):
        os.mkfifo(connection / name)
        readers[name] = os.open(connection / name, os.O_RDONLY | os.O_NONBLOCK)
    with contextlib.closing(tuning.Background(os.makedev(0, 7))) as background:
        assert background.complaint is None
        background.allow(100)
        assert os.read(readers["max_background"], 100) == b"%d\n100\n" % tuning.MAX_BACKGROUND
        assert os.read(readers["congestion_threshold"], 100) == b"%d\n75\n" % (tuning.MAX_BACKGROUND * 3 // 4)
        for reader in readers.values():
            os.close(reader)
        background.allow(tuning.MOST_BACKGROUND)  # every write fails now


def _effective_rights() -> int:
    status = Path("/proc/thread-self/status").read_text()
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith("CapEff:")), 16)


@pytest.mark.parametrize("number", [10, 24, 38])
def test_a_right_is_given_up_by_one_thread_only(number: int) -> None:
    seen: list[int] = []

    def give_up() -> None:
        assert tuning.give_up_capability(number) is None
        seen.append(_effective_rights())

    before = _effective_rights()
    thread = threading.Thread(target=give_up)
    thread.start()
    thread.join()
    assert seen == [before & ~(1 << number)]
    assert _effective_rights() == before


def test_a_right_that_cannot_be_given_up_is_a_line_for_the_log(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning, "_CAPABILITY_VERSION_3", 0)  # the kernel refuses the call
    complaint = tuning.receive_by_read()
    assert complaint is not None
    assert complaint.startswith("capability 24 is kept: Invalid argument")
