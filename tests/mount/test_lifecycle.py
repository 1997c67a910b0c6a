"""The life of a mount: it starts, targets appear late, it is stopped in every way."""

from __future__ import annotations

import errno
import os
import signal
import time

import pytest

from tests.lab import COMMANDS, INITIATOR, Lab, is_gone, opened, wait_until
from tests.mount.place import MIB, OWN, VBLADE, fails_as_dead, fails_with, nothing_is_left, reader, serve

both_kinds = pytest.mark.parametrize("kind", [VBLADE, OWN])


# ── its start ─────────────────────────────────────────────────────────────────────────────────────────────────────


@both_kinds
def test_the_command_returns_when_all_targets_are_there(lab: Lab, kind: str) -> None:
    serve(lab, kind, {f"e{n}.{n}": lab.image(f"{n}", MIB + n * 512) for n in range(4)})
    start = time.monotonic()
    mount = lab.mount()
    elapsed = time.monotonic() - start
    assert sorted(os.listdir(mount.here)) == [".aoefs", "by-serial", "e0.0", "e1.1", "e2.2", "e3.3"]
    assert [os.stat(mount.here / f"e{n}.{n}").st_size for n in range(4)] == [MIB + n * 512 for n in range(4)]
    assert mount.log == ""
    assert elapsed < 20  # 1.5 on an idle machine; it must not wait for a timeout of minutes
    assert mount.pid != 0 and not is_gone(mount.pid)  # noqa: PT018


@both_kinds
def test_without_any_target_the_mount_is_live_and_a_late_one_appears(lab: Lab, kind: str) -> None:
    mount = lab.mount()
    assert mount.log.count("\n") == 1
    assert "no target answers on aoe0" in mount.log
    assert os.listdir(mount.here) == [".aoefs", "by-serial"]
    fails_with(errno.ENOENT, lambda: os.stat(mount.here / "e0.0"))
    image = lab.image("late", MIB)
    serve(lab, kind, {"e0.0": image})
    wait_until(
        lambda: (mount.here / "e0.0").exists(),
        timeout=30,
        what="the late target appears, before the next periodic query",
    )
    assert os.listdir(mount.here) == [".aoefs", "by-serial", "e0.0"]
    lab.run(INITIATOR, ["cmp", image, mount.file("e0.0")])


def test_the_form_of_fstab_mounts_the_same(lab: Lab) -> None:
    lab.vblade(0, 0, lab.image("image", MIB))
    mount = lab.mount("aoe0", "-o", "ro,_netdev,noauto,x-systemd.automount,deadsecs=30", interfaces=[])
    fails_with(errno.EROFS, lambda: os.open(mount.here / "e0.0", os.O_RDWR))
    line = next(line for line in lab.sides[INITIATOR].mounts() if str(mount.path) in line)
    assert line.startswith("aoe0 ")
    assert " fuse.aoefs ro," in line


@pytest.mark.parametrize("name", ["with a space", "back\\slash", "línea", "new\nline", "a,b=c"])
def test_a_mount_point_may_have_any_name(lab: Lab, name: str) -> None:
    lab.vblade(0, 0, lab.image("image", MIB))
    point = lab.directory / name
    point.mkdir()
    lab.aoefs("-i", "aoe0", point)
    assert "e0.0" in lab.run(INITIATOR, ["ls", point]).stdout
    assert '"state": "up"' in lab.aoefs("status", "--json", point).stdout
    lab.aoefs("umount", point)
    assert lab.run(INITIATOR, ["ls", point]).stdout == ""


def test_a_mount_point_may_be_relative_or_a_link(lab: Lab) -> None:
    lab.vblade(0, 0, lab.image("image", MIB))
    (lab.directory / "real").mkdir()
    (lab.directory / "link").symlink_to("real")
    command = COMMANDS / "aoefs"
    lab.run(INITIATOR, ["sh", "-c", f"cd {lab.directory} && {command} -i aoe0 real/../link/ && ls link/e0.0"])
    lab.run(INITIATOR, ["sh", "-c", f"cd {lab.directory} && {command} umount ./link"])
    assert not lab.sides[INITIATOR].packet_sockets()


def test_two_mounts_show_the_same_disk_and_are_independent(lab: Lab) -> None:
    image = lab.image("image", MIB)
    lab.vblade(0, 0, image)
    first, second = lab.mount(), lab.mount()
    assert first.pid != second.pid
    data = os.urandom(5000)
    with (first.here / "e0.0").open("r+b") as file:
        file.write(data)
    assert (second.here / "e0.0").read_bytes()[:5000] == data
    first.umount()
    assert second.mounted and not first.mounted  # noqa: PT018
    lab.run(INITIATOR, ["cmp", image, second.file("e0.0")])
    second.umount()
    assert not lab.sides[INITIATOR].packet_sockets()


