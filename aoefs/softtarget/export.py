"""One export of the software target, as a pure state machine: frame in, answer out.

Owns what the export says on the wire: its config string, its IDENTIFY data, which command gets which answer.  It has
no socket, clock or trio.  ``mac`` and ``max_sectors`` of the interface that a frame came on are arguments; the sectors
are in a :class:`softtarget.store.Store`.  ``softtarget.server`` drives it over real interfaces, and serves runs of good
READs and WRITEs itself, with the answers that would be given here; tests drive it with bytes.

What holds always:

- Whatever the bytes, :meth:`Export.handle_untrusted` raises nothing; a frame gets one answer or none.
- Answers are padded to 60 bytes and carry version 1, our own shelf and slot, and no flag of the request.
- A frame to a broadcast MAC or address may only ask (config query, IDENTIFY), and changes nothing: vblade executes a
  broadcast WRITE on every target that hears it.  The one exception is aoecfg's: it sets the config string of one exact
  address with a frame to the broadcast MAC.
- A host that :class:`softtarget.access.Access` does not hear gets no answer.  One that does not hold a reserved export
  gets error 6 for every ATA command but IDENTIFY.
- A count in a mask or reserve command is compared with the frame before anything changes.  A command that is answered
  with an error changes nothing, except that a mask edit keeps the directives before the bad one.
- A FLUSH is answered only after the store has synced.  The export cannot wait: it returns a :class:`FlushRequest`, and
  its driver syncs and calls :meth:`Export.finish_flush`.
- After one failed sync every later FLUSH fails.  The kernel reports a lost page only once, and an initiator whose
  answer was lost sends the FLUSH again: it must not get "success" then.

SMART says what the export knows of its store: RETURN STATUS reports a failing disk after a failed sync, READ DATA has
three attributes (store errors, sectors written and read).

An unreadable sector is answered with UNC.  A failed write or sync is answered with "device fault" and not with ABRT,
which initiators take for "read-only" or "no such command".

Rejected: letting the LBA48 flag decide the width of an LBA (vblade and the initiators in use go by the opcode).
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

#: Messages that an export says it queues.  The Linux driver uses at most 64 of them (aoe_maxout).  64 jumbo frames for
#: each of 24 exports fit into the receive buffer of a socket.  vblade's 16 carry 16 MB/s at MTU 1500 and 1 ms of delay.
DEFAULT_BUFFER_COUNT = 64
FIRMWARE = 0x0100  # "firmware version" of a config answer, shown by the Linux driver in sysfs
LBA28_MASK = (1 << 28) - 1
_MASK_COMMAND_OFFSET = 25
_CONFIG_COMMAND_OFFSET = 29

READ_OPCODES = frozenset({Opcode.READ, Opcode.READ_EXT})
WRITE_OPCODES = frozenset({Opcode.WRITE, Opcode.WRITE_EXT})
EXTENDED_OPCODES = frozenset({Opcode.READ_EXT, Opcode.WRITE_EXT})


@dataclass(frozen=True, slots=True)
class FlushRequest:
    """A FLUSH that waits for the store: sync it, then :meth:`Export.finish_flush` makes the answer."""

    header: Header
    ata: AtaArgument
    mac: bytes


@dataclass(slots=True)
class Counters:
    """What one export did since it started.  ``ignored`` frames got no answer, ``errors`` were answered with one."""

    reads: int = 0
    writes: int = 0
    read_sectors: int = 0
    written_sectors: int = 0
    flushes: int = 0
    errors: int = 0
    ignored: int = 0
    store_errors: int = 0


class Export:
    """The export of ``store`` at ``address``, to the hosts that ``access`` admits (by default all).

    ``report`` is called with one line for each failure of the store; it must not raise, and limits its own rate.
    ValueError for a broadcast address and for a ``buffer_count`` outside 1 to 65535.
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
        """Unrequested config answers (tag 0), which make initiators ask: one broadcast, or one frame to each host that
        we hear if the others are not heard.
        """
        config = self._config_argument(ConfigCommand.READ, max_sectors)
        audience = self.access.audience
        return [
            encode_config(Header(to, mac, self.address, AoeCommand.CONFIG, 0, Flag.RESPONSE), config)
            for to in ((BROADCAST_MAC,) if audience is None else audience)
        ]

    def handle_untrusted(
        self, frame: bytes | memoryview, *, mac: bytes, max_sectors: int
    ) -> bytes | FlushRequest | None:
        """The answer to a frame that came on an interface with this ``mac``, whose frames hold ``max_sectors``.

        None when the frame is not for us or gets no answer by the protocol.
        """
        try:
            answer = self._handle(frame, mac, max_sectors)
        except FrameError:  # shorter than the header of its command
            answer = None
        if answer is None:
            self.counters.ignored += 1
        return answer

    def finish_flush(self, request: FlushRequest, error: OSError | None) -> bytes:
        """The answer to a FLUSH.  ``error`` is the failure of a sync that *began* after the FLUSH came, or None."""
        self.counters.flushes += 1
        if error is not None:
            self.sync_failed = True
            self._store_failed("sync", 0, error)
        if self.sync_failed:
            return self._ata_answer(request.header, request.ata, request.mac, Status.DRDY | Status.DF | Status.ERR)
        return self._ata_answer(request.header, request.ata, request.mac)

    def _handle(self, frame: bytes | memoryview, mac: bytes, max_sectors: int) -> bytes | FlushRequest | None:
        header = decode_header_untrusted(frame)
        shelf, slot = header.address
        wildcard = shelf == BROADCAST_ADDRESS.shelf or slot == BROADCAST_ADDRESS.slot
        if (
            header.is_response
            or header.destination not in (mac, BROADCAST_MAC)
            or shelf not in (self.address.shelf, BROADCAST_ADDRESS.shelf)
            or slot not in (self.address.slot, BROADCAST_ADDRESS.slot)
            or header.source[0] & 1  # a group address: an answer would go to many hosts
            or not self.access.hears(header.source)
        ):
            return None
        if header.version != 1:
            return self._error_answer(header, mac, ErrorCode.UNSUPPORTED_VERSION)
        broadcast = wildcard or header.destination == BROADCAST_MAC
        if header.command == AoeCommand.CONFIG:
            return self._handle_config(header, frame, mac, max_sectors, wildcard)
        if header.command == AoeCommand.ATA:
            return self._handle_ata(header, frame, mac, max_sectors, broadcast)
        if broadcast:
            return None
        if header.command == AoeCommand.MASK:
            return self._handle_mask(header, frame, mac)
        if header.command == AoeCommand.RESERVE:
            return self._handle_reserve(header, frame, mac)
        return self._error_answer(header, mac, ErrorCode.UNRECOGNIZED_COMMAND)

    def _answer_header(self, header: Header, mac: bytes, error: int = 0) -> Header:
        flags = Flag.RESPONSE | (Flag.ERROR if error else 0)
        return Header(header.source, mac, self.address, header.command, header.tag, flags, error)

    def _error_answer(self, header: Header, mac: bytes, error: ErrorCode) -> bytes:
        self.counters.errors += 1
        return pad(encode_header(self._answer_header(header, mac, error)))

    # ── config query ──────────────────────────────────────────────────────────────────────────────────────────────

    def _config_argument(self, command: int, max_sectors: int) -> ConfigArgument:
        return ConfigArgument(command, self.config_string, self.buffer_count, FIRMWARE, max_sectors, version=1)

    def _handle_config(
        self, header: Header, frame: bytes | memoryview, mac: bytes, max_sectors: int, wildcard: bool
    ) -> bytes | None:
        if len(frame) < CONFIG_BYTES:
            return None
        command = frame[_CONFIG_COMMAND_OFFSET] & 0x0F
        if wildcard and command > ConfigCommand.PREFIX:  # the commands above it set, or are unknown
            return None
        error = 0
        if command != ConfigCommand.READ:  # a READ has no string; tools put anything into its length
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
        self.counters.errors += bool(error)
        return encode_config(self._answer_header(header, mac, error), self._config_argument(command, max_sectors))

    # ── access ────────────────────────────────────────────────────────────────────────────────────────────────────

    def _handle_mask(self, header: Header, frame: bytes | memoryview, mac: bytes) -> bytes | None:
        """AoEr11 section 3.3.  An edit is answered even if its sender is not on the list afterwards."""
        if len(frame) < MASK_BYTES:
            return None
        command = frame[_MASK_COMMAND_OFFSET]
        error, index = MaskError.NONE, 0
        if command == MaskCommand.EDIT:
            try:
                wanted = decode_mask_untrusted(frame)
            except FrameError:
                return self._error_answer(header, mac, ErrorCode.BAD_ARGUMENT)
            if wanted.error:  # then no directives follow, so it is no edit
                return self._error_answer(header, mac, ErrorCode.BAD_ARGUMENT)
            error, index = self.access.edit_mask(wanted.directives)
        elif command != MaskCommand.READ:  # a READ has no directives; its count is ignored
            return self._error_answer(header, mac, ErrorCode.BAD_ARGUMENT)
        if error:
            self.counters.errors += 1
            return encode_mask(self._answer_header(header, mac), MaskArgument(command, (), error, index))
        entries = tuple((int(MaskDirective.NONE), entry) for entry in self.access.mask)
        return encode_mask(self._answer_header(header, mac), MaskArgument(command, entries))

    def _handle_reserve(self, header: Header, frame: bytes | memoryview, mac: bytes) -> bytes | None:
        """AoEr11 section 3.4.  Every answer but "bad argument" carries the list as it is after the command."""
        if len(frame) < RESERVE_BYTES:
            return None
        command = frame[HEADER_BYTES]
        error = 0
        if command in (ReserveCommand.SET, ReserveCommand.FORCE_SET):
            try:
                macs = decode_reserve_untrusted(frame).macs
            except FrameError:
                return self._error_answer(header, mac, ErrorCode.BAD_ARGUMENT)
            if len(set(macs)) > MAX_MACS:
                return self._error_answer(header, mac, ErrorCode.BAD_ARGUMENT)
            if not self.access.reserve(header.source, macs, force=command == ReserveCommand.FORCE_SET):
                error = ErrorCode.TARGET_RESERVED
                self.counters.errors += 1
        elif command != ReserveCommand.READ:
            return self._error_answer(header, mac, ErrorCode.BAD_ARGUMENT)
        return encode_reserve(self._answer_header(header, mac, error), ReserveArgument(command, self.access.holders))

    # ── ATA ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def _ata_answer(
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
        """An answer with the registers after the command.  ``count`` sectors were *not* transferred, as vblade says."""
        if status & Status.ERR:
            self.counters.errors += 1
        registers = AtaArgument(ata.flags, error, count, status, ata.lba)
        return encode_ata(self._answer_header(header, mac), registers, memoryview(data))

    def _abort(self, header: Header, ata: AtaArgument, mac: bytes, bit: ErrorBit = ErrorBit.ABRT) -> bytes:
        return self._ata_answer(header, ata, mac, Status.DRDY | Status.ERR, bit, count=ata.count)

    def _ata_error_answer(self, header: Header, ata: AtaArgument, mac: bytes, error: ErrorCode) -> bytes:
        self.counters.errors += 1
        return encode_ata(self._answer_header(header, mac, error), ata)

    def _handle_ata(
        self, header: Header, frame: bytes | memoryview, mac: bytes, max_sectors: int, broadcast: bool
    ) -> bytes | FlushRequest | None:
        ata = decode_ata_untrusted(frame)
        opcode = ata.command
        if opcode == Opcode.IDENTIFY:  # always one sector, whatever the count
            return self._ata_answer(header, ata, mac, data=self._identify)
        if broadcast:
            return None
        if not self.access.admits(header.source):
            return self._ata_error_answer(header, ata, mac, ErrorCode.TARGET_RESERVED)
        if opcode in READ_OPCODES or opcode in WRITE_OPCODES:
            return self._transfer(header, ata, frame, mac, max_sectors)
        if opcode in (Opcode.FLUSH, Opcode.FLUSH_EXT):
            return FlushRequest(header, ata, mac)
        if opcode == Opcode.CHECK_POWER_MODE:
            return self._ata_answer(header, ata, mac, count=0xFF)  # active or idle
        if opcode == Opcode.SMART and is_smart_untrusted(ata):
            return self._smart(header, ata, mac)
        return self._abort(header, ata, mac)

    def _smart(self, header: Header, ata: AtaArgument, mac: bytes) -> bytes:
        counters = self.counters
        if ata.feature == Feature.RETURN_STATUS:
            answer = replace(ata, lba=status_lba(ata.lba, failing=self.sync_failed))
            return self._ata_answer(header, answer, mac, data=bytes(SECTOR_BYTES))  # aoeping takes no shorter one
        if ata.feature != Feature.READ_DATA:
            return self._abort(header, ata, mac)
        health = max(1, 100 - counters.store_errors)
        attributes = (
            Attribute(187, health, health, counters.store_errors),
            Attribute(241, 100, 100, counters.written_sectors),
            Attribute(242, 100, 100, counters.read_sectors),
        )
        return self._ata_answer(header, ata, mac, data=encode_smart(attributes))

    def _transfer(
        self, header: Header, ata: AtaArgument, frame: bytes | memoryview, mac: bytes, max_sectors: int
    ) -> bytes:
        write = ata.command in WRITE_OPCODES
        lba = ata.lba if ata.command in EXTENDED_OPCODES else ata.lba & LBA28_MASK
        size = ata.count * SECTOR_BYTES
        # A count of 0 means 256 or 65536 sectors in ATA, which no frame holds.
        if not 1 <= ata.count <= max_sectors or (write and len(frame) < ATA_BYTES + size):
            return self._ata_error_answer(header, ata, mac, ErrorCode.BAD_ARGUMENT)
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
        return self._ata_answer(header, ata, mac, data=data)

    def _write(self, header: Header, ata: AtaArgument, mac: bytes, data: memoryview, lba: int) -> bytes:
        if self.store.read_only:
            return self._abort(header, ata, mac)
        try:
            if self.store.writev([data], lba * SECTOR_BYTES) != len(data):
                raise OSError("the store took only a part")
        except OSError as error:
            self._store_failed("write", lba, error)
            return self._ata_answer(header, ata, mac, Status.DRDY | Status.DF | Status.ERR, count=ata.count)
        self.counters.writes += 1
        self.counters.written_sectors += ata.count
        return self._ata_answer(header, ata, mac)

    def _store_failed(self, what: str, lba: int, error: OSError) -> None:
        self.counters.store_errors += 1
        self.report(f"{self.address}: {what} at sector {lba} failed: {error.strerror or error}")
