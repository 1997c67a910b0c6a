"""Random bytes for everything that decodes what others sent, and for the control files that a mount's owner writes.

    python -m tests.hostile.fuzz --inputs 1000000 [PART ...]

What must hold: a decoder returns or raises ``FrameError``; the software target, the engine and the file system raise
nothing but the errors they name.  Each of :data:`PARTS` takes its share of the inputs.  Most inputs are a good frame
with something wrong, since random bytes rarely pass the first check.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import random
import struct
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from typing import Any, cast

import trio
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from pyfuse3 import FUSEError
from trio.testing import MockClock

from aoefs.core.link import Endpoint, Link
from aoefs.core.lonecommand import LoneCommand
from aoefs.errors import FrameError, UserError
from aoefs.fuse.partitions import read_table_untrusted
from aoefs.fuse.tree import CONTROL
from aoefs.host.claims import Inquiry
from aoefs.net.packetsocket import PacketSocket
from aoefs.protocol.ata import IDENTIFY_REGISTERS, decode_identify_untrusted
from aoefs.protocol.smart import decode_smart_untrusted, is_failing_untrusted, is_smart_untrusted
from aoefs.protocol.wire import (
    ETHERTYPE,
    Address,
    AoeCommand,
    ConfigArgument,
    MaskArgument,
    ReserveArgument,
    decode_argument_untrusted,
    decode_ata_untrusted,
    decode_config_untrusted,
    decode_header_untrusted,
    decode_mask_untrusted,
    decode_reserve_untrusted,
    parse_mac,
)
from tests.fuse.mounted import CONTEXT, Mounted, context, mounted
from tests.fuse.tables import boot_record, entry
from tests.memorystore import answer_at_once
from tests.scene import OUR_MAC, make_export, open_scene, target_mac

ZERO = Address(0, 0)
THEIR_MAC = target_mac(0)
TAG = 0x8000_0040
VARIANTS = 16  # of one example of bytes
BATCH = 48  # frames, or orders, of one example of an engine

# ── inputs ────────────────────────────────────────────────────────────────────────────────────────────────────────────

_byte = st.integers(0, 255)
_macs = st.sampled_from([OUR_MAC, THEIR_MAC, b"\xff" * 6, target_mac(7)]) | st.binary(min_size=6, max_size=6)
_headers = st.builds(
    struct.Struct("!6s6sHBBHBBI").pack,
    _macs,
    _macs,
    st.sampled_from([ETHERTYPE] * 9 + [0x0800]),
    st.sampled_from([0x10, 0x18, 0x1C, 0x08]) | _byte,
    st.integers(0, 7) | _byte,
    st.sampled_from([0, 0, 0, 0xFFFF]) | st.integers(0, 0xFFFF),
    st.sampled_from([0, 0, 0, 0xFF]) | _byte,
    st.integers(0, 4) | _byte,
    st.sampled_from([0, TAG, TAG + 1, TAG + 63]) | st.integers(0, 0xFFFF_FFFF),
)
_registers = st.builds(
    struct.Struct("<BBBBQ").pack,
    st.sampled_from([0, 1, 0x40, 0x41]) | _byte,
    st.sampled_from([0, 0xD0, 0xDA]) | _byte,
    st.integers(0, 3) | _byte,
    st.sampled_from([0x20, 0x24, 0x30, 0x34, 0x40, 0xB0, 0xE5, 0xE7, 0xEA, 0xEC]) | _byte,
    st.integers(0, 300) | st.sampled_from([0xC24F00, 0x2CF400]) | st.integers(0, (1 << 64) - 1),
)
_lists = st.builds(lambda head, macs: head + b"".join(macs), st.binary(min_size=1, max_size=8), st.lists(_macs))
_arguments = _registers | _lists | st.binary(max_size=80)
_tails = st.binary(max_size=40) | st.integers(0, 1100).map(bytes) | st.binary(min_size=512, max_size=1100)
FRAMES = st.builds(lambda *parts: b"".join(parts), _headers, _arguments, _tails) | st.binary(max_size=120)
BLOCKS = st.binary(max_size=600) | st.binary(min_size=512, max_size=512)
_words = st.sampled_from(
    ["e0.0", "0.0", "e9.9", "all", "any", ",", "\n", "aoe0", "e65535.255", "e00.1", "-", "..", "/"]
)
ORDERS = st.lists(_words | st.text(max_size=12), max_size=5).map(lambda words: " ".join(words).encode()) | st.binary(
    max_size=1100
)

# ── checks ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _decode(decode: Callable[..., object], *arguments: object) -> None:
    with contextlib.suppress(FrameError):
        decode(*arguments)


def check_frame(frame: bytes) -> None:
    for decode in (
        decode_header_untrusted,
        decode_ata_untrusted,
        decode_config_untrusted,
        decode_mask_untrusted,
        decode_reserve_untrusted,
    ):
        _decode(decode, frame)
        _decode(decode, memoryview(frame))
    for command in (*AoeCommand, 4, 255):
        _decode(decode_argument_untrusted, command, frame)


def check_block(block: bytes) -> None:
    _decode(decode_identify_untrusted, block)
    _decode(decode_smart_untrusted, block)
    if len(block) >= 512:
        _decode(decode_smart_untrusted, block[:511] + bytes([-sum(block[:511]) & 0xFF]))


def check_registers(frame: bytes) -> None:
    with contextlib.suppress(FrameError):
        ata = decode_ata_untrusted(frame)
        is_smart_untrusted(ata)
        is_failing_untrusted(ata)


def check_lone_command(frame: bytes) -> None:
    """Each kind of command that is not a run, when the frame comes as its answer."""

    class _Link:
        mac = OUR_MAC

    link = cast(Link, _Link())
    for argument in (IDENTIFY_REGISTERS, ConfigArgument(), MaskArgument(), ReserveArgument()):
        for good_only in (False, True):
            lone = LoneCommand(argument, lambda endpoint: endpoint.address == ZERO, data_bytes=512, good_only=good_only)
            lone.tag = TAG
            lone.frames([Endpoint(link, THEIR_MAC, ZERO)], 0.0)
            _decode(lone.receive_untrusted, link, frame, 1.0)
            assert len(lone.answers) + len(lone.refusals) <= 1


_export = make_export(ZERO)


def check_export(frame: bytes) -> None:
    """The software target answers with a frame, or not at all; what it sends can be decoded."""
    reply = answer_at_once(_export, frame, mac=THEIR_MAC, max_sectors=2)
    if reply is not None:
        header = decode_header_untrusted(reply)
        assert header.is_response
        assert header.source == THEIR_MAC
        assert 60 <= len(reply) <= 36 + 1024 + 512


def check_claims(frames: list[bytes]) -> None:
    """What a new target hears of others before it serves."""

    class _Wire:
        interface, mac = "aoe0", OUR_MAC

        def send_frame(self, frame: bytes) -> None:
            decode_header_untrusted(frame)

        def receive_frames(self, most: int) -> list[bytes]:
            return frames[:most]

    inquiry = Inquiry([ZERO], [cast(PacketSocket, _Wire())])
    with contextlib.suppress(UserError):
        inquiry.require_silence()


def check_partitions(disk: tuple[list[bytes], int]) -> None:
    """The parser asks for a bounded number of sectors within the disk, whatever they hold."""
    sectors, more = disk
    data, size = b"".join(sectors), len(sectors) + more
    parser, answer, asked = read_table_untrusted(size), None, 0
    with contextlib.suppress(StopIteration, FrameError):
        while True:
            lba, count = parser.send(answer) if answer is not None else next(parser)
            assert 0 <= lba < lba + count <= size
            asked += 1
            assert asked < 200
            answer = data[lba * 512 : (lba + count) * 512].ljust(count * 512, b"\0")


def _gpt_header(fields: tuple[Any, ...]) -> bytes:
    own, alternate, first, last, place, count, size, crc = fields
    packed = [b"EFI PART", 0x10000, 92, 0, 0, own, alternate, first, last, b"", place, count, size, crc]
    packed[3] = zlib.crc32(struct.pack("<8sIIIIQQQQ16sQIII", *packed))
    return struct.pack("<8sIIIIQQQQ16sQIII", *packed).ljust(512, b"\0")


_place = st.integers(0, 40) | st.integers(0, (1 << 64) - 1)
_extent = st.integers(0, 40) | st.integers(0, 0xFFFF_FFFF)
_entries = st.builds(entry, st.sampled_from([0, 5, 0x83, 0xEE]), _extent, _extent, st.sampled_from([0, 0x80]))
_boots = st.lists(_entries, max_size=4).map(lambda entries: boot_record(*entries)) | st.just(
    boot_record(entry(0xEE, 1, 0xFFFF_FFFF))
)
_gpts = st.tuples(
    st.sampled_from([1, 39]),
    _place,
    _place,
    _place,
    _place,
    st.integers(0, 200),
    st.sampled_from([128, 256, 100]),
    st.sampled_from([zlib.crc32(bytes(128 * count)) for count in (1, 4, 128)]) | st.integers(0, (1 << 32) - 1),
).map(_gpt_header)
DISKS = st.tuples(
    st.lists(_boots | _gpts | st.just(bytes(512)) | st.binary(min_size=512, max_size=512), min_size=1, max_size=40),
    st.integers(0, 1 << 34),
)


def check_engine(frames: list[bytes]) -> None:
    """Frames that reach a mount with one disk: it still answers, nothing else is there, and no task has failed."""

    async def run() -> None:
        async with open_scene() as scene:
            target = scene.add_target()
            disk = await scene.disk()
            for some in frames:
                frame = some[:12] + ETHERTYPE.to_bytes(2, "big") + some[14:]  # the socket's filter
                if 24 <= len(frame) < 512 and frame[20] == TAG >> 24:  # the tag of the last question; no data for it
                    frame = frame[:20] + scene.wire.sent()[-1][2][20:24] + frame[24:]
                scene.link.deliver(frame)
                await trio.sleep(0.001)
            await trio.sleep(20)
            target.announce()
            await trio.sleep(20)
            assert [str(address) for address in scene.engine.disks] == ["e0.0"]
            assert disk.target.identity.serial == "serial e0.0"
            assert bytes(await disk.read(0, 512)) == bytes(target.data[:512])

    _simulate(run)


def check_control(orders: list[tuple[str, bytes]]) -> None:
    """What the owner of a mount writes into its control files is carried out, or an errno."""

    def choose(names: object, *, by_root: bool) -> None:
        assert not by_root
        assert isinstance(names, list)
        assert all(isinstance(name, str) and name.isascii() for name in names)

    async def run() -> None:
        async with mounted(set_interfaces=choose) as mount:
            mount.scene.add_target()
            await mount.scene.disk()
            for path, order in orders:
                with contextlib.suppress(FUSEError):
                    await _echo(mount, path, order)
            await trio.sleep(2)
            assert await _cat(mount, "status.json")
            assert [str(address) for address in mount.scene.engine.disks] == ["e0.0"]

    _simulate(run)


async def _find(mount: Mounted, path: str) -> int:
    inode = CONTROL
    for name in path.split("/"):
        inode = await mount.inode(name, inode)
    return inode


async def _echo(mount: Mounted, path: str, order: bytes) -> None:
    handle = int((await mount.operations.open(await _find(mount, path), os.O_WRONLY, context())).fh)
    try:
        assert await mount.write(handle, 0, order) == len(order)
    finally:
        await mount.operations.release(handle)


async def _cat(mount: Mounted, path: str) -> bytes:
    handle = int((await mount.operations.open(await _find(mount, path), os.O_RDONLY, CONTEXT)).fh)
    data = await mount.read(handle, 0, 1 << 20)
    await mount.operations.release(handle)
    return data


def check_text(order: bytes) -> None:
    """Names of targets and MACs, as users write them."""
    text = order.decode("utf-8", "replace")
    for parse in (Address.parse, parse_mac):
        with contextlib.suppress(ValueError):
            parse(text)


class _Exceptions(logging.Handler):
    """The exceptions that aoefs logs, since nothing may end a mount: each of them is a defect."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info:
            self.found.append(logging.Formatter().format(record))


