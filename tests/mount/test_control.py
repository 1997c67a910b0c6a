"""The control directory of a real mount, used by real programs."""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import stat
from functools import partial
from pathlib import Path

import pytest

from aoefs.protocol.ata import decode_identify_untrusted
from tests.lab import INITIATOR, TARGET, Lab, Mount, opened, require, wait_until
from tests.mount.place import MIB, OWN, VBLADE, fails_with, open_place

TREE = ["discover", "e0.0", "events", "flush", "interfaces", "options", "revalidate", "status.json"]


def control(mount: Mount, name: str) -> Path:
    return mount.here / ".aoefs" / name


def order(mount: Mount, name: str, text: str) -> None:
    control(mount, name).write_text(text)


def say(lab: Lab, mount: Mount, script: str, *prefix: str, check: bool = True) -> str:
    """The output of a shell script that runs in the control directory."""
    shell = ["sh", "-c", f"cd {mount.path}/.aoefs && {script}"]
    ended = lab.run(INITIATOR, [*prefix, *shell], check=check, timeout=20)
    return ended.stdout + ended.stderr


def make_down(mount: Mount, name: str = "e0.0") -> None:
    """The target has just fallen silent: read until it is down."""
    fails_with(errno.EIO, lambda: (mount.here / name).read_bytes())
    wait_until(lambda: next(t for t in mount.status()["targets"] if t["name"] == name)["state"] == "down")


@pytest.mark.parametrize(("kind", "mtu"), [(VBLADE, 1500), (OWN, 9000)])
def test_every_file_is_there_and_its_content_is_right(kind: str, mtu: int) -> None:
    with open_place(kind, mtu, {"e0.0": 2 * MIB}) as place:
        mount = place.mount
        assert sorted(os.listdir(mount.here / ".aoefs")) == TREE
        assert sorted(os.listdir(control(mount, "e0.0"))) == ["config", "ident", "stats"]
        mode = stat.S_IMODE(os.stat(control(mount, "discover")).st_mode)
        assert mode == 0o200
        identity = decode_identify_untrusted(control(mount, "e0.0/ident").read_bytes())
        (target,) = mount.status()["targets"]
        assert (identity.sectors, identity.serial, identity.model) == (4096, target["serial"], target["model"])
        assert json.loads(control(mount, "e0.0/stats").read_text())["name"] == "e0.0"
        assert control(mount, "interfaces").read_text() == "aoe0\n"
        assert control(mount, "e0.0/config").read_text() == "\n"
        order(mount, "e0.0/config", "ours\n")
        assert control(mount, "e0.0/config").read_text() == "ours\n"
        (found,) = json.loads(place.lab.aoefs("discover", "--json", "-i", "aoe0").stdout)
        assert found["config"] == "ours", "the target keeps it"
        assert say(place.lab, mount, "cat e0.0/config; echo > e0.0/config; cat e0.0/config") == "ours\n\n"
        fails_with(errno.EINVAL, lambda: order(mount, "e0.0/config", "x" * 1025))
        fails_with(errno.EPERM, lambda: os.unlink(control(mount, "e0.0/config")))


def test_a_shell_writes_orders(lab: Lab) -> None:
    disk = lab.image("disk", MIB)
    lab.vblade(0, 0, disk)
    mount = lab.mount()
    lab.vblade(0, 1, lab.image("late", MIB))  # its announcement is only a hint
    say(lab, mount, "echo now > discover")
    wait_until(lambda: (mount.here / "e0.1").exists())
    capture = lab.capture()
    say(lab, mount, "{ echo e0.0; echo e0.1; } > revalidate; echo all >> revalidate; echo e0.1 >> revalidate")
    identify = "aoe.cmd == 0 && aoe.response == 1 && aoe.major == 0"
    wait_until(lambda: {int(row[0], 0) for row in capture.tshark(identify, "aoe.minor")} == {0, 1})
    for bad in ("e0.7", "what", "e0.0 e0.7"):
        assert "Invalid argument" in say(lab, mount, f"/bin/echo {bad} > revalidate", check=False)
        assert "Invalid argument" in say(lab, mount, f"/bin/echo {bad} > flush", check=False)
    assert "Permission denied" in say(lab, mount, "cat discover", check=False)
    assert "Permission denied" in say(lab, mount, "echo > events", check=False)
    events = control(mount, "events").read_text()
    assert re.search(r"^\S+ info \.aoefs/revalidate: there is no e0\.7$", events, re.MULTILINE)


