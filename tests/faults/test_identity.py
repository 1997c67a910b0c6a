"""Another disk under the same address: never mixed with the first one, never written to by files opened on that one."""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.faults.live import Worker, errno_of, log_of, mount_until, pattern, read, write
from tests.lab import INITIATOR, TARGET, Lab, Mount, Process, opened, wait_until
from tests.lab.forwarder import BLACK_HOLE, Wire

SIZE = 4 << 20
NOTICED = (
    1.0  # seconds of silence, more than enough until a target is suspended: it gets nothing until identified again
)


def serve(lab: Lab, disk: Path) -> Process:
    """Our target: unlike vblade's, its serial numbers differ between files."""
    return lab.target(f"0.0={disk}")


def vblade_of(lab: Lab, host: str, disk: Path) -> Process:
    """A vblade on a host of this name: its serial number is made of address and host name."""
    sockets = lab.sides[TARGET].packet_sockets()
    start = 'hostname "$1"; exec vblade 0 0 aoe0 "$2"'
    process = lab.popen(TARGET, ["unshare", "--uts", "sh", "-c", start, "sh", host, disk])
    wait_until(lambda: process.poll() is not None or lab.sides[TARGET].packet_sockets() > sockets)
    assert process.poll() is None, process.output
    return process


def establish(mount: Mount) -> None:
    """Until it is no longer chance which disk at this address was seen first (a second, of which some is over)."""
    known_since = time.monotonic()
    wait_until(lambda: time.monotonic() - known_since > 1.1)
    assert not mount.target()["conflict"]


def test_an_open_file_fails_when_another_disk_has_taken_the_address_and_writes_nothing_to_it(
    lab: Lab, wire: Wire
) -> None:
    old, new = lab.image("old", SIZE), lab.image("new", SIZE, seed=1)
    contents = new.read_bytes()
    target = serve(lab, old)
    mount = mount_until(lab, "e0.0")
    inode = (mount.here / "e0.0").stat().st_ino
    with opened(mount.here / "e0.0") as direct, opened(mount.here / "e0.0", os.O_RDWR) as buffered:
        assert os.pread(buffered, 4096, 0) == read(direct, 4096) == old.read_bytes()[:4096]
        target.stop(signal.SIGKILL)
        serve(lab, new)  # it announces itself
        wait_until(lambda: "e0.0 is another disk now" in log_of(mount))
        for call in (
            lambda: write(direct, pattern(7), 8192),
            lambda: write(direct, pattern(7), 8192),
            lambda: read(direct, 4096, 1 << 20),
            lambda: os.pread(buffered, 4096, 1 << 20),
            lambda: os.pwrite(buffered, pattern(8), 8192),
            lambda: os.fsync(buffered),
        ):
            assert errno_of(call) in (errno.EIO, errno.ESTALE)
        assert (mount.here / "e0.0").stat().st_ino != inode, "the name leads to the new disk"
        with opened(mount.here / "e0.0") as again:
            assert read(again, 4096) == contents[:4096]
        assert errno_of(lambda: read(direct, 4096)) in (errno.EIO, errno.ESTALE)
    assert new.read_bytes() == contents


def test_writes_that_wait_for_a_silent_target_never_reach_the_disk_that_replaced_it(lab: Lab, wire: Wire) -> None:
    """Nothing announces the new disk: retransmitted frames find it."""
    old, new = lab.image("old", SIZE), lab.image("new", SIZE, seed=1)
    contents = new.read_bytes()
    target = serve(lab, old)
    mount = mount_until(lab, "e0.0")
    fill = f"dd if=/dev/zero of={mount.file('e0.0')} bs=64k count={SIZE >> 16} oflag=direct conv=notrunc"
    writer = lab.popen(INITIATOR, ["sh", "-c", f"while {fill}; do :; done; exit 1"])  # never over before it fails
    wait_until(lambda: mount.target()["writes"] > 3)
    wire.misbehave(BLACK_HOLE)
    silent_since = time.monotonic()
    target.stop(signal.SIGKILL)
    serve(lab, new)
    wait_until(lambda: time.monotonic() - silent_since > NOTICED)
    assert writer.poll() is None
    wire.faults()
    assert writer.wait(30) == 1, writer.output
    assert "e0.0 is another disk now" in log_of(mount)
    assert new.read_bytes() == contents


