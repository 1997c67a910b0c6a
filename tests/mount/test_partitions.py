"""Partitions of disks as files: made by real tools through a real mount, broken, moved, and used."""

from __future__ import annotations

import errno
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab import INITIATOR, Lab, Mount, find_program, opened, require, wait_until
from tests.mount.place import MIB, OWN, VBLADE, Place, fails_with, open_place, random_bytes

SECTOR = 512
TWO_PARTS = "label: dos\nstart=2048, size=8192, type=83\nstart=10240, size=4096, type=83\n"


@pytest.fixture(params=[(VBLADE, 1500), (OWN, 9000)], ids=lambda param: f"{param[0]}-{param[1]}")
def place(request: pytest.FixtureRequest) -> Iterator[Place]:
    kind, mtu = request.param
    with open_place(kind, mtu, {"e0.0": 16 * MIB, "e0.1": 16 * MIB}, seed=None) as made:
        yield made


@pytest.fixture
def one() -> Iterator[Place]:
    with open_place(VBLADE, 9000, {"e0.0": 16 * MIB}, seed=None) as made:
        yield made


def sfdisk(place: Place, script: str, name: str = "e0.0") -> None:
    """Partition a disk through the mount; there is no kernel device whose table could be read again."""
    require("sfdisk")
    lab = place.lab
    lab.run(INITIATOR, ["sfdisk", "--quiet", "--no-reread", "--no-tell-kernel", place.file(name)], stdin=script)


def parts(mount: Mount, name: str = "e0.0") -> list[str]:
    return sorted(found for found in os.listdir(mount.here) if found.startswith(f"{name}p"))


def texts(mount: Mount) -> list[str]:
    """The events of a mount."""
    return [event["text"] for event in mount.status()["events"]]


