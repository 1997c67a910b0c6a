"""Partition tables: those that sfdisk, sgdisk and parted make, those broken on purpose, and any bytes."""

from __future__ import annotations

import itertools
import json
import random
import struct
import subprocess
import zlib
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aoefs.errors import FrameError
from aoefs.fuse.partitions import MAX_CHAIN, MAX_ENTRIES_BYTES, Partition, read_table_untrusted
from tests.fuse.tables import boot_record, entry
from tests.lab import find_program, require

SECTORS = 32768  # 16 MiB


def parse(
    disk: bytes | bytearray, sectors: int | None = None, asked: list[tuple[int, int]] | None = None
) -> list[Partition]:
    """What the parser finds on a disk with these bytes; zeros follow up to ``sectors``."""
    sectors = len(disk) // 512 if sectors is None else sectors
    parser = read_table_untrusted(sectors)
    answer: bytes | None = None
    try:
        while True:
            lba, count = parser.send(answer) if answer is not None else next(parser)
            assert 0 <= lba < lba + count <= sectors
            if asked is not None:
                asked.append((lba, count))
            answer = bytes(disk[lba * 512 : (lba + count) * 512]).ljust(count * 512, b"\0")
    except StopIteration as ended:
        return list(ended.value)


def made_by(path: Path, *command: str, stdin: str = "") -> bytearray:
    """The bytes of a new disk after a partitioning tool ran over it."""
    with path.open("wb") as file:
        file.truncate(SECTORS * 512)
    program = find_program(command[0])
    assert program is not None
    arguments = [program, *command[1:]]
    ended = subprocess.run(arguments, input=stdin, capture_output=True, text=True, check=False, timeout=60)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return bytearray(path.read_bytes())


def sfdisk(path: Path, script: str) -> bytearray:
    require("sfdisk", root=False)
    return made_by(path, "sfdisk", "--quiet", "--no-reread", str(path), stdin=script)


def as_sfdisk_sees_it(path: Path, *, containers: Sequence[str] = ("5", "f", "85")) -> list[Partition]:
    """An independent reading, without extended partitions."""
    program = find_program("sfdisk")
    assert program is not None
    answer = subprocess.run([program, "--json", str(path)], capture_output=True, text=True, check=True, timeout=60)
    table = json.loads(answer.stdout)["partitiontable"]
    return [
        Partition(int(part["node"].removeprefix(str(path))), part["start"], part["size"])
        for part in table["partitions"]
        if part["type"] not in containers
    ]


MBR = """label: dos
start=2048, size=8192, type=83, bootable
start=10240, size=4096, type=c
start=14336, size=16384, type=5
start=30720, size=1024, type=82
start=16384, size=2048, type=83
start=20480, size=5120, type=83
start=28672, size=100, type=83
"""
GPT = """label: gpt
start=2048, size=8192
start=10240, size=4096, name="a name"
7: start=30000, size=77
"""


