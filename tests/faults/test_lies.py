"""A host on the wire that sees every request and answers it first, and falsely: no answer of it is taken."""

from __future__ import annotations

import random

import pytest

from tests.faults.live import mount_until, verify_with_fio
from tests.lab import INITIATOR, Lab, python_module, require, wait_until
from tests.lab.forwarder import LIES, Misdeeds, Wire, lie
from tests.segment import Faults

SIZE = 16 << 20  # as the writers of tests.soak expect
SECONDS = 1


def test_a_lie_differs_from_a_true_answer_in_what_its_name_says() -> None:
    request = bytes.fromhex("02ae0000020002ae000001008 8a2".replace(" ", "")) + bytes.fromhex("100000000000") + bytes(4)
    request += bytes.fromhex("4000022400000000 00000000".replace(" ", ""))
    dice = random.Random(1)
    lies = {kind: lie(request.ljust(60, b"\0"), kind, dice) for kind in LIES}
    assert len(set(lies.values())) == len(LIES)
    for kind, frame in lies.items():
        assert frame[:6] == request[6:12]
        assert (frame[6:12] == request[:6]) is ("MAC" not in kind)
        assert frame[14] & 0x08


@pytest.mark.parametrize(("lab", "kind"), [(1500, "vblade"), (9000, "ours")], indirect=["lab"])
def test_false_answers_to_every_request_change_no_byte_and_cause_no_error(lab: Lab, wire: Wire, kind: str) -> None:
    """Requests are also lost and reordered, so that the false answer is often the only one."""
    require("fio")
    disk = lab.image("disk", SIZE)
    if kind == "vblade":
        lab.vblade(0, 0, disk)
    else:
        lab.target(f"0.0={disk}")
    mount = mount_until(lab, "e0.0")
    path = mount.file("e0.0")
    faults = Faults(loss=0.002, reorder=0.02, duplicate=0.02)
    wire.misbehave(out=Misdeeds(faults, hold_writes=0.0005, hold_by=0.3, lies=0.5), back=Misdeeds(faults))
    writers = lab.popen(INITIATOR, python_module("tests.soak", "--writer", str(path), SECONDS, 7))
    verify_with_fio(lab, path, size="1M")
    assert writers.wait(120) == 0, writers.output
    report = wire.report()
    assert report["out"].lied > 100
    wire.faults()
    wait_until(wire.is_quiet)
    copy = lab.directory / "copy"
    lab.run(INITIATOR, ["dd", f"if={path}", f"of={copy}", "bs=1M", "iflag=direct"])
    assert copy.read_bytes() == disk.read_bytes()
    found = mount.target()
    assert (found["errors"], found["state"]) == (0, "up")
    assert mount.status()["links"][0]["rx_unknown"] > 10
