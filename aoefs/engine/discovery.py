"""Who is there: config queries, hints, and the IDENTIFY that makes a target of a stranger.

Owns what was asked and who is being looked at.  A *sighting* is a (link, MAC) that answered a tagged config query and
then IDENTIFY from exactly that MAC, with the payload that passes there; only a sighting changes anything.  Tasks: one
per link that asks (at 0, 100, 300 and 700 ms after a link came up, then every 60 s), and one per candidate under
IDENTIFY, at most ``MAX_CANDIDATES``; up to ``MAX_WAITING`` more wait for one of these places.

What holds always:

- An announcement, or any config answer whose tag is not ours, is a hint: it causes one unicast query with a tag of
  ours, at most one a second for a (link, MAC, address), with the last word to the last hint, and ``MAX_HINTS`` a second
  in all.  Nothing in it is believed.
- A tag of a query is good for ``ANSWER_WINDOW`` seconds.
- Only config reads are ever broadcast: vblade executes a broadcast write.

Rejected: creating a target from a config answer, as the Linux driver does (a file without a size, and a flood of
forged answers makes a thousand of them), and the driver's tag 0 for queries (anybody knows it).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import trio

from aoefs.core.path import Run
from aoefs.core.tags import Exchange, TagTable
from aoefs.engine.strangers import NO_ANSWER, REFUSED, RESERVED, SILENT, Stranger
from aoefs.errors import AtaError, FrameError, RequestError, TargetError
from aoefs.net.link import Link
from aoefs.protocol.ata import (
    FAILED,
    IDENTIFY_REGISTERS,
    Identity,
    Opcode,
    decode_identify_untrusted,
    transfer_registers,
)
from aoefs.protocol.wire import (
    ATA_BYTES,
    BROADCAST_ADDRESS,
    BROADCAST_MAC,
    SECTOR_BYTES,
    VERSION,
    Address,
    AoeCommand,
    AtaArgument,
    ConfigArgument,
    ConfigCommand,
    ErrorCode,
    Header,
    decode_ata_untrusted,
    decode_config_untrusted,
    decode_header_untrusted,
    encode_ata,
    encode_config,
)

QUERY_TIMES = (0.0, 0.1, 0.3, 0.7)  # seconds after a link came up: one lost broadcast must not hide a disk
QUERY_PERIOD = 60.0  # seconds, as the Linux driver
ANSWER_WINDOW = 5.0  # seconds
IDENTIFY_WAITS = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2)  # seconds for each try
MEASURE_WAITS = (0.02, 0.04, 0.08, 0.16, 0.32)  # seconds for each try with one size of frame
SECOND_ANSWER = 0.01  # seconds for which a second disk may answer the same IDENTIFY
MAX_CANDIDATES = 256
MAX_WAITING = 4096  # four paths of each of the 1024 targets that a mount shows
MAX_HINTS = 64  # unicast queries per second that hints may cause
HINT_PERIOD = 1.0  # seconds between two queries that one (link, MAC, address) causes
_WRONG_SHELF = 0xFFF  # DIP switches of real shelves set in reverse; the Linux driver refuses it too


@dataclass(frozen=True, slots=True)
class Sighting:
    """Somebody who answered a config query and IDENTIFY on ``link`` from ``mac``."""

    address: Address
    link: Link
    mac: bytes
    config: ConfigArgument
    identity: Identity
    sectors: int  # per frame, that pass on this path
    full_sectors: int  # per frame, that target and link would take


Endpoint = tuple[Link, bytes, Address]


class Discovery:
    """See the module.  ``found(sighting)`` is called for every sighting, also for paths that are known already, and
    ``refused(stranger)`` for a candidate of which none came;
    ``trusted_payload(link, mac, address)`` tells the sectors per frame of a path that need no measuring, else 0.
    ``allow_mac`` names the only MACs to look at (empty: all).  Sync methods never block.
    """

    def __init__(
        self,
        tags: TagTable[Run | Exchange],
        nursery: trio.Nursery,
        found: Callable[[Sighting], object],
        refused: Callable[[Stranger], object],
        trusted_payload: Callable[[Link, bytes, Address], int],
        *,
        allow_mac: frozenset[bytes] = frozenset(),
    ) -> None:
        self.hints = 0
        self.hints_dropped = 0
        self.candidates_dropped = 0
        self._tags = tags
        self._nursery = nursery
        self._found = found
        self._refused = refused
        self._trusted_payload = trusted_payload
        self._allow_mac = allow_mac
        self._candidates: dict[Endpoint, ConfigArgument] = {}
        self._waiting: dict[Endpoint, ConfigArgument] = {}  # for a place among them, the oldest first
        self._hinted: dict[Endpoint, float] = {}  # when it was asked for a hint last, the oldest first
        self._repeated: set[Endpoint] = set()  # hinted again within the period: to be asked at its end
        self._schedules: dict[Link, trio.CancelScope] = {}

    # ── asking ────────────────────────────────────────────────────────────────────────────────────────────────────

    def start(self, link: Link) -> None:
        """Ask on ``link`` by the schedule, from its beginning; replaces the one that runs."""
        self.stop(link)
        scope = self._schedules[link] = trio.CancelScope()
        self._nursery.start_soon(self._ask_by_schedule, link, scope, name=f"discovery on {link.interface}")

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
        """Send one config query; whoever answers within ``ANSWER_WINDOW`` is looked at."""
        exchange = Exchange(self._on_config_answer)
        self._tags.open(exchange)
        header = Header(mac, link.mac, address, AoeCommand.CONFIG, exchange.next_tag())
        link.send_frame(encode_config(header, ConfigArgument()))
        self._nursery.start_soon(self._forget_later, exchange, name="config query")

    async def _forget_later(self, exchange: Exchange) -> None:
        await trio.sleep(ANSWER_WINDOW)
        self._tags.close(exchange)

    # ── hearing ───────────────────────────────────────────────────────────────────────────────────────────────────

    def hint(self, link: Link, header: Header) -> None:
        """A config answer with no tag of ours came: ask whoever seems to have sent it, if the rates allow and this
        link discovers at all.
        """
        endpoint = (link, header.source, header.address)
        now = trio.current_time()
        self.hints += 1
        hinted = self._hinted
        while hinted and next(iter(hinted.values())) + HINT_PERIOD <= now:
            del hinted[next(iter(hinted))]
        if link not in self._schedules or endpoint in self._repeated or not self._may_exist(header):
            self.hints_dropped += 1
        elif endpoint in hinted:  # it may have changed once more since we asked
            self._repeated.add(endpoint)
            self._nursery.start_soon(self._ask_later, endpoint, hinted[endpoint] + HINT_PERIOD, name="repeated hint")
        elif len(hinted) >= MAX_HINTS:
            self.hints_dropped += 1
        else:
            self._ask_for_hint(endpoint, now)

    async def _ask_later(self, endpoint: Endpoint, at: float) -> None:
        await trio.sleep_until(at)
        self._repeated.discard(endpoint)
        if endpoint[0] in self._schedules:
            self._ask_for_hint(endpoint, at)

    def _ask_for_hint(self, endpoint: Endpoint, now: float) -> None:
        self._hinted.pop(endpoint, None)  # the oldest comes first
        self._hinted[endpoint] = now
        self.ask(*endpoint)

    def _may_exist(self, header: Header) -> bool:
        address = header.address
        unicast = not header.source[0] & 1
        allowed = not self._allow_mac or header.source in self._allow_mac
        return unicast and allowed and address.is_target and address.shelf != _WRONG_SHELF

    def _on_config_answer(self, link: Link, frame: bytes) -> None:
        try:
            header = decode_header_untrusted(frame)
            config = decode_config_untrusted(frame)
        except FrameError:
            link.rx_unknown += 1
            return
        ours = header.is_response and not header.is_error and header.version == VERSION
        good = header.command == AoeCommand.CONFIG and config.command == ConfigCommand.READ
        endpoint = (link, header.source, header.address)
        if not (ours and good and self._may_exist(header)):
            link.rx_unknown += 1
        elif endpoint in self._candidates:
            pass  # under IDENTIFY already
        elif len(self._candidates) < MAX_CANDIDATES:
            self.verify(endpoint, config)
        elif endpoint in self._waiting or len(self._waiting) < MAX_WAITING:
            self._waiting[endpoint] = config
        else:
            self.candidates_dropped += 1

    def verify(self, endpoint: Endpoint, config: ConfigArgument) -> None:
        """Ask for the identity behind (link, MAC, address), which said ``config`` of itself, unless we do already."""
        if endpoint not in self._candidates:
            self._candidates[endpoint] = config
            self._nursery.start_soon(self._identify, endpoint, config, name=f"IDENTIFY of {endpoint[2]}")

    def candidates(self) -> list[Stranger]:
        """Those that are under IDENTIFY."""
        return [self._stranger(endpoint, NO_ANSWER, SILENT) for endpoint in self._candidates]

    def _stranger(self, endpoint: Endpoint, state: str, reason: str) -> Stranger:
        link, mac, address = endpoint
        return Stranger(address, link.interface, mac, self._candidates[endpoint], state, reason)

    async def _identify(self, endpoint: Endpoint, config: ConfigArgument) -> None:
        """Ask a candidate for its identity, and measure what passes; silence drops it."""
        link, mac, address = endpoint
        refusals: list[RequestError] = []
        try:
            frames = await self._ask_disk(endpoint, IDENTIFY_REGISTERS, IDENTIFY_WAITS, refusals=refusals)
            if not frames:
                if link in self._schedules:
                    self._refused(self._stranger(endpoint, *_why_not(refusals)))
                return
            identity = decode_identify_untrusted(frames[0][ATA_BYTES:])
            if any(decode_identify_untrusted(frame[ATA_BYTES:]) != identity for frame in frames):
                self._refused(self._stranger(endpoint, REFUSED, "two disks answer from there"))
                return
            # 0 in a config answer means 2 (AoEr11 section 3.2)
            full_sectors = max(1, min(config.sectors or 2, link.max_sectors, identity.sectors))
            sectors = full_sectors
            if self._trusted_payload(*endpoint) != full_sectors:
                sectors = await self._measure(endpoint, full_sectors, identity)
                frames = await self._ask_disk(endpoint, IDENTIFY_REGISTERS, IDENTIFY_WAITS)  # measuring takes its time
                if not frames or decode_identify_untrusted(frames[0][ATA_BYTES:]) != identity:
                    return
        except FrameError as error:
            link.rx_unknown += 1
            self._refused(self._stranger(endpoint, REFUSED, f"its answer to IDENTIFY is unusable: {error}"))
        else:
            self._found(Sighting(address, link, mac, config, identity, sectors, full_sectors))
        finally:
            del self._candidates[endpoint]
            if self._waiting and len(self._candidates) < MAX_CANDIDATES:
                following = next(iter(self._waiting))
                self.verify(following, self._waiting.pop(following))

    async def _measure(self, endpoint: Endpoint, full_sectors: int, identity: Identity) -> int:
        """Sectors per frame that pass both ways: halved while nothing comes back, though a single sector does.

        READs of LBA 0 whose request is as long as their answer (the Linux driver's probe).
        """
        sectors = full_sectors
        while sectors > 1 and not await self._passes(endpoint, sectors, identity):
            if sectors == full_sectors and not await self._passes(endpoint, 1, identity):
                break  # the disk is slow or away: no word against large frames
            sectors //= 2
        return sectors

    async def _passes(self, endpoint: Endpoint, sectors: int, identity: Identity) -> bool:
        registers = transfer_registers(0, sectors, write=False, lba48=identity.lba48)
        return bool(await self._ask_disk(endpoint, registers, MEASURE_WAITS, bytes(sectors * SECTOR_BYTES)))

    async def _ask_disk(
        self,
        endpoint: Endpoint,
        registers: AtaArgument,
        waits: tuple[float, ...],
        data: bytes = b"",
        refusals: list[RequestError] | None = None,
    ) -> list[bytes]:
        """Send a lone command until it is answered from exactly that link, MAC and address; the answering frames.

        There are two when two disks answer from one place.  An error is an answer to a READ: it says that we are heard.
        To IDENTIFY it is none, and goes to ``refusals``.
        """
        link, mac, address = endpoint
        frames: list[bytes] = []
        answered = trio.Event()

        def on_answer(from_link: Link, frame: bytes) -> None:
            header = decode_header_untrusted(frame)
            exact = (from_link, header.source, header.address) == endpoint and header.command == AoeCommand.ATA
            if not exact or not header.is_response or header.version != VERSION:
                raise FrameError("not the answer to this command")
            identify = registers.command == Opcode.IDENTIFY
            failure: RequestError | None = None
            if header.is_error:
                failure = TargetError(header.error)
            elif (answer := decode_ata_untrusted(frame)).command & FAILED:
                failure = AtaError(answer.command, answer.feature)
            failed = failure is not None
            if failure is not None and refusals is not None:
                refusals.append(failure)
            if failed if identify else not failed and len(frame) < ATA_BYTES + len(data):
                raise FrameError("not the data that were asked for")
            frames.append(frame)
            answered.set()

        exchange = Exchange(on_answer)
        self._tags.open(exchange)
        try:
            for wait in waits:
                if link not in self._schedules:  # down, or gone meanwhile
                    break
                header = Header(mac, link.mac, address, AoeCommand.ATA, exchange.next_tag())
                link.send_frame(encode_ata(header, registers, data))
                with trio.move_on_after(wait):
                    await answered.wait()
                    break
            if frames and not data:
                await trio.sleep(SECOND_ANSWER)
        finally:
            self._tags.close(exchange)
        return frames


def _why_not(refusals: list[RequestError]) -> tuple[str, str]:
    """State and reason of a candidate that did not let itself be identified."""
    if not refusals:
        return NO_ANSWER, SILENT
    refusal = refusals[-1]
    if isinstance(refusal, TargetError) and refusal.code == ErrorCode.TARGET_RESERVED:
        return RESERVED, "another host has reserved it (AoE error 6 to IDENTIFY)"
    return REFUSED, f"it refuses IDENTIFY with {refusal}: an access list may leave this host out"