@pytest.fixture(scope="module")
def gpt_of_sfdisk(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return bytes(sfdisk(tmp_path_factory.mktemp("gpt") / "disk", GPT))


@pytest.fixture
def gpt(gpt_of_sfdisk: bytes) -> bytearray:
    """A disk with a good GPT, to be broken."""
    return bytearray(gpt_of_sfdisk)


def place(disk: bytearray, lba: int, offset: int, data: bytes | bytearray) -> None:
    disk[lba * 512 + offset : lba * 512 + offset + len(data)] = data


def repair_header(disk: bytearray, lba: int) -> None:
    """Make the checksums of a GPT header right again."""
    header = lba * 512
    entries_lba, count, size = struct.unpack_from("<QII", disk, header + 72)
    table = bytes(disk[entries_lba * 512 : entries_lba * 512 + count * size])
    struct.pack_into("<I", disk, header + 88, zlib.crc32(table))
    struct.pack_into("<I", disk, header + 16, 0)
    struct.pack_into("<I", disk, header + 16, zlib.crc32(bytes(disk[header : header + 92])))


# ── what tools make ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_primary_and_logical_partitions_of_sfdisk(tmp_path: Path) -> None:
    disk = sfdisk(tmp_path / "disk", MBR)
    found = parse(disk)
    assert found == as_sfdisk_sees_it(tmp_path / "disk")
    assert [partition.number for partition in found] == [1, 2, 4, 5, 6, 7]
    assert (found[4].first, found[4].sectors) == (20480, 5120)


def test_a_gpt_of_sfdisk(tmp_path: Path) -> None:
    disk = sfdisk(tmp_path / "disk", GPT)
    assert parse(disk) == as_sfdisk_sees_it(tmp_path / "disk")
    assert [partition.number for partition in parse(disk)] == [1, 2, 7]


def test_a_gpt_of_sgdisk_also_with_many_entries(tmp_path: Path) -> None:
    require("sgdisk", "sfdisk", root=False)
    path = tmp_path / "disk"
    disk = made_by(path, "sgdisk", "--resize-table=512", "-n", "300:4096:+1M", "-n", "2:9000:9999", str(path))
    assert parse(disk) == as_sfdisk_sees_it(path)
    assert [partition.number for partition in parse(disk)] == [2, 300]


def test_a_hybrid_mbr_is_read_as_gpt(tmp_path: Path) -> None:
    require("sgdisk", root=False)
    path = tmp_path / "disk"
    disk = made_by(path, "sgdisk", "-n", "1:2048:4095", "-n", "2:4096:8191", "--hybrid=2", str(path))
    assert parse(disk) == [Partition(1, 2048, 2048), Partition(2, 4096, 4096)]


@pytest.mark.parametrize("label", ["msdos", "gpt"])
def test_both_kinds_of_parted(tmp_path: Path, label: str) -> None:
    require("parted", "sfdisk", root=False)
    path = tmp_path / "disk"
    second = "extended" if label == "msdos" else "data"
    words = ["mklabel", label, "mkpart", "primary", "1MiB", "5MiB", "mkpart", second, "5MiB", "100%"]
    if label == "msdos":
        words += ["mkpart", "logical", "6MiB", "8MiB", "mkpart", "logical", "9MiB", "10MiB", "rm", "5"]
        words += ["mkpart", "logical", "11MiB", "12MiB"]
    disk = made_by(path, "parted", "--script", "--align=none", str(path), *words)
    assert parse(disk) == as_sfdisk_sees_it(path)
    assert len(parse(disk)) == (3 if label == "msdos" else 2)


def test_an_extended_partition_with_nothing_in_it(tmp_path: Path) -> None:
    disk = sfdisk(tmp_path / "disk", "label: dos\nstart=2048, size=2048, type=83\nstart=8192, size=8192, type=f\n")
    assert parse(disk) == [Partition(1, 2048, 2048)]
    place(disk, 8192, 0, bytes(512))
    assert parse(disk) == [Partition(1, 2048, 2048)]


def test_a_chain_whose_first_record_is_empty_after_a_deletion(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    sfdisk(path, MBR)
    program = find_program("sfdisk")
    assert program is not None
    subprocess.run([program, "--quiet", "--no-reread", "--delete", str(path), "5"], check=True, timeout=60)
    found = parse(path.read_bytes())
    assert found == as_sfdisk_sees_it(path)
    assert [partition.first for partition in found[3:]] == [20480, 28672]


# ── no table ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "command",
    [
        ("mkfs.fat", "-F", "12"),
        ("mkfs.fat", "-F", "16"),
        ("mkfs.fat", "-F", "32"),
        ("mkfs.ext4", "-q", "-F"),
        ("mkfs.xfs", "-q", "-f"),
    ],
    ids=lambda command: "-".join(command[:3]),
)
def test_a_file_system_on_the_whole_disk_is_no_table(tmp_path: Path, command: tuple[str, ...]) -> None:
    require(command[0], root=False)
    path = tmp_path / "disk"
    if command[0] == "mkfs.xfs":  # wants 300 MiB
        path.touch()
        subprocess.run(["truncate", "-s", "320M", path], check=True)
        subprocess.run([str(find_program("mkfs.xfs")), *command[1:], path], check=True, capture_output=True, timeout=60)
        assert parse(path.read_bytes()[: 1 << 20], 655360) == []
        return
    disk = made_by(path, *command, str(path))
    assert parse(disk) == []
    if command[0] == "mkfs.fat":
        assert disk[510:512] == b"\x55\xaa"
        place(disk, 0, 446, entry(0x83, 2048, 2048))  # boot code that happens to look like an entry
        assert parse(disk) == []


@pytest.mark.parametrize("oem", [b"NTFS    ", b"EXFAT   "])
def test_the_boot_sector_of_ntfs_or_exfat_is_no_table(oem: bytes) -> None:
    disk = bytearray(boot_record(entry(7, 64, 64))).ljust(512 * 512, b"\0")
    assert parse(disk) == [Partition(1, 64, 64)]
    place(disk, 0, 0, b"\xeb\x52\x90" + oem)
    assert parse(disk) == []


def test_boot_code_without_a_table_is_no_table() -> None:
    """A status byte that is neither active nor inactive: these bytes are text, as at the end of many boot loaders."""
    disk = bytearray(boot_record(entry(7, 64, 64), entry(7, 128, 64, status=0x20))).ljust(512 * 512, b"\0")
    assert parse(disk) == []


@pytest.mark.parametrize("fill", [0x00, 0xFF, 0x55])
def test_a_disk_without_any_table_costs_one_sector(fill: int) -> None:
    asked: list[tuple[int, int]] = []
    assert parse(bytes([fill]) * 512 * 8, 1 << 40, asked) == []
    assert asked == [(0, 1)]


def test_a_disk_of_one_sector_is_read_as_any_other() -> None:
    assert parse(boot_record()) == []
    with pytest.raises(FrameError, match="too small"):
        parse(boot_record(entry(0xEE, 1, 0xFFFF_FFFF)))


# ── broken on purpose ─────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("entries", "says"),
    [
        ([entry(0x83, 64, 64), entry(0x83, 127, 64)], "1 and 2 overlap"),
        ([entry(0x83, 64, 64), entry(0x83, 64, 64)], "overlap"),
        ([entry(0x83, 500, 13)], r"partition 1 \(sectors 500 to 512\) is not within 1 to 511"),
        ([entry(0x83, 0xFFFF_FFFF, 0xFFFF_FFFF)], "not within"),
        ([entry(0x83, 0, 64)], "not within"),
        ([entry(0x05, 64, 64), entry(0x83, 100, 10)], "overlap"),
    ],
)
def test_a_broken_mbr_is_refused_as_a_whole(entries: list[bytes], says: str) -> None:
    with pytest.raises(FrameError, match=says):
        parse(bytearray(boot_record(*entries)).ljust(512 * 512, b"\0"))


