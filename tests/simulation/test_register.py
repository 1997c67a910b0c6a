"""The register of a disk: what a read may show, what a power cut takes back, and what a flush promises."""

from __future__ import annotations

import pytest

from aoefs.protocol.wire import SECTOR_BYTES
from tests.simulation.drive import Drive
from tests.simulation.register import ANYTHING, Ledger, Register, Write
from tests.simulation.stamps import content, data_of

SECTORS = 8


@pytest.fixture
def register() -> Register:
    return Register(Drive(0, SECTORS, most_sectors=SECTORS), Ledger())


def write(register: Register, offset: int = 0, size: int = SECTOR_BYTES, *, ok: bool = True) -> Write:
    """One that begins and ends now."""
    made = register.begin_write(offset, size)
    register.end_write(made, ok=ok)
    return made


def read(register: Register, shown: Write | None, offset: int = 0, size: int = SECTOR_BYTES) -> str:
    """What is wrong with a read that begins and ends now and shows this write (None: what was there at first)."""
    return register.end_read(register.begin_read(), offset, bytes_of(shown, offset, size))


def bytes_of(shown: Write | None, offset: int = 0, size: int = SECTOR_BYTES) -> bytes:
    return data_of(0, shown.number if shown else 0, offset, size)


def flush(register: Register) -> None:
    register.end_flush(register.now())


def test_a_read_shows_the_last_write(register: Register) -> None:
    first, second = write(register), write(register)
    assert not read(register, second)
    for older in (first, None):
        assert "shows write" in read(register, older)


@pytest.mark.parametrize("old", [True, False])
def test_a_read_may_show_a_write_that_overlaps_it_in_time_or_the_one_before(register: Register, old: bool) -> None:
    before = write(register)
    started = register.begin_read()
    during = write(register)
    assert not register.end_read(started, 0, bytes_of(before if old else during))
    assert "shows write 1" in read(register, before)


def test_of_two_writes_at_once_either_may_be_the_last_one_and_stays_it(register: Register) -> None:
    one, other = (register.begin_write(0, SECTOR_BYTES) for _ in range(2))
    register.end_write(one, ok=True)
    register.end_write(other, ok=True)
    assert not read(register, one)
    assert "shows write 2" in read(register, other), "both were done before the first read began"


def test_a_read_never_shows_what_is_older_than_what_an_earlier_read_showed(register: Register) -> None:
    before = write(register)
    failed = write(register, ok=False)
    assert not read(register, before)
    assert not read(register, failed)
    assert "shows write 1" in read(register, before)


def test_a_failed_write_may_appear_until_a_later_one_is_done(register: Register) -> None:
    failed = write(register, ok=False)
    assert not read(register, None)
    assert not read(register, failed)
    write(register)
    assert "shows write 1" in read(register, failed)


def test_what_was_never_written_there_is_wrong(register: Register) -> None:
    made = write(register, SECTOR_BYTES)
    shifted = register.end_read(register.begin_read(), 0, bytes_of(made, SECTOR_BYTES))
    assert "write 1 of sector 1" in shifted
    assert "never written" in register.end_read(register.begin_read(), 0, b"\1" * SECTOR_BYTES)


def test_partial_sectors_are_judged_byte_by_byte(register: Register) -> None:
    whole, middle = write(register), write(register, 100, 200)
    good = bytes_of(whole, 0, 100) + bytes_of(middle, 100, 200) + bytes_of(whole, 300, 212)
    assert not register.end_read(register.begin_read(), 0, good)
    assert not read(register, middle, 150, 20)
    assert "byte 100" in register.end_read(register.begin_read(), 0, bytes_of(whole))
    assert "byte 300" in register.end_read(register.begin_read(), 100, bytes_of(middle, 100, 412))


def test_a_power_cut_takes_back_what_was_not_flushed(register: Register) -> None:
    flushed = write(register)
    flush(register)
    lost = write(register)
    register.cut_power()
    for shown in (flushed, lost):
        assert not register.check([content(0, shown.number, 0), *register.drive.current[1:]], "the disk")
    assert "shows write 0" in register.check(register.drive.current, "the disk")
    assert not read(register, flushed)
    assert not read(register, lost), "a disk may write its cache after it showed what was there before"


def test_a_flush_covers_what_ended_before_it_began(register: Register) -> None:
    under_way = register.begin_write(0, SECTOR_BYTES)
    started = register.now()
    register.end_write(under_way, ok=True)
    register.end_flush(started)
    register.cut_power()
    assert not register.check(register.drive.current, "the disk")


def test_a_flush_during_which_the_power_was_cut_promises_nothing(register: Register) -> None:
    write(register)
    started = register.now()
    register.cut_power()
    register.end_flush(started)
    register.cut_power()
    assert not register.check(register.drive.current, "the disk")


def test_a_close_covers_only_what_was_acknowledged_and_written_through_the_same_disk(register: Register) -> None:
    mine, failed, others = (register.begin_write(SECTOR_BYTES * sector, SECTOR_BYTES) for sector in range(3))
    mine.via = failed.via = "mine"
    for made in (mine, failed, others):
        register.end_write(made, ok=made is not failed)
    assert not read(register, failed, SECTOR_BYTES), "it is there, but its user was told that it failed"
    register.end_flush(register.now(), via="mine")
    register.cut_power()
    held = [content(0, 1, 0), *register.drive.current[1:]]
    assert not register.check(held, "the disk")
    assert "in sector 0" in register.check(register.drive.current, "the disk")


def test_the_last_flush_covers_all_that_was_acknowledged(register: Register) -> None:
    made = write(register)
    made.via = "any"
    register.end_flush(register.now(), via=ANYTHING)
    register.cut_power()
    assert "in sector 0" in register.check(register.drive.current, "the disk")


def test_another_disk_gets_nothing_of_this_one(register: Register) -> None:
    ledger = Ledger()
    first, second = (Register(Drive(number, SECTORS, most_sectors=SECTORS), ledger) for number in range(2))
    made = first.begin_write(0, SECTOR_BYTES)
    assert not first.check_owner(0, made.data)
    assert "gets what was written to serial 0" in second.check_owner(0, made.data)
