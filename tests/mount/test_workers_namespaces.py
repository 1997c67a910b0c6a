"""A mount with two workers in a user namespace, and as other mount namespaces see it."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
import subprocess

from tests.lab import COMMANDS, INITIATOR, Lab, require, wait_until
from tests.mount.place import MIB

# In a network of its own, since the right to packet sockets comes from the owner of that: $1 has the disks.
SCRIPT = """
set -e
mount -t tmpfs -o ro none /run
ip link set lo up
ip link add a0 type veth peer name a1
ip link set a0 up
ip link set a1 up
"$AOEFS" target -i a1 "0.0=$1/disk0" "0.1=$1/disk1" > "$1/started" &
trap "kill $!" EXIT
until grep -q " sectors read-" "$1/started"; do kill -0 $! && sleep 0.1; done
"$AOEFS" -v -i a0 --workers "$2" "$1/point"
cat "$1/point/e0.0" "$1/point/e0.1" | cmp - "$1/both"
echo found $(ls "$1/point") in $(grep -c ' fuse.aoefs-worker ' /proc/self/mounts) mounts of workers
"$AOEFS" umount "$1/point"
! grep ' fuse.aoefs' /proc/self/mounts
"""


def run(lab: Lab, workers: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Mount in a user namespace in which nobody can write to /run."""
    require("unshare", "ip")
    (lab.directory / "point").mkdir(exist_ok=True)
    disks = [lab.image(f"disk{number}", MIB, seed=number).read_bytes() for number in range(2)]
    (lab.directory / "both").write_bytes(b"".join(disks))
    given = {"AOEFS": str(COMMANDS / "aoefs"), **environment}
    command = ["unshare", "-Urmn", "sh", "-c", SCRIPT, "sh", str(lab.directory), workers]
    others = {name: value for name, value in os.environ.items() if name != "XDG_RUNTIME_DIR"}
    return subprocess.run(command, env={**others, **given}, capture_output=True, text=True, timeout=60, check=False)


def test_workers_in_a_user_namespace_mount_where_its_user_may_write(lab: Lab) -> None:
    place = lab.directory / "runtime"
    place.mkdir()
    answer = run(lab, "2", XDG_RUNTIME_DIR=str(place))
    assert answer.returncode == 0, answer.stderr
    assert "found by-serial e0.0 e0.1 in 2 mounts of workers" in answer.stdout
    assert list(place.iterdir()) == []


def test_without_a_place_for_private_mounts_auto_is_one_process(lab: Lab) -> None:
    answer = run(lab, "auto")
    assert answer.returncode == 0, answer.stderr
    assert "one process serves all targets: only root can bind-mount" in answer.stderr
    assert "in 0 mounts of workers" in answer.stdout
    answer = run(lab, "2")
    assert answer.returncode == 2
    assert "aoefs: --workers 2 is not possible: only root can bind-mount" in answer.stderr


# ── mount namespaces ──────────────────────────────────────────────────────────────────────────────────────────────


def test_a_namespace_of_before_gets_no_file_of_a_worker_and_a_moved_mount_keeps_them(lab: Lab) -> None:
    lab.vblade(0, 0, lab.image("image0", MIB))
    mount = lab.mount(workers=2)
    container = lab.popen(
        INITIATOR, ["unshare", "-m", "--propagation", "private", "sh", "-c", "echo is there; exec sleep 1000"]
    )
    wait_until(lambda: "is there" in container.output, what="the container runs")
    image = lab.image("image1", MIB, seed=1)
    lab.vblade(0, 1, image)
    wait_until((mount.here / "e0.1").exists, what="the worker's file is there")

    def inside(script: str) -> str:
        return lab.run(INITIATOR, ["nsenter", "-m", "-t", container.pid, "sh", "-c", script], check=False).stderr

    before = image.read_bytes()
    for flags in ("<", ">", "<>"):
        assert os.strerror(errno.ENXIO) in inside(f"exec 3{flags}{mount.file('e0.1')}")
    assert inside(f"head -c 1 {mount.file('e0.0')} > /dev/null") == ""
    copy, moved = lab.directory / "copy", lab.directory / "moved"
    for path in (copy, moved):
        path.mkdir()
    lab.run(INITIATOR, ["mount", "--bind", mount.path, copy])
    lab.run(INITIATOR, ["mount", "--move", mount.path, moved])
    here = lab.sides[INITIATOR].root / moved.relative_to("/")
    assert (here / "e0.1").read_bytes() == before
    extra = lab.image("image3", MIB, seed=3)
    lab.vblade(0, 3, extra)  # a bind in the moved mount
    wait_until((here / "e0.3").exists, what="another file of the worker is there")
    assert (here / "e0.3").read_bytes() == extra.read_bytes()
    status = json.loads((here / ".aoefs/status.json").read_text())
    os.kill(status["workers"][1]["pid"], signal.SIGKILL)

    def is_back() -> bool:
        with contextlib.suppress(OSError):
            return (here / "e0.1").read_bytes() == before
        return False

    wait_until(is_back, what="they are back where the mount is")
    container.stop()
    lab.run(INITIATOR, ["umount", "-R", copy])
    lab.run(INITIATOR, ["umount", "-R", moved])
    wait_until(lambda: not lab.sides[INITIATOR].packet_sockets(), what="all processes end", timeout=30)
    assert not [line for line in lab.sides[INITIATOR].mounts() if " fuse.aoefs" in line]
    assert image.read_bytes() == before
