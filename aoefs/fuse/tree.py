"""The tree of the mount: which name is which inode, and what stat(2) says of it.

Owns the inode numbers: of the root, of ``.aoefs`` and its control files, of the files of each disk (``fuse.nodes``), of
its directory below ``.aoefs``, and of the links in ``by-serial``: SERIAL to the disk, SERIAL-part1 to its partition 1.

What always holds: an inode number stands for one disk (one ``core.target.Target``), one partition at one place of it,
one control file, or one link, and is never used again.  Another disk under the same name gets a new number.  mtime
never moves: the kernel would drop its cache at every look.  A serial that two disks claim has no link, or a clone could
take the place of a disk that is mounted by its serial.
"""

from __future__ import annotations

import errno
import functools
import logging
import os
import re
import stat
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple, Protocol

import pyfuse3
from pyfuse3 import EntryAttributes, FUSEError

from aoefs.engine.disk import Disk
from aoefs.fuse.control import Control, ControlFile
from aoefs.fuse.nodes import DiskNodes, Node
from aoefs.fuse.options import MountOptions
from aoefs.protocol.wire import SECTOR_BYTES, Address

log = logging.getLogger("aoefs")

BLOCK_BYTES = 1 << 20  # st_blksize: what cat and cp then ask for
CACHE_SECONDS = 3600.0  # how long the kernel may keep attributes, and names of ours; changes are pushed to it
ROOT = pyfuse3.ROOT_INODE
CONTROL = ROOT + 1
_FIRST_DISK = 16  # below are the control files of the mount itself
BY_SERIAL = _FIRST_DISK - 1
_CONTROL_NAME, _BY_SERIAL_NAME = b".aoefs", b"by-serial"


@dataclass(slots=True)
class ControlNode:
    """A directory of control files by name, or one of them."""

    inode: int
    path: str
    file: ControlFile | None = None
    children: dict[bytes, ControlNode] = field(default_factory=dict)


class Named(Protocol):
    """What a link leads to: ``e0.0``, or ``e0.0p1``."""

    @property
    def name(self) -> bytes: ...


class Claim(NamedTuple):
    """The disk ``name`` has the links of this ``serial`` number (as links are named) to its ``files()``, unless another
    disk claims them too.
    """

    name: str
    serial: str
    files: Callable[[], Iterable[Named]]


@functools.lru_cache(2048)
def serial_name(serial: str) -> str:
    """The serial number as udev writes it in a name: blanks and what is special as ``_``."""
    name = re.sub(r"[^A-Za-z0-9#+.:=@_-]", "_", "_".join(serial.split()))
    return "" if name in (".", "..") else name


