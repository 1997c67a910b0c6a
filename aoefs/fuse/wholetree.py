"""The tree of a mount with workers: its own files, and placeholders for those that workers serve.

A placeholder is a name in the mount point over which a file of a worker is bound (``host.binds``), so that no open gets
to it.  Whoever sees the mount without its binds, as a container may, gets ENXIO from it and never writes to it.

What always holds: the kernel unmounts what is mounted on a name that is looked up as another inode, or not found.  So
the inode number of a placeholder never changes, and while it is bound only the thread that does it gets an answer
(``binders``): others wait.
"""

from __future__ import annotations

import errno
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial

import trio
from pyfuse3 import EntryAttributes, FUSEError

from aoefs.fuse.control import ControlFile
from aoefs.fuse.tree import CONTROL, ROOT, Claim, ControlNode, Tree, serial_name

BIND_SECONDS = 1.0  # that a lookup waits for a bind: it takes milliseconds, unless the worker hangs
FOREVER = 1e9  # seconds: the kernel goes through a placeholder to its bind, also when this process is dead


@dataclass(slots=True, eq=False)
class Placeholder:
    """``bound``: the inode number of the worker's file that is bound over it, 0 while there is none.  ``directory`` has
    the control files of a target, unless this is a partition; ``serial`` is that of the target.
    """

    inode: int
    name: bytes
    directory: ControlNode | None
    bound: int = 0
    serial: str = ""
    binding: trio.Event | None = None  # set when a bind is there, or failed


class WholeTree(Tree):
    """See the module."""

    def __init__(self, *arguments: object) -> None:
        super().__init__(*arguments)  # type: ignore[arg-type]  # as they are
        self.placeholders: dict[bytes, Placeholder] = {}
        self.binders: set[int] = set()  # threads
        self._by_inode: dict[int, Placeholder] = {}

    def placeholder(self, name: bytes, files: Mapping[str, ControlFile]) -> Placeholder:
        """The placeholder of this name, made if there is none; ``files`` are the control files of a whole target."""
        found = self.placeholders.get(name)
        if found is None:
            path = f"{self._control_root.path}/{name.decode()}"
            directory = self._make_directory(path, files) if files else None
            found = self.placeholders[name] = Placeholder(self._new_inode(), name, directory)
            self._by_inode[found.inode] = found
        return found

    def binding_of(self, directory: int, name: bytes, thread: int) -> trio.Event | None:
        """For which a lookup waits, if the name is being bound."""
        found = self.placeholders.get(name)
        return None if found is None or directory != ROOT or thread in self.binders else found.binding

    async def wait_for_bind(self, binding: trio.Event) -> None:
        with trio.move_on_after(BIND_SECONDS):
            await binding.wait()

    def is_placeholder(self, inode: int) -> bool:
        return inode in self._by_inode

    def find(self, directory: int, name: bytes, thread: int = 0) -> int:
        found = self.placeholders.get(name)
        if found is None or directory not in (ROOT, CONTROL):
            return super().find(directory, name, thread)
        if not found.bound and not (directory == ROOT and thread in self.binders):
            raise FUSEError(errno.ENOENT)
        if directory == ROOT:
            return found.inode
        if found.directory is None:
            raise FUSEError(errno.ENOENT)
        return found.directory.inode

    def claims(self) -> list[Claim]:
        """Those of the disks of workers too."""
        whole = [found for found in self.placeholders.values() if found.bound and found.directory]
        claims = [Claim(found.name.decode(), serial_name(found.serial), partial(self._files, found)) for found in whole]
        return [*super().claims(), *(claim for claim in claims if claim.serial)]

    def _files(self, whole: Placeholder) -> Iterable[Placeholder]:
        """A disk and its partitions."""
        found = self.placeholders.values()
        return [one for one in found if one.bound and one.name.partition(b"p")[0] == whole.name]

    def entries(self, directory: int) -> list[tuple[int, bytes]]:
        entries = super().entries(directory)
        bound = [found for found in self.placeholders.values() if found.bound]
        if directory == ROOT:
            entries += [(found.inode, found.name) for found in bound]
        elif directory == CONTROL:
            entries += [(found.directory.inode, found.name) for found in bound if found.directory]
        return sorted(entries)

    def attributes(self, inode: int) -> EntryAttributes:
        found = self._by_inode.get(inode)
        if found is None:
            return super().attributes(inode)
        entry = EntryAttributes()
        entry.st_ino = inode
        entry.st_mode = stat.S_IFREG
        entry.st_atime_ns = entry.st_mtime_ns = entry.st_ctime_ns = self._mounted_ns
        entry.entry_timeout = FOREVER if found.bound else 0
        entry.attr_timeout = FOREVER
        return entry
