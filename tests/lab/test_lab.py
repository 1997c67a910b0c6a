"""The lab itself: it leaves nothing behind, and its wire carries nothing but what is sent."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from aoefs.host import mountpoint
from tests.host import livemount
from tests.lab import ATTACKER, INITIATOR, TARGET, Lab, is_gone, open_packet_socket, require


def test_nothing_of_a_lab_is_left_after_a_failure() -> None:
    require("ip", "vblade", "losetup", "nbdkit", "nbdfuse", "/dev/fuse")
    before = set(os.listdir("/run/netns")) if Path("/run/netns").exists() else set()
    lab = Lab(pairs=2)

    def fail_in_the_middle() -> None:
        with lab:
            disk = lab.image("disk", 1 << 20)
            vblade = lab.vblade(0, 0, disk)
            pids.append(vblade.pid)
            device = lab.losetup(disk)
            devices.append(device)
            lab.run(INITIATOR, ["sh", "-c", "setsid sleep 1000 & echo $! > " + str(lab.directory / "pid")])
            pids.append(int((lab.directory / "pid").read_text()))
            point = lab.directory / "point"  # a live FUSE mount with a file in use, as a failed test may leave it
            point.touch()
            pids.append(lab.popen(INITIATOR, ["nbdfuse", point, "--command", "nbdkit", "-s", "memory", "1M"]).pid)
            raise RuntimeError("a test failed")

    pids: list[int] = []
    devices: list[Path] = []
    with pytest.raises(RuntimeError, match="a test failed"):
        fail_in_the_middle()
    assert all(map(is_gone, pids))
    assert not lab.directory.exists()
    assert not (Path("/sys/block") / devices[0].name / "loop/backing_file").exists()
    after = set(os.listdir("/run/netns")) if Path("/run/netns").exists() else set()
    assert not [name for name in after - before if name.startswith(f"aoefs-{os.getpid()}-")]


def test_a_mount_is_seen_by_every_program_of_its_side_and_by_no_other(lab: Lab) -> None:
    point = lab.directory / "point"
    point.mkdir()
    lab.run(INITIATOR, ["mount", "-t", "tmpfs", "tmpfs", point])
    lab.run(INITIATOR, ["sh", "-c", f"echo hello > {point}/file"])
    assert (lab.sides[INITIATOR].root / point.relative_to("/") / "file").read_text() == "hello\n"
    assert not (point / "file").exists()
    assert lab.run(TARGET, ["ls", point]).stdout == ""


def test_the_wire_is_silent_but_for_what_is_sent(lab: Lab) -> None:
    lab.switch(INITIATOR, TARGET)
    captures = [lab.capture(side, name) for side in (INITIATOR, TARGET) for name in ("aoe0", "aoe1")]
    frame = lab.mac(TARGET, 1) + lab.mac(INITIATOR, 1) + b"\x88\xa2" + bytes(46)
    with (
        open_packet_socket(lab, INITIATOR, "aoe1") as sender,
        open_packet_socket(lab, TARGET, "aoe1") as receiver,
    ):
        sender.send(frame)
        assert receiver.recv(2000) == frame
    assert [capture.frames() for capture in captures] == [[], [frame], [], [frame]]


@pytest.mark.parametrize("pinned", [False, True])
def test_a_third_host_on_a_switch_sees_no_unicast_frame_of_the_others(pinned: bool) -> None:
    """A bridge that learns sends a frame everywhere until its destination has sent one; a pinned one never does."""
    with Lab(pairs=0) as lab:
        lab.add_side(ATTACKER)
        lab.switch(INITIATOR, TARGET, ATTACKER, pinned=pinned)
        third = lab.capture(ATTACKER)
        ours, theirs = lab.mac(INITIATOR), lab.mac(TARGET)
        question, answer = (to + source + b"\x88\xa2" + bytes(46) for to, source in ((theirs, ours), (ours, theirs)))
        broadcast = b"\xff" * 6 + ours + b"\x88\xa2" + bytes(46)
        stolen = answer[:6] + theirs + b"\x88\xa2" + b"\x01" * 46
        with open_packet_socket(lab) as initiator, open_packet_socket(lab, TARGET) as target:
            initiator.send(broadcast)
            assert target.recv(2000) == broadcast
            for _ in range(3):
                target.send(answer)
                assert initiator.recv(2000) == answer
                initiator.send(question)
                assert target.recv(2000) == question
            assert third.frames() == [broadcast]
            with open_packet_socket(lab, ATTACKER) as attacker:
                attacker.send(stolen)
                assert initiator.recv(2000) == stolen
                initiator.send(question)
                initiator.send(broadcast)
                seen = [attacker.recv(2000)] if pinned else [attacker.recv(2000), attacker.recv(2000)]
                assert seen == ([broadcast] if pinned else [question, broadcast]), "who steals an address gets frames"


def test_what_is_missing_is_a_failure_under_ci_and_a_skip_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match="no-such-program"):
        require("no-such-program", root=False)
    monkeypatch.delenv("CI")
    with pytest.raises(pytest.skip.Exception, match="/no/such/file"):
        require("/no/such/file", root=False)
    require("sh", root=False)


def test_the_output_of_a_program_that_fails_is_in_the_error(lab: Lab) -> None:
    with pytest.raises(AssertionError, match=r"exit code 3 of: sh -c .*\n.*oh no"):
        lab.run(TARGET, ["sh", "-c", "echo oh no >&2; exit 3"])
    assert lab.run(TARGET, ["sh", "-c", "cat; exit 3"], check=False, stdin="given").stdout == "given"


def test_a_lab_leaves_a_loop_device_that_another_one_has_meanwhile() -> None:
    require("losetup", "/dev/loop-control")
    with Lab() as other:
        with Lab() as lab:
            lab.run(INITIATOR, ["losetup", "--detach", lab.losetup(lab.image("disk", 1 << 20))])
            device = other.losetup(other.image("disk", 1 << 20))  # the same one, unless a third lab was faster
        assert (Path("/sys/block") / device.name / "loop").exists()


@pytest.mark.parametrize("words", [(), ("deaf",)])
def test_a_lab_keeps_no_copy_of_a_mount_of_another_test(tmp_path: Path, words: tuple[str, ...]) -> None:
    with livemount.standin(tmp_path / "mnt", *words), Lab() as lab:
        mount = mountpoint.find_mount(str(tmp_path / "mnt"))
        assert mount is not None
        holders = {f"sleep (pid {side.holder})" for side in lab.sides.values()}
        assert holders.isdisjoint(mountpoint.copies(mount))
