"""A write that the wire keeps back arrives after newer ones: it never overwrites them."""

from __future__ import annotations

import itertools
import random
import threading
import time
from pathlib import Path

import pytest

from tests.faults.live import mount_until, path_of, pattern, read, write
from tests.lab import Lab, opened, wait_until
from tests.lab.forwarder import NOTHING_WRONG, Misdeeds, Wire

SIZE = 1 << 20
# Seconds.  The initiator takes a frame to live for half a second at most: this is well below, since a busy machine
# delivers a copy too late.  An attempt in which it was TOO_LATE proves nothing.
HELD = 0.25
TOO_LATE = 0.2
ATTEMPTS = 10
BLOCK = 8192


def test_a_late_copy_of_a_retransmitted_write_changes_nothing(lab: Lab, wire: Wire) -> None:
    disk = lab.image("disk", SIZE)
    lab.vblade(0, 0, disk)
    mount = mount_until(lab, "e0.0")
    with opened(mount.here / "e0.0") as file:
        read(file, 65536)  # a sample of the round trip
        assert any(overtakes_a_copy(wire, disk, file, turn) for turn in range(ATTEMPTS)), "reads or other writes wait"
    assert path_of(mount)["retransmits"] + path_of(mount)["late"] > 0
    assert mount.target()["errors"] == 0


def overtakes_a_copy(wire: Wire, disk: Path, file: int, turn: int) -> bool:
    """Hold a write back until its retransmission is answered, and write the same sectors again.

    Whether a read of them and a write of others were over before the copy was delivered; if not, the machine was slow.
    """
    first, second, third = (pattern(3 * turn + number, 1024) for number in (1, 2, 3))
    wire.misbehave(out=Misdeeds(hold_writes=1.0, hold_by=HELD))
    held = wire.report()["out"].held
    writer = threading.Thread(target=write, args=(file, first))
    writer.start()
    wait_until(lambda: wire.report()["out"].held > held)
    wire.misbehave(out=NOTHING_WRONG)
    writer.join(60)
    assert disk.read_bytes()[:1024] == first
    assert read(file, 1024) == first
    write(file, second, 65536)
    overtaken = not wire.is_quiet()
    write(file, third)
    wait_until(wire.is_quiet)
    if wire.report()["out"].overdue > TOO_LATE:
        return False
    time.sleep(0.05)  # vblade does not say when it has executed the copy
    assert disk.read_bytes()[:1024] == third
    assert read(file, 1024) == third
    return overtaken


@pytest.mark.parametrize("kind", ["vblade", "ours"])
def test_overlapping_writers_read_their_last_write_although_many_copies_are_late(
    lab: Lab, wire: Wire, kind: str
) -> None:
    disk = lab.image("disk", SIZE)
    if kind == "vblade":
        lab.vblade(0, 0, disk)
    else:
        lab.target(f"0.0={disk}")
    mount = mount_until(lab, "e0.0")
    for _ in range(ATTEMPTS):
        wire.misbehave(out=Misdeeds(hold_writes=0.05, hold_by=HELD), back=NOTHING_WRONG)
        newest, failures = write_overlapping(mount.here / "e0.0", disk.read_bytes())
        wait_until(wire.is_quiet)
        if wire.report()["out"].overdue <= TOO_LATE:
            break
    else:
        pytest.fail("copies were delivered too late in every attempt: this machine is too busy")
    time.sleep(0.1)  # the target does not say when it has executed the last copy
    assert wire.report()["out"].held > 8
    assert not failures
    after = disk.read_bytes()
    for number, wanted in newest.items():
        assert after[number * BLOCK : (number + 1) * BLOCK] == wanted, (
            f"a late copy replaced a write of writer {number}"
        )
    assert mount.target()["errors"] == 0


def write_overlapping(file: Path, before: bytes) -> tuple[dict[int, bytes], list[str]]:
    """Eight writers, two seconds, each in a block of its own, so that its last write is known.

    What each of the blocks must hold, and the reads that did not return the last write.
    """
    failures: list[str] = []
    newest = {number: before[number * BLOCK : (number + 1) * BLOCK] for number in range(8)}

    def write_blocks(number: int) -> None:
        dice = random.Random(number)
        with opened(file) as descriptor:
            deadline = time.monotonic() + 2.0
            for step in itertools.count(1):
                if time.monotonic() > deadline:
                    return
                sector = dice.randrange(3)
                start = number * BLOCK + sector * 512  # overlaps the earlier ones
                data = pattern(number << 32 | step, 4096)
                write(descriptor, data, start)
                image = bytearray(newest[number])
                image[sector * 512 : sector * 512 + 4096] = data
                newest[number] = bytes(image)
                if read(descriptor, 4096, start) != data:
                    failures.append(f"writer {number}, step {step}")

    writers = [threading.Thread(target=write_blocks, args=(number,)) for number in range(8)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(120)
    return newest, failures
