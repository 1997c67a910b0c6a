"""What waits to be sent to one target: requests of which the end was never sent, and sectors that were lost.  Pure."""

from __future__ import annotations

from collections import deque

from aoefs.core.request import Request, Run, bits

Work = tuple[Request, int, int]  # a request, the first sector (counted from the request's), how many


class Backlog:
    """``fresh``: requests whose sectors from ``cursor`` on were never sent; ``retransmit``: what goes out again."""

    def __init__(self) -> None:
        self.fresh: deque[Request] = deque()
        self.retransmit: deque[Work] = deque()

    def __len__(self) -> int:
        return len(self.fresh) + len(self.retransmit)

    @property
    def is_empty(self) -> bool:
        return not (self.fresh or self.retransmit)

    def next(self, *, fresh_first: bool) -> Work | None:
        """A piece to send again (taken off its queue), else the rest of the oldest fresh request (left there).

        After a timeout, ``fresh_first``: a command that is never answered must not keep the others from being tried.
        """
        while self.retransmit and not (fresh_first and self.fresh):
            request, sector, sectors = self.retransmit.popleft()
            missing = request.todo >> sector & bits(0, sectors)
            if request.ended or not missing:
                continue
            skip = (missing & -missing).bit_length() - 1
            missing >>= skip
            length = (~missing & missing + 1).bit_length() - 1
            if skip + length < sectors:
                self.retransmit.appendleft((request, sector + skip + length, sectors - skip - length))
            return request, sector + skip, length
        while self.fresh:
            request = self.fresh[0]
            if not request.ended:
                return request, request.cursor, request.sectors - request.cursor
            self.fresh.popleft()
        return None

    def add_lost(self, run: Run, mask: int) -> None:
        """The sectors of the commands in ``mask`` go out again."""
        while mask:
            first = (mask & -mask).bit_length() - 1
            shifted = mask >> first
            count = (~shifted & shifted + 1).bit_length() - 1
            self.retransmit.append((run.request, *run.sectors_of(first, count)))
            mask &= ~bits(first, count)

    def forget_ended(self) -> None:
        self.retransmit = deque(work for work in self.retransmit if not work[0].ended)
