"""Every task that makes frames into finished requests: receivers, shards, discovery, the disks as their users see them.

Owns the links that are open, which targets there are, and all waiting.  For the users of the library:
:func:`open_engine` gives an :class:`Engine`, whose ``disks`` read, write and flush.

Imports ``net`` and what is below it; of the world trio.
Begin with ``engine``, which has the life of a read; a user's call starts in ``disk``.
"""

from aoefs.engine.disk import Disk
from aoefs.engine.engine import Engine, open_engine
from aoefs.engine.settings import Settings

__all__ = ["Disk", "Engine", "Settings", "open_engine"]