def test_a_second_disk_with_the_same_address_is_refused_and_reported(lab: Lab, wire: Wire) -> None:
    first, second = lab.image("first", SIZE), lab.image("second", SIZE, seed=1)
    contents = second.read_bytes()
    serve(lab, first)
    other = lab.cable(INITIATOR, TARGET)
    mount = mount_until(lab, "e0.0")
    establish(mount)
    lab.target(f"0.0={second}", interfaces=[other[1]])
    wait_until(lambda: mount.status()["refused_identities"] > 0, what="the second disk is refused")
    with opened(mount.here / "e0.0") as file:
        for index in range(32):
            write(file, pattern(index), index * 4096)
        for index in range(32):
            assert read(file, 4096, index * 4096) == pattern(index)
    assert second.read_bytes() == contents
    assert [path["mac"] for path in mount.target()["paths"]] == [lab.mac(TARGET, 0).hex(":")]
    (line,) = [line for line in log_of(mount).splitlines() if "is refused" in line]
    assert "it is another disk (serial " in line
    assert mount.status()["strangers"][0]["state"] == "refused"


def test_two_disks_that_answer_from_one_mac_are_both_refused(lab: Lab, wire: Wire) -> None:
    """Two vblades on one interface, started with the same address by mistake."""
    lab.vblade(0, 0, lab.image("first", SIZE))
    lab.vblade(0, 0, lab.image("second", SIZE * 2))
    lab.vblade(0, 1, lab.image("third", SIZE))
    capture = lab.capture()
    mount = mount_until(lab, "e0.1")
    wait_until(lambda: "two disks answer" in log_of(mount))
    assert "e0.0" not in os.listdir(mount.here)
    asked = len(capture.frames())
    wait_until(lambda: len(capture.frames()) > asked + 6, what="they were queried again")
    assert log_of(mount).count("two disks answer") == 1


@pytest.mark.parametrize("announced", [True, False])
def test_a_second_disk_behind_the_mac_of_the_first_ends_the_writes_until_it_is_gone(
    lab: Lab, wire: Wire, announced: bool
) -> None:
    """Two vblades on one interface: each of them carries out every write that arrives there.

    So what is written before the second one is noticed lands on both disks: no initiator can prevent that.
    """
    first, second = lab.image("first", SIZE), lab.image("second", SIZE, seed=1)
    vblade_of(lab, "one", first)
    mount = mount_until(lab, "e0.0")
    establish(mount)
    intruder = None
    if not announced:
        wire.misbehave(back=BLACK_HOLE)
        intruder = vblade_of(lab, "other", second)
        wait_until(lambda: wire.report()["back"].lost, what="its announcement is lost")
        wire.faults()
    failures: list[int | None] = []
    with opened(mount.here / "e0.0") as file, opened(mount.here / "e0.0", os.O_RDWR) as buffered:

        def work_until_it_fails(step: int) -> None:
            try:
                if not failures:
                    write(file, pattern(step), step % 64 * 4096)
                    read(file, 4096, step % 64 * 4096)
            except OSError as error:
                failures.append(error.errno)

        with Worker(work_until_it_fails) as worker:
            if intruder is None:
                worker.wait_for_steps(20)
                intruder = vblade_of(lab, "other", second)
            wait_until(lambda: failures or worker.failure, 10, "the second disk is noticed")
        assert failures == [errno.EROFS]
        wait_until(lambda: mount.target()["in_flight"] == 0)
        contents = second.read_bytes(), first.read_bytes()
        for number in range(16):
            assert errno_of(lambda: write(file, pattern(1000), (128 + number) * 4096)) == errno.EROFS  # noqa: B023
        assert errno_of(lambda: os.pwrite(buffered, pattern(1001), 256 * 4096)) == errno.EROFS
        assert errno_of(lambda: os.open(mount.here / "e0.0", os.O_WRONLY)) == errno.EROFS
        assert (second.read_bytes(), first.read_bytes()) == contents
        for at in range(1 << 20, (1 << 20) + 4096, 512):  # reads go on; of each frame, the disk that is faster answers
            assert read(file, 512, at) in [disk[at : at + 512] for disk in contents]
        conflict = mount.target()["conflict"]
        (line,) = [line for line in log_of(mount).splitlines() if "e0.0 takes no writes" in line]
        for words in (conflict, "serial 0.0:one", "serial 0.0:other", lab.mac(TARGET).hex(":"), "aoe0"):
            assert words in line
        intruder.stop(signal.SIGKILL)
        wait_until(lambda: not mount.target()["conflict"], 30, "one disk answers alone")
        write(file, pattern(2000), 3 << 20)
        assert first.read_bytes()[3 << 20 :][:4096] == pattern(2000)
        assert second.read_bytes() == contents[0]
    assert "e0.0 takes writes again" in log_of(mount)


