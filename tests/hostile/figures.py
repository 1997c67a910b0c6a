"""What each attack does to a mount, in figures: ``sudo .venv/bin/python -m tests.hostile.figures [ATTACK ...]``.

The tests say what must hold; this says how far from it an attack gets, for comparing one version with another.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from tests.faults.live import Worker, log_of, mount_until, pattern, read, write
from tests.hostile.attack import attacking, discover
from tests.hostile.attacker import FORGED, READ_BYTES
from tests.lab import ATTACKER, INITIATOR, TARGET, Lab, Mount, opened, python_module

SIZE = 64 << 20
MOST = 240.0  # seconds that anything is waited for


def _mount(lab: Lab, **options: object) -> Mount:
    lab.target(f"0.0={lab.image('disk', SIZE)}")
    return mount_until(lab, "e0.0", timeout=MOST, **options)


def _seconds_until(done: Callable[[], object]) -> str:
    began = time.monotonic()
    while not done() and time.monotonic() - began < MOST:
        time.sleep(0.02)
    seconds = time.monotonic() - began
    return f"{seconds:.1f} s" if seconds < MOST else f"not within {MOST:.0f} s"


def _speed(mount: Mount, seconds: float = 3.0) -> float:
    """MB/s of reads of 1 MiB."""
    with opened(mount.here / "e0.0", os.O_RDONLY | os.O_DIRECT) as file:
        began, done = time.monotonic(), 0
        while time.monotonic() - began < seconds:
            read(file, 1 << 20, done % (SIZE >> 20) << 20)
            done += 1
        return done * 1.048576 / (time.monotonic() - began)


def forge_reads(lab: Lab) -> str:
    image = lab.image("disk", SIZE)
    lab.popen(TARGET, python_module("tests.hostile.slow", "aoe0", "0.0", str(image), "0.002"))
    mount, dice, forged = mount_until(lab, "e0.0"), random.Random(5), 0
    with opened(mount.here / "e0.0", os.O_RDONLY | os.O_DIRECT) as file, attacking(lab, "forge") as attack:
        attack.until("tags", 4)
        for done in range(120):
            try:
                forged += FORGED in read(file, READ_BYTES, dice.randrange(SIZE // READ_BYTES) * READ_BYTES)
            except OSError as error:  # a forged answer to IDENTIFY makes it another disk
                return f"{forged} of {done} reads returned forged data, then: {error.strerror}"
        return f"{forged} of 120 reads of a target that takes 2 ms returned forged data"


def forge_writes(lab: Lab) -> str:
    target = lab.target(f"0.0={lab.image('disk', SIZE)}")
    mount = mount_until(lab, "e0.0")
    with opened(mount.here / "e0.0") as file, attacking(lab, "forge", write=1) as attack:
        attack.until("tags", 4)
        target.send_signal(signal.SIGSTOP)
        with Worker(lambda step: write(file, pattern(step), step % 512 * 4096)) as worker:
            attack.goes_on(3.0)
            acknowledged = worker.steps
            target.send_signal(signal.SIGCONT)
    return f"{acknowledged} O_DIRECT writes were acknowledged in 3 s in which the target was stopped"


def poison(lab: Lab) -> str:
    mount = _mount(lab)
    before = _speed(mount)
    with attacking(lab, "poison") as attack:
        attack.until("poison", 6)
        attack.goes_on(2.0)
    after, target = _speed(mount), mount.target()
    path = target["paths"][0]
    what = f"{path['bufcnt']} buffers of {path['sectors']} sectors, config string '{target['config']}'"
    return f"reads of 1 MiB at {before:.0f} MB/s before, {after:.0f} MB/s after; {what}"


def starve(lab: Lab) -> str:
    target = lab.target(f"0.0={lab.image('disk', SIZE)}")
    mount = mount_until(lab, "e0.0")
    with (
        opened(mount.here / "e0.0") as file,
        attacking(lab, "starve") as attack,
        Worker(lambda step: read(file, 16384, step % 256 * 16384)) as worker,
    ):
        attack.until("strangers", 4500)
        worker.wait_for_steps(5)
        target.send_signal(signal.SIGSTOP)
        attack.goes_on(8.0)
        target.send_signal(signal.SIGCONT)
        steps = worker.steps
        back = _seconds_until(lambda: worker.steps > steps + 1)
    return f"a target that was stopped for 8 s came back after {back}"


def starve_new(lab: Lab) -> str:
    mount = _mount(lab)
    with attacking(lab, "starve") as attack:
        attack.until("strangers", 4500)
        lab.target(f"0.1={lab.image('new', 1 << 20, seed=1)}")
        return f"a new target appeared after: {_seconds_until((mount.here / 'e0.1').exists)}"


def fill(lab: Lab) -> str:
    mount = _mount(lab)
    with attacking(lab, "fill", count=1100):
        filled = _seconds_until(lambda: len(os.listdir(mount.here)) >= 1026)
    discover(mount)
    lab.target(f"0.1={lab.image('new', 1 << 20, seed=1)}")
    new = _seconds_until((mount.here / "e0.1").exists)
    return f"full after {filled}; after the attack a new target appeared: {new}"


def clone(lab: Lab) -> str:
    mount = _mount(lab)
    with opened(mount.here / "e0.0") as file, attacking(lab, "clone") as attack:
        attack.until("lies", 20)
        forged = sum(FORGED in read(file, READ_BYTES, step * READ_BYTES) for step in range(200))
    paths, lines = len(mount.target()["paths"]), (mount.here / ".aoefs/events").read_text().splitlines()
    named = [line for line in lines if lab.mac(ATTACKER).hex(":") in line]
    return f"{paths} paths, {forged} of 200 reads came from the clone, {len(named)} events name it: {named[:1]}"


def flip(lab: Lab) -> str:
    mount, sizes = _mount(lab), set()
    with opened(mount.here / "e0.0"), attacking(lab, "flip") as attack:
        while attack["false"] < 5:
            sizes.add((mount.here / "e0.0").stat().st_size)
            attack.goes_on(0.02)
    return f"an open disk of {SIZE} bytes had the sizes {sorted(sizes)}"


def pose(lab: Lab) -> str:
    mount, errors = _mount(lab), Counter[str]()
    with opened(mount.here / "e0.0") as file, attacking(lab, "pose") as attack:
        attack.until("over")
        began = time.monotonic()
        while time.monotonic() - began < 20:
            try:
                read(file, 4096)
                break
            except OSError as error:
                errors[error.strerror or ""] += 1
                time.sleep(0.5)
    said = "said to be replaced" if "another disk now" in log_of(mount) else "not replaced"
    return f"after 0.8 s of posing the disk is {said}; reads of the open file failed in 20 s: {dict(errors) or 'none'}"


def flood(lab: Lab) -> str:
    mount, longest = _mount(lab), 0.0

    def work(step: int) -> None:
        nonlocal longest
        began = time.monotonic()
        read(file, 16384, step % 256 * 16384)
        longest = max(longest, time.monotonic() - began)

    with opened(mount.here / "e0.0") as file, Worker(work) as worker:
        worker.wait_for_steps(50)
        with attacking(lab, "flood") as attack:
            attack.goes_on(1.0)
            first, steps, began = attack["announcements"], worker.steps, time.monotonic()
            attack.goes_on(5.0)
            seconds = time.monotonic() - began
            rate, reads = (attack["announcements"] - first) / seconds, (worker.steps - steps) / seconds
    return f"{rate:.0f} announcements a second: {reads:.0f} reads of 16 KiB a second, the slowest took {longest:.2f} s"


def babble(lab: Lab) -> str:
    mount = _mount(lab)
    with attacking(lab, "babble") as attack:
        for _ in range(30):
            discover(mount)
            attack.goes_on(2.0)
    lines = (mount.here / ".aoefs/events").read_text().splitlines()
    lies, first = sum("refused" in line for line in lines), [line for line in lines if f"e0.0: {SIZE} bytes" in line]
    return f"{lies} of {len(lines)} events are lies after a minute; that of the disk {'stayed' if first else 'is lost'}"


def honest(lab: Lab) -> str:
    image = lab.image("disk", 1 << 20)
    lab.target("--read-only", *(f"{number // 250}.{number % 250}={image}" for number in range(1024)))
    mount = lab.mount(foreground=True)
    return f"1024 honest targets behind one MAC: {_seconds_until(lambda: len(os.listdir(mount.here)) >= 1026)}"


FIGURES = (
    forge_reads,
    forge_writes,
    poison,
    starve,
    starve_new,
    fill,
    clone,
    flip,
    pose,
    flood,
    babble,
    honest,
)


def main(names: list[str]) -> None:
    for figure in FIGURES:
        if names and figure.__name__ not in names:
            continue
        with Lab(mtu=9000, pairs=0) as lab:
            lab.add_side(ATTACKER)
            lab.switch(INITIATOR, TARGET, ATTACKER, pinned=figure is not pose)
            try:
                print(f"{figure.__name__}: {figure(lab)}", flush=True)
            except AssertionError as error:
                print(f"{figure.__name__}: {str(error).splitlines()[0]}", flush=True)


if __name__ == "__main__":
    print(f"aoefs in {Path(sys.modules['aoefs'].__file__ or '').parent}", flush=True)
    main(sys.argv[1:])
