"""A FLUSH that takes seconds: it is waited for, sent once, and nothing calls the target silent meanwhile."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence

from aoefs.engine.commands import FLUSH_PAUSE
from aoefs.protocol.ata import Opcode
from aoefs.protocol.wire import ATA_BYTES, ETHERTYPE, AoeCommand
from tests.faults.live import Worker, log_of, mount_until, pattern, read, serve_journal, write
from tests.lab import Capture, Lab, opened, wait_until
from tests.lab.forwarder import Wire
from tests.segment import is_request

SIZE = 4 << 20
SECONDS = 7.0  # that the FLUSH takes, far more than the silence after which a target is stalled
NOTICED = 3.0  # seconds: above that silence
OF_SILENCE = ("does not answer", "answers again", "is back", "is down", "WARNING")


def requests(capture: Capture, opcodes: Sequence[Opcode]) -> int:
    """How many commands with one of these opcodes were sent."""
    return sum(frame[27] in opcodes for frame in ata_requests(capture))


def ata_requests(capture: Capture) -> Iterator[bytes]:
    for frame in capture.frames():
        is_aoe = len(frame) >= ATA_BYTES and frame[12:14] == ETHERTYPE.to_bytes(2, "big")
        if is_aoe and is_request(frame) and frame[19] == AoeCommand.ATA:
            yield frame


FLUSHES = (Opcode.FLUSH, Opcode.FLUSH_EXT)


def test_a_slow_flush_is_sent_once_and_waited_for_while_reads_go_on(lab: Lab, wire: Wire) -> None:
    serve_journal(lab, lab.image("disk", SIZE), f"slow={SECONDS}")
    mount = mount_until(lab, "e0.0")
    capture = lab.capture()
    states: set[str] = set()
    with opened(mount.here / "e0.0") as file, opened(mount.here / "e0.0", os.O_RDONLY | os.O_DIRECT) as other:
        write(file, pattern(1))

        def look(_step: int) -> None:
            assert read(other, 4096) == pattern(1)
            states.add(mount.target()["state"])
            time.sleep(0.02)

        with Worker(look) as reads:
            began = time.monotonic()
            os.fsync(file)
            assert SECONDS <= time.monotonic() - began < FLUSH_PAUSE
            assert reads.steps > 50
        assert not mount.target()["dirty"]
        assert states == {"up"}
        assert requests(capture, FLUSHES) == 1
        assert mount.target()["errors"] == 0
    assert not [words for words in (*OF_SILENCE, "is flushing") if words in log_of(mount)]


def test_a_target_that_answers_nothing_while_it_flushes_is_flushing_and_not_stalled(lab: Lab, wire: Wire) -> None:
    """It does one thing at a time, as vblade does: what came during the FLUSH is answered after it, in order."""
    contents = lab.image("disk", SIZE).read_bytes()
    target = lab.vblade(0, 0, lab.directory / "disk")
    mount = mount_until(lab, "e0.0")
    with opened(mount.here / "e0.0") as file, opened(mount.here / "e0.0", os.O_RDONLY | os.O_DIRECT) as other:
        write(file, pattern(1))
        capture = lab.capture()
        answers: list[bytes] = []
        tasks = [
            threading.Thread(target=lambda: os.fsync(file), daemon=True),
            threading.Thread(target=lambda: answers.append(read(other, 1 << 20, 1 << 20)), daemon=True),
        ]
        target.send_signal(signal.SIGSTOP)  # a FLUSH that was received just before this looks the same from here
        tasks[0].start()
        wait_until(lambda: requests(capture, FLUSHES) > 0, what="the FLUSH is sent")
        began = time.monotonic()
        tasks[1].start()
        seen: dict[float, str] = {}
        while (now := time.monotonic() - began) < SECONDS:
            seen[now] = mount.target()["state"]
            time.sleep(0.1)
        assert all(task.is_alive() for task in tasks)
        assert set(seen.values()) <= {"up", "flushing"}
        assert {state for at, state in seen.items() if at > NOTICED} == {"flushing"}
        target.send_signal(signal.SIGCONT)
        for task in tasks:
            task.join(FLUSH_PAUSE / 2)
        assert not any(task.is_alive() for task in tasks)
        assert answers == [contents[1 << 20 : 2 << 20]]
        wait_until(lambda: mount.target()["state"] == "up")
        assert not mount.target()["dirty"], "the fsync succeeded"
        assert requests(capture, FLUSHES) == 1
        assert requests(capture, [Opcode.IDENTIFY]) <= 4, "afterwards, two for each examination"
        assert mount.target()["errors"] == 0
    assert "e0.0 is flushing: " in log_of(mount)
    assert not [words for words in OF_SILENCE if words in log_of(mount).replace("e0.0 answers again after", "")]
