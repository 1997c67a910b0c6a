"""Who may talk to an export: the allow list, the MAC mask list and the reservation, as one question per frame.

Owns the three lists of one export and the rules by which commands change two of them (AoEr11 sections 3.3 and 3.4).
No frame, no socket: ``softtarget.export`` decodes and answers, ``softtarget.server`` asks :attr:`Access.admitted`.

- The *allow list* is the administrator's: given at the start, never changed.  The wire can narrow it, never widen it.
- The *mask list* is edited over the wire.  Who is not on one of the two, where it is not empty, hears nothing at all.
- The *reservation* is a list of MACs too.  While it is not empty, others get error 6 for ATA commands but IDENTIFY;
  what is asked by config queries, mask and reserve commands is answered.

What holds always: ``admitted`` is what the three lists say together, so that a batch of good frames costs one
comparison; a list has at most ``MAX_MACS`` entries, so that an answer with all of it fits into a frame on every link
that can carry a sector; all of it is in memory and gone with the process.

Rejected: taking the allow list for the first content of the mask list, as vblade does (any host that is let in could
let in others, and the last delete would open the disk to all).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from aoefs.protocol.wire import MaskDirective, MaskError

MAX_MACS = 64  # 8 bytes each: 540 bytes of a frame, and the smallest MTU for AoE is 548


class Access:
    """The lists of one export.  ``allow`` are the only MACs (6 bytes each) that it ever listens to; none: all."""

    def __init__(self, allow: Iterable[bytes] = ()) -> None:
        self._allow = frozenset(allow)
        self.mask: tuple[bytes, ...] = ()
        self.holders: tuple[bytes, ...] = ()
        self.admitted: frozenset[bytes] | None = None
        self._heard: frozenset[bytes] | None = None
        self._recompute()

    def _recompute(self) -> None:
        lists = [frozenset(macs) for macs in (self._allow, self.mask) if macs]
        self._heard = frozenset.intersection(*lists) if lists else None
        if self.holders:
            lists.append(frozenset(self.holders))
        self.admitted = frozenset.intersection(*lists) if lists else None  # whose data commands are served; None: all

    @property
    def audience(self) -> tuple[bytes, ...] | None:
        """Whom to tell that the export is there; None for everybody."""
        return None if self._heard is None else tuple(sorted(self._heard))

    def hears(self, mac: bytes) -> bool:
        """Whether a frame from ``mac`` gets an answer at all."""
        return self._heard is None or mac in self._heard

    def admits(self, mac: bytes) -> bool:
        """Whether ATA commands from ``mac``, which is heard, are carried out."""
        return self.admitted is None or mac in self.admitted

    def edit_mask(self, directives: Sequence[tuple[int, bytes]]) -> tuple[MaskError, int]:
        """Follow (directive, MAC) pairs in their order; the error, and which one failed.  Those before it hold.

        To add what is on the list and to delete what is not changes nothing and is no error.
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
        """Let ``macs`` (none: nobody) hold the export; False when somebody else does and ``force`` is not set.

        ``source`` asks for it; whoever is on the list may replace it, also by one without himself.  ValueError for
        more than ``MAX_MACS``.
        """
        wanted = tuple(dict.fromkeys(macs))
        if len(wanted) > MAX_MACS:
            raise ValueError(f"{len(wanted)} MACs are more than the {MAX_MACS} of a list")
        if self.holders and source not in self.holders and not force:
            return False
        self.holders = wanted
        self._recompute()
        return True
