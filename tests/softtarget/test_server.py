"""The server in trio: a batch is answered as the export alone answers its frames, and a sync blocks nothing else."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections import Counter
from pathlib import Path

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from aoefs.protocol.ata import Opcode
from aoefs.protocol.wire import (
    BROADCAST_MAC,
    Address,
    AoeCommand,
    AtaArgument,
    ConfigArgument,
    ConfigCommand,
    ErrorCode,
    Header,
    MaskDirective,
    ReserveArgument,
    ReserveCommand,
    decode_ata_untrusted,
    decode_config_untrusted,
    decode_header_untrusted,
    encode,
)
from aoefs.softtarget.configfile import ConfigFile
from aoefs.softtarget.server import Server
from tests.memorystore import MemoryStore, answer_at_once
from tests.softtarget.serving import (
    ADDRESSES,
    FLUSH,
    OURS,
    SECTORS,
    STRANGER,
    THEIRS,
    SlowSync,
    make_export,
    read,
    request,
    serving,
    twin,
    until,
    write,
)

# ── batches ───────────────────────────────────────────────────────────────────────────────────────────────────────


@st.composite
def runs(draw: st.DrawFn) -> list[bytes]:
    """Frames as initiators send them: runs of consecutive sectors, some of them broken, odd or nonsense."""
    frames: list[bytes] = []
    tag = 0x8000_0000
    for _ in range(draw(st.integers(1, 8))):
        address = draw(st.sampled_from([*ADDRESSES, ADDRESSES[0], Address(0, 1), Address(0xFFFF, 0xFF)]))
        opcode = draw(st.sampled_from([0x20, 0x24, 0x24, 0x24, 0x30, 0x34, 0x34, 0x34, 0xEA, 0xEC, 0x99]))
        lba = draw(st.integers(0, SECTORS) | st.sampled_from([0, 8, SECTORS - 1, (1 << 48) - 2, (1 << 28) - 1]))
        count = draw(st.sampled_from([1, 2, 2, 2, 0, 3]))
        to = draw(st.sampled_from([OURS, OURS, OURS, OURS, BROADCAST_MAC, THEIRS]))
        senders = draw(st.sampled_from([(THEIRS,), (THEIRS,), (STRANGER,), (THEIRS, STRANGER)]))
        for _ in range(draw(st.integers(1, 24))):
            tag += 1
            data = bytes([tag & 0xFF]) * (512 * count - draw(st.sampled_from([0] * 12 + [1, -7])))
            device = 0xE0 << 24 if not opcode & 0x04 else 0
            ata = AtaArgument(draw(st.sampled_from([0, 0x40, 0x41])), 0, count, opcode, (lba | device) & (1 << 48) - 1)
            frame = request(
                tag,
                ata,
                data if opcode & 0xF0 == 0x30 else b"",
                address=address,
                to=to,
                sender=senders[tag % len(senders)],
            )
            cut = draw(st.sampled_from([None] * 20 + [24, 35, 36, 59]))
            frames.append(frame[:cut])
            lba += count + draw(st.sampled_from([0] * 12 + [1, -2]))
            lba = max(lba, 0)
    return frames


#: The mask list of an export and the holders of its reservation.
any_access = st.tuples(*[st.sampled_from([(), (), (THEIRS,), (STRANGER,), (THEIRS, STRANGER)])] * 2)


@given(runs(), st.booleans(), st.integers(1, 2), any_access)
@settings(max_examples=150)
def test_a_batch_is_answered_as_the_export_alone_answers(
    frames: list[bytes], read_only: bool, max_sectors: int, access: tuple[tuple[bytes, ...], tuple[bytes, ...]]
) -> None:
    exports = [make_export(ADDRESSES[0]), make_export(ADDRESSES[1], MemoryStore(SECTORS, read_only=read_only))]
    alone = [twin(each) for each in exports]
    frames.append(request(1, AtaArgument(0, 0, 1, Opcode.CHECK_POWER_MODE, 0), address=ADDRESSES[1]))
    mask, holders = access
    for each in (exports[0], alone[0]):
        each.access.edit_mask([(MaskDirective.ADD, mac) for mac in mask])
        each.access.reserve(THEIRS, holders, force=True)
    expected = Counter(
        answer
        for frame in frames
        for each in alone
        if (answer := answer_at_once(each, frame, mac=OURS, max_sectors=max_sectors)) is not None
    )

    async def main() -> None:
        async with serving(*exports, mtu=36 + 512 * max_sectors) as (server, client):
            client.send(*frames)
            assert Counter(await client.receive(expected.total())) == expected
            await trio.testing.wait_all_tasks_blocked(0.001)
            with pytest.raises(BlockingIOError):
                client.socket.recv(1)
            assert server.services[0].socket.rx_frames == len(frames)

    trio.run(main)
    for each, other in zip(exports, alone, strict=True):
        assert isinstance(each.store, MemoryStore)
        assert isinstance(other.store, MemoryStore)
        assert each.store.data == other.store.data
        assert (each.read_sectors, each.written_sectors) == (other.read_sectors, other.written_sectors)
        assert each.store_errors == other.store_errors


@pytest.mark.parametrize("count", [1, 5, 60, 300])
@pytest.mark.parametrize("sectors", [1, 2])
async def test_consecutive_frames_become_few_calls_of_the_store(count: int, sectors: int) -> None:
    calls: list[int] = []

    class CountingStore(MemoryStore):
        def readv(self, buffers: object, offset: int) -> int:
            calls.append(offset)
            return super().readv(buffers, offset)  # type: ignore[arg-type]

        def writev(self, buffers: object, offset: int) -> int:
            calls.append(offset)
            return super().writev(buffers, offset)  # type: ignore[arg-type]

    export = make_export(store=CountingStore(1024))
    data = os.urandom(count * sectors * 512)
    pieces = [data[at : at + sectors * 512] for at in range(0, len(data), sectors * 512)]
    async with serving(export) as (server, client):
        client.send(*(write(index, index * sectors, piece) for index, piece in enumerate(pieces)))
        for answer in await client.receive(count):
            assert len(answer) == 60
        writes = len(calls)
        client.send(*(read(index, index * sectors, sectors) for index in range(count)))
        answers = {decode_header_untrusted(answer).tag: answer[36:] for answer in await client.receive(count)}
        assert b"".join(answers[index] for index in range(count)) == data
        service = server.services[0]
    assert export.written_sectors == export.read_sectors == count * sectors
    assert service.socket.rx_frames == service.socket.tx_frames - 1 == 2 * count
    if count >= 60:
        assert writes < count // 4
        assert len(calls) - writes < count // 4


async def test_a_read_sees_each_write_before_it_and_none_after_it() -> None:
    async with serving(make_export()) as (_, client):
        frames = []
        for round_ in range(20):
            frames += [write(round_ * 2, 5, bytes([round_]) * 512), read(round_ * 2 + 1, 5, 1)]
        client.send(*frames)
        answers = {decode_header_untrusted(answer).tag: answer for answer in await client.receive(40)}
        for round_ in range(20):
            assert answers[round_ * 2 + 1][36:] == bytes([round_]) * 512


async def test_a_failing_run_is_answered_frame_by_frame() -> None:
    class HoleStore(MemoryStore):
        def readv(self, buffers: object, offset: int) -> int:
            assert isinstance(buffers, list)
            if offset <= 30 * 512 < offset + sum(map(len, buffers)):
                raise OSError(5, "Input/output error")
            return super().readv(buffers, offset)

    export = make_export(store=HoleStore(SECTORS))
    assert isinstance(export.store, MemoryStore)
    async with serving(export) as (_, client):
        client.send(*(read(lba, lba, 1) for lba in range(SECTORS)))
        for answer in await client.receive(SECTORS):
            lba = decode_header_untrusted(answer).tag
            ata = decode_ata_untrusted(answer)
            if lba == 30:
                assert (ata.command, ata.feature) == (0x41, 0x40)
            else:
                assert ata.command == 0x40
                assert answer[36:] == export.store.data[lba * 512 : lba * 512 + 512]
    assert export.store_errors == 1
    assert export.read_sectors == SECTORS - 1


@pytest.mark.parametrize("count", [1, 6, 60])
async def test_a_reservation_in_the_middle_of_a_batch_holds_for_the_frames_behind_it(count: int) -> None:
    async with serving(make_export()) as (server, client):
        head = Header(OURS, STRANGER, ADDRESSES[0], AoeCommand.RESERVE, 0)
        client.send(
            *(write(1000 + lba, lba, b"a" * 512) for lba in range(count)),
            encode(head, ReserveArgument(ReserveCommand.SET, (STRANGER,))),
            *(write(2000 + lba, lba, b"b" * 512) for lba in range(count)),
        )
        errors = {}
        for answer in await client.receive(2 * count + 1):
            header = decode_header_untrusted(answer)
            errors[header.tag] = header.error
        assert errors == {
            0: 0,
            **dict.fromkeys(range(1000, 1000 + count), 0),
            **dict.fromkeys(range(2000, 2000 + count), ErrorCode.TARGET_IS_RESERVED),
        }
        store = server.exports[ADDRESSES[0]].store
        assert isinstance(store, MemoryStore)
        assert store.data[: count * 512] == b"a" * 512 * count


@pytest.mark.parametrize("count", [1, 6, 60])
async def test_the_holder_of_a_reserved_export_keeps_its_batches(count: int) -> None:
    export = make_export()
    export.access.reserve(THEIRS, [THEIRS], force=False)
    async with serving(export) as (_, client):
        client.send(*(read(lba, lba, 1) for lba in range(count)))
        answers = {decode_header_untrusted(answer).tag: answer for answer in await client.receive(count)}
        assert isinstance(export.store, MemoryStore)
        assert b"".join(answers[lba][36:] for lba in range(count)) == export.store.data[: count * 512]
        assert export.read_sectors == count


async def test_many_exports_answer_one_broadcast() -> None:
    exports = [make_export(Address(shelf, slot)) for shelf in range(6) for slot in range(6)]
    async with serving(*exports) as (_, client):
        query = Header(BROADCAST_MAC, THEIRS, Address(0xFFFF, 0xFF), AoeCommand.CONFIG, 9)
        client.send(encode(query, ConfigArgument()))
        found = {decode_header_untrusted(answer).address for answer in await client.receive(36)}
    assert found == {each.address for each in exports}


async def test_interleaved_exports_are_not_mixed() -> None:
    exports = [make_export(address) for address in ADDRESSES]
    async with serving(*exports) as (_, client):
        client.send(*(read(tag, tag // 2, 1, ADDRESSES[tag % 2]) for tag in range(100)))
        for answer in await client.receive(100):
            header = decode_header_untrusted(answer)
            store = exports[header.tag % 2].store
            assert isinstance(store, MemoryStore)
            assert header.address == ADDRESSES[header.tag % 2]
            assert answer[36:] == store.data[header.tag // 2 * 512 :][:512]


async def test_answers_that_find_no_room_wait_and_are_then_dropped() -> None:
    async with serving(make_export(), family=socket.AF_UNIX) as (server, client):
        # The short queue back to us fills up, since nothing reads it; the server still takes the next batch.
        for tag in range(200):
            with contextlib.suppress(BlockingIOError):
                client.send(read(tag, 0))
            await trio.sleep(0.002)
        await until(lambda: server.services[0].socket.tx_full > 1)  # at the second time the first answers are dropped
        with contextlib.suppress(BlockingIOError):
            while True:
                client.socket.recv(1 << 16)
        with trio.fail_after(5):
            while True:  # until what was still queued is answered
                with contextlib.suppress(BlockingIOError):  # the server has not taken the last ones yet
                    client.send(read(777, 3))
                if any(decode_header_untrusted(answer).tag == 777 for answer in await client.receive(1)):
                    break


# ── flush ─────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_slow_sync_stops_neither_its_own_export_nor_another() -> None:
    slow = SlowSync()
    async with serving(make_export(store=slow), make_export(ADDRESSES[1])) as (_, client):
        client.send(request(1, FLUSH))
        await until(lambda: slow.begun == 1)
        assert decode_header_untrusted(await client.ask(read(2, 0))).tag == 2
        assert decode_header_untrusted(await client.ask(write(3, 0, bytes(512)))).tag == 3
        assert decode_header_untrusted(await client.ask(request(4, FLUSH, address=ADDRESSES[1]))).tag == 4
        slow.go.release()
        assert decode_header_untrusted((await client.receive())[0]).tag == 1


async def test_a_flush_during_a_sync_waits_for_the_next_one_and_shares_it() -> None:
    slow = SlowSync()
    async with serving(make_export(store=slow)) as (_, client):
        client.send(request(1, FLUSH))
        await until(lambda: slow.begun == 1)
        client.send(request(2, FLUSH), request(3, FLUSH))
        assert decode_header_untrusted(await client.ask(read(9, 0))).tag == 9  # so they have come
        slow.go.release()
        assert decode_header_untrusted((await client.receive())[0]).tag == 1
        await until(lambda: slow.begun == 2)
        with pytest.raises(BlockingIOError):
            client.socket.recv(1)
        slow.go.release()
        assert {decode_header_untrusted(answer).tag for answer in await client.receive(2)} == {2, 3}
        assert slow.syncs == 2


async def test_a_failed_sync_fails_its_flushes() -> None:
    slow = SlowSync()
    slow.failure = OSError(5, "Input/output error")
    slow.go.release()
    export = make_export(store=slow)
    async with serving(export) as (server, client):
        assert decode_ata_untrusted(await client.ask(request(1, FLUSH))).command == 0x61
        assert export.sync_failed
        slow.go.release()
        assert [(each.address, error.errno) for each, error in await server.sync_all()] == [(export.address, 5)]


async def test_the_end_waits_for_a_running_sync() -> None:
    slow = SlowSync()
    async with serving(make_export(store=slow)) as (_, client):
        client.send(request(1, FLUSH))
        await until(lambda: slow.begun == 1)
        threading.Timer(0.05, slow.go.release).start()
    assert slow.syncs == 1


# ── config strings ────────────────────────────────────────────────────────────────────────────────────────────────


class SlowFile(ConfigFile):
    """Each save begins at once and ends when the test lets it."""

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self.begun = 0
        self.go = threading.Semaphore(0)

    def save(self, string: bytes) -> None:
        self.string = None
        self.begun += 1
        assert self.go.acquire(timeout=10)
        super().save(string)


def ask_config(tag: int, string: bytes | None = None, address: Address = ADDRESSES[0]) -> bytes:
    head = Header(OURS, THEIRS, address, AoeCommand.CONFIG, tag)
    return encode(head, ConfigArgument() if string is None else ConfigArgument(ConfigCommand.FORCE_SET, string))


async def test_no_answer_has_a_config_string_that_is_not_kept(tmp_path: Path) -> None:
    file = SlowFile(str(tmp_path / "kept"))
    async with serving(make_export(), make_export(ADDRESSES[1]), config_file=file) as (_, client):
        assert decode_config_untrusted(await client.ask(ask_config(1))).string == b""
        client.send(ask_config(2, b"one"))
        await until(lambda: file.begun == 1)
        client.send(ask_config(3, b"two"), ask_config(4))
        for waits_for_nothing in (read(8, 0), ask_config(9, b"else", ADDRESSES[1])):
            assert decode_header_untrusted(await client.ask(waits_for_nothing)).tag in (8, 9)
        file.go.release()
        first = (await client.receive())[0]
        assert (decode_header_untrusted(first).tag, decode_config_untrusted(first).string) == (2, b"one")
        await until(lambda: file.begun == 2)
        with pytest.raises(BlockingIOError):
            client.socket.recv(1)
        file.go.release()
        assert {decode_header_untrusted(answer).tag for answer in await client.receive(2)} == {3, 4}
        assert decode_config_untrusted(await client.ask(ask_config(5, b"two"))).string == b"two"
    assert file.begun == 2
    assert ConfigFile(file.path).string == b"two"


async def test_a_config_string_that_cannot_be_kept_is_reported_once_and_good_while_we_run(tmp_path: Path) -> None:
    lines: list[str] = []
    export = make_export()
    export.report = lines.append
    path = tmp_path / "missing" / "kept"
    async with serving(export, config_file=ConfigFile(str(path))) as (_, client):
        for _ in range(3):
            assert decode_config_untrusted(await client.ask(ask_config(1, b"who"))).string == b"who"
    assert lines == [f"e0.0: its config string cannot be kept in {path}: No such file or directory"]


def test_one_address_twice_is_our_own_mistake() -> None:
    with pytest.raises(ValueError, match="same address"):
        Server([make_export(), make_export()], [])