def _simulate(run: Callable[[], object]) -> None:
    """Run an engine on a virtual clock; AssertionError for each exception that it logs."""
    log, exceptions = logging.getLogger("aoefs"), _Exceptions()
    log.addHandler(exceptions)
    try:
        trio.run(run, clock=MockClock(autojump_threshold=0))  # type: ignore[arg-type]  # trio.run wants its own Clock class
    finally:
        log.removeHandler(exceptions)
    assert not exceptions.found, exceptions.found[0]


_FILES = st.sampled_from(["discover", "revalidate", "flush", "interfaces", "e0.0/config"])
#: By name: what to feed, how many inputs one example of it has, and the check.
PARTS: dict[str, tuple[st.SearchStrategy[Any], int, Callable[[Any], None]]] = {
    "frames": (FRAMES, VARIANTS, check_frame),
    "blocks": (BLOCKS, VARIANTS, check_block),
    "registers": (FRAMES, VARIANTS, check_registers),
    "lone commands": (FRAMES, VARIANTS, check_lone_command),
    "software target": (FRAMES, VARIANTS, check_export),
    "claims": (st.lists(FRAMES, min_size=BATCH, max_size=BATCH), BATCH, check_claims),
    "partitions": (DISKS, 1, check_partitions),
    "engine": (st.lists(FRAMES, min_size=BATCH, max_size=BATCH), BATCH, check_engine),
    "control files": (st.lists(st.tuples(_FILES, ORDERS), min_size=BATCH, max_size=BATCH), BATCH, check_control),
    "names": (ORDERS, VARIANTS, check_text),
}

