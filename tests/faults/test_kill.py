"""A mount process that is killed while the kernel waits for a page of it."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from aoefs.protocol.ata import Opcode
from tests.faults.live import mount_until
from tests.lab import INITIATOR, Lab, is_gone, wait_until
from tests.lab.forwarder import Misdeeds, Wire
from tests.mount.place import MIB, nothing_is_left

READS_LOST = Misdeeds(lost_opcodes=(Opcode.READ, Opcode.READ_EXT))


def waits_for_a_page(pid: int) -> bool:
    """A thread of the process sleeps in an invalidation, which nothing can interrupt."""
    return any("folio" in (task / "wchan").read_text() for task in Path(f"/proc/{pid}/task").iterdir())


@pytest.mark.parametrize("remedy", ["aoefs umount --lazy", "the next mount"])
def test_what_it_leaves_can_be_removed(lab: Lab, wire: Wire, remedy: str) -> None:
    """The kernel aborts a connection when its file is closed, and that thread keeps it open."""
    image = lab.image("image", MIB)
    lab.vblade(0, 0, image)
    mount = mount_until(lab, "e0.0")
    pid = mount.pid
    wire.misbehave(out=READS_LOST)
    reader = lab.popen(INITIATOR, ["dd", f"if={mount.file('e0.0')}", "of=/dev/null", "bs=4k", "count=1"])
    wait_until(lambda: mount.target("e0.0")["in_flight"] > 0, what="a read waits")
    lab.run(INITIATOR, ["sh", "-c", f"echo e0.0 > {mount.path}/.aoefs/revalidate"])
    wait_until(lambda: waits_for_a_page(pid), what="an invalidation waits for its page")
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: "State:\tZ" in Path(f"/proc/{pid}/status").read_text(), what="it is dying")
    assert waits_for_a_page(pid)
    if remedy == "the next mount":
        wire.misbehave(out=Misdeeds())
        lab.aoefs("-i", "aoe0", mount.path)
        lab.run(INITIATOR, ["cmp", image, mount.file("e0.0")])
        mount.umount()
    else:
        assert "dead already" in mount.umount("--lazy").stderr
    wait_until(lambda: is_gone(pid), what="it is gone")
    assert reader.wait(10) != 0
    assert nothing_is_left(lab, mount)