OTHER = "other"  # a second host of targets on the same wire


@pytest.fixture
def two_hosts() -> Iterator[Lab]:
    """A LAN on which two hosts serve e0.0: our target (``mine``) and a vblade (``theirs``)."""
    with Lab(pairs=0) as lab:
        lab.add_side(OTHER)
        lab.switch(INITIATOR, TARGET, OTHER)
        serve(lab, lab.image("mine", SIZE))
        lab.vblade(0, 0, lab.image("theirs", SIZE, seed=1), side=OTHER)
        yield lab


def contents_of(lab: Lab) -> dict[str, bytes]:
    return {name: (lab.directory / name).read_bytes() for name in ("mine", "theirs")}


def serials_of(lab: Lab) -> dict[str, str]:
    """By image, as ``aoefs discover`` shows them."""
    found = json.loads(lab.aoefs("discover", "--json", "-i", "aoe0").stdout)
    serials: dict[str, str] = {}
    for one in found:  # that of the one that is refused is in the reason
        shown = one["serial"] or re.findall(r"\(serial (\S+), not ", one["reason"])[0]
        serials[one["paths"][0]["mac"]] = shown
    return {"mine": serials[lab.mac(TARGET).hex(":")], "theirs": serials[lab.mac(OTHER).hex(":")]}


def test_two_disks_with_one_address_that_are_there_from_the_start_are_shown_read_only(two_hosts: Lab) -> None:
    lab, before = two_hosts, contents_of(two_hosts)
    mount = mount_until(lab, "e0.0")
    wait_until(lambda: mount.target()["conflict"], 10)
    path = mount.here / "e0.0"
    assert not path.stat().st_mode & 0o222
    for flags in (os.O_RDWR, os.O_WRONLY, os.O_RDWR | os.O_DIRECT):
        assert errno_of(lambda: os.open(path, flags)) == errno.EROFS  # noqa: B023
    with opened(path, os.O_RDONLY | os.O_DIRECT) as file:
        assert read(file, 1 << 20) in [contents[: 1 << 20] for contents in before.values()]
    (line,) = [line for line in log_of(mount).splitlines() if "e0.0 takes no writes" in line]
    macs = [lab.mac(side).hex(":") for side in (TARGET, OTHER)]
    for words in ("serial 0.0:", "on aoe0", "-i, --allow-mac or --disk e0.0=SERIAL", *macs, *serials_of(lab).values()):
        assert words in line
    assert contents_of(lab) == before


@pytest.mark.parametrize("decision", ["disk", "allow_mac"])
@pytest.mark.parametrize("meant", ["mine", "theirs"])
def test_an_option_decides_which_of_two_disks_with_one_address_is_written(
    two_hosts: Lab, meant: str, decision: str
) -> None:
    lab, before = two_hosts, contents_of(two_hosts)
    serial = serials_of(lab)[meant]
    mac = lab.mac({"mine": TARGET, "theirs": OTHER}[meant]).hex(":")
    options: dict[str, Any] = {"disk": f"e0.0={serial}"} if decision == "disk" else {"allow_mac": mac}
    mount = mount_until(lab, "e0.0", **options)
    with opened(mount.here / "e0.0") as file:
        for number in range(256):
            write(file, pattern(number), number * 4096)
            assert read(file, 4096, number * 4096) == pattern(number)
        os.fsync(file)
    target = mount.target()
    assert (target["serial"], target["conflict"]) == (serial, "")
    assert [path["mac"] for path in target["paths"]] == [mac]
    written = b"".join(pattern(number) for number in range(256))
    assert contents_of(lab) == {**before, meant: written + before[meant][len(written) :]}
    assert "takes no writes" not in log_of(mount)
