"""ext4 on a file of a mount whose target loses its power: what was fsynced is there, and the file system is clean.

The workload runs once; each entry of the journal of its target is a moment at which the power could have been cut.
"""

from __future__ import annotations

import contextlib
import os
import random
from pathlib import Path

from tests.faults.live import mount_until, serve_journal
from tests.faults.powercut import cut, read_journal
from tests.lab import INITIATOR, Lab, Process, make_image, require
from tests.lab.forwarder import Wire

SIZE = 24 << 20
FILES = 40
CUTS = 24


def content(number: int) -> bytes:
    return random.Random(number).randbytes(random.Random(-number).randrange(1, 60_000))


def fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_files(tree: Path, journal: Path) -> list[tuple[int, str, bytes]]:
    """Write files and fsync most of them; (length of the journal by then, name, content) of those."""
    durable = []
    for number in range(FILES):
        name = f"d{number % 5}/file{number}"
        path = tree / name
        path.parent.mkdir(exist_ok=True)
        with path.open("wb") as file:
            file.write(content(number))
            if number % 4 == 3:
                continue  # not fsynced: may be there or not
            file.flush()
            os.fsync(file.fileno())
        fsync(path.parent)
        fsync(tree)
        durable.append((journal.stat().st_size, name, content(number)))
        if number % 8 == 7:
            (tree / f"d{(number - 4) % 5}/file{number - 4}").unlink(missing_ok=True)
            fsync(tree / f"d{(number - 4) % 5}")
            durable = [entry for entry in durable if not entry[1].endswith(f"/file{number - 4}")]
    return durable


def test_what_was_fsynced_on_ext4_is_there_after_a_power_cut_at_any_moment(lab: Lab, wire: Wire) -> None:
    require("mkfs.ext4", "e2fsck", "losetup")
    disk = make_image(lab.directory / "disk", SIZE, seed=None)
    lab.run(INITIATOR, ["mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0", disk])
    image = disk.read_bytes()
    journal = serve_journal(lab, disk)
    wire.faults(loss=0.005, reorder=0.02, duplicate=0.02)
    mount = mount_until(lab, "e0.0")
    tree = mount_loop(lab, mount.file("e0.0"), "tree")
    started = journal.stat().st_size
    durable = make_files(tree, journal)
    lab.run(INITIATOR, ["umount", "/" + str(tree.relative_to(lab.sides[INITIATOR].root))])

    entries = list(read_journal(journal))
    first = next(index for index, entry in enumerate(entries) if entry.end > started)
    moments = range(first, len(entries) + 1)
    dice = random.Random(7)
    seen = 0
    for number, at in enumerate(sorted(dice.sample(moments, CUTS))):
        rebuilt = lab.directory / "rebuilt"
        rebuilt.write_bytes(cut(image, entries, at, seed=number))
        again = mount_loop(lab, rebuilt, f"again{number}")  # replays the journal of ext4
        written = entries[at - 1].end
        for when, name, wanted in durable:
            if when <= written:
                seen += 1
                assert (again / name).read_bytes() == wanted, f"{name} after a cut at {at} of {len(entries)}"
        lab.run(INITIATOR, ["umount", "/" + str(again.relative_to(lab.sides[INITIATOR].root))])
        answer = lab.run(INITIATOR, ["e2fsck", "-fn", rebuilt], check=False)
        assert answer.returncode == 0, f"after a cut at {at} of {len(entries)}: {answer.stdout}"
    assert seen > CUTS


def mount_loop(lab: Lab, path: Path, name: str) -> Path:
    """A file with ext4 on it, mounted at the initiator; the tree as this process sees it."""
    point = lab.directory / name
    point.mkdir()
    lab.run(INITIATOR, ["mount", "-t", "ext4", "-o", "loop", path, point])
    return lab.sides[INITIATOR].root / point.relative_to("/")


def test_the_power_cut_itself_drops_what_was_not_flushed_and_nothing_else(lab: Lab, wire: Wire) -> None:
    disk = make_image(lab.directory / "disk", 1 << 20, seed=None)
    journal = serve_journal(lab, disk)
    mount = mount_until(lab, "e0.0")
    command = ["dd", "if=/dev/urandom", f"of={mount.file('e0.0')}", "bs=4k", "oflag=direct"]
    flushed: Process = lab.popen(INITIATOR, [*command, "count=8", "conv=notrunc,fsync"])
    assert flushed.wait(60) == 0, flushed.output
    boundary = len(list(read_journal(journal)))
    with contextlib.ExitStack() as stack:
        file = os.open(mount.here / "e0.0", os.O_WRONLY)
        stack.callback(os.close, file)
        os.pwrite(file, b"x" * 4096, 1 << 16)
        os.fsync(file)
    entries = list(read_journal(journal))
    image = disk.read_bytes()
    after = {bytes(cut(image, entries, boundary, seed=seed)) for seed in range(10)}
    assert len(after) == 1
    assert any(after.pop()[: 8 * 4096])
    last = max(index for index, entry in enumerate(entries) if entry.data)
    torn = {bytes(cut(image, entries, last + 1, seed=seed))[1 << 16 : (1 << 16) + 4096] for seed in range(20)}
    assert len(torn) > 2, "some of the later writes, in any choice"
    whole = {bytes(cut(image, entries, len(entries), seed=seed)) for seed in range(10)}
    assert len(whole) == 1
