"""The discovery: config queries, hints, and the IDENTIFY that makes a sighting of a candidate.

Owns what was asked and which candidates are looked at.  A *candidate* is an endpoint that answered a tagged config
query.  It becomes a *sighting* when it answers IDENTIFY from exactly that endpoint, with the payload that passes there;
only a sighting changes anything.  Tasks: one that hears hints, one per link that asks (at 0, 100, 300 and 700 ms after
the link came up, then every 60 s), and one per candidate, at most ``MAX_CANDIDATES``; up to ``MAX_WAITING`` more wait.

What always holds:

- An announcement, or any config answer whose tag is not ours, is a hint, and so are data from a path of ours that
  nobody asked for or that came twice: a second disk may answer there.  It causes one unicast query with a tag of ours:
  at most one a second for an endpoint, after the last hint too, and ``MAX_HINTS`` a second in all.  Nothing in it is
  believed.
- A tag of a query is good for ``ANSWER_WINDOW`` seconds.
- Only config reads are ever broadcast: vblade carries out a broadcast write.

Rejected: creating a target from a config answer, as the Linux driver does (a file without a size; and a flood of forged
answers makes a thousand of them), and that driver's tag 0 for queries (any host can guess it).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import trio

from aoefs.core.link import Endpoint, Link
from aoefs.core.lonecommand import Answer, LoneCommand
from aoefs.engine.conversation import LINGER, converse, encode_query
from aoefs.engine.driver import Driver
from aoefs.engine.roster import Roster, Sighting
from aoefs.engine.strangers import NO_ANSWER, REFUSED, RESERVED, SILENT, Stranger
from aoefs.engine.supervisor import Supervisor
from aoefs.errors import FrameError, RequestError, TargetError
from aoefs.protocol.ata import (
    IDENTIFY_REGISTERS,
    Identity,
    decode_identify_untrusted,
    transfer_registers,
)
from aoefs.protocol.wire import (
    BROADCAST_ADDRESS,
    BROADCAST_MAC,
    SECTOR_BYTES,
    Address,
    AoeCommand,
    AtaArgument,
    ConfigArgument,
    ConfigCommand,
    ErrorCode,
    Header,
    encode_ata,
)

QUERY_TIMES = (0.0, 0.1, 0.3, 0.7)  # seconds after a link came up: one lost broadcast must not hide a disk
QUERY_PERIOD = 60.0  # seconds, as the Linux driver
ANSWER_WINDOW = 5.0  # seconds
IDENTIFY_PAUSES = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2)  # seconds after each sending
SECOND_DISK = 0.1  # seconds that a second disk behind the same MAC has for its answer, when nobody waits for the first
MEASURE_PAUSES = (0.02, 0.04, 0.08, 0.16, 0.32)  # seconds after each sending with one size of frame
MAX_CANDIDATES = 256
MAX_WAITING = 4096  # four paths of each of the 1024 targets that a mount shows
MAX_HINTS = 64  # unicast queries per second that hints may cause
HINT_PERIOD = 1.0  # seconds between two queries that hints of one endpoint cause
_WRONG_SHELF = 0xFFF  # DIP switches of real shelves set in reverse; the Linux driver refuses it too


class Discovery:
    """See the module.  Sightings and strangers go to ``roster``.  ``hints`` come from the receiver.
    ``allow_mac`` are the only MACs to look at (empty: all).
    """

    def __init__(
        self,
        driver: Driver,
        roster: Roster,
        supervisor: Supervisor,
        hints: trio.MemoryReceiveChannel[tuple[Endpoint, bool]],
        *,
        allow_mac: frozenset[bytes] = frozenset(),
    ) -> None:
        self.hints = 0
        self.hints_dropped = 0
        self.candidates_dropped = 0
        self._driver = driver
        self._roster = roster
        self._supervisor = supervisor
        self._allow_mac = allow_mac
        self._candidates: dict[Endpoint, ConfigArgument] = {}
        self._waiting: dict[Endpoint, ConfigArgument] = {}  # for a place among them, the oldest first
        self._hinted: dict[Endpoint, float] = {}  # when it was asked for a hint last, the oldest first
        self._repeated: set[Endpoint] = set()  # hinted again within the period: to be asked at its end
        self._schedules: dict[Link, trio.CancelScope] = {}
        supervisor.start("hints", partial(self._hear, hints))

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

    def ask(self, link: Link, mac: bytes = BROADCAST_MAC, address: Address = BROADCAST_ADDRESS) -> None:
        """Send one config query; what answers within ``ANSWER_WINDOW`` is a candidate."""
        query = LoneCommand(AoeCommand.CONFIG, encode_query, self._may_exist, on_answer=self._on_config_answer)
        self._driver.tags.open(query)
        (frame,) = query.frames([Endpoint(link, mac, address)], self._driver.now())
        link.send_frame(frame)
        self._supervisor.start("config query", partial(self._close_later, query))

    async def _close_later(self, query: LoneCommand) -> None:
        await trio.sleep(ANSWER_WINDOW)
        self._driver.tags.close(query)

    # ── hints ─────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _hear(self, hints: trio.MemoryReceiveChannel[tuple[Endpoint, bool]]) -> None:
        async for endpoint, announced in hints:
            if announced or self._roster.find_path(endpoint) is not None:
                self.hint(endpoint)

    def hint(self, endpoint: Endpoint) -> None:
        """Ask an endpoint that seems to be there, if the rates allow and its link discovers at all."""
        now = trio.current_time()
        self.hints += 1
        hinted = self._hinted
        while hinted and next(iter(hinted.values())) + HINT_PERIOD <= now:
            del hinted[next(iter(hinted))]
        if endpoint.link not in self._schedules or endpoint in self._repeated or not self._may_exist(endpoint):
            self.hints_dropped += 1
        elif endpoint in hinted:  # it may have changed once more since we asked
            self._repeated.add(endpoint)
            self._supervisor.start("repeated hint", partial(self._ask_later, endpoint, hinted[endpoint] + HINT_PERIOD))
        elif len(hinted) >= MAX_HINTS:
            self.hints_dropped += 1
        else:
            self._ask_for_hint(endpoint, now)

    async def _ask_later(self, endpoint: Endpoint, at: float) -> None:
        await trio.sleep_until(at)
        self._repeated.discard(endpoint)
        if endpoint.link in self._schedules:
            self._ask_for_hint(endpoint, at)

    def _ask_for_hint(self, endpoint: Endpoint, now: float) -> None:
        self._hinted.pop(endpoint, None)  # the oldest comes first
        self._hinted[endpoint] = now
        self.ask(*endpoint)

    def _may_exist(self, endpoint: Endpoint) -> bool:
        _, mac, address = endpoint
        allowed = not self._allow_mac or mac in self._allow_mac
        return not mac[0] & 1 and allowed and address.is_target and address.shelf != _WRONG_SHELF

    # ── candidates ────────────────────────────────────────────────────────────────────────────────────────────────

    def _on_config_answer(self, answer: Answer) -> None:
        config, endpoint = answer.argument, answer.endpoint
        if not isinstance(config, ConfigArgument) or config.command != ConfigCommand.READ:
            endpoint.link.rx_unknown += 1
        elif endpoint in self._candidates:
            pass  # under IDENTIFY already
        elif len(self._candidates) < MAX_CANDIDATES:
            self.identify(endpoint, config)
        elif endpoint in self._waiting or len(self._waiting) < MAX_WAITING:
            self._waiting[endpoint] = config
        else:
            self.candidates_dropped += 1

    def identify(self, endpoint: Endpoint, config: ConfigArgument) -> None:
        """Ask for the identity of an endpoint that said ``config`` of itself, unless we do already."""
        if endpoint not in self._candidates:
            self._candidates[endpoint] = config
            self._supervisor.start(f"IDENTIFY of {endpoint.address}", partial(self._identify, endpoint, config))

    def candidates(self) -> list[Stranger]:
        """Those that are under IDENTIFY."""
        return [self._stranger(endpoint, NO_ANSWER, SILENT) for endpoint in self._candidates]

    @property
    def waiting(self) -> int:
        """How many more wait to be asked."""
        return len(self._waiting)

    def _stranger(self, endpoint: Endpoint, state: str, reason: str) -> Stranger:
        return Stranger(endpoint, self._candidates[endpoint], state, reason)

    async def _identify(self, endpoint: Endpoint, config: ConfigArgument) -> None:
        """Ask a candidate for its identity, and measure what passes; silence drops it."""
        link = endpoint.link
        refusals: list[RequestError] = []
        try:
            identities = await self._ask_identity(endpoint, refusals)
            if not identities:
                if link in self._schedules:
                    self._roster.on_stranger(self._stranger(endpoint, *_why_not(refusals)))
                return
            identity = identities[0]
            if any(other != identity for other in identities):
                if not self._roster.on_two_disks(endpoint, identities):
                    self._roster.on_stranger(self._stranger(endpoint, REFUSED, "two disks answer from there"))
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
            self._roster.on_stranger(self._stranger(endpoint, REFUSED, reason))
        else:
            self._roster.on_sighting(Sighting(endpoint, config, identity, sectors, full_sectors))
        finally:
            del self._candidates[endpoint]
            if self._waiting and len(self._candidates) < MAX_CANDIDATES:
                following = next(iter(self._waiting))
                self.identify(following, self._waiting.pop(following))

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
        size = sectors * SECTOR_BYTES
        command = _ata_command(endpoint, registers, bytes(size), data_bytes=size)
        return bool(await self._ask_candidate(endpoint, command, MEASURE_PAUSES))

    async def _ask_identity(self, endpoint: Endpoint, refusals: list[RequestError]) -> list[Identity]:
        """Two if two disks answer from one endpoint; none if it is silent or refuses, and then why is in ``refusals``.

        FrameError if the data cannot be decoded.
        """
        command = _ata_command(endpoint, IDENTIFY_REGISTERS, good_only=True)
        known = self._roster.find_path(endpoint) is not None
        linger = SECOND_DISK if known and endpoint in self._hinted else LINGER
        answers = await self._ask_candidate(endpoint, command, IDENTIFY_PAUSES, linger=linger)
        refusals += command.refusals
        return [decode_identify_untrusted(answer.data) for answer in answers]

    async def _ask_candidate(
        self, endpoint: Endpoint, command: LoneCommand, pauses: Sequence[float], *, linger: float = 0.0
    ) -> list[Answer]:
        """Send a lone command until it is answered, or until the link is down or gone."""
        up = (pause for pause in pauses if endpoint.link in self._schedules)
        return await converse(self._driver, command, lambda: [endpoint], up, linger=linger)


def _ata_command(
    endpoint: Endpoint, registers: AtaArgument, data: bytes = b"", *, data_bytes: int = 0, good_only: bool = False
) -> LoneCommand:
    """Answered by exactly this endpoint only."""

    def encode(header: Header) -> bytes:
        return encode_ata(header, registers, data)

    def expects(answering: Endpoint) -> bool:
        return answering == endpoint

    return LoneCommand(AoeCommand.ATA, encode, expects, data_bytes=data_bytes, good_only=good_only)


def _why_not(refusals: list[RequestError]) -> tuple[str, str]:
    """State and reason of a candidate that did not let itself be identified."""
    if not refusals:
        return NO_ANSWER, SILENT
    refusal = refusals[-1]
    if isinstance(refusal, TargetError) and refusal.code == ErrorCode.TARGET_RESERVED:
        return RESERVED, "another host has reserved it (AoE error 6 to IDENTIFY)"
    return REFUSED, f"it refuses IDENTIFY with {refusal}: an access list may leave this host out"