@pytest.mark.parametrize(
    ("records", "says"),
    [
        ({0: [entry(0x83, 1, 5), entry(5, 0, 64)]}, "runs in a circle at sector 64"),
        ({0: [entry(0x83, 1, 5), entry(5, 20, 9)], 20: [entry(0x83, 1, 5), entry(5, 0, 64)]}, "circle"),
        ({0: [entry(0x83, 1, 5), entry(5, 20, 9)], 20: [entry(0x83, 1, 5), entry(5, 20, 9)]}, "circle"),
        ({0: [entry(0x83, 1, 5), entry(5, 64, 9)]}, "not within"),
        ({0: [entry(0x83, 1, 64)]}, "not within"),
        ({0: [entry(0x83, 0, 5)]}, "covers the extended boot record"),
        ({0: [entry(0x83, 1, 30), entry(5, 20, 9)], 20: [entry(0x83, 20, 5)]}, "covers the extended boot record"),
        ({0: [entry(0x83, 1, 30), entry(5, 40, 9)], 40: [entry(0x83, 0xFFFF_FFFF, 5)]}, "not within"),
        ({0: [entry(0x83, 1, 30), entry(5, 40, 9)]}, "sector 104 holds no extended boot record"),
        ({0: [entry(5, 40, 9), entry(5, 20, 9)]}, "two ways"),
        ({0: [entry(0x83, 1, 9), entry(0x83, 5, 9)]}, "5 and 6 overlap"),
    ],
)
def test_a_broken_chain_is_refused_as_a_whole(records: dict[int, list[bytes]], says: str) -> None:
    disk = bytearray(boot_record(entry(0x83, 1, 10), entry(0x05, 64, 64))).ljust(512 * 512, b"\0")
    for at, entries in records.items():
        place(disk, 64 + at, 0, boot_record(*entries))
    with pytest.raises(FrameError, match=says):
        parse(disk)


def test_garbage_in_place_of_the_first_extended_boot_record_is_no_empty_chain() -> None:
    disk = bytearray(boot_record(entry(0x05, 64, 64))).ljust(512 * 512, b"\0")
    place(disk, 64, 450, b"\x83")
    with pytest.raises(FrameError, match="sector 64 holds no"):
        parse(disk)


