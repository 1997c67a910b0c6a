"""The files that one disk has in the mount: the whole of it, and its partitions as its table says now.

Owns which of them are open, and the table as it was read last.  Inode numbers are the tree's (``fuse.tree``).

What always holds:

- A :class:`Node` stands for the same bytes as long as it lives.  A partition that the table gives another place is
  gone (its handles fail) and another node takes the name; one that the table leaves alone stays, open or not.
- Two files that overlap are never open for writing at the same time: each has a page cache of its own.
- A table that cannot be read (the disk is silent) changes nothing; one that is broken leaves no partitions and one log
  line.

Rejected: locks or shared pages between two such files (the kernel has neither for files of a FUSE mount), and a file
for an extended partition (it overlaps the logical ones in it).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import trio

from aoefs.core.target import Target
from aoefs.engine.disk import Disk
from aoefs.errors import FrameError, IdentityChanged, RequestError
from aoefs.fuse.partitions import Partition, read_table_untrusted
from aoefs.protocol.wire import SECTOR_BYTES

log = logging.getLogger("aoefs")


@dataclass(slots=True, eq=False)
class Node:
    """One file: its inode number, its name, where it begins on the disk (bytes), how many handles are open."""

    inode: int
    name: bytes
    disk: Disk
    siblings: DiskNodes
    partition: Partition | None = None  # None: the whole disk
    start: int = 0
    opened: int = 0
    writing: int = 0  # handles that may write
    gone: bool = False  # its handles fail

    @property
    def target(self) -> Target:
        return self.disk.target

    @property
    def size_bytes(self) -> int:
        return self.disk.size_bytes if self.partition is None else self.partition.sectors * SECTOR_BYTES

    def room(self, offset: int) -> int:
        """Bytes from ``offset`` to the end of the file, negative behind it; IdentityChanged for a partition that went.

        A request to a whole disk that went fails by itself.
        """
        if self.partition is None:
            return self.disk.size_bytes - offset
        if self.gone:
            raise IdentityChanged(f"{self.name.decode()} is not the same part of the disk any more")
        return min(self.size_bytes, self.disk.size_bytes - self.start) - offset  # the disk may have shrunk just now


@dataclass(slots=True, eq=False)
class DiskNodes:
    """See the module.  ``number()`` gives an inode number that was never used."""

    disk: Disk
    number: Callable[[], int]
    whole: Node = field(init=False)
    partitions: list[Node] = field(default_factory=list)
    _gone: list[Node] = field(default_factory=list)  # which the kernel still has to forget
    _reading: trio.Lock = field(default_factory=trio.Lock)
    _known: bool = False
    _complaint: str = ""

    def __post_init__(self) -> None:
        self.whole = Node(self.number(), self.disk.target.name.encode(), self.disk, self)

    def __iter__(self) -> Iterator[Node]:
        yield self.whole
        yield from self.partitions

    def may_write(self, node: Node) -> bool:
        """False while a file that overlaps ``node`` is open for writing."""
        others = self.partitions if node is self.whole else [self.whole]
        return not any(other.writing for other in others)

    def may_keep_pages(self, node: Node) -> bool:
        """Whether what the kernel has cached of ``node`` is good for one more handle.

        Not for the first one, since other hosts may have written, and not where the same bytes have another file.
        """
        return node.opened > 0 and not self.partitions

    def take_gone(self) -> list[Node]:
        """The partitions that are gone and that the kernel still has to forget; once."""
        gone, self._gone = self._gone, []
        return gone

    async def read_table(self, *, again: bool) -> bool:
        """Read the partition table, if ``again`` also one that is known; True if partitions are gone.

        One caller reads, and a second one waits to read after it.  Any other returns at once: the second reads late
        enough to see whatever made the others call.
        """
        if self._reading.statistics().tasks_waiting:
            return False
        async with self._reading:
            if self._known and not again:
                return False
            name = self.disk.target.name
            complaint = ""
            try:
                found = await read_partitions(self.disk)
            except RequestError as error:
                log.info("%s: its partition table cannot be read: %s", name, error)
                return False
            except FrameError as error:
                found, complaint = (), str(error)
            if complaint and complaint != self._complaint:
                log.warning("%s: its partition table is broken and gives no files: %s", name, complaint)
            self._known, self._complaint = True, complaint
            return self._set(found)

    def _set(self, found: tuple[Partition, ...]) -> bool:
        kept = {node.partition: node for node in self.partitions if node.partition in found}
        went = [node for node in self.partitions if node.partition not in kept]
        self.partitions = [kept.get(partition) or self._make(partition) for partition in found]
        for node in went:
            node.gone = True
        self._gone += went
        return bool(went)

    def _make(self, partition: Partition) -> Node:
        name = b"%sp%d" % (self.whole.name, partition.number)
        return Node(self.number(), name, self.disk, self, partition, partition.first * SECTOR_BYTES)


async def read_partitions(disk: Disk) -> tuple[Partition, ...]:
    """What the partition table of a disk says now.  FrameError when it is broken, RequestError as Disk.read."""
    parser = read_table_untrusted(disk.target.identity.sectors)
    try:
        lba, sectors = next(parser)
        while True:
            if lba + sectors > disk.target.identity.sectors:
                raise FrameError("the disk shrank while it was read")
            lba, sectors = parser.send(bytes(await disk.read(lba * SECTOR_BYTES, sectors * SECTOR_BYTES)))
    except StopIteration as ended:
        partitions: tuple[Partition, ...] = ended.value
        return partitions
