"""Lost frames on a live mount: no error, no wrong byte, and one lost frame costs little time."""

from __future__ import annotations

import hashlib
import os

import pytest

from aoefs.protocol.ata import Opcode
from tests.faults.live import mount_until, path_of, read, verify_with_fio
from tests.lab import Lab, opened, require, wait_until
from tests.lab.fixtures import both_mtus
from tests.lab.forwarder import Wire
from tests.segment import is_request, lba_of

SIZE = 8 << 20
OPCODE = 27  # its place in an ATA frame


@pytest.mark.parametrize("kind", ["vblade", "ours"])
@pytest.mark.parametrize("loss", [0.01, 0.05, 0.2])
def test_random_writes_verify_however_many_frames_are_lost(lab: Lab, wire: Wire, kind: str, loss: float) -> None:
    require("fio")
    disk = lab.image("disk", SIZE, seed=None)
    if kind == "vblade":
        lab.vblade(0, 0, disk)
    else:
        lab.target(f"0.0={disk}")
    mount = mount_until(lab, "e0.0")
    wire.faults(loss=loss)
    verify_with_fio(lab, mount.file("e0.0"), size="512K" if loss > 0.1 else "2M")
    report = wire.report()
    assert min(report["out"].lost, report["back"].lost) > 0
    found = mount.target()
    assert found["errors"] == 0
    assert found["retransmits"] >= (report["out"].lost + report["back"].lost) / 2
    assert found["state"] == "up"


@both_mtus
def test_all_faults_at_once_change_no_byte(lab: Lab, wire: Wire) -> None:
    require("fio")
    disk = lab.image("disk", SIZE)
    lab.vblade(0, 0, disk)
    mount = mount_until(lab, "e0.0")
    wire.faults(loss=0.01, burst=3, duplicate=0.05, reorder=0.05, reorder_by=0.003, jitter=0.0003, corrupt=0.01)
    copy = lab.directory / "copy"
    lab.run("initiator", ["dd", f"if={mount.file('e0.0')}", f"of={copy}", "bs=1M", "iflag=direct", "count=4"])
    contents = disk.read_bytes()[: 4 << 20]
    assert hashlib.sha256(copy.read_bytes()).digest() == hashlib.sha256(contents).digest()
    verify_with_fio(lab, mount.file("e0.0"), size="2M")
    for direction in wire.report().values():
        assert min(direction.lost, direction.duplicated, direction.reordered, direction.corrupted) > 0, direction
    assert mount.target()["errors"] == 0


@both_mtus
def test_only_the_lost_frame_of_a_large_read_is_retransmitted(lab: Lab, wire: Wire) -> None:
    """No other frame is retransmitted, and the RTO does not stay that of a silent target.

    In most reads: on a busy machine a target is sometimes slower than its RTO, and a query may be lost, too.
    """
    disk = lab.image("disk", SIZE)
    lab.target(f"0.0={disk}")
    mount = mount_until(lab, "e0.0")
    contents = disk.read_bytes()

    def lost() -> int:
        report = wire.report()
        return report["out"].lost + report["back"].lost

    reads: list[tuple[int, int]] = []
    with opened(mount.here / "e0.0", os.O_RDONLY | os.O_DIRECT) as file:
        for _ in range(4):
            read(file, 1 << 20)
        wire.faults(loss=0.002)
        while len(reads) < 15:
            offset = len(reads) % 8 << 20
            lost_before, retransmits_before = lost(), path_of(mount)["retransmits"]
            assert read(file, 1 << 20, offset) == contents[offset : offset + (1 << 20)]
            if lost() > lost_before:
                reads.append((lost() - lost_before, path_of(mount)["retransmits"] - retransmits_before))
        wire.faults()

        def is_quick() -> bool:
            read(file, 1 << 20)
            return int(path_of(mount)["rto_us"]) < 100_000

        wait_until(is_quick, 60, "the RTO is again that of a target that answers at once")
    assert sum(lost <= retransmits <= lost + 1 for lost, retransmits in reads) > len(reads) / 2, reads
    assert path_of(mount)["window"] > 1


def test_a_lost_frame_is_retransmitted_while_later_ones_are_still_under_way(lab: Lab, wire: Wire) -> None:
    """The order of the answers shows the loss, long before the timeout, which counts from the last answer.

    In one of a few rounds: on a busy machine a target is sometimes slower than its RTO.  With the timeout alone, two
    thirds of the frames or more are retransmitted after the last new one, in every round.
    """
    lab.vblade(0, 0, lab.image("disk", SIZE), "-b", 32)
    mount = mount_until(lab, "e0.0")
    rounds: list[tuple[int, int]] = []
    with opened(mount.here / "e0.0", os.O_RDONLY | os.O_DIRECT) as file:
        read(file, 1 << 20)
        wire.faults(loss=0.002)
        while len(rounds) < 5:
            capture = lab.capture()
            for megabyte in range(8):
                read(file, 1 << 20, megabyte << 20)
            rounds.append(_retransmits(capture.frames()))
            early, late = rounds[-1]
            if early > 2 * late:
                return
    raise AssertionError(f"before and after the last new frame: {rounds}")


def _retransmits(frames: list[bytes]) -> tuple[int, int]:
    """Those before and those after the last new frame of each read of 1 MiB."""
    requests = [frame for frame in frames if is_request(frame) and frame[OPCODE] == Opcode.READ_EXT]
    early = late = 0
    for first in range(0, 8 * 2048, 2048):
        sent = [lba for lba in map(lba_of, requests) if first <= lba < first + 2048]
        last_new = max(sent.index(lba) for lba in set(sent))
        again = [index for index, lba in enumerate(sent) if lba in sent[:index]]
        early += sum(index < last_new for index in again)
        late += sum(index > last_new for index in again)
    return early, late