def test_an_endless_chain_is_given_up() -> None:
    sectors = 4 * MAX_CHAIN
    disk = bytearray(boot_record(entry(0x05, 1, sectors - 1))).ljust(512 * sectors, b"\0")
    for at in range(sectors - 2):
        place(disk, 1 + at, 0, boot_record(entry(5, at + 1, 1)))
    asked: list[tuple[int, int]] = []
    with pytest.raises(FrameError, match=f"more than {MAX_CHAIN} records"):
        parse(disk, asked=asked)
    assert len(asked) == 1 + MAX_CHAIN


BACKUP = SECTORS - 1


def test_the_backup_is_used_when_the_primary_header_or_its_entries_are_broken(gpt: bytearray) -> None:
    good = bytes(gpt)
    expected = parse(good)
    for lba, offset in ((1, 0), (1, 16), (1, 40), (1, 91), (2, 0), (2, 700)):
        disk = bytearray(good)
        disk[lba * 512 + offset] ^= 1
        assert parse(disk) == expected, (lba, offset)
        disk[BACKUP * 512 + 20] ^= 1  # the reserved field is under the checksum too
        with pytest.raises(FrameError, match="no good GPT behind its protective MBR"):
            parse(disk)
    wiped = bytearray(good)
    wiped[512 : 34 * 512] = bytes(33 * 512)
    assert parse(wiped) == expected


def test_the_backup_of_a_grown_disk_is_found_where_the_primary_header_says(gpt: bytearray) -> None:
    expected = parse(gpt)
    grown = gpt + bytes(512 * 1000)
    assert parse(grown) == expected
    grown[1024] ^= 1  # the entries, not the header
    assert parse(grown) == expected


def test_a_gpt_of_a_larger_disk_is_broken(gpt: bytearray) -> None:
    with pytest.raises(FrameError, match="usable sectors 2048 to 32734 of 30100"):
        parse(gpt[: 30100 * 512])


def test_a_copy_of_the_primary_header_at_the_end_is_no_backup(gpt: bytearray) -> None:
    place(gpt, BACKUP, 0, gpt[512:1024])
    gpt[512] ^= 1
    with pytest.raises(FrameError, match="no GPT header in sector 1"):
        parse(gpt)


@pytest.mark.parametrize(
    ("offset", "layout", "value", "says"),
    [
        (8, "<I", 0x20000, "revision"),
        (12, "<I", 91, "of 91 bytes"),
        (12, "<I", 513, "of 513 bytes"),
        (24, "<Q", 2, "belongs into sector 2"),
        (40, "<Q", 1, "usable sectors"),
        (40, "<Q", 1 << 63, "usable sectors"),
        (48, "<Q", SECTORS, "usable sectors"),
        (72, "<Q", 1, "entries in sectors"),
        (72, "<Q", 4096, "entries in sectors"),
        (72, "<Q", (1 << 64) - 1, "entries in sectors"),
        (80, "<I", 0, "0 entries"),
        (80, "<I", 0xFFFF_FFFF, "4294967295 entries"),
        (84, "<I", 64, "entries of 64 bytes"),
        (84, "<I", 192, "entries of 192 bytes"),
        (84, "<I", 1 << 31, "entries of"),
    ],
)
def test_a_header_that_lies_with_right_checksums_is_refused(
    gpt: bytearray, offset: int, layout: str, value: int, says: str
) -> None:
    disk = gpt
    place(disk, BACKUP, 0, bytes(512))
    struct.pack_into(layout, disk, 512 + offset, value)
    struct.pack_into("<I", disk, 512 + 16, 0)
    size = struct.unpack_from("<I", disk, 512 + 12)[0]
    struct.pack_into("<I", disk, 512 + 16, zlib.crc32(bytes(disk[512 : 512 + size])))
    with pytest.raises(FrameError, match=says):
        parse(disk)


@pytest.mark.parametrize(
    ("first", "last", "says"),
    [
        (2048, 2048, "overlap"),
        (10300, 20000, "overlap"),
        (34, 40, "outside of the usable"),
        (20000, 19999, "outside of the usable"),
        (20000, SECTORS - 1, "outside of the usable"),
        (20000, (1 << 64) - 1, "outside of the usable"),
    ],
)
def test_an_entry_that_lies_with_right_checksums_breaks_the_table(
    gpt: bytearray, first: int, last: int, says: str
) -> None:
    disk = gpt
    assert parse(disk)
    place(disk, BACKUP, 0, bytes(512))
    place(disk, 2, 3 * 128, b"\1" * 32 + struct.pack("<QQ", first, last))
    repair_header(disk, 1)
    with pytest.raises(FrameError, match=says):
        parse(disk)