#: The functions of aoefs for bytes of others, and the part that feeds each: a new one needs a part.
COVERED = {
    "decode_header_untrusted": "frames",
    "decode_ata_untrusted": "frames",
    "decode_config_untrusted": "frames",
    "decode_mask_untrusted": "frames",
    "decode_reserve_untrusted": "frames",
    "decode_argument_untrusted": "frames",
    "_fixed_untrusted": "frames",
    "decode_identify_untrusted": "blocks",
    "_string_untrusted": "blocks",
    "decode_smart_untrusted": "blocks",
    "is_smart_untrusted": "registers",
    "is_failing_untrusted": "registers",
    "receive_untrusted": "lone commands",
    "handle_untrusted": "software target",
    "_examine_untrusted": "claims",
    "read_table_untrusted": "partitions",
    "_header_untrusted": "partitions",
    "_entries_untrusted": "partitions",
}


def variants(data: bytes) -> Iterator[bytes]:
    """An input, and some that differ from it in a few places: most of the time goes into drawing a new one."""
    yield data
    dice = random.Random(data)
    for _ in range(VARIANTS - 1):
        changed = bytearray(data)
        for _ in range(dice.randrange(1, 4)):
            at = dice.randrange(len(changed) + 1)
            if dice.random() < 0.2:
                del changed[at:]
            else:
                changed[at : at + 2] = dice.choice((b"\0\0", b"\xff\xff", b"\1", dice.randbytes(1), dice.randbytes(2)))
        yield bytes(changed)


