"""A mount with two workers, one of which does not answer, or that ends by a signal or as a service."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab import INITIATOR, Lab, Mount, is_gone, opened, wait_until
from tests.mount.place import MIB, fails_with, nothing_is_left

TARGETS = 4  # e0.1 and e0.3 are the worker's


@pytest.fixture
def mount(lab: Lab) -> Iterator[Mount]:
    images = [lab.image(f"image{slot}", (slot + 1) * MIB, seed=slot) for slot in range(TARGETS)]
    lab.target(*(f"0.{slot}={image}" for slot, image in enumerate(images)))
    made = lab.mount(workers=2)
    running = pids(made)
    yield made
    for pid in running:
        if not is_gone(pid):
            os.kill(pid, signal.SIGCONT)
    if made.mounted:
        made.umount("--lazy")
    wait_until(lambda: all(map(is_gone, running)) and not private_mounts(lab), what="nothing is left", timeout=30)


def pids(mount: Mount) -> list[int]:
    return [worker["pid"] for worker in mount.status()["workers"]]


def private_mounts(lab: Lab) -> list[str]:
    return [line for line in lab.sides[INITIATOR].mounts() if " /run/aoefs-" in line]


def is_right(mount: Mount, slot: int) -> bool:
    return (mount.here / f"e0.{slot}").read_bytes() == (mount.lab.directory / f"image{slot}").read_bytes()


def states(mount: Mount) -> list[str]:
    report = json.loads(mount.lab.aoefs("status", "--json", mount.path).stdout)
    return [target["state"] for target in report["targets"]]


# ── one that hangs ────────────────────────────────────────────────────────────────────────────────────────────────


def test_nothing_but_its_own_files_waits_for_a_process_that_hangs(lab: Lab, mount: Mount) -> None:
    main, hung = pids(mount)
    os.kill(hung, signal.SIGSTOP)
    assert states(mount) == ["up", "down"] * 2
    for _ in range(10):  # more than threads that may wait for it
        mount.status()
    assert lab.run(INITIATOR, ["ls", mount.path]).stdout.split() == ["by-serial", *(f"e0.{n}" for n in range(TARGETS))]
    assert os.statvfs(mount.here).f_files == 2
    assert is_right(mount, 0)
    assert is_right(mount, 2)
    (mount.here / ".aoefs/discover").write_text("\n")
    fails_with(errno.EIO, lambda: (mount.here / ".aoefs/e0.1/config").write_text("never silently lost"))
    for name in ("ident", "config", "stats"):
        fails_with(errno.EIO, (mount.here / ".aoefs/e0.1" / name).read_bytes)
    answer = lab.aoefs("umount", "--timeout", 1, mount.path, check=False)
    assert answer.returncode == 1
    assert "stays mounted: e0.1, e0.3 did not flush within 1 s" in answer.stderr
    assert "worker 1 does not answer" in (mount.here / ".aoefs/events").read_text()
    os.kill(hung, signal.SIGCONT)
    wait_until(lambda: states(mount) == ["up"] * TARGETS, what="it is back")
    assert is_right(mount, 1)
    assert pids(mount) == [main, hung]
    with opened(mount.here / "e0.1", os.O_RDWR) as file:
        os.kill(main, signal.SIGSTOP)
        os.pwrite(file, b"meanwhile", 0)
        os.fsync(file)
    mount.umount("--lazy")
    os.kill(main, signal.SIGCONT)
    wait_until(lambda: is_gone(main) and is_gone(hung), what="all processes end")
    assert (lab.directory / "image1").read_bytes().startswith(b"meanwhile")


def test_a_worker_that_hangs_at_the_end_is_killed(lab: Lab, mount: Mount) -> None:
    main, hung = pids(mount)
    os.kill(hung, signal.SIGSTOP)
    mount.umount("--lazy")
    wait_until(lambda: is_gone(main) and is_gone(hung), what="all processes end", timeout=30)
    assert nothing_is_left(lab, mount)


def test_a_second_sigterm_ends_also_a_worker_that_hangs(lab: Lab, mount: Mount) -> None:
    main, hung = pids(mount)
    os.kill(hung, signal.SIGSTOP)
    os.kill(main, signal.SIGTERM)
    wait_until(lambda: not mount.mounted, what="it is unmounted")
    os.kill(main, signal.SIGTERM)
    wait_until(lambda: is_gone(main) and is_gone(hung), what="all processes end", timeout=8)
    assert not private_mounts(lab)


# ── signals to all ────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_signal_to_all_processes_counts_once_and_a_second_one_hurries_all(lab: Lab, mount: Mount) -> None:
    """As Ctrl-C in a terminal, or systemd."""
    main, worker = pids(mount)
    with opened(mount.here / "e0.1", os.O_RDWR) as file:
        os.kill(main, signal.SIGTERM)
        wait_until(lambda: not private_mounts(lab), what="the worker stops, too")
        os.kill(worker, signal.SIGTERM)
        time.sleep(1.5)  # if that were the second signal, it would be gone by now
        os.pwrite(file, b"late", 0)
        os.kill(main, signal.SIGTERM)
        wait_until(lambda: is_gone(main) and is_gone(worker), what="all processes end", timeout=8)
    assert (lab.directory / "image1").read_bytes()[:4] == b"late"


def test_a_signal_that_comes_late_kills_no_worker(lab: Lab) -> None:
    """systemd sends one to each process: a worker that had nothing to do may be at its end by then."""
    lab.target(*(f"0.{slot}={lab.image(str(slot), MIB)}" for slot in range(2)))
    mount = lab.mount(foreground=True, workers=2)
    wait_until(lambda: (mount.here / "e0.1").exists(), what="the worker serves")
    main, worker = pids(mount)
    os.kill(main, signal.SIGTERM)
    with contextlib.suppress(OSError):  # it has ended
        while True:
            status = Path(f"/proc/{worker}/status").read_text()
            if not int(status.partition("SigCgt:")[2].split()[0], 16) >> (signal.SIGTERM - 1) & 1:
                os.kill(worker, signal.SIGTERM)
    assert mount.process is not None
    assert mount.process.wait(30) == 0, mount.process.output


# ── options ───────────────────────────────────────────────────────────────────────────────────────────────────────


def options_of(lab: Lab, mount: Mount) -> list[tuple[float, int, list[str]]]:
    """What each process has: deadsecs, maxout, interfaces."""
    directories = [mount.path, *(Path(line.split()[1]) for line in private_mounts(lab))]
    found = []
    for path in directories:
        here = lab.sides[INITIATOR].root / path.relative_to("/") / ".aoefs"
        with contextlib.suppress(OSError):  # it is not there yet
            options = json.loads((here / "options").read_text())
            found.append((options["deadsecs"], options["maxout"], (here / "interfaces").read_text().split()))
    return found


def all_have(lab: Lab, mount: Mount, deadsecs: float, maxout: int, *interfaces: str) -> None:
    wanted = [(deadsecs, maxout, list(interfaces))] * 2
    wait_until(lambda: options_of(lab, mount) == wanted, what=f"all have {wanted[0]}")


def test_options_reach_a_worker_that_starts_meanwhile_starts_again_or_hung() -> None:
    with Lab(pairs=2) as lab:
        config = lab.directory / "aoefs.toml"
        config.write_text("deadsecs = 20\n")
        lab.vblade(0, 0, lab.image("image0", MIB))
        mount = lab.mount("--config", config, workers=2)
        main = mount.pid
        lab.vblade(0, 1, lab.image("image1", MIB))
        wait_until(lambda: len(pids(mount)) == 2, what="the worker starts")
        config.write_text("deadsecs = 21\nmaxout = 7\n")
        os.kill(main, signal.SIGHUP)
        wait_until((mount.here / "e0.1").exists, what="its file is there")
        all_have(lab, mount, 21, 7, "aoe0", "aoe1")
        (mount.here / ".aoefs/interfaces").write_text("aoe0")
        all_have(lab, mount, 21, 7, "aoe0")
        os.kill(pids(mount)[1], signal.SIGKILL)
        wait_until(lambda: mount.status()["workers"][1]["restarts"] == 1, what="it starts again")
        all_have(lab, mount, 21, 7, "aoe0")
        (mount.here / ".aoefs/interfaces").write_text("aoe0 aoe1")
        all_have(lab, mount, 21, 7, "aoe0", "aoe1")
        hung = pids(mount)[1]
        os.kill(hung, signal.SIGSTOP)
        for deadsecs in range(30, 36):
            lab.aoefs(mount.path, "-o", f"remount,deadsecs={deadsecs},maxout=8")
        os.kill(hung, signal.SIGCONT)
        all_have(lab, mount, 35, 8, "aoe0", "aoe1")
        mount.umount()
        assert nothing_is_left(lab, mount)