def test_more_partitions_than_any_disk_has_are_refused() -> None:
    sectors = 10000
    disk = bytearray(boot_record(entry(0xEE, 1, sectors - 1))).ljust(512 * sectors, b"\0")
    header = struct.pack("<8sIIIIQQQQ16sQIII", b"EFI PART", 0x10000, 92, 0, 0, 1, 9999, 200, 9000, b"", 2, 512, 128, 0)
    place(disk, 1, 0, header)
    for index in range(257):
        place(disk, 2, index * 128, b"\1" * 32 + struct.pack("<QQ", 200 + index, 200 + index))
    repair_header(disk, 1)
    with pytest.raises(FrameError, match="257 partitions, 256 are the most"):
        parse(disk)
    place(disk, 2, 256 * 128, bytes(128))
    repair_header(disk, 1)
    assert len(parse(disk)) == 256


# ── any bytes ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def check_any(disk: bytes | bytearray, sectors: int) -> None:
    """Whatever the bytes, the parser raises nothing but FrameError, asks for little, and finds nothing impossible."""
    asked: list[tuple[int, int]] = []
    try:
        found = parse(disk, sectors, asked)
    except FrameError:
        found = []
    assert len(asked) <= 2 + max(MAX_CHAIN, 6)
    assert sum(count for _, count in asked) <= 4 + MAX_CHAIN + 3 * MAX_ENTRIES_BYTES // 512
    ordered = sorted(found, key=lambda partition: partition.first)
    assert all(1 <= part.first < part.end <= sectors for part in ordered)
    assert all(left.end <= right.first for left, right in itertools.pairwise(ordered))
    assert len({part.number for part in found}) == len(found)


BOOT_SECTORS = st.builds(
    lambda code, table: code + table + b"\x55\xaa",
    st.just(bytes(446)),
    st.lists(
        st.builds(
            entry,
            st.sampled_from([0, 0x05, 0x0F, 0x83, 0xEE]),
            st.integers(0, 40) | st.integers(0, 0xFFFF_FFFF),
            st.integers(0, 40) | st.integers(0, 0xFFFF_FFFF),
            st.sampled_from([0, 0x80]),
        ),
        min_size=4,
        max_size=4,
    ).map(b"".join),
)


@given(st.lists(BOOT_SECTORS | st.binary(min_size=512, max_size=512), min_size=1, max_size=40), st.integers(0, 1 << 34))
def test_any_sectors_are_read_or_refused(sectors: list[bytes], more: int) -> None:
    check_any(b"".join(sectors), len(sectors) + more)


@given(st.data())
def test_a_good_table_with_any_damage_is_read_or_refused(data: st.DataObject) -> None:
    rng = random.Random(data.draw(st.integers(0, 1 << 32)))
    sectors = 4096
    disk = bytearray(boot_record(entry(0xEE, 1, sectors - 1))).ljust(512 * sectors, b"\0")
    entries = [(200 + 100 * index, 200 + 100 * index + rng.randrange(100)) for index in range(20)]
    for index, (first, last) in enumerate(entries):
        place(disk, 2, index * 128, b"\1" * 32 + struct.pack("<QQ", first, last))
    for own, other in ((1, sectors - 1), (sectors - 1, 1)):
        fields = (0x10000, 92, 0, 0, own, other, 100, 4000, b"", 2, 128, 128, 0)
        place(disk, own, 0, struct.pack("<8sIIIIQQQQ16sQIII", b"EFI PART", *fields))
        repair_header(disk, own)
    assert [(part.first, part.end - 1) for part in parse(disk)] == entries
    for _ in range(data.draw(st.integers(1, 4))):
        lba = data.draw(st.sampled_from([0, 1, 1, 2, 3, sectors - 1]))
        disk[lba * 512 + data.draw(st.integers(0, 511))] = data.draw(st.integers(0, 255))
    if data.draw(st.booleans()):
        repair_header(disk, 1) if struct.unpack_from("<I", disk, 512 + 80)[0] < 4096 else None
    check_any(disk, sectors)
