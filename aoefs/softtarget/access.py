"""Which hosts may use an export: its allow list, its MAC mask list and its reservation.

Owns these three lists and the rules by which commands change two of them (AoEr11 sections 3.3 and 3.4).  It sees no
frame and no socket: ``softtarget.export`` decodes and answers, ``softtarget.server`` reads :attr:`Access.admitted`.

- The *allow list* is the administrator's and never changes: the wire can narrow it, but never widen it.
- The *mask list* is edited over the wire.  A host that is missing on one of these two lists gets no answer at all; an
  empty list means all hosts.
- The *reservation* is a list of MACs too.  While it is not empty, all other hosts get error 6 for every ATA command but
  IDENTIFY.  Config queries, mask and reserve commands are answered to every host that is heard.

What holds always: ``admitted`` is what the three lists say together, so that checking a batch of good frames costs one
comparison; a list has at most ``MAX_MACS`` entries, so that an answer with all of it fits into a frame on every link
that can carry a sector; all lists are in memory and end with the process.

Rejected: taking the allow list as the first content of the mask list, as vblade does.  Any host that is let in could
let in others, and the last delete would open the disk to all.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from aoefs.protocol.wire import MaskDirective, MaskError

MAX_MACS = 64  # 8 bytes each: 540 bytes of a frame, and the smallest MTU for AoE is 548


class Access:
    """The lists of one export, of MACs of 6 bytes: ``allow``, ``mask`` and the ``holders`` of the reservation.

    Frames from the MACs in ``heard`` get answers, and ATA commands from those in ``admitted`` are executed; None: all.
    """

    def __init__(self, allow: Iterable[bytes] = ()) -> None:
        self._allow = frozenset(allow)
        self.mask: tuple[bytes, ...] = ()
        self.holders: tuple[bytes, ...] = ()
        self.admitted: frozenset[bytes] | None = None
        self.heard: frozenset[bytes] | None = None
        self._recompute()

    def _recompute(self) -> None:
        lists = [frozenset(macs) for macs in (self._allow, self.mask) if macs]
        self.heard = frozenset.intersection(*lists) if lists else None
        if self.holders:
            lists.append(frozenset(self.holders))
        self.admitted = frozenset.intersection(*lists) if lists else None

    def hears(self, mac: bytes) -> bool:
        """Whether a frame from ``mac`` gets an answer at all."""
        return self.heard is None or mac in self.heard

    def admits(self, mac: bytes) -> bool:
        """Whether ATA commands from ``mac``, which is heard, are executed."""
        return self.admitted is None or mac in self.admitted

    def edit_mask(self, directives: Sequence[tuple[int, bytes]]) -> tuple[MaskError, int]:
        """Apply (directive, MAC) pairs up to the first that fails; the error, and the index of that pair.

        Adding a MAC that is on the list, or deleting one that is not, changes nothing and is no error.
        """
        wanted = dict.fromkeys(self.mask)
        failed = (MaskError.NONE, 0)
        for index, (directive, mac) in enumerate(directives):
            if directive == MaskDirective.DELETE:
                wanted.pop(mac, None)
            elif directive == MaskDirective.ADD and (mac in wanted or len(wanted) < MAX_MACS):
                wanted[mac] = None
            elif directive != MaskDirective.NONE:
                failed = (MaskError.LIST_FULL if directive == MaskDirective.ADD else MaskError.BAD_DIRECTIVE, index)
                break
        self.mask = tuple(wanted)
        self._recompute()
        return failed

    def reserve(self, source: bytes, macs: Iterable[bytes], *, force: bool) -> bool:
        """Reserve the export for ``macs``; without any, release it.  ``source`` sent the command.

        False when the export is reserved, not for ``source``, and ``force`` is not set.  A holder may replace the list
        with any other, even one without itself.  ValueError for more than ``MAX_MACS``.
        """
        wanted = tuple(dict.fromkeys(macs))
        if len(wanted) > MAX_MACS:
            raise ValueError(f"{len(wanted)} MACs are more than the {MAX_MACS} of a list")
        if self.holders and source not in self.holders and not force:
            return False
        self.holders = wanted
        self._recompute()
        return True
