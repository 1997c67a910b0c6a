"""Reads and writes of open files: the two handlers that every request of a disk goes through, so this is compiled.

Owns the open ``handles`` by number.  ``fuse.operations`` opens and closes.

What always holds: nothing but ``FUSEError`` leaves a handler; a read is short only at the end of the disk.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Awaitable, Callable
from typing import Any

import trio
from pyfuse3 import FUSEError

from aoefs.engine.waits import Callers
from aoefs.errors import RequestError
from aoefs.fuse.errnos import errno_of
from aoefs.fuse.handles import ControlHandle, Handle
from aoefs.fuse.nodes import Node

log = logging.getLogger("aoefs")


def failed(node: Node, what: str, error: RequestError) -> FUSEError:
    """One log line with target, place and cause; the errno for the caller."""
    log.error("%s: %s%s failed: %s", node.target.name, what, error.at, error)
    return FUSEError(errno_of(error, ever_written=node.target.ever_written))


def failed_unexpectedly(handler: str) -> FUSEError:
    """For any other exception, which would end the mount: it is logged with its traceback, and answered EIO."""
    log.exception("%s failed unexpectedly", handler)
    return FUSEError(errno.EIO)


class Transfers:
    """See the module.  ``write_control(handle, order)`` carries out an order to a control file; bytes taken."""

    def __init__(self, callers: Callers, write_control: Callable[[ControlHandle, bytes], Awaitable[int]]) -> None:
        self.handles: dict[int, Handle] = {}
        self._callers = callers
        self._write_control = write_control

    async def read(self, fh: int, off: int, size: int) -> Any:  # bytes, says pyfuse3; it takes any buffer
        try:
            handle = self.handles[fh]
            if isinstance(handle, ControlHandle):
                return handle.content[off : off + size]
            node = handle.node
            room = node.room(off)
            size = min(size, room)
            if size <= 0:
                return b""
            start = node.start + off
            if handle.ahead is not None:
                return await self._callers.in_task(handle.ahead.read, start, size, start + room)
            return await node.disk.read(start, size)
        except RequestError as error:
            raise failed(node, "read", error) from None
        except (FUSEError, trio.Cancelled):
            raise
        except Exception:
            raise failed_unexpectedly("read") from None

    async def write(self, fh: int, off: int, buf: bytes) -> int:
        try:
            handle = self.handles[fh]
            if isinstance(handle, ControlHandle):
                return await self._callers.in_task(self._write_control, handle, buf)
            node, stream = handle.node, handle.stream
            room = node.room(off)
            if room <= 0:
                raise FUSEError(errno.ENOSPC)
            data = buf if len(buf) <= room else memoryview(buf)[:room]
            if data:
                stream.report_to_writer()
                await node.disk.write(node.start + off, data, behind=stream.goes_on(off, len(data)))
            if handle.flush_each_write:
                await self._callers.in_task(node.disk.flush)
            if len(data) < len(buf) and handle.whole_writes:
                raise FUSEError(errno.ENOSPC)  # all that fits is written, as dd expects of a disk
            return len(data)
        except RequestError as error:
            raise failed(node, "write", error) from None
        except (FUSEError, trio.Cancelled):
            raise
        except Exception:
            raise failed_unexpectedly("write") from None
