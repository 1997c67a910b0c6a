"""Point: floods.  Announcements as fast as a host can send them delay no read; lies push no other event out."""

from __future__ import annotations

import logging
import time

from aoefs.status.events import MAX_EVENTS, EventRing
from tests.faults.live import Worker, mount_until, read
from tests.hostile.attack import attacking
from tests.lab import Lab, opened, wait_until

SIZE = 4 << 20
ANNOUNCEMENTS = 400_000
ANSWERS = 50_000
LONGEST = 4.0  # seconds that a read may take, of 5 that it took when every announcement was handled


def test_reads_go_on_under_a_flood_of_announcements(lab: Lab) -> None:
    disk = lab.image("disk", SIZE)
    contents = disk.read_bytes()
    lab.target(f"0.0={disk}")
    mount = mount_until(lab, "e0.0")
    longest = 0.0

    def work(step: int) -> None:
        nonlocal longest
        offset, began = step % 256 * 16384, time.monotonic()
        assert read(file, 16384, offset) == contents[offset : offset + 16384]
        longest = max(longest, time.monotonic() - began)

    with opened(mount.here / "e0.0") as file, Worker(work) as worker:
        worker.wait_for_steps(20)
        with attacking(lab, "flood") as attack:
            attack.until("announcements", ANNOUNCEMENTS, 60)
            worker.wait_for_steps(20)
    assert mount.target()["errors"] == 0
    assert longest < LONGEST, f"a read took {longest:.2f} s"


def test_a_flood_of_answers_to_nothing_is_an_event(lab: Lab) -> None:
    lab.target(f"0.0={lab.image('disk', SIZE)}")
    mount = mount_until(lab, "e0.0")
    with attacking(lab, "forge") as attack:
        attack.until("answers", ANSWERS)
        wait_until(
            lambda: any(
                event["level"] == "warning" and "that answer nothing of ours" in event["text"]
                for event in mount.status()["events"]
            ),
            what="an event reports answers to nothing of ours",
        )


def test_other_events_stay_in_the_ring_under_a_flood_of_lies() -> None:
    """One kind of line, whatever it names, has its share of the ring, and no more."""
    ring, log = EventRing(), logging.getLogger("aoefs.tests.hostile")
    log.propagate = False
    ring.listen_to(log)
    try:
        log.info("%s: %d bytes, on %s", "e0.0", SIZE, "aoe0")
        for number in range(5000):
            log.info("%s: %s is refused: it is another disk", "e0.0", number.to_bytes(6, "big").hex(":"))
            if number == 2500:
                log.info("%s is down", "e0.1")
    finally:
        log.removeHandler(ring)
    texts = [event.text for event in ring.snapshot()]
    assert texts[0] == f"e0.0: {SIZE} bytes, on aoe0"
    assert "e0.1 is down" in texts
    assert texts[-1].startswith("e0.0: 00:00:00:00:13:87 is refused"), "the last lies can be seen, too"
    assert len(texts) <= MAX_EVENTS
