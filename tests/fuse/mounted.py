"""The file system's operations as pyfuse3 would call them, without a mount, on an engine on a simulated segment."""

from __future__ import annotations

import errno
import os
from collections.abc import AsyncIterator, Callable, Hashable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from types import SimpleNamespace
from typing import Any, cast

import pyfuse3
import pytest
import trio
from pyfuse3 import EntryAttributes, FUSEError

from aoefs.engine.changes import Change
from aoefs.engine.disk import Disk
from aoefs.engine.settings import Settings
from aoefs.fuse.control import Control
from aoefs.fuse.kernel import Kernel, Notice
from aoefs.fuse.operations import AoeOperations
from aoefs.fuse.options import MountOptions
from aoefs.fuse.tree import ROOT
from aoefs.status.events import EventRing
from aoefs.status.report import StatusText
from tests.scene import Scene, open_scene


class FakeKernel(Kernel):
    """Keeps the notices."""

    def __init__(self) -> None:
        self.notices: list[Notice] = []

    def notify(self, disk: Hashable, notices: Sequence[Notice]) -> None:
        self.notices += notices

    def take(self) -> list[Notice]:
        """The notices since the last call."""
        taken, self.notices = self.notices, []
        return taken


OWNER = 1000  # of the mount


def context(uid: int = OWNER) -> pyfuse3.RequestContext:
    """Of a request of this user."""
    return cast(pyfuse3.RequestContext, SimpleNamespace(uid=uid))


CONTEXT = context()


class Mounted:
    """Operations as pyfuse3 would call them, with plain types."""

    def __init__(
        self,
        scene: Scene,
        operations: AoeOperations,
        kernel: FakeKernel,
        changes: list[tuple[Disk, Change]],
        ring: EventRing,
    ) -> None:
        self.scene = scene
        self.ring = ring
        self.operations: Any = operations
        self.kernel = kernel
        self.changes = changes

    async def lookup(self, name: str, parent: int = ROOT) -> EntryAttributes:
        return cast(EntryAttributes, await self.operations.lookup(parent, name.encode(), CONTEXT))

    async def inode(self, name: str, parent: int = ROOT) -> int:
        return int((await self.lookup(name, parent)).st_ino)

    async def open(self, name: str = "e0.0", flags: int = os.O_RDWR) -> int:
        return int((await self.operations.open(await self.inode(name), flags, CONTEXT)).fh)

    async def read(self, handle: int, offset: int, size: int) -> bytes:
        return bytes(await self.operations.read(handle, offset, size))

    async def write(self, handle: int, offset: int, data: bytes) -> int:
        return int(await self.operations.write(handle, offset, data))


@asynccontextmanager
async def mounted(
    settings: Settings | None = None, set_interfaces: Callable[..., object] = print, **options: Any
) -> AsyncIterator[Mounted]:
    changes: list[tuple[Disk, Change]] = []
    fields: dict[str, Any] = {"mountpoint": "/mnt/aoe", "uid": OWNER, "gid": 1001} | options
    async with open_scene(settings, on_change=lambda disk, change: changes.append((disk, change))) as scene:
        ring = EventRing()
        status = StatusText(
            scene.engine.statistics, ring.snapshot, trio.current_time, mountpoint="/mnt/aoe", pid=4711, version="0"
        )
        control = Control(scene.engine, ring, status.read, set_interfaces)
        kernel = FakeKernel()
        yield Mounted(
            scene, AoeOperations(scene.engine, control, kernel, MountOptions(**fields)), kernel, changes, ring
        )


@contextmanager
def fails(code: int) -> Iterator[None]:
    with pytest.raises(FUSEError) as caught:
        yield
    assert errno.errorcode[caught.value.errno] == errno.errorcode[code]


class Listing:
    """Takes ``room`` entries of a readdir call at a time."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.room = 0
        self.entries: list[tuple[str, int]] = []
        self.next_id = 0
        monkeypatch.setattr(pyfuse3, "readdir_reply", self._reply)

    def _reply(self, _token: object, name: bytes, entry: EntryAttributes, next_id: int) -> bool:
        if not self.room:
            return False
        self.room -= 1
        self.entries.append((name.decode(), entry.st_ino))
        assert next_id > self.next_id
        self.next_id = next_id
        return True

    async def read(self, mount: Mounted, inode: int, room: int) -> int:
        """One call; how many entries it gave."""
        before = len(self.entries)
        self.room = room
        await mount.operations.readdir(inode, self.next_id, object())
        return len(self.entries) - before

    @property
    def names(self) -> list[str]:
        return [name for name, _ in self.entries]
