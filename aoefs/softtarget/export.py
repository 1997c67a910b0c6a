"""The software target as a pure export: one export, frame in, answer out.

Owns what one export says on the wire: its config string, its IDENTIFY data, which command gets which answer.  No
socket, no clock, no trio: ``mac`` and ``max_sectors`` of the link that a frame came on are arguments, the disk is a
:class:`Store`.  ``softtarget.server`` drives it over real links and has its own fast way for runs of good READs and
WRITEs, whose answers must be the ones given here; tests drive it with bytes.

What holds always:

- Whatever the bytes, :meth:`Export.handle_untrusted` raises nothing; a frame gets one answer or none.
- Answers are padded to 60 bytes, carry the version 1, our own shelf and slot and no flag of the request.
- A frame whose MAC or address is a broadcast may only ask (config query, IDENTIFY); data are neither read nor
  written for it.  vblade executes a broadcast WRITE on every target that hears it.
- Whoever the lists of :class:`softtarget.access.Access` do not let in hears nothing, and who does not hold a reserved
  export gets error 6 for every ATA command but IDENTIFY.  A count in a mask or reserve command is compared with the
  frame before anything changes; a refused command changes nothing, a mask edit what came before the bad directive.
- A FLUSH is answered after the store has synced and not before.  The export cannot wait, so it hands out a
  :class:`FlushRequest`, and whoever drives it comes back with the outcome.
- After one failed sync every later FLUSH fails: the kernel forgets which pages it lost after it has told us once,
  and the initiator that sends a FLUSH again, since our answer was lost, must not hear "all is well".

SMART tells what the export knows of its store: RETURN STATUS fails after a failed sync, READ DATA has three
attributes (store errors, sectors written and read).

An unreadable sector answers UNC; a failed write or sync answers "device fault" and not ABRT, which initiators take
for "read-only" or "no such command".

Rejected: one class per command (a dozen answers of three lines each), and letting the LBA48 flag decide the width
of an LBA (vblade and initiators in the field go by the opcode).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from aoefs.errors import FrameError
from aoefs.protocol.ata import ErrorBit, Identity, Opcode, Status, encode_identify
from aoefs.protocol.smart import Attribute, Feature, encode_smart, is_smart_untrusted, status_lba
from aoefs.protocol.wire import (
    ATA_BYTES,
    BROADCAST_ADDRESS,
    BROADCAST_MAC,
    CONFIG_BYTES,
    HEADER_BYTES,
    MASK_BYTES,
    RESERVE_BYTES,
    SECTOR_BYTES,
    Address,
    AoeCommand,
    AtaArgument,
    ConfigArgument,
    ConfigCommand,
    ErrorCode,
    Flag,
    Header,
    MaskArgument,
    MaskCommand,
    MaskDirective,
    MaskError,
    ReserveArgument,
    ReserveCommand,
    decode_ata_untrusted,
    decode_config_untrusted,
    decode_header_untrusted,
    decode_mask_untrusted,
    decode_reserve_untrusted,
    encode_ata,
    encode_config,
    encode_header,
    encode_mask,
    encode_reserve,
    pad,
)
from aoefs.softtarget.access import MAX_MACS, Access
from aoefs.softtarget.store import Store

#: Messages that a target says it queues.  The Linux driver uses at most 64 of them (aoe_maxout), and 64 jumbo frames
#: of each of 24 exports fit into the receive buffer of a link; vblade's 16 carry 16 MB/s at MTU 1500 and 1 ms of delay.
DEFAULT_BUFFER_COUNT = 64
FIRMWARE = 0x0100  # "firmware version" of a config answer, shown by the Linux driver in sysfs
LBA28_MASK = (1 << 28) - 1
_MASK_COMMAND_OFFSET = 25
_CONFIG_COMMAND_OFFSET = 29

READ_OPCODES = frozenset({Opcode.READ, Opcode.READ_EXT})
WRITE_OPCODES = frozenset({Opcode.WRITE, Opcode.WRITE_EXT})
_EXTENDED = frozenset({Opcode.READ_EXT, Opcode.WRITE_EXT})


@dataclass(frozen=True, slots=True)
class FlushRequest:
    """A FLUSH that waits for the store: sync it, then :meth:`Export.finish_flush` makes the answer."""

    header: Header
    ata: AtaArgument
    mac: bytes


@dataclass(slots=True)
class Counters:
    """What one export did since it started; ``ignored`` frames got no answer, ``refused`` ones an error."""

    reads: int = 0
    writes: int = 0
    read_sectors: int = 0
    written_sectors: int = 0
    flushes: int = 0
    refused: int = 0
    ignored: int = 0
    store_errors: int = 0


class Export:
    """One export at ``address``; ``access`` says to whom (by default to everybody).

    ``report`` is told of a failing store in one line (it must not raise, and it limits its own rate).
    """

    def __init__(
        self,
        address: Address,
        store: Store,
        *,
        serial: str,
        model: str = "aoefs software target",
        firmware: str = "1",
        buffer_count: int = DEFAULT_BUFFER_COUNT,
        config_string: bytes = b"",
        access: Access | None = None,
        report: Callable[[str], None] | None = None,
    ) -> None:
        if not address.is_target:
            raise ValueError(f"{address} is a broadcast address")
        if not 1 <= buffer_count <= 0xFFFF:
            raise ValueError(f"a buffer count is 1 to 65535, not {buffer_count}")
        self.address = address
        self.store = store
        self.buffer_count = buffer_count
        self.config_string = config_string
        self.access = access if access is not None else Access()
        self.counters = Counters()
        self.report = report if report is not None else lambda _line: None
        self.sync_failed = False
        self.identity = Identity(
            sectors=store.sectors,
            serial=serial,
            model=model,
            firmware=firmware,
            flush=True,
            flush_ext=True,
            write_cache=store.volatile and not store.read_only,
            smart=True,
        )
        self._identify = encode_identify(self.identity)

    # ── frames ────────────────────────────────────────────────────────────────────────────────────────────────────

    def announcements(self, *, mac: bytes, max_sectors: int) -> list[bytes]:
        """The config answer that nobody asked for (tag 0), so that initiators ask: a broadcast, or with a list of whom
        we listen to, one frame to each of them.
        """
        config = self._config(ConfigCommand.READ, max_sectors)
        audience = self.access.audience
        return [
            encode_config(Header(to, mac, self.address, AoeCommand.CONFIG, 0, Flag.RESPONSE), config)
            for to in ((BROADCAST_MAC,) if audience is None else audience)
        ]

    def handle_untrusted(
        self, frame: bytes | memoryview, *, mac: bytes, max_sectors: int
    ) -> bytes | FlushRequest | None:
        """The answer to a frame that came on a link with this ``mac`` whose frames hold ``max_sectors``.

        None: the frame is not for us, or the protocol wants silence.
        """
        try:
            answer = self._handle(frame, mac, max_sectors)
        except FrameError:  # shorter than its command's header: AoE answers nothing
            answer = None
        if answer is None:
            self.counters.ignored += 1
        return answer

    def answer(self, frame: bytes | memoryview, *, mac: bytes, max_sectors: int) -> bytes | None:
        """As :meth:`handle_untrusted`, with a FLUSH done on the spot."""
        answer = self.handle_untrusted(frame, mac=mac, max_sectors=max_sectors)
        if not isinstance(answer, FlushRequest):
            return answer
        try:
            self.store.sync()
        except OSError as error:
            return self.finish_flush(answer, error)
        return self.finish_flush(answer, None)

    def finish_flush(self, request: FlushRequest, error: OSError | None) -> bytes:
        """The answer to a FLUSH after a sync that *began* after the FLUSH came; ``error`` is its failure."""
        self.counters.flushes += 1
        if error is not None:
            self.sync_failed = True
            self._store_failed("sync", 0, error)
        if self.sync_failed:
            return self._ata(request.header, request.ata, request.mac, Status.DRDY | Status.DF | Status.ERR)
        return self._ata(request.header, request.ata, request.mac)

    def _handle(self, frame: bytes | memoryview, mac: bytes, max_sectors: int) -> bytes | FlushRequest | None:
        header = decode_header_untrusted(frame)
        shelf, slot = header.address
        wildcard = shelf == BROADCAST_ADDRESS.shelf or slot == BROADCAST_ADDRESS.slot
        if (
            header.is_response
            or header.destination not in (mac, BROADCAST_MAC)
            or shelf not in (self.address.shelf, BROADCAST_ADDRESS.shelf)
            or slot not in (self.address.slot, BROADCAST_ADDRESS.slot)
            or header.source[0] & 1  # a group address as the source: an answer would go to many
            or not self.access.hears(header.source)
        ):
            return None
        if header.version != 1:
            return self._refuse(header, mac, ErrorCode.UNSUPPORTED_VERSION)
        broadcast = wildcard or header.destination == BROADCAST_MAC
        if header.command == AoeCommand.CONFIG:
            return self._handle_config(header, frame, mac, max_sectors)
        if header.command == AoeCommand.ATA:
            return self._handle_ata(header, frame, mac, max_sectors, broadcast)
        if broadcast:
            return None
        if header.command == AoeCommand.MASK:
            return self._handle_mask(header, frame, mac)
        if header.command == AoeCommand.RESERVE:
            return self._handle_reserve(header, frame, mac)
        return self._refuse(header, mac, ErrorCode.UNRECOGNIZED_COMMAND)

    def _reply(self, header: Header, mac: bytes, error: int = 0) -> Header:
        flags = Flag.RESPONSE | (Flag.ERROR if error else 0)
        return Header(header.source, mac, self.address, header.command, header.tag, flags, error)

    def _refuse(self, header: Header, mac: bytes, error: ErrorCode) -> bytes:
        self.counters.refused += 1
        return pad(encode_header(self._reply(header, mac, error)))

    # ── config query ──────────────────────────────────────────────────────────────────────────────────────────────

    def _config(self, command: int, max_sectors: int) -> ConfigArgument:
        return ConfigArgument(command, self.config_string, self.buffer_count, FIRMWARE, max_sectors, version=1)

    def _handle_config(self, header: Header, frame: bytes | memoryview, mac: bytes, max_sectors: int) -> bytes | None:
        if len(frame) < CONFIG_BYTES:
            return None
        command = frame[_CONFIG_COMMAND_OFFSET] & 0x0F
        error = 0
        if command != ConfigCommand.READ:  # a READ has no string: its length, which tools fill with anything, is void
            try:
                wanted = decode_config_untrusted(frame).string
            except FrameError:
                error = ErrorCode.BAD_ARGUMENT
            else:
                if command == ConfigCommand.TEST and wanted != self.config_string:
                    return None
                if command == ConfigCommand.PREFIX and not self.config_string.startswith(wanted):
                    return None
                if command > ConfigCommand.FORCE_SET:
                    error = ErrorCode.BAD_ARGUMENT
                elif command == ConfigCommand.SET and self.config_string not in (b"", wanted):
                    error = ErrorCode.CONFIG_STRING_PRESENT
                elif command in (ConfigCommand.SET, ConfigCommand.FORCE_SET):
                    self.config_string = wanted
        self.counters.refused += bool(error)
        return encode_config(self._reply(header, mac, error), self._config(command, max_sectors))

    # ── who may ───────────────────────────────────────────────────────────────────────────────────────────────────

    def _handle_mask(self, header: Header, frame: bytes | memoryview, mac: bytes) -> bytes | None:
        """AoEr11 section 3.3.  The answer to an edit goes out even if it shuts its sender out."""
        if len(frame) < MASK_BYTES:
            return None
        command = frame[_MASK_COMMAND_OFFSET]
        error, index = MaskError.NONE, 0
        if command == MaskCommand.EDIT:
            try:
                wanted = decode_mask_untrusted(frame)
            except FrameError:
                return self._refuse(header, mac, ErrorCode.BAD_ARGUMENT)
            if wanted.error:  # it would announce that no directives follow: not an edit that we can read
                return self._refuse(header, mac, ErrorCode.BAD_ARGUMENT)
            error, index = self.access.edit_mask(wanted.directives)
        elif command != MaskCommand.READ:  # a READ has no directives: their count is void
            return self._refuse(header, mac, ErrorCode.BAD_ARGUMENT)
        if error:
            self.counters.refused += 1
            return encode_mask(self._reply(header, mac), MaskArgument(command, (), error, index))
        entries = tuple((int(MaskDirective.NONE), entry) for entry in self.access.mask)
        return encode_mask(self._reply(header, mac), MaskArgument(command, entries))

    def _handle_reserve(self, header: Header, frame: bytes | memoryview, mac: bytes) -> bytes | None:
        """AoEr11 section 3.4.  Every answer but "bad argument" carries the list as it is then."""
        if len(frame) < RESERVE_BYTES:
            return None
        command = frame[HEADER_BYTES]
        error = 0
        if command in (ReserveCommand.SET, ReserveCommand.FORCE_SET):
            try:
                macs = decode_reserve_untrusted(frame).macs
            except FrameError:
                return self._refuse(header, mac, ErrorCode.BAD_ARGUMENT)
            if len(set(macs)) > MAX_MACS:
                return self._refuse(header, mac, ErrorCode.BAD_ARGUMENT)
            if not self.access.reserve(header.source, macs, force=command == ReserveCommand.FORCE_SET):
                error = ErrorCode.TARGET_RESERVED
                self.counters.refused += 1
        elif command != ReserveCommand.READ:
            return self._refuse(header, mac, ErrorCode.BAD_ARGUMENT)
        return encode_reserve(self._reply(header, mac, error), ReserveArgument(command, self.access.holders))

    # ── ATA ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def _ata(
        self,
        header: Header,
        ata: AtaArgument,
        mac: bytes,
        status: int = Status.DRDY,
        error: int = 0,
        *,
        count: int = 0,
        data: bytes | bytearray = b"",
    ) -> bytes:
        """An answer with the registers after the command: ``count`` is what was *not* transferred, as in vblade."""
        if status & Status.ERR:
            self.counters.refused += 1
        registers = AtaArgument(ata.flags, error, count, status, ata.lba)
        return encode_ata(self._reply(header, mac), registers, memoryview(data))

    def _abort(self, header: Header, ata: AtaArgument, mac: bytes, bit: ErrorBit = ErrorBit.ABRT) -> bytes:
        return self._ata(header, ata, mac, Status.DRDY | Status.ERR, bit, count=ata.count)

    def _refuse_ata(self, header: Header, ata: AtaArgument, mac: bytes, error: ErrorCode) -> bytes:
        self.counters.refused += 1
        return encode_ata(self._reply(header, mac, error), ata)

    def _handle_ata(
        self, header: Header, frame: bytes | memoryview, mac: bytes, max_sectors: int, broadcast: bool
    ) -> bytes | FlushRequest | None:
        ata = decode_ata_untrusted(frame)
        opcode = ata.command
        if opcode == Opcode.IDENTIFY:  # whatever the count: IDENTIFY always is one sector
            return self._ata(header, ata, mac, data=self._identify)
        if broadcast:
            return None
        if not self.access.admits(header.source):
            return self._refuse_ata(header, ata, mac, ErrorCode.TARGET_RESERVED)
        if opcode in READ_OPCODES or opcode in WRITE_OPCODES:
            return self._transfer(header, ata, frame, mac, max_sectors)
        if opcode in (Opcode.FLUSH, Opcode.FLUSH_EXT):
            return FlushRequest(header, ata, mac)
        if opcode == Opcode.CHECK_POWER_MODE:
            return self._ata(header, ata, mac, count=0xFF)  # active or idle
        if opcode == Opcode.SMART and is_smart_untrusted(ata):
            return self._smart(header, ata, mac)
        return self._abort(header, ata, mac)

    def _smart(self, header: Header, ata: AtaArgument, mac: bytes) -> bytes:
        counters = self.counters
        if ata.feature == Feature.RETURN_STATUS:
            told = replace(ata, lba=status_lba(ata.lba, failing=self.sync_failed))
            return self._ata(header, told, mac, data=bytes(SECTOR_BYTES))  # aoeping takes no shorter answer
        if ata.feature != Feature.READ_DATA:
            return self._abort(header, ata, mac)
        health = max(1, 100 - counters.store_errors)
        attributes = (
            Attribute(187, health, health, counters.store_errors),
            Attribute(241, 100, 100, counters.written_sectors),
            Attribute(242, 100, 100, counters.read_sectors),
        )
        return self._ata(header, ata, mac, data=encode_smart(attributes))

    def _transfer(
        self, header: Header, ata: AtaArgument, frame: bytes | memoryview, mac: bytes, max_sectors: int
    ) -> bytes:
        write = ata.command in WRITE_OPCODES
        lba = ata.lba if ata.command in _EXTENDED else ata.lba & LBA28_MASK
        size = ata.count * SECTOR_BYTES
        # A count of 0 is 256 or 65536 sectors in plain ATA: never what a frame holds.
        if not 1 <= ata.count <= max_sectors or (write and len(frame) < ATA_BYTES + size):
            return self._refuse_ata(header, ata, mac, ErrorCode.BAD_ARGUMENT)
        if lba + ata.count > self.store.sectors:
            return self._abort(header, ata, mac, ErrorBit.IDNF)
        if write:
            return self._write(header, ata, mac, memoryview(frame)[ATA_BYTES : ATA_BYTES + size], lba)
        data = bytearray(size)
        try:
            if self.store.readv([data], lba * SECTOR_BYTES) != size:
                raise OSError("the store is shorter than it was")
        except OSError as error:
            self._store_failed("read", lba, error)
            return self._abort(header, ata, mac, ErrorBit.UNC)
        self.counters.reads += 1
        self.counters.read_sectors += ata.count
        return self._ata(header, ata, mac, data=data)

    def _write(self, header: Header, ata: AtaArgument, mac: bytes, data: memoryview, lba: int) -> bytes:
        if self.store.read_only:
            return self._abort(header, ata, mac)
        try:
            if self.store.writev([data], lba * SECTOR_BYTES) != len(data):
                raise OSError("the store took a part only")
        except OSError as error:
            self._store_failed("write", lba, error)
            return self._ata(header, ata, mac, Status.DRDY | Status.DF | Status.ERR, count=ata.count)
        self.counters.writes += 1
        self.counters.written_sectors += ata.count
        return self._ata(header, ata, mac)

    def _store_failed(self, what: str, lba: int, error: OSError) -> None:
        self.counters.store_errors += 1
        self.report(f"{self.address}: {what} at sector {lba} failed: {error.strerror or error}")
