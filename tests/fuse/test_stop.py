"""The end of a mount: what waits ends at once, healthy targets are flushed, silent ones delay nothing for long."""

from __future__ import annotations

import errno
from collections.abc import Awaitable, Callable

import pytest
import trio
from pyfuse3 import FUSEError
from trio.testing import MockClock

from aoefs.engine.lastflush import last_flush
from aoefs.engine.settings import Settings
from aoefs.engine.supervisor import Supervisor
from aoefs.engine.writebehind import IN_ORDER
from aoefs.fuse.mount import FLUSH_GRACE
from aoefs.fuse.readahead import CHUNK_BYTES, ReadAhead, ReadAheads
from aoefs.protocol.ata import Opcode
from tests.engine.answers import flushes
from tests.fuse.mounted import Mounted, mounted
from tests.scene import Announce, SimulatedTarget, open_scene

BLOCK = 4096


async def leave_writes_pending(mount: Mounted, target: SimulatedTarget, handle: int) -> int:
    """A stream of small writes, of which the last one is answered and never acknowledged; where it is."""
    for number in range(IN_ORDER):
        await mount.write(handle, number * BLOCK, b"o" * BLOCK)
    target.silent = True
    await mount.write(handle, IN_ORDER * BLOCK, b"n" * BLOCK)
    return IN_ORDER * BLOCK


async def ends_with_eio(call: Callable[[], Awaitable[object]], within: float) -> None:
    with trio.fail_after(within), pytest.raises(FUSEError) as caught:
        await call()
    assert caught.value.errno == errno.EIO


async def test_a_stop_ends_every_call_that_waits_for_acknowledgements(
    autojump_clock: MockClock, announce: Announce
) -> None:
    announce(r"does not answer: \d+ request")
    announce("e0.0: (read|flush|an earlier write).* failed")
    announce("e0.0: a write failed after it was answered")
    async with mounted() as mount, trio.open_nursery() as nursery:
        target = mount.scene.add_target()
        await mount.scene.disk()
        handle = await mount.open()
        offset = await leave_writes_pending(mount, target, handle)
        for call in (
            lambda: mount.operations.fsync(handle, False),
            lambda: mount.operations.flush(handle),
            lambda: mount.read(handle, offset, BLOCK),
        ):
            nursery.start_soon(ends_with_eio, call, 6.0)
        await trio.sleep(5)
        mount.scene.engine.close()


async def test_after_a_stop_every_new_call_fails_at_once(autojump_clock: MockClock, announce: Announce) -> None:
    announce("e0.0: (read|write) failed")
    async with mounted() as mount:
        mount.scene.add_target()
        await mount.scene.disk()
        handle = await mount.open()
        mount.scene.engine.close()
        await ends_with_eio(lambda: mount.read(handle, 0, BLOCK), 0.001)
        await ends_with_eio(lambda: mount.write(handle, 0, b"x" * BLOCK), 0.001)


async def test_after_a_stop_nothing_new_waits_for_writes_that_may_still_be_acknowledged(
    autojump_clock: MockClock, announce: Announce
) -> None:
    announce("e0.0: (read|write|flush|an earlier write|giving back the reservation) failed")
    announce("e0.0: a write failed after it was answered")
    async with mounted(reserve=True) as mount:
        target = mount.scene.add_target()
        await mount.scene.disk()
        handle = await mount.open()
        offset = await leave_writes_pending(mount, target, handle)
        mount.scene.engine.close()
        assert mount.scene.engine.disks[target.export.address].write_behind.pending
        for call in (
            lambda: mount.operations.fsync(handle, False),
            lambda: mount.operations.flush(handle),
            lambda: mount.read(handle, offset, BLOCK),
            lambda: mount.write(handle, offset, b"x" * BLOCK),
        ):
            await ends_with_eio(call, 0.001)
        with trio.fail_after(0.001):
            await mount.operations.release(handle)


async def test_the_last_flush_of_healthy_targets_waits_for_no_silent_one(
    autojump_clock: MockClock, announce: Announce
) -> None:
    announce(r"does not answer: \d+ request")
    announce("e0.0: the last flush was not answered within 10 s")
    announce("e0.0: a write failed after it was answered")
    async with mounted(Settings(deadsecs=0)) as mount:
        silent, healthy = mount.scene.add_target(0, 0), mount.scene.add_target(0, 1)
        for slot in (0, 1):
            await mount.scene.disk(0, slot)
        handles = [await mount.open(f"e0.{slot}") for slot in (0, 1)]
        await mount.write(handles[1], 0, b"x" * BLOCK)
        await leave_writes_pending(mount, silent, handles[0])
        mount.scene.engine.close()
        began = trio.current_time()
        assert not await last_flush(mount.scene.engine, FLUSH_GRACE)
        assert trio.current_time() - began == pytest.approx(FLUSH_GRACE, abs=0.1)
        assert [header.address.slot for _, header, _ in healthy.heard][-1] == 1
        assert flushes(mount.scene)[0] - began < 0.001, "at once"
        assert not mount.scene.engine.disks[healthy.export.address].target.dirty


async def test_a_reservation_is_not_given_back_for_ever(autojump_clock: MockClock, announce: Announce) -> None:
    announce(r"does not answer: \d+ request")
    announce("e0.0: giving back the reservation failed")
    announce("e0.0: a write failed after it was answered")
    async with mounted(reserve=True) as mount, trio.open_nursery() as nursery:
        target = mount.scene.add_target()
        await mount.scene.disk()
        handle = await mount.open()
        await leave_writes_pending(mount, target, handle)
        nursery.start_soon(mount.operations.release, handle)
        await trio.sleep(5)
        mount.scene.engine.close()
        with trio.fail_after(0.001):
            await trio.testing.wait_all_tasks_blocked()


async def test_a_failed_read_ahead_is_no_reason_to_read_again_when_the_mount_ends(autojump_clock: MockClock) -> None:
    async with open_scene() as scene:
        target = scene.add_target(sectors=8 * CHUNK_BYTES // 512)
        disk = await scene.disk()
        ahead = ReadAhead(disk, ReadAheads(Supervisor(scene.nursery)))
        for number in range(4):
            await ahead.read(number * BLOCK, BLOCK, disk.size_bytes)
        target.silent = True
        scene.nursery.start_soon(self_closing, scene.engine.close)
        sent = len(scene.wire.ata(Opcode.READ_EXT))
        with trio.fail_after(3), pytest.raises(Exception, match="the engine stopped"):
            await ahead.read(CHUNK_BYTES, BLOCK, disk.size_bytes)
        assert len(scene.wire.ata(Opcode.READ_EXT)) - sent < 50


async def self_closing(close: Callable[[], object]) -> None:
    await trio.sleep(1)
    close()
