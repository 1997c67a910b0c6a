"""The timer of all targets."""

from __future__ import annotations

import errno

import trio
from trio.testing import MockClock

from aoefs.protocol.ata import Opcode
from tests.scene import open_scene


async def test_answers_that_wait_in_the_socket_are_taken_before_anything_is_given_up(autojump_clock: MockClock) -> None:
    """The loop was held up for longer than the RTO, and the timer has its turn first."""
    async with open_scene() as scene:
        scene.add_target()
        disk = await scene.disk()
        for _ in range(10):
            await disk.read(0, 4096)
        link = scene.link
        original = link.wait_readable
        link.wait_readable = trio.sleep_forever  # type: ignore[method-assign]
        link.fail_next_receive(OSError(errno.ENETDOWN, "down"))  # wakes the receiver, which then waits as told
        await trio.sleep(0.01)
        await disk.read(0, 4096)
        assert disk.target.statistics().retransmits == 0
        link.wait_readable = original  # type: ignore[method-assign]
        assert len(scene.wire.ata(Opcode.READ_EXT)) >= 11
