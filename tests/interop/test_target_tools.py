"""Our target with common programs: aoetools, tshark, and the Linux driver.

The driver comes with Debian's user-mode-linux, a kernel that runs as a plain process: its network interface is a raw
socket on our veth, its root is an initramfs with busybox and ``aoe.ko``, and results come from its console.
"""

from __future__ import annotations

import hashlib
import os
import random
import re
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from aoefs.protocol.ata import (
    IDENTIFY_REGISTERS,
    Opcode,
    decode_identify_untrusted,
    flush_registers,
    transfer_registers,
)
from aoefs.protocol.wire import (
    BROADCAST_MAC,
    MIN_FRAME_BYTES,
    Address,
    AoeCommand,
    AtaArgument,
    ConfigArgument,
    ConfigCommand,
    Header,
    decode_ata_untrusted,
    decode_header_untrusted,
    encode,
    payload_sectors,
)
from tests.lab import INITIATOR, TARGET, Lab, Process, find_program, open_packet_socket, require
from tests.lab.fixtures import both_mtus

SIZE = 4 << 20
_SO_RCVBUFFORCE = 33
ADDRESS = Address(0, 1)


@pytest.fixture
def disk(lab: Lab) -> Path:
    return lab.image("disk", SIZE)


@pytest.fixture
def target(lab: Lab, disk: Path) -> Process:
    return lab.target(f"0.1={disk}")


@pytest.fixture
def wire(lab: Lab) -> Iterator[socket.socket]:
    with open_packet_socket(lab) as sock:
        sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 4 << 20)  # a whole window of jumbo frames
        yield sock


# ── aoetools ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.usefixtures("target")
def test_aoeping_finds_the_target_and_reads_its_identity(lab: Lab) -> None:
    require("aoeping")
    answer = lab.run(INITIATOR, ["aoeping", "-v", "-s", 5, 0, 1, "aoe0"])
    assert f"found e0.1 with mac {lab.mac(TARGET).hex()}" in answer.stdout
    answer = lab.run(INITIATOR, ["aoeping", "-I", "-s", 5, 0, 1, "aoe0"])
    assert "model: aoefs software target" in answer.stdout
    assert re.search(r"serial_number: [0-9a-f]{20}", answer.stdout)
    answer = lab.run(INITIATOR, ["aoeping", "-S", "return_status", "-s", 5, 0, 1, "aoe0"])
    assert "LBA Mid: 0x4f" in answer.stdout  # a healthy disk, by its manual page
    answer = lab.run(INITIATOR, ["aoeping", "-S", "read_data", "-s", 5, 0, 1, "aoe0"])
    assert "\n10 00 bb " in answer.stdout  # attribute 187 comes first


@pytest.mark.usefixtures("target")
def test_aoecfg_sets_reads_and_tests_the_config_string(lab: Lab) -> None:
    require("aoecfg")

    def aoecfg(*arguments: str | int, seconds: int = 10) -> str:
        return lab.run(INITIATOR, ["aoecfg", "-t", seconds, *arguments, 0, 1, "aoe0"]).stdout.strip()

    assert aoecfg() == ""
    assert aoecfg("-c", "set", "-s", "database") == "database"
    assert aoecfg("-c", "set", "-s", "other") == "*badcfg*"
    assert aoecfg("-c", "test", "-s", "database") == "database"
    assert aoecfg("-c", "test", "-s", "data", seconds=1) == ""  # none answers
    assert aoecfg("-c", "prefix", "-s", "data") == "database"
    assert aoecfg("-c", "fset", "-s", "other") == "other"
    assert aoecfg("-c", "read") == "other"
    for command in ("set", "fset"):  # to all of a shelf, to all
        for address in ((0, 0xFF), (0xFFFF, 0xFF)):
            assert not lab.run(INITIATOR, ["aoecfg", "-t", 1, "-c", command, "-s", "all", *address, "aoe0"]).stdout
    all_targets = lab.run(INITIATOR, ["aoecfg", "-t", 1, 0xFFFF, 0xFF, "aoe0"]).stdout
    assert all_targets == "0.1\tother\n"


@both_mtus
@pytest.mark.usefixtures("target")
def test_aoe_sancheck_measures_the_full_payload(lab: Lab) -> None:
    require("aoe-sancheck")
    answer = lab.run(INITIATOR, ["aoe-sancheck"])
    payload = payload_sectors(lab.mtu) * 512
    assert re.search(rf"^e0\.1\s+1\s+{payload}\s+aoe0$", answer.stdout, re.MULTILINE), answer.stdout
    assert "only capable" not in answer.stdout


# ── a plain initiator, and tshark on all frames ───────────────────────────────────────────────────────────────────


