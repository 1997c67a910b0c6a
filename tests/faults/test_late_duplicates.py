"""A write that the wire keeps back arrives after newer ones: it never overwrites them."""

from __future__ import annotations

import random
import threading
import time
from pathlib import Path

import pytest

from tests.faults.live import mount_until, opened, path_of, pattern, read, target_of, write
from tests.lab import Lab, wait_until
from tests.lab.forwarder import NOTHING_WRONG, Misdeeds, Wire

SIZE = 1 << 20
HELD = 0.4  # seconds; a frame may live for half a second (design, section 4)


def all_delivered(wire: Wire) -> bool:
    return not any(direction.under_way for direction in wire.report().values())


def test_the_copy_of_a_resent_write_that_arrives_late_changes_nothing(lab: Lab, wire: Wire) -> None:
    disk = lab.image("disk", SIZE)
    lab.vblade(0, 0, disk)
    mount = mount_until(lab, "e0.0")
    with opened(mount.here / "e0.0") as file:
        read(file, 65536)  # it knows its round trip
        wire.misbehave(out=Misdeeds(hold_writes=1.0, hold_by=HELD))
        first = threading.Thread(target=write, args=(file, pattern(1, 1024)))
        first.start()
        wait_until(lambda: wire.report()["out"].held)
        wire.misbehave(out=NOTHING_WRONG)
        first.join(10)
        assert not all_delivered(wire), "it was acknowledged by its resend"
        assert disk.read_bytes()[:1024] == pattern(1, 1024)
        began = time.monotonic()
        assert read(file, 1024) == pattern(1, 1024)
        write(file, pattern(2, 1024), 65536)
        assert not all_delivered(wire), "reads and other writes do not wait"
        assert time.monotonic() - began < HELD
        write(file, pattern(3, 1024))
        wait_until(lambda: all_delivered(wire))
        time.sleep(0.05)  # nothing tells when vblade has carried it out
        assert disk.read_bytes()[:1024] == pattern(3, 1024)
        assert read(file, 1024) == pattern(3, 1024)
    assert path_of(mount)["retransmits"] + path_of(mount)["late"] > 0
    assert target_of(mount)["errors"] == 0


@pytest.mark.parametrize("kind", ["vblade", "ours"])
def test_overlapping_writers_see_the_last_acknowledged_write_although_many_copies_are_late(
    lab: Lab, wire: Wire, kind: str
) -> None:
    disk = lab.image("disk", SIZE)
    serve(lab, disk, kind)
    mount = mount_until(lab, "e0.0")
    block = 8192
    failures: list[str] = []
    newest: dict[int, bytes] = {}

    def write_blocks(number: int) -> None:
        """One writer to a range of its own, so that the last write is known; others' blocks are between its own."""
        dice = random.Random(number)
        with opened(mount.here / "e0.0") as file:
            deadline = time.monotonic() + 2.0
            step = 0
            while time.monotonic() < deadline:
                step += 1
                sector = dice.randrange(3)
                start = number * block + sector * 512  # overlaps the earlier ones
                data = pattern(number << 32 | step, 4096)
                write(file, data, start)
                image = bytearray(newest.get(number, disk_before[number * block : (number + 1) * block]))
                image[sector * 512 : sector * 512 + 4096] = data
                newest[number] = bytes(image)
                if read(file, 4096, start) != data:
                    failures.append(f"writer {number}, step {step}")

    disk_before = disk.read_bytes()
    wire.misbehave(out=Misdeeds(hold_writes=0.05, hold_by=HELD), back=NOTHING_WRONG)
    writers = [threading.Thread(target=write_blocks, args=(number,)) for number in range(8)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
    held = wire.report()["out"].held
    wire.faults()
    wait_until(lambda: all_delivered(wire))
    time.sleep(0.1)  # nothing tells when the target has carried the last one out
    assert held > 8
    assert not failures
    after = disk.read_bytes()
    for number, wanted in newest.items():
        assert after[number * block : (number + 1) * block] == wanted, f"a late copy won over writer {number}"
    assert target_of(mount)["errors"] == 0


def serve(lab: Lab, disk: Path, kind: str) -> None:
    if kind == "vblade":
        lab.vblade(0, 0, disk)
    else:
        lab.target(f"0.0={disk}")
