"""A file of a mount behaves as a disk: its size, its end, errors, and owners."""

from __future__ import annotations

import errno
import mmap
import os
import stat
import time
from pathlib import Path

import pytest

from tests.lab import require
from tests.mount.place import MIB, TWO_PLACES, Place, fails_with, places, random_bytes

SIZES = {"e0.0": 4 * MIB, "e0.1": 5 * MIB + 3 * 512}
pytestmark = places(TWO_PLACES)


# ── sizes and ends ────────────────────────────────────────────────────────────────────────────────────────────────


def test_stat_and_df_give_the_size_of_the_disk(place: Place) -> None:
    for name, size in SIZES.items():
        found = os.stat(place.here(name))
        assert (found.st_size, found.st_blocks, found.st_blksize) == (size, size // 512, MIB)
        assert stat.S_ISREG(found.st_mode)
        assert found.st_nlink == 1
    assert set(os.listdir(place.mount.here)) == {".aoefs", "by-serial", *SIZES}
    assert place.run("df", "--output=size,used,avail", "-B512", place.mount.path).stdout.split()[-3:] == [
        str(sum(SIZES.values()) // 512),
        str(sum(SIZES.values()) // 512),
        "0",
    ]
    with place.opened("e0.1", os.O_RDONLY) as file:
        assert os.lseek(file, 0, os.SEEK_END) == SIZES["e0.1"]


def test_truncation_succeeds_and_changes_nothing(place: Place) -> None:
    before = place.images["e0.0"].read_bytes()
    with place.opened("e0.0", os.O_RDWR) as other:
        with place.opened("e0.0", os.O_WRONLY | os.O_TRUNC) as file:
            assert os.fstat(file).st_size == SIZES["e0.0"]
            for size in (0, 1, 100 * MIB):
                os.ftruncate(file, size)
                assert os.fstat(file).st_size == os.fstat(other).st_size == SIZES["e0.0"]
        os.truncate(place.here("e0.0"), 7)
        assert os.pread(other, 100, SIZES["e0.0"] - 50) == before[-50:]
    place.run("sh", "-c", f": > {place.file('e0.0')}")
    assert os.stat(place.here("e0.0")).st_size == SIZES["e0.0"]
    place.run("cmp", place.images["e0.0"], place.file("e0.0"))
    assert place.images["e0.0"].read_bytes() == before


@pytest.mark.parametrize("flags", ["", "oflag=direct"])
def test_dd_past_the_end_fills_the_disk_and_finds_no_space_left(place: Place, flags: str) -> None:
    answer = place.run(
        "sh", "-c", f"LC_ALL=C dd if=/dev/zero of={place.file('e0.1')} bs=1M count=7 {flags}", check=False
    )
    assert answer.returncode == 1
    assert "No space left on device" in answer.stderr
    assert "6+0 records in\n5+0 records out" in answer.stderr
    if not flags:  # with O_DIRECT the kernel reports no short count
        assert f"\n{SIZES['e0.1']} bytes" in answer.stderr
    assert place.images["e0.1"].read_bytes() == bytes(SIZES["e0.1"])
    answer = place.run("sh", "-c", f"LC_ALL=C dd if=/dev/zero of={place.file('e0.0')} bs=1M {flags}", check=False)
    assert f"No space left on device\n5+0 records in\n4+0 records out\n{4 * MIB} bytes" in answer.stderr


def test_a_read_is_short_only_at_the_end(place: Place) -> None:
    whole = place.images["e0.1"].read_bytes()
    for flags in (os.O_RDONLY, os.O_RDONLY | os.O_DIRECT):
        with place.opened("e0.1", flags) as file:
            for offset in (0, 1, 511, 5 * MIB, 5 * MIB + 1000, len(whole) - 1, len(whole), len(whole) + 1, 1 << 40):
                for size in (1, 512, 3 * MIB + 77):
                    assert os.pread(file, size, offset) == whole[offset : offset + size]


def test_a_write_across_the_end_writes_what_fits(place: Place) -> None:
    size = SIZES["e0.1"]
    for flags in (0, os.O_SYNC):
        with place.opened("e0.1", os.O_WRONLY | flags) as file:
            assert os.pwrite(file, random_bytes(5000, flags), size - 2345) == 2345
            assert place.images["e0.1"].read_bytes()[-2345:] == random_bytes(5000, flags)[:2345]
            fails_with(errno.ENOSPC, lambda file=file: os.pwrite(file, b"x", size))  # type: ignore[misc]
            fails_with(errno.ENOSPC, lambda file=file: os.pwrite(file, b"x", size + MIB))  # type: ignore[misc]
    with place.opened("e0.1", os.O_WRONLY | os.O_DIRECT) as file:
        fails_with(errno.ENOSPC, lambda: os.pwrite(file, random_bytes(5000, 77), size - 2345))
    assert place.images["e0.1"].read_bytes()[-2345:] == random_bytes(5000, 77)[:2345]
    assert os.stat(place.here("e0.1")).st_size == size
    with place.opened("e0.1", os.O_WRONLY | os.O_APPEND) as file:
        fails_with(errno.ENOSPC, lambda: os.write(file, b"more"))


# ── a directory of devices ────────────────────────────────────────────────────────────────────────────────────────


OTHER_NAMES = ("e9.9", "e00.0", "e0.00", "E0.0", "e0.0 ", "e65535.255", "e65535.0", "e0", "x", "e0.0\n", "é", "e-1.0")


@pytest.mark.parametrize("name", [*OTHER_NAMES, "e" * 300])
def test_other_names_do_not_exist(place: Place, name: str) -> None:
    fails_with(errno.ENOENT, lambda: os.stat(place.here(name)))


def test_no_file_can_be_created_removed_or_renamed(place: Place) -> None:
    disk, new = place.here("e0.0"), place.here("new")
    for call in (
        lambda: os.open(new, os.O_CREAT | os.O_WRONLY),
        lambda: os.mkdir(new),
        lambda: os.mknod(new),
        lambda: os.unlink(disk),
        lambda: os.rename(disk, new),
        lambda: os.rename(disk, place.here("e0.1")),
        lambda: os.link(disk, new),
        lambda: os.symlink(disk, new),
        lambda: os.rmdir(place.here(".aoefs")),
        lambda: os.unlink(place.here(".aoefs/status.json")),
        lambda: os.mkdir(place.here(".aoefs/new")),
        lambda: os.chmod(disk, 0o777),
        lambda: os.chown(disk, 1, 1),
    ):
        fails_with(errno.EPERM, call)
    fails_with(errno.ENOTDIR, lambda: os.stat(disk / "below"))
    fails_with(errno.EACCES, lambda: os.open(place.here(".aoefs/status.json"), os.O_WRONLY))
    fails_with(errno.ENOTSUP, lambda: os.setxattr(disk, "user.name", b"value"))
    with place.opened("e0.0", os.O_CREAT | os.O_RDWR):  # which is there already
        fails_with(errno.EEXIST, lambda: os.open(disk, os.O_CREAT | os.O_EXCL))


def test_times_stay_as_they_are(place: Place) -> None:
    before = os.stat(place.here("e0.0"))
    with place.opened("e0.0", os.O_WRONLY) as file:
        os.write(file, b"written")
    os.utime(place.here("e0.0"), (0, 0))
    after = os.stat(place.here("e0.0"))
    assert (after.st_mtime_ns, after.st_ctime_ns) == (before.st_mtime_ns, before.st_ctime_ns)
    assert abs(after.st_mtime - time.time()) < 3600


def test_a_read_only_mount_refuses_every_change(place: Place) -> None:
    mount = place.lab.mount(read_only=True)
    disk = mount.here / "e0.0"
    assert disk.read_bytes() == place.images["e0.0"].read_bytes()
    assert stat.S_IMODE(os.stat(disk).st_mode) == 0o400
    for call in (
        lambda: os.open(disk, os.O_WRONLY),
        lambda: os.open(disk, os.O_RDWR),
        lambda: os.open(disk, os.O_RDONLY | os.O_TRUNC),
        lambda: os.truncate(disk, 0),
        lambda: os.unlink(disk),
        lambda: os.mkdir(mount.here / "new"),
    ):
        fails_with(errno.EROFS, call)
    device = place.lab.losetup(mount.file("e0.0"))  # the loop device becomes read-only by itself
    assert (Path("/sys/block") / device.name / "ro").read_text() == "1\n"
    place.run("losetup", "--detach", device)
    mount.umount()


def test_owner_group_and_umask_are_those_of_the_mount(place: Place) -> None:
    require("setpriv")
    mount = place.lab.mount("-o", "allow_other,uid=4321,gid=8765,umask=027")
    found = os.stat(mount.here / "e0.0")
    assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (4321, 8765, 0o640)
    assert stat.S_IMODE(os.stat(mount.here).st_mode) == 0o750

    def as_user(user: int, group: int, command: str, path: Path) -> int:
        line = ["setpriv", f"--reuid={user}", f"--regid={group}", "--clear-groups", "sh", "-c", f"{command} {path}"]
        return place.run(*line, check=False).returncode

    write = "dd if=/dev/zero bs=512 count=1 status=none of="
    assert as_user(4321, 1, "head -c 1", mount.file("e0.0")) == 0
    assert as_user(4321, 1, f"true; {write}", mount.file("e0.0")) != 0  # a space after of=, so the file ''
    assert as_user(4321, 1, "truncate -s 0", mount.file("e0.0")) == 0
    assert as_user(1, 8765, "head -c 1", mount.file("e0.0")) == 0
    assert as_user(1, 8765, "truncate -s 0", mount.file("e0.0")) != 0
    assert as_user(1, 1, "head -c 1", mount.file("e0.0")) != 0
    assert as_user(1, 1, "head -c 1", place.file("e0.0")) != 0  # a mount without allow_other
    mount.umount()


def test_direct_mode_bypasses_the_cache_and_has_no_shared_maps(place: Place) -> None:
    mount = place.lab.mount(direct=True)
    file = os.open(mount.here / "e0.0", os.O_RDWR)
    try:
        with place.images["e0.0"].open("r+b") as image:
            for text in (b"first", b"other"):
                image.seek(10_000)
                image.write(text)
                image.flush()
                assert os.pread(file, 5, 10_000) == text  # written elsewhere, seen at once
        fails_with(errno.ENODEV, lambda: mmap.mmap(file, 4096))
        assert os.pwrite(file, b"x" * 5000, SIZES["e0.0"] - 100) == 100
    finally:
        os.close(file)
    mount.umount()
