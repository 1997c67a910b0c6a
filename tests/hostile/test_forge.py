"""Point: tags.  Blind answers, with tags that are guessed from those that the initiator gives away, hit nothing.

By chance, n blind answers hit k live tags n*k/2^31 times: here half a million answers and one live tag, once in 4000
runs of a test.
"""

from __future__ import annotations

import itertools
import os
import random
import signal

from tests.faults.live import Worker, mount_until, pattern, read, write
from tests.hostile.attack import attacking
from tests.hostile.attacker import FORGED, READ_BYTES
from tests.lab import TARGET, Lab, opened, python_module

SIZE = 8 << 20
READS = 120
STOPPED_SECONDS = 2.0
TAGS = 64


def test_no_read_of_a_slow_target_returns_forged_data(lab: Lab) -> None:
    image = lab.image("disk", SIZE)
    contents = image.read_bytes()
    lab.popen(TARGET, python_module("tests.hostile.slow", "aoe0", "0.0", str(image), "0.002"))
    mount = mount_until(lab, "e0.0")
    dice = random.Random(5)
    forged = 0
    with opened(mount.here / "e0.0", os.O_RDONLY | os.O_DIRECT) as file, attacking(lab, "forge") as attack:
        attack.until("tags", 4)
        for _ in range(READS):
            offset = dice.randrange(SIZE // READ_BYTES) * READ_BYTES
            data = read(file, READ_BYTES, offset)
            forged += FORGED in data
            assert FORGED in data or data == contents[offset : offset + READ_BYTES]
        attack.until("answers", 20_000)
    assert forged == 0, f"{forged} of {READS} reads returned forged data"


def test_no_write_is_acknowledged_while_the_target_is_stopped(lab: Lab) -> None:
    image = lab.image("disk", SIZE)
    target = lab.target(f"0.0={image}")
    mount = mount_until(lab, "e0.0")
    with opened(mount.here / "e0.0") as file, attacking(lab, "forge", write=1) as attack:
        write(file, pattern(7))
        attack.until("tags", 4)
        target.send_signal(signal.SIGSTOP)
        with Worker(lambda step: write(file, pattern(step), step % 512 * 4096)) as worker:
            attack.goes_on(STOPPED_SECONDS)
            acknowledged = worker.steps
            target.send_signal(signal.SIGCONT)
            worker.wait_for_steps(20)
    assert acknowledged == 0, f"{acknowledged} writes were acknowledged while the target was stopped"
    assert mount.target()["errors"] == 0


def test_the_tags_that_the_initiator_gives_away_are_not_in_sequence(lab: Lab) -> None:
    """What the attacker itself gets: the tags of the unicast queries that its announcements cause."""
    lab.target(f"0.0={lab.image('disk', SIZE)}")
    mount_until(lab, "e0.0")
    capture = lab.capture("attacker")
    with attacking(lab, "forge", write=1) as attack:
        attack.until("tags", TAGS)
    tags = [int.from_bytes(frame[20:24], "big") for frame in capture.frames() if frame[:6] == lab.mac("attacker")]
    assert len(tags) >= TAGS
    near = sum(0 < (after >> 6) - (before >> 6) <= 64 for before, after in itertools.pairwise(tags))
    assert near == 0, f"{near} of {len(tags) - 1} tags are within 64 blocks after the one before"
