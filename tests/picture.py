"""Makes the README's picture of the console from a real run: ``sudo .venv/bin/python -m tests.picture [FILE]``.

A lab has two cables, four disks of ``aoefs target`` and one of vblade.  fio works on them, and the status of the mount
is read each second, as ``aoefs status`` does.  Near the end one of the two paths of e7.1 fails.  The console draws the
last screen, and rich makes an SVG of it.
"""

from __future__ import annotations

import io
import json
import sys
import time
from pathlib import Path

from rich.console import Console

from aoefs.status.console import View, draw
from aoefs.status.history import History
from tests.lab import INITIATOR, Lab, require, wait_until

FILE = Path("examples/console.svg")
WIDTH, HEIGHT = 140, 36
SECONDS = 40
PATH_FAILS_AT = 34  # seconds
POINT = "/mnt/aoe"
MIB = 1 << 20

# A backup that is read, an archive that is written from time to time, a database, a reader of the disk with two paths.
FIO = "--direct=1 --ioengine=psync --time_based --runtime=1000 --output=/dev/null"
WORK = (
    f"fio --name=backup --filename={POINT}/e0.0 --rw=read --bs=1m --rate=90m --thinktime=700ms "
    f"--thinktime_blocks=150 {FIO}",
    f"fio --name=archive --filename={POINT}/e0.1 --rw=write --bs=256k --rate=40m --thinktime=1500ms "
    f"--thinktime_blocks=80 {FIO}",
    f"fio --name=database --filename={POINT}/e0.2 --rw=randrw --bs=4k --rate_iops=150,60 {FIO}",
    f"fio --name=reader --filename={POINT}/e7.1 --rw=randread --bs=64k --rate=12m {FIO}",
)


def play(lab: Lab) -> History:
    """The history of a mount under load."""
    sizes = {"0.0": 512, "0.1": 256, "0.2": 64, "3.0": 1024, "7.1": 128}
    images = {name: lab.image(name, size * MIB, seed=None) for name, size in sizes.items()}
    lab.target(*(f"{name}={image}" for name, image in images.items() if name != "7.1"), interfaces=["aoe0", "aoe1"])
    vblades = [lab.vblade(7, 1, images["7.1"], interface=name) for name in ("aoe0", "aoe1")]
    lab.run(INITIATOR, ["mount", "-t", "tmpfs", "none", "/mnt"])
    lab.run(INITIATOR, ["mkdir", POINT])
    lab.aoefs("-i", "aoe0", "-i", "aoe1", POINT)
    status = lab.sides[INITIATOR].root / f"{POINT[1:]}/.aoefs/status.json"
    try:
        wait_until(lambda: len(json.loads(status.read_text())["targets"]) == len(sizes), what="all targets")
        for line in WORK:
            lab.popen(INITIATOR, line.split())
        history = History()
        for number in range(SECONDS):
            began = time.monotonic()
            history.add(json.loads(status.read_text()), began)
            if number == PATH_FAILS_AT:
                vblades[1].stop()
            time.sleep(max(0.0, began + 1.0 - time.monotonic()))
    finally:
        lab.run(INITIATOR, ["umount", "-l", POINT])
    return history


def main() -> int:
    require("fio", "vblade")
    with Lab(mtu=9000, pairs=2) as lab:
        history = play(lab)
    console = Console(record=True, width=WIDTH, height=HEIGHT, file=io.StringIO(), force_terminal=True)
    console.print(draw(history, View(), WIDTH, HEIGHT), end="")
    file = Path(sys.argv[1]) if len(sys.argv) > 1 else FILE
    svg = console.export_svg(title=f"aoefs status {POINT}", unique_id="aoefs")
    file.write_text("\n".join(line.rstrip() for line in svg.splitlines()) + "\n")
    print(f"{file}: {file.stat().st_size} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