def exchange(lab: Lab, wire: socket.socket, frames: dict[int, bytes], window: int = 16) -> dict[int, bytes]:
    """Send all frames, a window at a time; their answers by tag."""
    answers: dict[int, bytes] = {}
    waiting = list(frames)
    in_flight = 0
    while len(answers) < len(frames):
        while waiting and in_flight < window:
            wire.send(frames[waiting.pop(0)])
            in_flight += 1
        frame = wire.recv(1 << 16)
        header = decode_header_untrusted(frame)
        if header.destination == lab.mac(INITIATOR) and header.tag in frames:
            assert header.tag not in answers
            answers[header.tag] = frame
            in_flight -= 1
    return answers


def header(lab: Lab, tag: int, command: int = AoeCommand.ATA, to: bytes | None = None) -> Header:
    return Header(lab.mac(TARGET) if to is None else to, lab.mac(INITIATOR), ADDRESS, command, tag)


@both_mtus
@pytest.mark.parametrize("window", [1, 16, 64])
@pytest.mark.usefixtures("target")
def test_a_plain_initiator_reads_and_writes_the_whole_file(
    lab: Lab, disk: Path, wire: socket.socket, window: int
) -> None:
    sectors = payload_sectors(lab.mtu)
    pieces = {}
    for lba in range(0, SIZE // 512, sectors):
        pieces[0x8000_0000 + lba] = (lba, min(sectors, SIZE // 512 - lba))

    def transfer(write: bytes | None, order: list[int]) -> dict[int, bytes]:
        frames = {}
        for tag in order:
            lba, count = pieces[tag]
            data = write[lba * 512 : (lba + count) * 512] if write else b""
            frames[tag] = encode(header(lab, tag), transfer_registers(lba, count, write=bool(write), lba48=True), data)
        return exchange(lab, wire, frames, window)

    answers = transfer(None, list(pieces))
    assert b"".join(answers[tag][36:] for tag in pieces) == disk.read_bytes()
    new = random.Random(window).randbytes(SIZE)
    shuffled = random.Random(1).sample(list(pieces), len(pieces))
    for answer in transfer(new, shuffled).values():
        assert (len(answer), decode_ata_untrusted(answer).command) == (MIN_FRAME_BYTES, 0x40)
    answer = exchange(lab, wire, {9: encode(header(lab, 9), flush_registers(Opcode.FLUSH_EXT))})[9]
    assert decode_ata_untrusted(answer).command == 0x40
    assert disk.read_bytes() == new


def test_tshark_finds_nothing_malformed_and_no_short_frame(lab: Lab, disk: Path) -> None:
    require("tshark")
    capture = lab.capture()
    target = lab.target("--config-string", "words", f"0.1={disk}")
    with open_packet_socket(lab) as wire:
        ata = [
            IDENTIFY_REGISTERS,
            transfer_registers(0, 2, write=False, lba48=True),
            transfer_registers(0, 2, write=True, lba48=False),
            transfer_registers(SIZE // 512, 1, write=False, lba48=True),  # past the end
            transfer_registers(0, 3, write=False, lba48=True),  # too long
            flush_registers(Opcode.FLUSH),
            flush_registers(Opcode.FLUSH_EXT),
            AtaArgument(0, 0, 1, Opcode.CHECK_POWER_MODE, 0),
            AtaArgument(0, 0, 1, Opcode.SMART, 0),
        ]
        frames = {
            tag: encode(header(lab, tag), registers, bytes(1024) if registers.flags & 1 else b"")
            for tag, registers in enumerate(ata, 0x100)
        }
        for tag, command in enumerate((ConfigCommand.READ, ConfigCommand.PREFIX, ConfigCommand.SET), 0x200):
            frames[tag] = encode(header(lab, tag, AoeCommand.CONFIG, BROADCAST_MAC), ConfigArgument(command))
        for tag, other in enumerate((2, 3, 0xF0), 0x300):
            frames[tag] = encode(header(lab, tag, other), ata[0])
        answers = exchange(lab, wire, frames)
    assert decode_identify_untrusted(answers[0x100][36:]).sectors == SIZE // 512
    assert target.stop() == 0

    assert capture.tshark("_ws.malformed", "frame.number") == []
    assert capture.tshark("aoe && frame.len < 60", "frame.number") == []
    assert capture.tshark("aoe.version != 1", "frame.number") == []
    assert capture.tshark("aoe.cmd == 0 && aoe.response == 0 && !aoe.response_in", "frame.number") == []
    errors = capture.tshark("aoe.response == 1 && aoe.flags_error == 1", "aoe.tag", "aoe.error")
    assert {(int(tag, 0), int(error, 0)) for tag, error in errors} == {
        (0x104, 2),
        (0x202, 4),
        (0x302, 1),
    }
    failed = capture.tshark("aoe.response == 1 && aoe.ata.status & 1 && aoe.flags_error == 0", "aoe.tag")
    assert {int(tag, 0) for (tag,) in failed} == {0x103, 0x108}


# ── the Linux driver ──────────────────────────────────────────────────────────────────────────────────────────────

INIT = """#!/bin/busybox sh
b=/bin/busybox
$b mkdir -p /proc /sys /dev
$b mount -t proc proc /proc
$b mount -t sysfs sysfs /sys
$b mount -t devtmpfs dev /dev
$b ip link set vec0 mtu MTU up
$b insmod /aoe.ko && echo "RESULT insmod 0"
n=0
until [ -b /dev/etherd/e0.1 ] || [ $n -ge 100 ]; do n=$((n+1)); $b usleep 100000; done
for name in size state netif payload firmware-version; do
  echo "RESULT $name $($b cat '/sys/block/etherd!e0.1/'$name)"
done
disk=/dev/etherd/e0.1
set -- $($b sha256sum $disk)
echo "RESULT read $1"
$b dd if=$disk of=$disk bs=64k count=32 seek=32 conv=notrunc,fsync 2>/dev/null
echo "RESULT write $?"
$b dd if=$disk of=$disk bs=512 count=7 skip=100 seek=1 conv=notrunc,fsync 2>/dev/null
echo "RESULT small $?"
echo 3 > /proc/sys/vm/drop_caches
set -- $($b sha256sum $disk)
echo "RESULT reread $1"
$b dd if=/dev/zero of=$disk bs=512 count=1 seek=8192 conv=notrunc,fsync 2>/dev/null
echo "RESULT past-the-end $?"
echo "RESULT errors $($b dmesg | $b grep -c -i 'aoe.*\\(error\\|unexpected\\|bad\\)')"
$b poweroff -f
"""
MODULES = Path("/usr/lib/uml/modules")


def initramfs(directory: Path, module: Path, mtu: int) -> Path:
    """busybox, the driver and the script above, as the kernel unpacks them."""
    root = directory / "initramfs"
    (root / "bin").mkdir(parents=True)
    busybox = find_program("busybox")
    assert busybox is not None
    (root / "bin/busybox").write_bytes(Path(busybox).read_bytes())
    (root / "bin/busybox").chmod(0o755)
    (root / "aoe.ko").write_bytes(module.read_bytes())
    (root / "init").write_text(INIT.replace("MTU", str(mtu)))
    (root / "init").chmod(0o755)
    (root / "dev").mkdir()
    os.mknod(root / "dev/console", 0o600 | 0o020000, os.makedev(5, 1))
    archive = directory / "initramfs.cpio"
    make_archive(root, archive)
    return archive


def make_archive(root: Path, archive: Path) -> None:
    """The "newc" format of cpio."""
    with archive.open("wb") as output:

        def put(name: str, mode: int, data: bytes, device: int = 0) -> None:
            text = name.encode() + b"\0"
            numbers = (0, mode, 0, 0, 1, 0, len(data), 0, 0, os.major(device), os.minor(device), len(text), 0)
            entry = b"070701" + b"".join(b"%08x" % number for number in numbers) + text
            output.write(entry + bytes(-len(entry) % 4) + data + bytes(-len(data) % 4))

        for path in sorted(root.rglob("*")):
            status = path.lstat()
            put(
                str(path.relative_to(root)),
                status.st_mode,
                path.read_bytes() if path.is_file() else b"",
                status.st_rdev,
            )
        put("TRAILER!!!", 0, b"")


@both_mtus
def test_the_linux_driver_reads_and_writes(lab: Lab, disk: Path) -> None:
    require("linux.uml", "busybox", str(MODULES))
    module = next(MODULES.glob("*/kernel/drivers/block/aoe/aoe.ko"))
    # Its raw socket has room for a few jumbo frames only, and the driver retransmits after 16 s for the first time.
    lab.target("--bufcnt", 8, f"0.1={disk}")
    archive = initramfs(lab.directory, module, lab.mtu)
    before = disk.read_bytes()
    mac = lab.mac(INITIATOR).hex(":")
    capture = lab.capture()
    for _ in range(3):
        console = lab.run(
            INITIATOR,
            [
                "linux.uml",
                "mem=64M",
                f"uml_dir={lab.directory}",
                f"initrd={archive}",
                f"vec0:transport=raw,ifname=aoe0,depth=64,gro=0,mtu={lab.mtu},mac={mac}",
                "con=null",
                "con0=null,fd:1",
                "panic=1",
            ],
            check=False,
            timeout=180,
        ).stdout
        if "/init: line 3: can't fork" not in console:  # else the guest ended before its first command, as it may
            break
    found = dict(line.split(" ", 2)[1:] for line in console.replace("\r", "").splitlines() if line.startswith("RESULT"))
    expected = bytearray(before)
    expected[32 << 16 :] = before[: 32 << 16]
    expected[512 : 8 * 512] = expected[100 * 512 : 107 * 512]
    assert found == {
        "insmod": "0",
        "size": str(SIZE // 512),
        "state": "up",
        "netif": "vec0",
        "payload": str(payload_sectors(lab.mtu) * 512),
        "firmware-version": "0x0100",
        "read": hashlib.sha256(before).hexdigest(),
        "write": "0",
        "small": "0",
        "reread": hashlib.sha256(expected).hexdigest(),
        "past-the-end": "1",
        "errors": "0",
    }, console
    assert disk.read_bytes() == expected
    assert capture.tshark("_ws.malformed", "frame.number") == []