def test_partitions_appear_when_a_tool_has_made_them_and_are_disks_of_their_own(place: Place) -> None:
    require("mkfs.ext4", "e2fsck")
    assert parts(place.mount) == []
    sfdisk(place, TWO_PARTS)
    assert parts(place.mount) == ["e0.0p1", "e0.0p2"], "as soon as the tool has ended"
    assert os.stat(place.here("e0.0p1")).st_size == 8192 * SECTOR
    place.run("mkfs.ext4", "-q", "-E", "nodiscard", place.file("e0.0p2"))
    point = place.lab.directory / "disk"
    point.mkdir()
    place.run("mount", "-o", "loop", place.file("e0.0p2"), point)
    try:
        place.run("sh", "-c", f"echo kept > {point}/file")
        fails_with(errno.EBUSY, lambda: os.open(place.here("e0.0"), os.O_RDWR))
    finally:
        place.run("umount", point)
    data = random_bytes(8192 * SECTOR)
    new = place.lab.directory / "new"
    new.write_bytes(data)
    place.run("dd", f"if={new}", f"of={place.file('e0.0p1')}", "bs=1M", "status=none")
    full = place.run("dd", "if=/dev/zero", f"of={place.file('e0.0p1')}", "bs=512", "seek=8191", "count=2", check=False)
    assert "No space left on device" in full.stderr
    image = place.images["e0.0"].read_bytes()
    assert image[2048 * SECTOR : 10239 * SECTOR] == data[:-SECTOR]
    assert image[10239 * SECTOR : 10240 * SECTOR] == bytes(SECTOR)
    file_system = place.lab.directory / "file-system"
    file_system.write_bytes(image[10240 * SECTOR : 14336 * SECTOR])
    place.run("e2fsck", "-fn", file_system)
    assert place.run("stat", "-f", "-c", "%b %S", place.mount.path).stdout.split() == [str(32 * MIB // 512), "512"]


def test_a_table_that_is_there_at_the_mount_gives_files_at_once(one: Place) -> None:
    sfdisk(one, TWO_PARTS + "start=14336, size=8192, type=5\nstart=16384, size=100, type=83\n")
    other = one.lab.mount()
    assert parts(other) == ["e0.0p1", "e0.0p2", "e0.0p5"]
    read_only = one.lab.mount(read_only=True)
    assert parts(read_only) == ["e0.0p1", "e0.0p2", "e0.0p5"]
    fails_with(errno.EROFS, lambda: os.open(read_only.here / "e0.0p1", os.O_RDWR))
    with opened(read_only.here / "e0.0p5", os.O_RDONLY) as file:
        assert len(os.read(file, MIB)) == 100 * SECTOR


def test_a_gpt_is_read_from_its_backup_and_a_broken_one_is_reported_once(one: Place) -> None:
    require("sgdisk", "parted")
    mount = one.mount
    one.run("sgdisk", "-n", "1:2048:4095", "-n", "3:4096:8191", one.file("e0.0"))
    assert parts(mount) == ["e0.0p1", "e0.0p3"]
    kept = os.stat(mount.here / "e0.0p3").st_ino
    wipe = ["dd", "if=/dev/urandom", f"of={one.file('e0.0')}", "bs=512", "count=1", "status=none", "conv=notrunc"]
    one.run(*wipe, "seek=1")
    assert parts(mount) == ["e0.0p1", "e0.0p3"]
    assert os.stat(mount.here / "e0.0p3").st_ino == kept, "the same bytes are the same file"
    one.run(*wipe, f"seek={16 * MIB // SECTOR - 1}")
    one.run(*wipe, "seek=5000")
    assert parts(mount) == []
    said = [text for text in texts(mount) if "partition table" in text]
    assert len(said) == 1
    assert re.match(r"e0\.0: its partition table is broken and gives no files: no good GPT", said[0])
    one.run("parted", "--script", one.file("e0.0"), "mklabel", "msdos", "mkpart", "primary", "1MiB", "2MiB")
    assert parts(mount) == ["e0.0p1"]


def test_a_fat_file_system_on_the_whole_disk_gives_no_partitions(one: Place) -> None:
    require("mkfs.fat")
    one.run("mkfs.fat", one.file("e0.0"))
    assert one.images["e0.0"].read_bytes()[510:512] == b"\x55\xaa"
    assert parts(one.mount) == []
    assert not [text for text in texts(one.mount) if "partition" in text]


def test_a_write_through_one_file_is_seen_by_a_later_open_of_the_other(one: Place) -> None:
    sfdisk(one, TWO_PARTS)
    whole, part = one.here("e0.0"), one.here("e0.0p1")
    start = 2048 * SECTOR
    with opened(whole, os.O_RDONLY) as idle, opened(part, os.O_RDONLY) as idle_part:  # both caches stay filled
        for number in range(1, 30):
            data = bytes([number]) * 8192
            assert len(os.pread(idle, 8192, start)) == len(os.pread(idle_part, 8192, 0)) == 8192
            with opened(part, os.O_RDWR) as file:
                os.pwrite(file, data, 0)
            with opened(whole, os.O_RDONLY) as file:
                assert os.pread(file, 8192, start) == data
            data = bytes([number + 100]) * 8192
            with opened(whole, os.O_RDWR) as file:  # not busy: the other one was closed before
                os.pwrite(file, data, start)
            with opened(part, os.O_RDONLY) as file:
                assert os.pread(file, 8192, 0) == data


def test_only_one_of_two_files_that_overlap_can_be_open_for_writing(one: Place) -> None:
    sfdisk(one, TWO_PARTS)
    with opened(one.here("e0.0p1"), os.O_RDWR), opened(one.here("e0.0p2"), os.O_RDWR):
        fails_with(errno.EBUSY, lambda: os.open(one.here("e0.0"), os.O_WRONLY | os.O_TRUNC))
        with opened(one.here("e0.0"), os.O_RDONLY) as file:
            assert len(os.read(file, 512)) == 512
    with opened(one.here("e0.0"), os.O_RDWR):
        fails_with(errno.EBUSY, lambda: os.open(one.here("e0.0p1"), os.O_RDWR))


def test_another_host_repartitions_the_disk(one: Place) -> None:
    sfdisk(one, TWO_PARTS)
    mount = one.mount
    kept = os.stat(mount.here / "e0.0p1").st_ino
    program = find_program("sfdisk")
    assert program is not None
    with opened(mount.here / "e0.0p2", os.O_RDWR) as file, opened(mount.here / "e0.0p1", os.O_RDONLY) as good:
        os.pread(file, 4096, 0)
        script = TWO_PARTS.replace("size=4096", "size=2048") + "start=20480, size=10, type=83\n"
        command = [program, "--quiet", "--no-reread", "--wipe=never", str(one.images["e0.0"])]
        subprocess.run(command, input=script, text=True, check=True, capture_output=True, timeout=60)
        (mount.here / ".aoefs/revalidate").write_text("e0.0\n")
        wait_until(lambda: parts(mount) == ["e0.0p1", "e0.0p2", "e0.0p3"])
        fails_with(errno.ESTALE, lambda: os.pwrite(file, b"evil", 0))
        wait_until(lambda: _fails_stale(file), what="the cached pages of the old partition are gone")
        assert len(os.pread(good, 4096, 0)) == 4096
    assert os.stat(mount.here / "e0.0p2").st_size == 2048 * SECTOR
    assert os.stat(mount.here / "e0.0p1").st_ino == kept


def _fails_stale(file: int) -> bool:
    try:
        os.pread(file, 4096, 0)
    except OSError as error:
        return error.errno == errno.ESTALE
    return False


def test_partitions_follow_their_target_through_a_restart_as_another_disk(lab: Lab) -> None:
    disk, other = lab.image("disk", 8 * MIB, seed=None), lab.image("other", 8 * MIB, seed=None)
    for image, script in (
        (disk, "label: dos\nstart=64, size=64, type=83\n"),
        (other, "label: gpt\nstart=2048, size=9\n"),
    ):
        _partition(image, script)
    target = lab.target(f"0.0={disk}")
    mount = lab.mount(deadsecs=1)
    assert parts(mount) == ["e0.0p1"]
    inode = os.stat(mount.here / "e0.0p1").st_ino
    target.stop()
    lab.target(f"0.0={other}")
    (mount.here / ".aoefs/discover").write_text("now\n")
    wait_until(lambda: parts(mount) == ["e0.0p1"] and os.stat(mount.here / "e0.0p1").st_ino != inode)
    assert os.stat(mount.here / "e0.0p1").st_size == 9 * SECTOR


def _partition(image: Path, script: str) -> None:
    require("sfdisk")
    command = [str(find_program("sfdisk")), "--quiet", "--no-reread", str(image)]
    subprocess.run(command, input=script, text=True, check=True, capture_output=True, timeout=60)
