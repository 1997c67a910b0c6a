"""Files and block devices as stores: what is refused, in which words, and what is read, written and synced."""

from __future__ import annotations

import fcntl
import os
import stat
import subprocess
import tempfile
import threading
from pathlib import Path

import pytest

from aoefs.errors import UserError
from aoefs.softtarget.store import FileStore
from tests.lab import find_program, make_image, require


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    return make_image(tmp_path / "disk", 20 * 512)


def refusal(path: Path | str, **options: bool) -> str:
    with pytest.raises(UserError) as caught:
        FileStore(str(path), **options)
    assert caught.value.exit_code == 1
    message = str(caught.value)
    assert message.startswith(f"cannot export {path}: ")
    assert "\n" not in message
    return message


def test_a_file_is_read_and_written_at_any_place(disk: Path) -> None:
    before = disk.read_bytes()
    with FileStore(str(disk)) as store:
        assert (store.sectors, store.read_only, store.volatile, store.warning) == (20, False, True, "")
        one, two = bytearray(512), bytearray(1024)
        assert store.readv([one, two], 512) == 1536
        assert bytes(one + two) == before[512:2048]
        assert store.writev([b"a" * 512, b"b" * 512], 1024) == 1024
        store.sync()
    assert disk.read_bytes() == before[:1024] + b"a" * 512 + b"b" * 512 + before[2048:]


def test_a_file_that_shrank_gives_short_reads(disk: Path) -> None:
    with FileStore(str(disk)) as store:
        os.truncate(disk, 512)
        assert store.readv([bytearray(1024)], 0) == 512
        assert store.sectors == 20


def test_a_partial_last_sector_is_not_exported_and_said(disk: Path) -> None:
    os.truncate(disk, 3 * 512 + 17)
    with FileStore(str(disk)) as store:
        assert store.sectors == 3
        assert store.warning == f"{disk}: the last 17 bytes are not exported: 1553 is not a multiple of 512"


def test_what_is_no_disk_is_refused_in_one_line(tmp_path: Path) -> None:
    assert "no such file" in refusal(tmp_path / "nothing")
    assert "is a directory" in refusal(tmp_path)
    assert "is a directory" in refusal(tmp_path, read_only=True)
    assert "neither a file nor a block device" in refusal("/dev/null")
    (tmp_path / "empty").touch()
    assert "it is empty" in refusal(tmp_path / "empty")
    (tmp_path / "tiny").write_bytes(b"x" * 511)
    assert "its 511 bytes are less than one sector" in refusal(tmp_path / "tiny")


def test_a_fifo_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    assert "neither a file nor a block device" in refusal(tmp_path / "fifo")
    assert refusal(tmp_path / "fifo", read_only=True)


def test_a_refused_path_leaves_no_open_file(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    before = os.listdir("/proc/self/fd")
    refusal(tmp_path / "empty")
    assert os.listdir("/proc/self/fd") == before


def test_a_file_without_write_permission_says_what_helps() -> None:
    with tempfile.TemporaryDirectory() as directory:  # pytest's own is closed to others
        disk = make_image(Path(directory) / "disk", 512)
        disk.chmod(0o444)
        disk.parent.chmod(0o755)
        if os.geteuid() == 0:
            os.seteuid(65534)  # root may write anything
        try:
            assert "--read-only" in refusal(disk)
            with FileStore(str(disk), read_only=True) as store:
                assert store.read_only
        finally:
            os.seteuid(os.getuid())


def test_a_read_only_store_cannot_write(disk: Path) -> None:
    with FileStore(str(disk), read_only=True) as store:
        with pytest.raises(OSError, match="Bad file descriptor"):
            store.writev([b"x" * 512], 0)
        store.sync()


def test_a_file_has_one_writer_or_any_readers(tmp_path: Path, disk: Path) -> None:
    twin = tmp_path / "twin"
    twin.hardlink_to(disk)
    with FileStore(str(disk)):
        for options in ({}, {"read_only": True}):
            assert refusal(twin, **options) == (
                f"cannot export {twin}: it is given twice; give each file once, or use --read-only"
            )
    with FileStore(str(disk), read_only=True), FileStore(str(twin), read_only=True):
        assert "twice" in refusal(disk)
    with subprocess.Popen(
        ["flock", "--no-fork", disk, "sh", "-c", "echo locked; read line"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        assert refusal(disk) == (
            f"cannot export {disk}: process {holder.pid} has locked it, perhaps another target; "
            "end that one, or let both use --read-only"
        )
        holder.communicate(b"\n")
    FileStore(str(disk)).close()


def test_a_block_device_that_udev_looks_at_for_a_moment_is_waited_for(
    disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """udevd holds a shared lock while it probes a device, which it does each time a writer closes it."""
    monkeypatch.setattr(stat, "S_ISBLK", stat.S_ISREG)
    monkeypatch.setattr(FileStore, "_examine", lambda _self: 512)
    with disk.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        timer = threading.Timer(0.2, fcntl.flock, (file.fileno(), fcntl.LOCK_UN))
        timer.start()
        FileStore(str(disk)).close()
        timer.join()


def test_a_synchronous_store_is_never_dirty(disk: Path) -> None:
    with FileStore(str(disk), synchronous=True) as store:
        assert not store.volatile
        flags = Path(f"/proc/self/fdinfo/{store.descriptor}").read_text()
        assert int(flags.split("flags:")[1].split()[0], 8) & os.O_DSYNC == os.O_DSYNC


def test_the_serial_belongs_to_the_disk_and_stays(tmp_path: Path, disk: Path) -> None:
    def serial(path: Path) -> str:
        with FileStore(str(path)) as store:
            assert len(store.serial) == 20
            return store.serial

    first = serial(disk)
    disk.write_bytes(b"other content" * 512)
    (tmp_path / "link").symlink_to(disk)
    assert serial(disk) == serial(tmp_path / "link") == first
    other = make_image(tmp_path / "other", 20 * 512)
    assert serial(other) != first
    other.replace(disk)  # another disk under the same name
    assert serial(disk) != first


def test_a_block_device_is_exported_with_its_size_but_not_while_it_is_in_use(disk: Path) -> None:
    require("losetup")
    losetup = find_program("losetup")
    assert losetup is not None
    os.truncate(disk, 1 << 20)

    def attach(*options: str) -> str:
        command = [losetup, "--find", "--show", *options, str(disk)]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    device = attach()
    try:
        with FileStore(device) as store:
            assert store.sectors == 2048
            assert store.writev([b"x" * 512], 2047 * 512) == 512
            store.sync()
            assert "in use" in refusal(device)
            assert "given twice" in refusal(device, read_only=True)
        with FileStore(device, read_only=True) as reader, FileStore(device, read_only=True):
            data = bytearray(512)
            assert reader.readv([data], 2047 * 512) == 512
            assert data == b"x" * 512
            assert "given twice" in refusal(device)
    finally:
        subprocess.run([losetup, "--detach", device], check=True)
    device = attach("--read-only")
    try:
        assert "--read-only" in refusal(device)
        with FileStore(device, read_only=True) as store:
            assert store.sectors == 2048
    finally:
        subprocess.run([losetup, "--detach", device], check=True)
