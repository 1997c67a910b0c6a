"""Open files: of a disk or one of its partitions, or of a control file."""

from __future__ import annotations

from dataclasses import dataclass

from aoefs.engine.writebehind import WriteStream
from aoefs.fuse.control import ControlFile
from aoefs.fuse.nodes import Node
from aoefs.fuse.readahead import ReadAhead


@dataclass(slots=True)
class DiskHandle:
    """``whole_writes``: the kernel makes EIO of a short count, as it does for O_DIRECT in cached mode."""

    node: Node
    stream: WriteStream
    ahead: ReadAhead | None = None
    writing: bool = False
    flush_each_write: bool = False
    whole_writes: bool = False


@dataclass(frozen=True, slots=True)
class ControlHandle:
    """``path`` below the mount point; ``content`` is what the file said when it was opened."""

    path: str
    file: ControlFile
    content: bytes = b""


Handle = DiskHandle | ControlHandle