def test_a_grown_disk_is_seen_after_revalidate(lab: Lab) -> None:
    disk = lab.image("disk", MIB)
    target = lab.vblade(0, 0, disk)
    mount = lab.mount()
    target.stop()
    os.truncate(disk, 2 * MIB)
    lab.vblade(0, 0, disk)
    order(mount, "revalidate", "e0.0\n")
    wait_until(lambda: (mount.here / "e0.0").stat().st_size == 2 * MIB)


def test_flush_forgets_a_target_that_is_down_but_not_one_in_use(lab: Lab) -> None:
    targets = [lab.vblade(0, slot, lab.image(f"disk{slot}", MIB)) for slot in (0, 1)]
    mount = lab.mount(deadsecs=1)
    with opened(mount.here / "e0.0", os.O_RDONLY):
        fails_with(errno.EBUSY, lambda: order(mount, "flush", "e0.0"))
        targets[0].stop()
        make_down(mount)
        fails_with(errno.EBUSY, lambda: order(mount, "flush", "e0.0\n"))
        order(mount, "flush", "all\n")
        assert (mount.here / "e0.0").exists(), "it is open"
    wait_until(lambda: _is_flushed(mount), what="the close has reached the mount")
    assert sorted(os.listdir(mount.here)) == [".aoefs", "by-serial", "e0.1"]
    assert "e0.0" not in os.listdir(mount.here / ".aoefs")
    fails_with(errno.EINVAL, lambda: order(mount, "flush", "e0.0\n"))
    fails_with(errno.EBUSY, lambda: order(mount, "flush", "e0.1\n"))
    lab.vblade(0, 0, lab.directory / "disk0")
    order(mount, "discover", "now\n")
    wait_until(lambda: (mount.here / "e0.0").exists())
    assert (mount.here / "e0.0").read_bytes() == (lab.directory / "disk0").read_bytes()


def _is_flushed(mount: Mount) -> bool:
    order(mount, "flush", "\n")
    return not (mount.here / "e0.0").exists()


def test_nothing_in_the_control_directory_waits_for_a_silent_target(lab: Lab) -> None:
    target = lab.vblade(0, 0, lab.image("disk", MIB))
    mount = lab.mount()
    os.kill(target.pid, signal.SIGSTOP)
    try:
        reader = lab.popen(INITIATOR, ["dd", f"if={mount.file('e0.0')}", "of=/dev/null", "bs=64k"])
        wait_until(lambda: mount.status()["targets"][0]["in_flight"] > 0)
        orders = "for file in discover revalidate flush; do echo > $file; done"
        say(lab, mount, f"cat status.json events interfaces e0.0/*; {orders}")
        assert "Input/output error" in say(lab, mount, "/bin/echo ours > e0.0/config", check=False)
        assert reader.poll() is None, "the target is silent all the while"
    finally:
        os.kill(target.pid, signal.SIGCONT)
    assert reader.wait(20) == 0
    assert "config: no answer within 1 s" in control(mount, "events").read_text()


def test_interfaces_can_be_changed_while_mounted() -> None:
    with Lab(pairs=2) as lab:
        for number in (0, 1):
            lab.vblade(0, number, lab.image(f"disk{number}", MIB), interface=f"aoe{number}")
        mount = lab.mount(interfaces=["aoe0"])
        assert sorted(os.listdir(mount.here)) == [".aoefs", "by-serial", "e0.0"]
        for bad in ("aoe0 eth9", "aoe1,lo", ""):
            fails_with(errno.EINVAL, partial(order, mount, "interfaces", f"{bad}\n"))
            assert control(mount, "interfaces").read_text() == "aoe0\n"
        assert "interface eth9 does not exist" in control(mount, "events").read_text()
        order(mount, "interfaces", "aoe1, aoe0\n")
        assert control(mount, "interfaces").read_text() == "aoe0\naoe1\n"
        wait_until(lambda: (mount.here / "e0.1").exists())
        order(mount, "interfaces", "aoe1\n")
        assert control(mount, "interfaces").read_text() == "aoe1\n"
        assert lab.sides[INITIATOR].packet_sockets() == 2 * lab.workers, "for answers and for hints"
        lab.ip(INITIATOR, "link", "set", "aoe0", "down")
        lab.ip(INITIATOR, "link", "set", "aoe0", "up")
        lab.ip(INITIATOR, "link", "set", "aoe1", "mtu", "9000")
        wait_until(lambda: mount.status()["links"][0]["mtu"] == 9000, what="the change of aoe1 is noticed")
        assert control(mount, "interfaces").read_text() == "aoe1\n", "the other one is no longer wanted"
        assert (mount.here / "e0.1").read_bytes() == (lab.directory / "disk1").read_bytes()
        order(mount, "interfaces", "any\n")
        assert sorted(control(mount, "interfaces").read_text().split()) == ["aoe0", "aoe1"]
        wait_until(lambda: _reads(mount, "e0.0"))