# ── its end ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_umount_returns_when_the_daemon_is_gone(lab: Lab) -> None:
    lab.vblade(0, 0, lab.image("image", MIB))
    mount = lab.mount()
    pid = mount.pid
    answer = mount.umount()
    assert is_gone(pid)
    assert (answer.stdout, answer.stderr) == ("", "")
    assert nothing_is_left(lab, mount)
    answer = mount.umount(check=False)
    assert (answer.returncode, answer.stderr) == (1, f"aoefs: {mount.path} is not mounted\n")


def test_umount_of_a_busy_mount_names_its_users_and_changes_nothing(lab: Lab) -> None:
    lab.vblade(0, 0, lab.image("image", MIB))
    mount = lab.mount()
    holder = reader(lab, mount)
    visitor = lab.popen(INITIATOR, ["sh", "-c", f"cd {mount.path}; echo inside; exec tail -f /dev/null"])
    wait_until(lambda: "inside" in visitor.output, what="a working directory")
    answer = mount.umount(check=False)
    assert answer.returncode == 1
    assert answer.stderr.count("\n") == 1
    assert f"sleep (pid {holder.pid})" in answer.stderr
    assert f"tail (pid {visitor.pid})" in answer.stderr
    assert mount.mounted
    lab.run(INITIATOR, ["sh", "-c", f"echo more > {mount.file('e0.0')}"])
    holder.stop()
    visitor.stop()
    mount.umount()
    assert nothing_is_left(lab, mount)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_an_idle_mount_at_once(lab: Lab, number: signal.Signals) -> None:
    lab.vblade(0, 0, lab.image("image", MIB))
    mount = lab.mount(foreground=True)
    process = mount.process
    assert process is not None
    wait_until(lambda: "mounted on" in process.output, what="it says so")
    assert process.stop(number, timeout=20) == 0, process.output
    assert nothing_is_left(lab, mount)
    lines = process.output.splitlines()
    assert any(line.startswith("aoefs: e0.0: ") for line in lines)
    mounted = f"aoefs: mounted on {mount.path}: 1 target on aoe0; visible in this mount namespace only"
    assert [line for line in lines if "mounted" in line] == [mounted]
    assert lines[-1].startswith(f"aoefs: {number.name}: unmounting")


def test_after_a_signal_an_open_file_is_served_until_its_close(lab: Lab) -> None:
    image = lab.image("image", MIB)
    lab.vblade(0, 0, image)
    mount = lab.mount(foreground=True)
    process = mount.process
    assert process is not None
    wait_until(lambda: (mount.here / "e0.0").exists(), what="the target")
    file = os.open(mount.here / "e0.0", os.O_RDWR)
    try:
        process.send_signal(signal.SIGTERM)
        wait_until(lambda: not mount.mounted, what="the mount point is free")
        for turn in range(20):
            assert os.pwrite(file, bytes([turn]) * 700, turn * 701) == 700
            assert os.pread(file, 700, turn * 701) == bytes([turn]) * 700
        os.fsync(file)
        assert process.poll() is None
    finally:
        os.close(file)
    assert process.wait(20) == 0, process.output
    assert image.read_bytes()[19 * 701 :][:700] == bytes([19]) * 700


def test_a_second_signal_ends_at_once(lab: Lab) -> None:
    lab.vblade(0, 0, lab.image("image", MIB))
    mount = lab.mount(foreground=True)
    process = mount.process
    assert process is not None
    wait_until(lambda: (mount.here / "e0.0").exists(), what="the target")
    with opened(mount.here / "e0.0", os.O_RDWR | os.O_DIRECT) as file:
        os.pwrite(file, b"written before", 0)
        process.send_signal(signal.SIGTERM)
        wait_until(lambda: not mount.mounted, what="the mount point is free")
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0, process.output  # what was written is flushed all the same
        assert "second signal" in process.output
        fails_as_dead(lambda: os.pread(file, 512, 0))
    assert nothing_is_left(lab, mount)


def test_a_signal_during_a_copy_lets_the_copy_finish(lab: Lab) -> None:
    image, source = lab.image("image", 24 * MIB), lab.image("source", 24 * MIB, seed=3)
    lab.vblade(0, 0, image)
    mount = lab.mount()
    pid = mount.pid
    copy = lab.popen(INITIATOR, ["dd", f"if={source}", f"of={mount.file('e0.0')}", "bs=64k", "conv=fsync"])
    wait_until(lambda: mount.status()["targets"][0]["write_bytes"] > MIB, what="the copy is on its way")
    os.kill(pid, signal.SIGTERM)
    assert copy.wait(30) == 0, copy.output
    wait_until(lambda: is_gone(pid), what="the daemon has ended")
    assert image.read_bytes() == source.read_bytes()
    assert nothing_is_left(lab, mount)
