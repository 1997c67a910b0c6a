"""How a mount stops, whatever its targets do: a second signal ends it at once, and what can be flushed is flushed."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from aoefs.fuse.mount import FLUSH_GRACE, GRACE
from tests.engine.answers import is_flush
from tests.faults.live import log_of, mount_until, pattern, serve_journal, write
from tests.faults.powercut import read_journal
from tests.lab import INITIATOR, Capture, Lab, Mount, Process, wait_until
from tests.lab.forwarder import BLACK_HOLE, Wire
from tests.segment import is_request

SIZE = 1 << 20
AT_ONCE = 6.0  # seconds, less than GRACE: it takes one; a busy machine may need more
BOUND = GRACE + FLUSH_GRACE + 4.0
MANY = 50  # disks: more than the threads that trio allows by itself


def daemon(mount: Mount) -> Process:
    assert mount.process is not None
    return mount.process


def begin_to_stop(mount: Mount) -> None:
    """The first signal; the mount point is free when this returns."""
    daemon(mount).send_signal(signal.SIGTERM)
    wait_until(lambda: not mount.mounted, AT_ONCE, "the mount point is free")


def ends_at_once(mount: Mount, code: int) -> None:
    """A signal ends the process now, with this exit code."""
    assert daemon(mount).poll() is None
    daemon(mount).send_signal(signal.SIGTERM)
    assert daemon(mount).wait(AT_ONCE) == code, log_of(mount)


@contextlib.contextmanager
def all_opened(mount: Mount, names: Sequence[str]) -> Iterator[list[int]]:
    """Descriptors of these disks, for direct I/O, while the daemon lives.

    Start no program in the block (see :func:`tests.lab.opened`).  The daemon ends with the block: a close would wait
    for a target that is silent.
    """
    descriptors: list[int] = []
    try:
        descriptors.extend(os.open(mount.here / name, os.O_RDWR | os.O_DIRECT) for name in names)
        yield descriptors
    finally:
        daemon(mount).kill()
        daemon(mount).wait()
        for descriptor in descriptors:
            with contextlib.suppress(OSError):
                os.close(descriptor)


def is_flushed(journal: Path) -> bool:
    """Whether a target had something to flush, and wrote nothing after its last flush."""
    entries = list(read_journal(journal))
    return len(entries) > 1 and entries[-1].is_flush and not entries[-2].is_flush


def not_flushed(mount: Mount) -> set[str]:
    """The targets that the log names, since their last flush failed or was not answered."""
    lines = re.findall(r"^aoefs: (.+): the last flush (?:failed|was not answered)", log_of(mount), re.MULTILINE)
    return {name for line in lines for name in line.split(", ")}


def flushes(capture: Capture) -> int:
    """How many FLUSH commands were seen."""
    return sum(is_request(frame) and is_flush(frame) for frame in capture.frames())


def stuck_threads(process: Process) -> int:
    """How many threads of a process and its children sleep in the kernel and cannot be woken by a signal."""
    states = []
    tasks = list(Path(f"/proc/{process.pid}/task").iterdir())
    for task in tasks:
        with contextlib.suppress(OSError):
            states.append((task / "stat").read_text().rpartition(")")[2].split()[0])
            for child in (task / "children").read_text().split():
                tasks += Path(f"/proc/{child}/task").iterdir()
    return states.count("D")


# ── a second signal ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_second_signal_ends_a_mount_whose_reads_wait(lab: Lab, wire: Wire) -> None:
    target = lab.vblade(0, 0, lab.image("disk", SIZE))
    mount = mount_until(lab, "e0.0", deadsecs=0)
    target.send_signal(signal.SIGSTOP)
    readers = [
        lab.popen(INITIATOR, ["dd", f"if={mount.file('e0.0')}", "of=/dev/null", "bs=4k", *options])
        for options in (["iflag=direct"], [])
    ]
    wait_until(lambda: mount.target()["retransmits"] > 2)
    begin_to_stop(mount)
    ends_at_once(mount, 0)
    for reader in readers:
        assert reader.wait(AT_ONCE) == 1
    assert not_flushed(mount) == set()


def test_a_second_signal_while_open_files_are_served_flushes_what_can_be_flushed(lab: Lab, wire: Wire) -> None:
    target = lab.vblade(0, 0, lab.image("silent", SIZE))
    journal = serve_journal(lab, lab.image("healthy", SIZE), address="0.1")
    mount = mount_until(lab, "e0.0", "e0.1")
    with all_opened(mount, ["e0.0", "e0.1"]) as files:
        for file in files:
            write(file, pattern(1))
        target.send_signal(signal.SIGSTOP)
        begin_to_stop(mount)
        ends_at_once(mount, 1)
    assert is_flushed(journal)
    assert not_flushed(mount) == {"e0.0"}


def test_a_second_signal_ends_the_last_flush(lab: Lab, wire: Wire) -> None:
    """A flush that fails lets a target stay dirty without an open file, so that the last flush begins at once."""
    serve_journal(lab, lab.image("disk", SIZE), "fail")
    capture = lab.capture()
    mount = mount_until(lab, "e0.0")
    file = os.open(mount.here / "e0.0", os.O_RDWR | os.O_DIRECT)
    write(file, pattern(1))
    with pytest.raises(OSError, match="Input/output error"):
        os.close(file)
    wire.misbehave(BLACK_HOLE)
    before = flushes(capture)
    begin_to_stop(mount)
    wait_until(lambda: flushes(capture) > before, AT_ONCE, "the last flush is on its way")
    ends_at_once(mount, 1)
    assert not_flushed(mount) == {"e0.0"}


def test_a_second_signal_ends_a_mount_of_which_the_kernel_holds_many_threads(lab: Lab, wire: Wire) -> None:
    """A call that lets the kernel forget pages waits for a page that is being read, and no signal ends that."""
    names = [f"e0.{slot}" for slot in range(MANY)]
    target = lab.target(*(f"{name[1:]}={lab.image(name, SIZE, seed=None)}" for name in names))
    mount = mount_until(lab, *names, deadsecs=0)
    target.send_signal(signal.SIGSTOP)
    readers = [lab.popen(INITIATOR, ["dd", f"if={mount.file(name)}", "of=/dev/null", "bs=4k"]) for name in names]
    wait_until(lambda: all(map(stuck_threads, readers)), what="a page of each disk is being read")
    (mount.here / ".aoefs/revalidate").write_text("all\n")
    wait_until(lambda: stuck_threads(daemon(mount)) >= MANY, what="a thread waits for each disk")
    begin_to_stop(mount)
    ends_at_once(mount, 0)
    assert {reader.wait(AT_ONCE) for reader in readers} == {1}


def test_a_stop_of_what_somebody_unmounted_reports_nothing(lab: Lab, wire: Wire) -> None:
    lab.vblade(0, 0, lab.image("disk", SIZE))
    mount = mount_until(lab, "e0.0")
    with all_opened(mount, ["e0.0"]):
        lab.run(INITIATOR, ["umount", "--lazy", mount.path])
        daemon(mount).send_signal(signal.SIGTERM)
        wait_until(lambda: "SIGTERM: unmounting" in log_of(mount), what="it begins to stop")
        ends_at_once(mount, 0)
    assert "not mounted" not in log_of(mount)


# ── the last flush ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_stop_flushes_all_that_answer_in_time_and_names_the_others(lab: Lab, wire: Wire) -> None:
    healthy = [serve_journal(lab, lab.image(f"healthy{slot}", SIZE), address=f"0.{slot}") for slot in range(3)]
    slow = serve_journal(lab, lab.image("slow", SIZE), f"slow={FLUSH_GRACE / 4}", address="0.3")
    serve_journal(lab, lab.image("too slow", SIZE), f"slow={FLUSH_GRACE + 2}", address="0.4")
    silent = lab.vblade(0, 5, lab.image("silent", SIZE))
    names = [f"e0.{slot}" for slot in range(6)]
    mount = mount_until(lab, *names, deadsecs=0)
    lab.popen(INITIATOR, ["sh", "-c", f"exec dd if={mount.file('e0.5')} of=/dev/null iflag=direct bs=4k"])
    with all_opened(mount, names) as files:
        for file in files:
            write(file, pattern(1))
        silent.send_signal(signal.SIGSTOP)
        began = time.monotonic()
        begin_to_stop(mount)
        assert daemon(mount).wait(BOUND - (time.monotonic() - began)) == 1, log_of(mount)
    assert all(map(is_flushed, [*healthy, slow]))
    assert not_flushed(mount) == {"e0.4", "e0.5"}


def test_a_stop_in_a_stream_of_writes_to_a_silent_target_ends_in_time_and_flushes_the_others(
    lab: Lab, wire: Wire
) -> None:
    silent = lab.vblade(0, 0, lab.image("silent", 1 << 30, seed=None))
    journal = serve_journal(lab, lab.image("healthy", SIZE), address="0.1")
    mount = mount_until(lab, "e0.0", "e0.1", deadsecs=0)
    stream = lab.popen(INITIATOR, ["dd", "if=/dev/zero", f"of={mount.file('e0.0')}", "bs=4k", "conv=notrunc"])
    wait_until(lambda: mount.target()["writes"] > 200, what="a stream of writes")
    with all_opened(mount, ["e0.1"]) as (file,):
        write(file, pattern(1))
        silent.send_signal(signal.SIGSTOP)
        wait_until(lambda: mount.target()["retransmits"] > 2)
        assert stream.poll() is None
        began = time.monotonic()
        begin_to_stop(mount)
        assert daemon(mount).wait(BOUND - (time.monotonic() - began)) == 1, log_of(mount)
    assert stream.wait(AT_ONCE) == 1
    assert is_flushed(journal)
    assert not_flushed(mount) == {"e0.0"}
