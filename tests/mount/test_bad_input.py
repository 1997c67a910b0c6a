"""A mistake on the command line: one line that says what is wrong, where and what to do, an exit code, nothing left."""

from __future__ import annotations

import os
import pwd
import signal
import stat
import subprocess
from collections.abc import Iterator

import pytest

from tests.lab import COMMANDS, INITIATOR, TARGET, Argument, Lab, require, wait_until
from tests.mount.place import MIB

AOEFS = COMMANDS / "aoefs"
NOBODY = pwd.getpwnam("nobody").pw_uid


@pytest.fixture(scope="module")
def wired() -> Iterator[Lab]:
    """One lab for all: aoe0 with a target behind it, aoe1 down, aoe2 with an MTU too small for a sector."""
    with Lab(pairs=2) as lab:
        lab.cable(INITIATOR, TARGET, mtu=500)
        lab.ip(INITIATOR, "link", "set", "aoe1", "down")
        lab.vblade(0, 0, lab.image("disk", MIB))
        (lab.directory / "point").mkdir()
        (lab.directory / "full").mkdir()
        (lab.directory / "full/file").touch()
        (lab.directory / "file").touch()
        (lab.directory / "taken").mkdir()
        lab.run(INITIATOR, ["mount", "-t", "tmpfs", "tmpfs", lab.directory / "taken"])
        (lab.directory / "mounted").mkdir()
        lab.aoefs("-i", "aoe0", lab.directory / "mounted")
        os.mknod(lab.directory / "fuse", 0o666 | stat.S_IFCHR, os.stat("/dev/fuse").st_rdev)  # as on a desktop
        (lab.directory / "fuse").chmod(0o666)
        lab.run(INITIATOR, ["mount", "--bind", lab.directory / "fuse", "/dev/fuse"])
        (lab.directory / "empty.img").touch()
        (lab.directory / "tiny.img").write_bytes(b"x" * 511)
        (lab.directory / "odd.img").write_bytes(b"x" * 1234)
        yield lab


def everything(lab: Lab) -> tuple[str, int, int]:
    """What a failed command could leave: mounts, sockets, processes."""
    mounts = "\n".join(line for line in lab.sides[INITIATOR].mounts() if str(lab.directory) in line)
    pids = subprocess.run(["ip", "netns", "pids", lab.sides[INITIATOR].namespace], capture_output=True, check=True)
    return mounts, lab.sides[INITIATOR].packet_sockets(), len(pids.stdout.split())


def complaint(lab: Lab, command: list[Argument], code: int) -> str:
    """The line of a command that fails with ``code`` and leaves nothing."""
    before = everything(lab)
    answer = lab.run(INITIATOR, command, check=False, timeout=30)
    assert answer.stdout == ""
    assert answer.returncode == code, answer.stderr
    assert answer.stderr.count("\n") == 1, answer.stderr
    assert answer.stderr.startswith("aoefs: ")
    assert everything(lab) == before
    return answer.stderr


