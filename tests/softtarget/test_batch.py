"""A batch: what recvmmsg would have filled in is executed on a store, and laid out to be sent."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from aoefs.protocol.ata import Opcode, transfer_registers
from aoefs.protocol.wire import ATA_BYTES, AtaArgument
from aoefs.softtarget.batch import ROW_BYTES, SLOTS, Batch
from aoefs.softtarget.export import Export
from tests.memorystore import MemoryStore
from tests.softtarget.serving import SECTORS, make_export, read, request, write


def filled(frames: Sequence[bytes], max_sectors: int = 2) -> Batch:
    """A batch as it is after these frames were received."""
    batch = Batch(max_sectors)
    for slot, frame in enumerate(frames):
        head, data = frame[:ATA_BYTES], frame[ATA_BYTES:]
        batch.headers[slot * ROW_BYTES : slot * ROW_BYTES + len(head)] = head
        batch.received[slot * batch.stride : slot * batch.stride + len(data)] = data
        batch.input.length[slot] = len(frame)
    return batch


def stored(export: Export, lba: int, sectors: int) -> bytes:
    assert isinstance(export.store, MemoryStore)
    return bytes(export.store.data[lba * 512 : (lba + sectors) * 512])


def test_a_frame_is_given_back_as_it_came() -> None:
    frames = [write(1, 0, b"a" * 1024), read(2, 0), b"\1" * 24, b"\2" * 36]
    batch = filled(frames)
    assert [batch.frame(slot) for slot in range(4)] == frames


def test_a_run_of_reads_fills_its_part_of_the_send_buffer() -> None:
    export = make_export()
    batch = filled([read(0, 60), *(read(tag, 4 + 2 * tag) for tag in range(1, 4))])
    assert batch.transfer(export, 1, 4, 1024, 4096)
    assert batch.to_send[1024:4096] == stored(export, 6, 6)
    assert (export.counters.reads, export.counters.read_sectors) == (3, 6)


@pytest.mark.parametrize("sectors", [(2, 2, 2), (1, 1, 1), (2, 1, 2), (1,), (2,)])
def test_a_run_of_writes_is_gathered_from_its_slots(sectors: tuple[int, ...]) -> None:
    export = make_export()
    pieces = [bytes([65 + index]) * (512 * count) for index, count in enumerate(sectors)]
    lbas = [8 + sum(sectors[:index]) for index in range(len(sectors))]
    batch = filled([read(0, 0), *(write(1, lba, piece) for lba, piece in zip(lbas, pieces, strict=True))])
    assert batch.transfer(export, 1, 1 + len(sectors), 0, 512 * sum(sectors))
    assert stored(export, 8, sum(sectors)) == b"".join(pieces)
    assert (export.counters.writes, export.counters.written_sectors) == (len(sectors), sum(sectors))


@pytest.mark.parametrize(
    "ata",
    [
        transfer_registers(SECTORS - 1, 2, write=False, lba48=True),
        transfer_registers(SECTORS - 1, 2, write=True, lba48=True),
        transfer_registers(SECTORS - 1, 2, write=False, lba48=False),
        AtaArgument(0, 0, 2, Opcode.IDENTIFY, 0),
    ],
    ids=["read", "write", "28 bits", "identify"],
)
def test_what_the_export_would_answer_with_an_error_or_otherwise_is_left_to_it(ata: AtaArgument) -> None:
    export = make_export()
    before = stored(export, 0, SECTORS)
    assert not filled([request(1, ata, b"x" * 1024)]).transfer(export, 0, 1, 0, 1024)
    assert stored(export, 0, SECTORS) == before
    assert (export.counters.reads, export.counters.writes, export.counters.store_errors) == (0, 0, 0)


def test_a_write_to_a_read_only_store_is_left_to_the_export() -> None:
    export = make_export(store=MemoryStore(SECTORS, read_only=True))
    before = stored(export, 0, SECTORS)
    assert not filled([write(1, 0, b"x" * 512)]).transfer(export, 0, 1, 0, 512)
    assert stored(export, 0, SECTORS) == before


def test_reserved_bytes_behind_an_lba_do_not_count() -> None:
    export = make_export()
    frame = bytearray(read(1, 7))
    frame[34:36] = b"\xff\xff"
    batch = filled([bytes(frame)])
    assert batch.transfer(export, 0, 1, 0, 1024)
    assert batch.to_send[:1024] == stored(export, 7, 2)


def test_the_layout_is_made_for_reads_of_one_size_or_for_writes() -> None:
    batch = Batch(2)
    batch.lay_out(512, write=False)
    assert (batch.output.base[:, 1] - batch.to_send_address).tolist() == [512 * slot for slot in range(SLOTS)]
    assert set(batch.output.size[:, 1].tolist()) == {512}
    batch.lay_out(512, write=True)
    assert set(batch.output.base[:, 1].tolist()) == {batch.padding_address}
    assert set(batch.output.size[:, 1].tolist()) == {24}, "padded to 60 bytes"