def fuzz(part: str, inputs: int, number: int | None = None) -> int:
    """Feed about so many inputs to a part; how many it were.  ``number`` seeds a run that can be repeated."""
    strategy, batch, check = PARTS[part]
    done = 0

    @settings(
        max_examples=max(1, inputs // batch),
        deadline=None,
        database=None,
        derandomize=number is None,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy)
    def feed(example: Any) -> None:
        nonlocal done
        done += batch
        if isinstance(example, bytes):
            for variant in variants(example):
                check(variant)
        else:
            check(example)

    (feed if number is None else seed(number)(feed))()
    return done


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="tests.hostile.fuzz", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--inputs", type=int, default=1_000_000, help="of all parts together (%(default)s)")
    parser.add_argument("--seed", type=int, default=int(time.time()), help="of a run to be repeated")
    parser.add_argument("parts", nargs="*", choices=[[], *PARTS], metavar="PART", help=", ".join(PARTS))
    options = parser.parse_args(arguments)
    parts, total = options.parts or list(PARTS), 0
    print(f"seed {options.seed}", flush=True)
    for part in parts:
        began = time.monotonic()
        done = fuzz(part, options.inputs // len(parts), options.seed)
        total += done
        print(f"{part}: {done} inputs in {time.monotonic() - began:.0f} s", flush=True)
    print(f"{total} inputs, no failure")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