MISTAKES: dict[str, tuple[str, int, str]] = {
    "no mount point": ("", 2, "no mount point given"),
    "three arguments": ("a b c", 2, "too many arguments"),
    "missing directory": ("-i aoe0 {}/none", 1, "mkdir -p"),
    "a file": ("-i aoe0 {}/file", 1, "not a directory"),
    "not empty": ("-i aoe0 {}/full", 1, "not empty"),
    "mounted by us": ("-i aoe0 {}/mounted", 1, "mounted already (fuse.aoefs): 'aoefs umount"),
    "mounted by others": ("-i aoe0 {}/taken", 1, "mounted already (tmpfs)"),
    "below a target": ("-i aoe0 {}/mounted/e0.0", 1, "not a directory"),
    "inside a mount": ("-i aoe0 {}/mounted/.aoefs", 1, "not empty"),
    "unknown interface": ("-i aoe9 {}/point", 1, "aoe9"),
    "long interface": ("-i " + "x" * 200 + " {}/point", 1, "xxx"),
    "unknown source": ("aoe0,aoe9 {}/point", 1, "aoe9"),
    "interface down": ("-i aoe1 {}/point", 1, "aoe1 is down"),
    "MTU too small": ("-i aoe2 {}/point", 1, "MTU"),
    "no Ethernet": ("-i lo {}/point", 1, "lo"),
    "one good one bad": ("-i aoe0 -i aoe1 {}/point", 1, "aoe1"),
    "unknown option": ("--nosuch {}/point", 2, "--nosuch"),
    "unknown word": ("-i aoe0 -o nosuch {}/point", 2, "'nosuch'"),
    "deadsecs": ("-i aoe0 --deadsecs soon {}/point", 2, "'soon'"),
    "negative deadsecs": ("-i aoe0 -o deadsecs=-1 {}/point", 2, "'-1'"),
    "nan deadsecs": ("-i aoe0 -o deadsecs=nan {}/point", 2, "'nan'"),
    "shards": ("-i aoe0 --shards 0 {}/point", 2, "'0'"),
    "maxout": ("-i aoe0 --maxout 1e3 {}/point", 2, "'1e3'"),
    "umask": ("-i aoe0 -o umask=899 {}/point", 2, "'899'"),
    "uid": ("-i aoe0 -o uid=nobody-at-all {}/point", 2, "nobody-at-all"),
    "allow-mac": ("-i aoe0 --allow-mac 1:2:3 {}/point", 2, "1:2:3"),
    "umount of nothing": ("umount {}/point", 1, "not mounted"),
    "umount of others": ("umount {}/taken", 1, "tmpfs is mounted there"),
    "umount of a missing one": ("umount {}/none", 1, "not mounted"),
    "mount as a word": ("mount {}/point", 2, "mounting has no command word: 'aoefs /"),
    "status of nothing": ("status {}/point", 1, "not mounted"),
    "discover nowhere": ("discover -i aoe9", 1, "aoe9"),
    "target on a bad slot": ("target -i aoe0 0.255={}/odd.img", 2, "255"),
    "target on a bad shelf": ("target -i aoe0 65535.0={}/odd.img", 2, "65535"),
    "target without address": ("target -i aoe0 {}/odd.img", 2, "X.Y=PATH"),
    "target without file": ("target -i aoe0 0.1=", 2, "X.Y=PATH"),
    "target of nonsense": ("target -i aoe0 a.b={}/odd.img", 2, "a.b"),
    "target with a missing file": ("target -i aoe0 0.1={}/none", 1, "no such file"),
    "target with an empty file": ("target -i aoe0 0.1={}/empty.img", 1, "it is empty"),
    "target with a tiny file": ("target -i aoe0 0.1={}/tiny.img", 1, "less than one sector"),
    "target with a directory": ("target -i aoe0 0.1={}/full", 1, "it is a directory"),
    "target with a FIFO": ("target -i aoe0 0.1=/dev/null", 1, "neither a file nor a block device"),
    "target twice": ("target -i aoe0 0.1={}/odd.img 0.1={}/disk", 2, "given twice"),
    "target nowhere": ("target 0.1={}/odd.img", 2, "-i"),
    "target on a link that is down": ("target -i aoe1 0.1={}/odd.img", 1, "aoe1 is down"),
    "target bufcnt": ("target -i aoe0 --bufcnt 0 0.1={}/odd.img", 2, "bufcnt"),
    "target allow-mac": ("target -i aoe0 --allow-mac 1:2 0.1={}/odd.img", 2, "'1:2' is not a MAC address"),
    "target config": ("target -i aoe0 --config-string " + "c" * 1025 + " 0.1={}/odd.img", 2, "1024"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_reported_in_one_line_and_leaves_nothing(wired: Lab, mistake: str) -> None:
    line, code, says = MISTAKES[mistake]
    arguments = line.replace("{}", str(wired.directory)).split()
    assert says in complaint(wired, [AOEFS, *arguments], code)


def test_without_the_right_to_raw_ethernet_the_line_says_so(wired: Lab) -> None:
    require("setpriv")
    drop = ["setpriv", "--bounding-set", "-net_raw", "--inh-caps", "-net_raw", "--"]
    for arguments in (["-i", "aoe0", wired.directory / "point"], ["discover", "-i", "aoe0"]):
        assert "CAP_NET_RAW" in complaint(wired, [*drop, AOEFS, *arguments], 1)


def test_without_dev_fuse_the_line_says_so(wired: Lab) -> None:
    hide = ["unshare", "-m", "sh", "-c", 'mount -t tmpfs tmpfs /dev && exec "$@"', "sh"]
    assert "/dev/fuse is missing" in complaint(wired, [*hide, AOEFS, "-i", "aoe0", wired.directory / "point"], 1)


def plain_user(*more: Argument) -> list[Argument]:
    """The prefix that runs a command as a user who may do raw Ethernet, and read the Python that may be below /root."""
    rights = ["--inh-caps", "+net_raw,+dac_read_search", "--ambient-caps", "+net_raw,+dac_read_search"]
    return ["setpriv", "--reuid", NOBODY, "--regid", NOBODY, "--clear-groups", *rights, *more]


def test_without_fusermount3_a_user_is_asked_to_install_it(wired: Lab) -> None:
    require("setpriv")
    home = wired.directory / "home"
    home.mkdir()
    os.chown(home, NOBODY, NOBODY)
    command = plain_user("env", "PATH=/nowhere", AOEFS, "-i", "aoe0", home)
    assert "fusermount3 is missing" in complaint(wired, command, 1)
    os.chown(home, 0, 0)
    assert "not yours" in complaint(wired, plain_user(AOEFS, "-i", "aoe0", home), 1)


def test_a_user_with_the_right_to_raw_ethernet_mounts_and_unmounts(wired: Lab) -> None:
    require("setpriv", "fusermount3")
    before = everything(wired)
    home = wired.directory / "user"
    home.mkdir()
    os.chown(home, NOBODY, NOBODY)
    wired.run(INITIATOR, plain_user(AOEFS, "-i", "aoe0", home))
    wired.run(INITIATOR, plain_user("cmp", wired.directory / "disk", home / "e0.0"))
    assert "Permission denied" in wired.run(INITIATOR, ["ls", home], check=False).stderr  # not even root's
    wired.run(INITIATOR, plain_user(AOEFS, "umount", home))
    assert everything(wired) == before


def test_a_file_that_is_no_multiple_of_a_sector_is_exported_rounded_down_with_a_warning(wired: Lab) -> None:
    target = wired.target(f"5.5={wired.directory}/odd.img")
    wait_until(lambda: "5.5" in target.output, what="it serves")
    assert "the last 210 bytes are not exported: 1234 is not a multiple of 512" in target.output
    here = wired.sides[INITIATOR].root / wired.directory.relative_to("/") / "mounted/e5.5"
    wait_until(here.exists, what="it appears")
    assert here.read_bytes() == b"x" * 1024
    assert target.stop(signal.SIGINT) == 0
