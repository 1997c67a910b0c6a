"""Common tools for disks, used on the files of a mount: dd, cmp, cp, cat, qemu-img, losetup."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from tests.lab import INITIATOR, make_image, require, wait_until
from tests.mount.place import EVERY_PLACE, MIB, Place, places, random_bytes

# An even number of sectors, an odd one, less than a page, and one that is no multiple of any payload.
SIZES = {"e0.0": 16 * MIB, "e0.1": 5 * MIB + 3 * 512, "e1.0": 512, "e2.3": 3 * MIB + 7 * 512}
pytestmark = places(EVERY_PLACE)


@pytest.mark.parametrize("name", SIZES)
def test_cmp_finds_no_difference_on_a_whole_disk(place: Place, name: str) -> None:
    place.run("cmp", place.images[name], place.file(name))


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("flags", ["", "iflag=direct"])
def test_dd_reads_a_whole_disk(place: Place, name: str, flags: str) -> None:
    copy = place.lab.directory / "copy"
    place.run("sh", "-c", f"dd if={place.file(name)} of={copy} bs=1M {flags} status=none")
    assert copy.read_bytes() == place.images[name].read_bytes()


@pytest.mark.parametrize(
    ("block", "flags"),
    [("1M", "conv=fsync"), ("1M", "oflag=direct"), ("8M", "oflag=direct"), ("4096", "oflag=dsync"), ("7777", "")],
)
def test_dd_without_notrunc_writes_the_odd_disk_and_keeps_its_size(place: Place, block: str, flags: str) -> None:
    size = SIZES["e0.1"] if "dsync" not in flags else MIB
    new = make_image(place.lab.directory / "new", size, seed=len(block + flags))
    place.run("sh", "-c", f"dd if={new} of={place.file('e0.1')} bs={block} {flags} status=none")
    assert place.images["e0.1"].read_bytes()[:size] == new.read_bytes()
    assert os.stat(place.here("e0.1")).st_size == place.images["e0.1"].stat().st_size == SIZES["e0.1"]
    place.run("cmp", place.images["e0.1"], place.file("e0.1"))


def test_dd_of_a_small_block_in_the_middle_changes_nothing_else(place: Place) -> None:
    expected = bytearray(place.images["e0.0"].read_bytes())
    expected[1000 * 333 : 1000 * 333 + 333] = random_bytes(333)
    piece = place.lab.directory / "piece"
    piece.write_bytes(random_bytes(333))
    place.run("sh", "-c", f"dd if={piece} of={place.file('e0.0')} bs=333 seek=1000 count=1 conv=notrunc status=none")
    assert place.images["e0.0"].read_bytes() == expected


def test_cp_and_cat_read_and_write_whole_disks(place: Place) -> None:
    new = make_image(place.lab.directory / "new", SIZES["e2.3"], seed=5)
    place.run("cp", new, place.file("e2.3"))
    assert place.images["e2.3"].read_bytes() == new.read_bytes()
    copy = place.lab.directory / "copy"
    copy.unlink(missing_ok=True)
    place.run("cp", "--reflink=never", place.file("e2.3"), copy)
    assert copy.read_bytes() == new.read_bytes()
    place.run("sh", "-c", f"cat {place.images['e0.0']} > {place.file('e2.3')}", check=False)  # longer than the disk
    assert place.images["e2.3"].read_bytes() == place.images["e0.0"].read_bytes()[: SIZES["e2.3"]]
    place.run("sh", "-c", f"cat {place.file('e2.3')} > {copy}")
    assert copy.read_bytes() == place.images["e2.3"].read_bytes()


def test_a_disk_is_copied_to_another_disk_of_the_same_mount(place: Place) -> None:
    make_image(place.images["e0.1"], SIZES["e0.1"], seed=8)  # without the kernel's knowledge, as another host would
    place.run("sh", "-c", f"dd if={place.file('e0.1')} of={place.file('e0.0')} bs=1M status=none")
    assert place.images["e0.0"].read_bytes()[: SIZES["e0.1"]] == place.images["e0.1"].read_bytes()


@pytest.mark.parametrize("options", ["", "-n", "-n -t none", "-n -t none -W -m 8", "-n -t directsync"])
def test_qemu_img_converts_to_and_from_a_disk(place: Place, options: str) -> None:
    require("qemu-img")
    new = make_image(place.lab.directory / "new", SIZES["e0.0"], seed=len(options))
    cow = place.lab.directory / "image.qcow2"
    disk = place.file("e0.0")
    place.run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", new, cow)
    place.run("sh", "-c", f"qemu-img convert {options} -f qcow2 -O raw {cow} {disk}")
    assert place.images["e0.0"].read_bytes() == new.read_bytes()
    place.run("qemu-img", "compare", "-f", "raw", "-F", "qcow2", disk, cow)
    cache = ["-T", "none"] if "none" in options else []
    place.run("qemu-img", "convert", *cache, "-f", "raw", "-O", "qcow2", disk, cow)
    place.run("qemu-img", "compare", "-f", "raw", "-F", "qcow2", new, cow)


@pytest.mark.parametrize("direct", ["on", "off"])
def test_a_loop_device_reads_writes_and_flushes(place: Place, direct: str) -> None:
    require("losetup")
    image = place.images["e0.0"]
    device = place.lab.losetup(place.file("e0.0"), f"--direct-io={direct}")
    try:
        assert (Path("/sys/block") / device.name / "loop/dio").read_text().strip() == str(int(direct == "on"))
        assert int((Path("/sys/block") / device.name / "size").read_text()) == SIZES["e0.0"] // 512
        place.run("cmp", device, image)
        new = make_image(place.lab.directory / "new", 4 * MIB, seed=len(direct))
        flushes = place.counters("e0.0")["flushes"]
        place.run("sh", "-c", f"dd if={new} of={device} bs=64k seek=16 conv=fsync status=none")
        assert place.counters("e0.0")["flushes"] > flushes
        assert image.read_bytes()[MIB : 5 * MIB] == new.read_bytes()
        place.run("sh", "-c", f"dd if={new} of={device} bs=512 count=3 seek=1001 oflag=direct status=none")
        assert image.read_bytes()[1001 * 512 : 1004 * 512] == new.read_bytes()[: 3 * 512]
    finally:
        place.run("losetup", "--detach", device)
    assert image.stat().st_size == SIZES["e0.0"]


def test_a_loop_device_over_a_disk_of_an_odd_number_of_sectors_has_all_of_them(place: Place) -> None:
    device = place.lab.losetup(place.file("e0.1"))
    try:
        assert int((Path("/sys/block") / device.name / "size").read_text()) == SIZES["e0.1"] // 512
        place.run("cmp", device, place.images["e0.1"])
        place.run("sh", "-c", f"head -c 512 {place.images['e0.0']} | dd of={device} bs=512 seek=10242 status=none")
        place.run("sync", device)
        assert place.images["e0.1"].read_bytes()[-512:] == place.images["e0.0"].read_bytes()[:512]
    finally:
        place.run("losetup", "--detach", device)


def test_losetup_c_sees_a_target_that_was_restarted_larger(place: Place) -> None:
    name, image = "e2.3", place.images["e2.3"]
    lab = place.lab
    device = lab.losetup(place.file(name))
    try:
        larger = SIZES[name] + 2 * MIB
        with image.open("r+b") as file:
            file.truncate(larger)
        if place.kind == "vblade":
            place.targets[name].stop()
            place.targets[name] = lab.vblade(2, 3, image)
        else:
            place.targets[name].stop()
            exports = [f"{other[1:]}={path}" for other, path in place.images.items()]
            place.targets = dict.fromkeys(place.images, lab.target(*exports))
        wait_until(lambda: os.stat(place.here(name)).st_size == larger, what="the file grew")
        place.run("losetup", "-c", device)
        assert int((Path("/sys/block") / device.name / "size").read_text()) == larger // 512
        place.run("cmp", device, image)
        place.run("sh", "-c", f"echo the end | dd of={device} bs=512 seek={larger // 512 - 1} conv=fsync status=none")
        assert image.read_bytes()[-512:].startswith(b"the end\n")
    finally:
        place.run("losetup", "--detach", device)
    assert shutil.disk_usage(place.mount.here).total == sum(SIZES.values()) + 2 * MIB
    lab.run(INITIATOR, ["cmp", image, place.file(name)])
