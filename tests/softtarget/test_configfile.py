"""The file of a config string: what is read, what is left alone, and what a failure leaves behind."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from aoefs.protocol.wire import MAX_CONFIG_BYTES
from aoefs.softtarget.configfile import ConfigFile, config_file
from aoefs.softtarget.store import FileStore


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "disk.aoe"


@pytest.mark.parametrize("string", [b"", b"who", b"\n\n", b"\0\xff", b"x" * MAX_CONFIG_BYTES])
def test_what_was_saved_is_read(path: Path, string: bytes) -> None:
    file = ConfigFile(str(path))
    assert (file.string, file.writable, file.warning) == (b"", True, "")
    file.save(b"before")
    file.save(string)
    assert path.read_bytes() == string + b"\n"
    assert (ConfigFile(str(path)).string, file.string) == (string, string)
    assert os.listdir(path.parent) == ["disk.aoe"]
    assert path.stat().st_mode & 0o777 == 0o644


def test_nothing_is_written_for_the_string_that_is_there(path: Path) -> None:
    file = ConfigFile(str(path))
    file.save(b"")
    assert not path.exists()
    file.save(b"who")
    before = path.stat().st_ino
    file.save(b"who")
    assert path.stat().st_ino == before


@pytest.mark.parametrize("content", [b"", b"cut o", b"x" * (MAX_CONFIG_BYTES + 1) + b"\n", bytes(4096)])
def test_a_file_that_is_no_config_string_is_reported_and_stays(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    file = ConfigFile(str(path))
    assert (file.string, file.writable) == (b"", False)
    assert file.warning == f"{path} is no config string: it is ignored, and none is kept until you remove it"
    assert path.read_bytes() == content


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: os.symlink("/etc/hostname", path)])
def test_only_a_file_is_opened(path: Path, make: object) -> None:
    assert callable(make)
    make(path)
    file = ConfigFile(str(path))
    assert (file.string, file.writable) == (b"", False)
    assert "no config string" in file.warning


def test_a_failed_save_leaves_the_old_file_and_no_draft(path: Path) -> None:
    file = ConfigFile(str(path))
    file.save(b"old")
    path.unlink()
    path.mkdir()  # cannot be replaced by a file, even by root
    with pytest.raises(IsADirectoryError):
        file.save(b"new")
    assert file.string == b"new"
    assert os.listdir(path.parent) == ["disk.aoe"]


@pytest.mark.parametrize("read_only", [False, True])
def test_the_place_follows_the_disk_and_not_the_name(tmp_path: Path, read_only: bool) -> None:
    disk, link = tmp_path / "disk", tmp_path / "link"
    disk.write_bytes(bytes(512))
    link.symlink_to(disk)
    with FileStore(str(link), read_only=read_only) as store:
        beside, kept = config_file(store, None), config_file(store, "/state")
        assert beside is not None
        assert kept is not None
        assert (beside.path, beside.writable) == (f"{disk}.aoe", not read_only)
        assert (kept.path, kept.writable) == (f"/state/{store.serial}.aoe", True)