class Tree:
    """``disks`` are the present ones by address.  Of the options: ``umask`` is taken from 0666 (files) and 0777
    (directories); control files are never writable for others than their owner.  ``process`` is a
    number of which no other process of the mount gives inode numbers.
    """

    def __init__(
        self, disks: Mapping[Address, Disk], control: Control, options: MountOptions, process: int = 0
    ) -> None:
        self.nodes: dict[int, Node] = {}  # by inode number
        self.control_nodes: dict[int, ControlNode] = {}
        self.links: dict[int, Named] = {}  # by the inode number of the link
        self._disks = disks
        self._control = control
        self._owner = (options.uid, options.gid)
        self._umask = options.umask
        self._read_only = options.read_only
        self._mounted_ns = time.time_ns()
        self._of_disk: dict[Disk, DiskNodes] = {}
        self._directories: dict[Disk, ControlNode] = {}
        self._link_to: dict[Named, int] = {}
        self._next_inode = CONTROL
        self._control_root = self._make_directory(_CONTROL_NAME.decode(), control.files)
        self._next_inode = _FIRST_DISK + (process << 32)

    # ── nodes ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def _new_inode(self) -> int:
        self._next_inode += 1
        return self._next_inode - 1

    def _make_directory(self, path: str, files: Mapping[str, ControlFile]) -> ControlNode:
        directory = ControlNode(self._new_inode(), path)
        for name, file in files.items():
            directory.children[name.encode()] = ControlNode(self._new_inode(), f"{path}/{name}", file)
        for node in (directory, *directory.children.values()):
            self.control_nodes[node.inode] = node
        return directory

    def is_present(self, disk: Disk) -> bool:
        return self._disks.get(disk.target.address) is disk

    def nodes_of(self, disk: Disk) -> DiskNodes:
        """The files of a disk, made when they are first asked for."""
        nodes = self._of_disk.get(disk)
        if nodes is None:
            nodes = self._of_disk[disk] = DiskNodes(disk, self._new_inode)
            self.nodes[nodes.whole.inode] = nodes.whole
            path = f"{self._control_root.path}/{disk.target.name}"
            self._directories[disk] = self._make_directory(path, self._control.files_of(disk))
        return nodes

    def known_nodes_of(self, disk: Disk) -> DiskNodes | None:
        """The same, if the kernel may know of any."""
        return self._of_disk.get(disk)

    def remove(self, disk: Disk) -> tuple[Node, ...]:
        """The disk is gone for good: its files, gone too now."""
        nodes = self._of_disk.pop(disk)
        directory = self._directories.pop(disk)
        for control in (directory, *directory.children.values()):
            del self.control_nodes[control.inode]
        return self.mark_gone([*nodes.take_gone(), *nodes])

    def mark_gone(self, nodes: Iterable[Node]) -> tuple[Node, ...]:
        """Open handles on them fail from now on."""
        gone = tuple(nodes)
        for node in gone:
            node.gone = True
            self.let_go(node)
        return gone

    def let_go(self, node: Node) -> None:
        """Forget a node that is gone, unless it is still open."""
        if node.gone and not node.opened:
            self.nodes.pop(node.inode, None)
            self.links.pop(self._link_to.pop(node, 0), None)

    # ── names ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def _disk_named(self, name: bytes) -> Disk:
        """The disk of this name now; ENOENT if there is none."""
        try:
            disk = self._disks.get(Address.parse(os.fsdecode(name)))
        except ValueError:
            disk = None
        if disk is None or os.fsencode(disk.target.name) != name:
            raise FUSEError(errno.ENOENT)
        return disk

    def find(self, directory: int, name: bytes, thread: int = 0) -> int:
        """The inode of a name in a directory, for a ``thread``; ENOENT if there is none."""
        if name == b".":
            return directory
        if name == b"..":
            return CONTROL if directory > CONTROL and directory != BY_SERIAL else ROOT
        if directory == ROOT:
            fixed = {_CONTROL_NAME: CONTROL, _BY_SERIAL_NAME: BY_SERIAL}.get(name)
            return self._find_disk_file(name) if fixed is None else fixed
        if directory == BY_SERIAL:
            node = self._by_serial().get(name)
            if node is None:
                raise FUSEError(errno.ENOENT)
            return self._link(node)
        parent = self.control_nodes.get(directory)
        child = parent.children.get(name) if parent is not None else None
        if child is not None:
            return child.inode
        if parent is not self._control_root:
            raise FUSEError(errno.ENOENT)
        disk = self._disk_named(name)
        self.nodes_of(disk)
        return self._directories[disk].inode

    def _find_disk_file(self, name: bytes) -> int:
        for node in self.nodes_of(self._disk_named(name.partition(b"p")[0])):
            if node.name == name:
                return node.inode
        raise FUSEError(errno.ENOENT)

    def claims(self) -> list[Claim]:
        """Of all disks that have a serial number."""
        named = [(disk, serial_name(disk.target.identity.serial)) for disk in self._disks.values()]
        return [Claim(disk.target.name, serial, partial(self.nodes_of, disk)) for disk, serial in named if serial]

    def report_rivals(self, serial: str) -> None:
        """A disk with this serial number has appeared: a warning if others have it, or one that makes the same name."""
        names = [claim.name for claim in self.claims() if claim.serial == serial_name(serial)]
        if len(names) > 1:
            listed = ", ".join(sorted(names, key=Address.parse))
            log.warning("%s have the same serial %s: by-serial leads to none of them", listed, serial)

    def _by_serial(self) -> dict[bytes, Named]:
        """The links in ``by-serial``, each with what it leads to."""
        claims = self.claims()
        count = Counter(claim.serial for claim in claims)
        found: dict[bytes, list[Named]] = {}
        for claim in claims:
            for file in claim.files() if count[claim.serial] == 1 else ():
                _, is_partition, number = file.name.partition(b"p")
                suffix = b"-part" + number if is_partition else b""
                found.setdefault(claim.serial.encode() + suffix, []).append(file)
        return {name: files[0] for name, files in found.items() if len(files) == 1}

    def _link(self, node: Named) -> int:
        """The inode of the link to a node."""
        if node not in self._link_to:
            self._link_to[node] = inode = self._new_inode()
            self.links[inode] = node
        return self._link_to[node]

    def entries(self, directory: int) -> list[tuple[int, bytes]]:
        """(inode, name) of everything in a directory, by inode."""
        disks = self._disks.values() if directory in (ROOT, CONTROL) else ()
        if directory == ROOT:
            nodes = [node for disk in disks for node in self.nodes_of(disk)]
            fixed = [(CONTROL, _CONTROL_NAME), (BY_SERIAL, _BY_SERIAL_NAME)]
            entries = [*fixed, *((node.inode, node.name) for node in nodes)]
        elif directory == BY_SERIAL:
            entries = [(self._link(node), name) for name, node in self._by_serial().items()]
        else:
            parent = self.control_nodes.get(directory)
            entries = [(node.inode, name) for name, node in parent.children.items()] if parent else []
            whole = [self.nodes_of(disk).whole for disk in disks]
            entries += [(self._directories[node.disk].inode, node.name) for node in whole]
        return sorted(entries)

    def leads_to(self, link: int) -> bytes:
        """Where a link leads; ESTALE for one that is no more."""
        node = self.links.get(link)
        if node is None:
            raise FUSEError(errno.ESTALE)
        return b"../" + node.name

    # ── attributes ────────────────────────────────────────────────────────────────────────────────────────────────

    def attributes(self, inode: int) -> EntryAttributes:
        """ESTALE for an inode that is no more."""
        entry = EntryAttributes()
        entry.st_ino = inode
        entry.st_uid, entry.st_gid = self._owner
        entry.st_atime_ns = entry.st_mtime_ns = entry.st_ctime_ns = self._mounted_ns
        entry.st_blksize = BLOCK_BYTES
        entry.entry_timeout = entry.attr_timeout = CACHE_SECONDS
        control = self.control_nodes.get(inode)
        if control is not None and control.file is not None:
            mode = (0o444 if control.file.is_readable else 0) | (
                0o200 if control.file.write and not self._read_only else 0
            )
            entry.st_mode = stat.S_IFREG | mode & ~self._umask
            entry.attr_timeout = 0
        elif inode in self.links:
            entry.st_mode = stat.S_IFLNK | 0o777
            entry.st_size = len(self.leads_to(inode))
            entry.entry_timeout = 0  # another disk may claim the serial
        elif inode in (ROOT, BY_SERIAL) or control is not None:
            entry.st_mode = stat.S_IFDIR | 0o777 & ~self._umask & ~0o222
            if not self._read_only:
                entry.st_mode |= 0o200 & ~self._umask
            entry.st_nlink = {ROOT: 4, CONTROL: 2 + len(self._disks)}.get(inode, 2)
            if inode >= _FIRST_DISK:
                entry.entry_timeout = 0
        else:
            node = self.nodes.get(inode)
            if node is None:
                raise FUSEError(errno.ESTALE)
            entry.st_mode = stat.S_IFREG | (0o444 if self._read_only or node.target.conflict else 0o666) & ~self._umask
            entry.entry_timeout = 0  # another disk may take the name, and an open of it must never get the old one
            entry.st_size = node.size_bytes
            entry.st_blocks = node.size_bytes // SECTOR_BYTES
        return entry
