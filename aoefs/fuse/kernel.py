"""What the kernel must forget of the mount: names, attributes and cached pages.

Owns the calls that say so.  Each takes a thread, in the background: the kernel lets it wait while pages of the file are
read or written.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import NamedTuple

import pyfuse3
import trio

from aoefs.engine.supervisor import Supervisor

log = logging.getLogger("aoefs")


class Notice(NamedTuple):
    """Forget ``name`` in the directory ``inode``; without a name the attributes of ``inode``, and its ``pages`` too."""

    inode: int
    name: bytes = b""
    pages: bool = True


class Kernel:
    """The kernel of a mount that pyfuse3 has initialised."""

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor

    def notify(self, notices: Sequence[Notice]) -> None:
        """Returns at once; the notices are given one after the other."""

        async def give() -> None:
            for notice in notices:
                try:
                    await trio.to_thread.run_sync(_give, notice, abandon_on_cancel=True)
                except OSError as error:  # most often ENOENT: it knows nothing of it
                    log.debug("invalidation of inode %d: %s", notice.inode, error)

        if notices:
            self._supervisor.start("invalidation", give)


def _give(notice: Notice) -> None:
    if notice.name:
        pyfuse3.invalidate_entry(notice.inode, notice.name)
    else:
        pyfuse3.invalidate_inode(notice.inode, attr_only=not notice.pages)