def _reads(mount: Mount, name: str) -> bool:
    return len((mount.here / name).read_bytes()) == MIB


def test_file_modes_decide_who_may_write(lab: Lab) -> None:
    require("setpriv")
    lab.vblade(0, 0, lab.image("disk", MIB))
    mount = lab.mount("--umask", "022", allow_other=True)
    nobody = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")
    assert say(lab, mount, "cat interfaces", *nobody) == "aoe0\n"
    for name in ("discover", "flush", "revalidate", "interfaces", "e0.0/config"):
        assert "Permission denied" in say(lab, mount, f"echo > {name}", *nobody, check=False)
    lab.run(INITIATOR, ["umount", mount.path])
    private = lab.mount(allow_other=True)
    assert "can't cd" in say(lab, private, "cat interfaces", *nobody, check=False)


def test_events_report_what_happens_to_a_mount_in_the_background(lab: Lab) -> None:
    target = lab.vblade(0, 0, lab.image("disk", MIB))
    mount = lab.mount(deadsecs=1)
    before = control(mount, "events").read_text().splitlines()
    assert any(re.fullmatch(r"\S+ info e0\.0: 1\.00 MiB, .*, on aoe0", line) for line in before)
    target.stop()
    make_down(mount)
    after = control(mount, "events").read_text().splitlines()
    assert after[: len(before)] == before
    assert any(line.endswith("warning e0.0 is down: not one answer for 1 s") for line in after[len(before) :])
    events = mount.status()["events"]
    assert [event["text"] for event in events][-len(after) :] == [line.split(" ", 2)[2] for line in after][-50:]
    assert {"time", "level", "text"} == set(events[-1])
    times = [event["time"] for event in events]
    assert times == sorted(times)


def test_a_read_only_mount_has_a_control_directory_that_takes_no_orders(lab: Lab) -> None:
    lab.target(f"0.0={lab.image('disk', MIB)}", side=TARGET)
    mount = lab.mount(read_only=True)
    assert control(mount, "interfaces").read_text() == "aoe0\n"
    fails_with(errno.EROFS, lambda: order(mount, "discover", "now"))


def test_a_remount_and_a_hangup_change_what_can_be_changed_and_name_what_cannot(lab: Lab) -> None:
    lab.vblade(0, 0, lab.image("disk", MIB))
    config = lab.directory / "aoefs.toml"
    config.write_text("deadsecs = 20\n")
    mount = lab.mount(config=str(config))

    def options() -> dict[str, object]:
        read: dict[str, object] = json.loads(control(mount, "options").read_text())
        return read

    assert (options()["deadsecs"], options()["maxout"]) == (20, 64)
    lab.aoefs("-o", "remount,deadsecs=30,maxout=3", mount.path)
    assert (options()["deadsecs"], options()["maxout"]) == (30, 3)
    assert mount.target("e0.0")["paths"][0]["window"] <= 3
    answer = lab.aoefs("-o", "remount,shards=3", mount.path, check=False)
    says = f"aoefs: shards cannot be changed while {mount.path} is mounted: 'aoefs umount' first\n"
    assert (answer.returncode, answer.stderr) == (1, says)
    for bad in ('{"deadsecs": -1}', '{"shards": 1}', "[]", "no JSON"):
        fails_with(errno.EINVAL, partial(order, mount, "options", bad))
    config.write_text("deadsecs = 40\nshards = 2\n")
    os.kill(mount.pid, signal.SIGHUP)
    wait_until(lambda: options()["deadsecs"] == 40, what="the file was read again")
    wait_until(lambda: "shards cannot be changed while it is mounted" in control(mount, "events").read_text())
    config.write_text("deadsecs = never\n")
    os.kill(mount.pid, signal.SIGHUP)
    wait_until(lambda: "the options stay as they are" in control(mount, "events").read_text())
    assert options()["deadsecs"] == 40


def test_a_remount_chooses_among_the_interfaces_and_leaves_those_that_it_does_not_name() -> None:
    with Lab(pairs=2) as lab:
        mount = lab.mount()

        def interfaces() -> list[str]:
            return control(mount, "interfaces").read_text().split()

        # mount(8) gives its helper the SOURCE of the mount again, whatever the person wrote.
        lab.aoefs("aoe0,aoe1", mount.path, "-o", "rw,remount,interface=aoe1")
        assert interfaces() == ["aoe1"]
        lab.aoefs("aoe0,aoe1", mount.path, "-o", "rw,remount,deadsecs=7.5")
        assert interfaces() == ["aoe1"]
        said = control(mount, "events").read_text()
        assert "info options: interfaces aoe1 from now on\n" in said
        assert "info options: deadsecs 7.5 from now on\n" in said
