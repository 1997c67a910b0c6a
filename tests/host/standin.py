"""A stand-in for ``fuse.mount``: a small file system without any network, for tests of what surrounds a mount.

It has the type ``fuse.aoefs``, ``.aoefs/status.json`` with its pid, and two targets: ``e0.0`` is up; ``e0.1`` is down,
has nothing to flush, and can not be flushed.  As a program: ``python -m tests.host.standin MOUNTPOINT``.  In place of
the real module: :func:`environment`.  The variable ``STANDIN`` holds words that say how it behaves:

- ``hint`` sends one; ``user-error``, ``defect``, ``silent-exit``, ``killed`` fail so before the mount is live;
- ``deaf`` takes every request and answers none;
- ``hang`` never gets live, ``hang-mounted`` does so after mounting; ``stubborn`` ignores SIGTERM too;
- ``flush-fails`` lets every fsync of e0.0 fail, ``flush-hangs`` lets it never end;
- ``slow-exit`` takes half a second from the unmount to the exit;
- ``defect-later`` fails when the mount is gone, as a defect would;
- ``as=UID`` serves as this user;
- ``pid=PID`` and ``name=NAME`` (instead of e0.1's) are lies of its status, ``dead`` an answer that a dead one gives;
- ``swap=PARENT:PATH`` replaces the directory PARENT by a symbolic link to PATH when it is first asked;
- ``link=PATH`` gives a symbolic link for its status, ``endless`` one without an end.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import stat
import sys
import time
from pathlib import Path

import pyfuse3
import trio

from aoefs.errors import UserError
from aoefs.fuse.options import MountOptions
from aoefs.host.background import Ready
from aoefs.host.mountpoint import find_mount, unmount

WORDS = os.environ.get("STANDIN", "").split()
VALUES = dict(word.split("=", 1) for word in WORDS if "=" in word)
DISK_BYTES = 1 << 20
ROOT, CONTROL, STATUS, UP, DOWN = pyfuse3.ROOT_INODE, 2, 3, 4, 5
NAMES = {(ROOT, b".aoefs"): CONTROL, (CONTROL, b"status.json"): STATUS, (ROOT, b"e0.0"): UP, (ROOT, b"e0.1"): DOWN}

_FINDER = """
import importlib.util, sys

class Finder:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name == "aoefs.fuse.mount":
            return importlib.util.spec_from_file_location(name, {file!r})

