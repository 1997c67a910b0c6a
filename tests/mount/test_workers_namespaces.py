"""A mount with two workers in a user namespace, and as other mount namespaces see it."""

from __future__ import annotations

import os
import re
import subprocess

import pytest

from tests.lab import COMMANDS, Lab, require
from tests.mount.place import MIB

# In a network of its own, since the right to packet sockets comes from the owner of that: $1 has the disks.
SCRIPT = """
set -e
mount -t tmpfs -o ro none /run
ip link set lo up
ip link add a0 type veth peer name a1
ip link set a0 up
ip link set a1 up
mkfifo "$1/started"
"$AOEFS" target -i a1 "0.0=$1/disk0" "0.1=$1/disk1" > "$1/started" &
trap "kill $!" EXIT
head -c 1 "$1/started" > /dev/null
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
    (lab.directory / "started").unlink(missing_ok=True)
    disks = [lab.image(f"disk{number}", MIB, seed=number).read_bytes() for number in range(2)]
    (lab.directory / "both").write_bytes(b"".join(disks))
    given = {"AOEFS": str(COMMANDS / "aoefs"), **environment}
    command = ["unshare", "-Urmn", "sh", "-c", SCRIPT, "sh", str(lab.directory), workers]
    others = {name: value for name, value in os.environ.items() if name != "XDG_RUNTIME_DIR"}
    return subprocess.run(command, env={**others, **given}, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("workers", ["2", "auto"])
def test_workers_in_a_user_namespace_mount_where_its_user_may_write(lab: Lab, workers: str) -> None:
    place = lab.directory / "runtime"
    place.mkdir()
    answer = run(lab, workers, XDG_RUNTIME_DIR=str(place))
    assert answer.returncode == 0, answer.stderr
    if len(os.sched_getaffinity(0)) > 1 or workers == "2":
        assert re.search(r"found by-serial e0.0 e0.1 in 2 mounts of workers", answer.stdout)
    assert list(place.iterdir()) == []


def test_without_a_place_for_private_mounts_auto_is_one_process(lab: Lab) -> None:
    answer = run(lab, "auto")
    assert answer.returncode == 0, answer.stderr
    assert "one process serves all targets: only root can bind-mount" in answer.stderr
    assert "in 0 mounts of workers" in answer.stdout
    answer = run(lab, "2")
    assert answer.returncode == 2
    assert "aoefs: --workers 2 is not possible: only root can bind-mount" in answer.stderr
