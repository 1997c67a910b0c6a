"""The discovery: config queries, hints, and the examination that makes a sighting of an endpoint.

Owns what was asked and which endpoints are under examination.  A *hint* says that an endpoint may be there: an
announcement, an answer to a broadcast query, or data from a path of ours that nobody asked for or that came twice (a
second disk may answer there).  Nothing in it is believed.  It leads to an *examination*: a config query of its own,
which gives buffer count, payload and config string, then IDENTIFY, then the payload that passes.  That makes a
*sighting*, and only a sighting changes anything.

Tasks: one per link that asks by broadcast (at 0, 100, 300 and 700 ms after the link came up, then every 60 s), and one
per examination (``engine.candidates`` says how many there are, and whose turn it is).

What always holds:

- Each query, IDENTIFY and probe has a random tag of its own, and is answered by exactly the endpoint it was sent to,
  once.  A second answer counts as surplus (``engine.receiver``).
- Hints of one endpoint cause at most one examination a second; after the last hint, too.
- An examination of a silent endpoint makes room when others wait for its place: once it comes again behind them.
- Only config reads are ever broadcast: vblade carries out a broadcast write.

Rejected: believing an answer to a broadcast query (every host on the segment sees its tag, and two forged frames gave
a disk one buffer and one sector per frame); creating a target from a config answer, as the Linux driver does (a file
without a size); that driver's tag 0 for queries (any host can guess it).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import accumulate

import trio

from aoefs.core.link import Endpoint, Link
from aoefs.core.lonecommand import Answer, LoneCommand
from aoefs.engine.candidates import Candidates
from aoefs.engine.conversation import LINGER, converse
from aoefs.engine.driver import Driver
from aoefs.engine.roster import Roster, Sighting
from aoefs.engine.strangers import NO_ANSWER, REFUSED, RESERVED, SILENT, Stranger
from aoefs.engine.supervisor import Supervisor
from aoefs.engine.timer import ROUNDING
from aoefs.engine.waits import Wait
from aoefs.errors import FrameError, RequestError, TargetError
from aoefs.protocol import wire
from aoefs.protocol.ata import IDENTIFY_REGISTERS, Identity, decode_identify_untrusted, transfer_registers

QUERY_TIMES = (0.0, 0.1, 0.3, 0.7)  # seconds after a link came up: one lost broadcast must not hide a disk
QUERY_PERIOD = 60.0  # seconds, as the Linux driver
CONFIG_PAUSES = (0.2, 0.4, 0.8, 1.6)  # seconds after each sending to an unknown endpoint
IDENTIFY_PAUSES = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2)  # seconds after each sending
AWAITED_SECONDS = (0.2, 0.8)  # of silence, after which an examination makes room if others wait: first, second time
SECOND_DISK = 0.1  # seconds that a second disk behind the same MAC has for its answer, when nobody waits for the first
MEASURE_PAUSES = (0.02, 0.04, 0.08, 0.16, 0.32)  # seconds after each sending with one size of frame
HINT_PERIOD = 1.0  # seconds between two examinations that hints of one endpoint cause
MAX_REPEATED = 256  # endpoints whose last hint is remembered until its period is over
_WRONG_SHELF = 0xFFF  # DIP switches of real shelves set in reverse; the Linux driver refuses it too


@dataclass(slots=True)
class _Examination:
    """Of one endpoint.  ``second``: the first one ``made_room`` for others.  ``config`` is what the endpoint said of
    itself; ``again``: it is to be examined once more.
    """

    wait: Wait
    second: bool
    made_room: bool = False
    config: wire.ConfigArgument | None = None
    again: bool = False

    def repeat(self) -> None:
        self.again = True
        self.wait.wake()


class Discovery:
    """See the module.  Sightings and strangers go to ``roster``.  ``allow_mac`` are the only MACs to look at (empty:
    all).  ``queue`` says whose turn it is to be examined.  Endpoints of another share are not examined:
    ``on_other_share`` gets its number.
    """

    def __init__(
        self,
        driver: Driver,
        roster: Roster,
        supervisor: Supervisor,
        *,
        allow_mac: frozenset[bytes] = frozenset(),
        share: wire.Share = wire.ALL,
    ) -> None:
        self.hints = 0
        self.hints_dropped = 0
        self._driver = driver
        self._roster = roster
        self._supervisor = supervisor
        self._allow_mac = allow_mac
        self.queue = Candidates()
        self._share = share
        self.on_other_share: Callable[[int], object] = lambda _number: None
        self._examinations: dict[Endpoint, _Examination] = {}
        self._hinted: dict[Endpoint, float] = {}  # when a hint of it led to an examination, the oldest first
        self._repeated: set[Endpoint] = set()  # hinted again within the period: to be examined at its end
        self._schedules: dict[Link, trio.CancelScope] = {}

    # ── asking ────────────────────────────────────────────────────────────────────────────────────────────────────

    def start(self, link: Link) -> None:
        """Ask on ``link`` by the schedule, from its beginning; replaces the one that runs."""
        self.stop(link)
        scope = self._schedules[link] = trio.CancelScope()
        self._supervisor.start(f"discovery on {link.interface}", partial(self._ask_by_schedule, link, scope))

    def stop(self, link: Link) -> None:
        scope = self._schedules.pop(link, None)
        if scope is not None:
            scope.cancel()

    async def _ask_by_schedule(self, link: Link, scope: trio.CancelScope) -> None:
        with scope:
            asked_at = 0.0
            for at in QUERY_TIMES:
                await trio.sleep(at - asked_at)
                asked_at = at
                self.ask(link)
            while True:
                await trio.sleep(QUERY_PERIOD)
                self.ask(link)

    def ask(self, link: Link, address: wire.Address = wire.BROADCAST_ADDRESS) -> None:
        """Broadcast one config query; what answers is a hint."""
        tag = self._driver.tags.hint_tag()
        header = wire.Header(wire.BROADCAST_MAC, link.mac, address, wire.AoeCommand.CONFIG, tag)
        link.send_frame(wire.encode(header, wire.ConfigArgument()))

    # ── hints ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def hint(self, endpoint: Endpoint) -> None:
        """Examine an endpoint that seems to be there, unless that was done within ``HINT_PERIOD``: then afterwards."""
        now = trio.current_time()
        self.hints += 1
        hinted = self._hinted
        while hinted and next(iter(hinted.values())) + HINT_PERIOD <= now:
            del hinted[next(iter(hinted))]
        if endpoint.link not in self._schedules or not self._may_exist(endpoint) or endpoint in self._repeated:
            self.hints_dropped += 1
        elif (number := self._share.number_of(endpoint.address)) != self._share.number:
            self.on_other_share(number)
        elif endpoint not in hinted:
            self._follow_hint(endpoint, now)
        elif len(self._repeated) < MAX_REPEATED:  # it may have changed once more since we asked
            self._repeated.add(endpoint)
            self._supervisor.start("repeated hint", partial(self._follow_later, endpoint, hinted[endpoint]))
        else:
            self.hints_dropped += 1

    async def _follow_later(self, endpoint: Endpoint, hinted_at: float) -> None:
        await trio.sleep_until(hinted_at + HINT_PERIOD)
        self._repeated.discard(endpoint)
        if endpoint.link in self._schedules:
            self._follow_hint(endpoint, trio.current_time())

    def _follow_hint(self, endpoint: Endpoint, now: float) -> None:
        self._hinted.pop(endpoint, None)  # the oldest comes first
        self._hinted[endpoint] = now
        self.examine(endpoint)

    def _may_exist(self, endpoint: Endpoint) -> bool:
        _, mac, address = endpoint
        allowed = not self._allow_mac or mac in self._allow_mac
        return not mac[0] & 1 and allowed and address.is_target and address.shelf != _WRONG_SHELF

    # ── examinations ──────────────────────────────────────────────────────────────────────────────────────────────

    def examine(self, endpoint: Endpoint) -> None:
        """Ask an endpoint who it is.

        If we do already, the command that it did not answer is sent again at once; and if it answers, it is asked once
        more: it may have changed meanwhile.
        """
        if endpoint in self._examinations:
            self._examinations[endpoint].repeat()
        else:
            self._add(endpoint)

    def _add(self, endpoint: Endpoint, *, second: bool = False) -> None:
        if self.queue.add(endpoint, self._roster.need_of(endpoint), second=second):
            self._begin(endpoint, second=second)

    def _begin(self, endpoint: Endpoint, *, second: bool) -> None:
        examination = self._examinations[endpoint] = _Examination(Wait(self._driver.callers), second)
        self._supervisor.start(f"examination of {endpoint.address}", partial(self._examine, endpoint, examination))

    def candidates(self) -> list[Stranger]:
        """Those that are under IDENTIFY."""
        return [
            Stranger(endpoint, examination.config, NO_ANSWER, SILENT)
            for endpoint, examination in self._examinations.items()
            if examination.config is not None
        ]

    @property
    def is_busy(self) -> bool:
        """Something is under examination."""
        return bool(self._examinations)

    async def _examine(self, endpoint: Endpoint, examination: _Examination) -> None:
        try:
            config = examination.config = await self._ask_config(endpoint)
            if config is not None:
                examination.again = False
                await self._identify(endpoint, config)
        finally:
            del self._examinations[endpoint]
            following = self.queue.end(endpoint)
            if following is not None:
                self._begin(following[0], second=following[1])
            if examination.made_room and not examination.second:
                self._add(endpoint, second=True)
            elif examination.again and examination.config is not None:
                self._add(endpoint)

    async def _ask_config(self, endpoint: Endpoint) -> wire.ConfigArgument | None:
        command = LoneCommand(wire.ConfigArgument(), endpoint.__eq__, good_only=True)
        known = self._roster.find_path(endpoint) is not None
        pauses = self._patience(endpoint, IDENTIFY_PAUSES[:-1] if known else CONFIG_PAUSES)
        for answer in await self._ask_candidate(endpoint, command, pauses):
            if isinstance(answer.argument, wire.ConfigArgument) and answer.argument.command == wire.ConfigCommand.READ:
                return answer.argument
        return None

    async def _identify(self, endpoint: Endpoint, config: wire.ConfigArgument) -> None:
        """Ask for the identity, and measure what passes; silence drops it."""
        link = endpoint.link
        refusals: list[RequestError] = []
        try:
            identities = await self._ask_identity(endpoint, refusals)
            if not identities:
                if link in self._schedules:
                    self._roster.on_stranger(Stranger(endpoint, config, *_why_not(refusals)))
                return
            identity = identities[0]
            if any(other != identity for other in identities):
                if not self._roster.on_two_disks(endpoint, identities):
                    self._roster.on_stranger(Stranger(endpoint, config, REFUSED, "two disks answer from there"))
                return
            # 0 in a config answer means 2 (AoEr11 section 3.2)
            full_sectors = max(1, min(config.sectors or 2, link.max_sectors, identity.sectors))
            sectors = full_sectors
            if self._roster.trusted_payload(endpoint) != full_sectors:
                sectors = await self._measure(endpoint, full_sectors, identity)
                identities = await self._ask_identity(endpoint, refusals)  # measuring takes its time
                if not identities or identities[0] != identity:
                    return
        except FrameError as error:
            link.rx_unknown += 1
            reason = f"its answer to IDENTIFY is unusable: {error}"
            self._roster.on_stranger(Stranger(endpoint, config, REFUSED, reason))
        else:
            self._roster.on_sighting(Sighting(endpoint, config, identity, sectors, full_sectors))

    async def _measure(self, endpoint: Endpoint, full_sectors: int, identity: Identity) -> int:
        """Sectors per frame that pass both ways: halved while nothing comes back, though a single sector does.

        READs of LBA 0 whose request is as long as their answer (the Linux driver's probe).
        """
        sectors = full_sectors
        while sectors > 1 and not await self._passes(endpoint, sectors, identity):
            if sectors == full_sectors and not await self._passes(endpoint, 1, identity):
                break  # the disk is slow or away, which says nothing about large frames
            sectors //= 2
        return sectors

    async def _passes(self, endpoint: Endpoint, sectors: int, identity: Identity) -> bool:
        """An error is an answer here: it shows that the target hears us."""
        registers = transfer_registers(0, sectors, write=False, lba48=identity.lba48)
        size = sectors * wire.SECTOR_BYTES
        command = LoneCommand(registers, endpoint.__eq__, data=bytes(size), data_bytes=size)
        return bool(await self._ask_candidate(endpoint, command, MEASURE_PAUSES))

    async def _ask_identity(self, endpoint: Endpoint, refusals: list[RequestError]) -> list[Identity]:
        """Two if two disks answer from one endpoint; none if it is silent or refuses, and then why is in ``refusals``.

        FrameError if the data cannot be decoded.
        """
        command = LoneCommand(IDENTIFY_REGISTERS, endpoint.__eq__, good_only=True)
        known = self._roster.find_path(endpoint) is not None
        linger = SECOND_DISK if known and endpoint in self._hinted else LINGER
        pauses = self._patience(endpoint, IDENTIFY_PAUSES)
        answers = await self._ask_candidate(endpoint, command, pauses, linger=linger)
        refusals += command.refusals
        return [decode_identify_untrusted(answer.data) for answer in answers]

    async def _ask_candidate(
        self, endpoint: Endpoint, command: LoneCommand, pauses: Iterable[float], *, linger: float = 0.0
    ) -> list[Answer]:
        """Send a lone command until it is answered, or until the link is down or gone."""
        up = (pause for pause in pauses if endpoint.link in self._schedules)
        wait = self._examinations[endpoint].wait
        return await converse(self._driver, command, lambda: [endpoint], up, linger=linger, wait=wait)

    def _patience(self, endpoint: Endpoint, pauses: Iterable[float]) -> Iterator[float]:
        """All of ``pauses``, or fewer if others wait for the place of this endpoint.

        What is sent again in between, since the examination was to be repeated, takes nothing from them.
        """
        examination, now = self._examinations[endpoint], self._driver.now
        began = now()
        for end in accumulate(pauses):
            while (left := began + end - now()) > ROUNDING:
                if endpoint.link not in self._schedules:
                    return
                if now() - began >= AWAITED_SECONDS[examination.second] and self.queue.is_awaited(endpoint):
                    examination.made_room = True
                    return
                yield left


def _why_not(refusals: list[RequestError]) -> tuple[str, str]:
    """State and reason of a candidate that did not let itself be identified."""
    if not refusals:
        return NO_ANSWER, SILENT
    refusal = refusals[-1]
    if isinstance(refusal, TargetError) and refusal.code == wire.ErrorCode.TARGET_IS_RESERVED:
        return RESERVED, "another host has reserved it (AoE error 6 to IDENTIFY)"
    return REFUSED, f"it refuses IDENTIFY with {refusal}: an access list may leave this host out"