sys.meta_path.insert(0, Finder)
"""


def environment(directory: Path, *words: str) -> dict[str, str]:
    """Variables that put this module in the place of ``fuse.mount`` for a Python started with them."""
    (directory / "sitecustomize.py").write_text(_FINDER.format(file=__file__))
    search = os.pathsep.join(filter(None, (str(directory), os.environ.get("PYTHONPATH"))))
    return {"PYTHONPATH": search, "STANDIN": " ".join(words)}


def target(name: str, state: str) -> dict[str, object]:
    path = {"interface": "aoe0", "mac": "02:ae:00:00:02:00", "bufcnt": 16, "sectors": 2}
    known = {"name": name, "size": DISK_BYTES, "model": "Stand-in\x1b[2J", "serial": "S1", "config": ""}
    counters = {"read_bytes": 4096, "write_bytes": 0, "errors": 0, "in_flight": 0}
    return {**known, **counters, "state": state, "paths": [path], "dirty": state == "up"}


class Disks(pyfuse3.Operations):
    def __init__(self) -> None:
        super().__init__()
        name = VALUES.get("name")
        targets = [target("e0.0", "up"), target(name or "e0.1", "up" if name else "down")]
        pid = int(VALUES.get("pid", os.getpid()))
        self.status = json.dumps({"pid": pid, "mountpoint": "/", "targets": targets}).encode()

    async def statfs(self, ctx: pyfuse3.RequestContext) -> pyfuse3.StatvfsData:
        await _answer()
        if "swap" in VALUES:
            parent, _, link = VALUES.pop("swap").partition(":")
            os.rename(parent, f"{parent}.moved")
            os.symlink(link, parent)
        if "dead" in WORDS:
            raise pyfuse3.FUSEError(errno.ENOTCONN)
        return await super().statfs(ctx)

    async def getattr(self, inode: int, ctx: object = None) -> pyfuse3.EntryAttributes:
        await _answer()
        entry = pyfuse3.EntryAttributes()
        entry.st_ino = pyfuse3.InodeT(inode)
        entry.st_mode = pyfuse3.ModeT(stat.S_IFDIR | 0o755 if inode <= CONTROL else stat.S_IFREG | 0o666)
        if inode == STATUS and "link" in VALUES:
            entry.st_mode = pyfuse3.ModeT(stat.S_IFLNK | 0o777)
        entry.st_size = len(self.status) if inode == STATUS else DISK_BYTES
        entry.attr_timeout = entry.entry_timeout = 300  # as long as in the real file system
        entry.st_uid, entry.st_gid = os.getuid(), os.getgid()
        return entry

    async def lookup(self, parent_inode: int, name: bytes, ctx: object = None) -> pyfuse3.EntryAttributes:
        await _answer()
        if (parent_inode, name) not in NAMES:
            raise pyfuse3.FUSEError(errno.ENOENT)
        return await self.getattr(NAMES[parent_inode, name])

    async def opendir(self, inode: int, ctx: object) -> pyfuse3.FileHandleT:
        return pyfuse3.FileHandleT(inode)

    async def readdir(self, fh: int, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        for (parent, name), inode in NAMES.items():
            wanted = parent == fh and inode > start_id
            if wanted and not pyfuse3.readdir_reply(token, pyfuse3.FileNameT(name), await self.getattr(inode), inode):
                return

    async def readlink(self, inode: int, ctx: object) -> bytes:
        return os.fsencode(VALUES["link"])

    async def open(self, inode: int, flags: int, ctx: object) -> pyfuse3.FileInfo:
        return pyfuse3.FileInfo(fh=pyfuse3.FileHandleT(inode), direct_io="endless" in WORDS)

    async def read(self, fh: int, off: int, size: int) -> bytes:
        if "endless" in WORDS:
            return bytes(size)
        data = self.status if fh == STATUS else bytes(DISK_BYTES)
        return data[off : off + size]

    async def fsync(self, fh: int, datasync: bool) -> None:
        if "flush-hangs" in WORDS:
            await trio.sleep_forever()
        if fh == DOWN or "flush-fails" in WORDS:
            raise pyfuse3.FUSEError(errno.EIO)


async def _answer() -> None:
    if "deaf" in WORDS:
        await trio.sleep_forever()


async def _serve(path: str, ready: Ready) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_unmount_on_signal, path)
        ready.ok("a hint\nof two lines" if "hint" in WORDS else None)
        await pyfuse3.main()
        nursery.cancel_scope.cancel()


async def _unmount_on_signal(path: str) -> None:
    with trio.open_signal_receiver(signal.SIGTERM) as signals:
        async for _ in signals:
            mount = find_mount(path)
            assert mount is not None
            unmount(mount, lazy=True)


def run(options: MountOptions, ready: Ready, reread: object = None) -> int:
    """As ``fuse.mount.run``."""
    if "stubborn" in WORDS:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if "hang" in WORDS:
        time.sleep(60)
    if "user-error" in WORDS:
        raise UserError("the stand-in\ndoes not want", exit_code=7)
    if "defect" in WORDS:
        raise ZeroDivisionError("in the stand-in")
    if "silent-exit" in WORDS:
        os._exit(5)
    if "killed" in WORDS:
        os.kill(os.getpid(), signal.SIGKILL)
    if "as" in VALUES:
        number = int(VALUES["as"])
        os.setgroups([])
        os.setresgid(number, number, number)
        os.setresuid(number, number, number)
    pyfuse3.init(Disks(), options.mountpoint, {"fsname=standin", "subtype=aoefs"})
    if "hang-mounted" in WORDS:
        time.sleep(60)
    try:
        trio.run(_serve, options.mountpoint, ready)
    finally:
        pyfuse3.close()
    if "slow-exit" in WORDS:
        time.sleep(0.5)
    if "defect-later" in WORDS:
        raise ZeroDivisionError("after the mount")
    return 0


if __name__ == "__main__":
    sys.exit(run(MountOptions(mountpoint=sys.argv[1], uid=0, gid=0), Ready()))
