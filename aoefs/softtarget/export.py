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
from dataclasses import replace
from typing import NamedTuple

from aoefs.errors import FrameError
from aoefs.protocol import wire
from aoefs.protocol.ata import ErrorBit, Identity, Opcode, Status, encode_identify
from aoefs.protocol.smart import Attribute, Feature, encode_smart, is_smart_untrusted, status_lba
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
_LEAST_BYTES: dict[int, int] = {  # of a frame, by its command
    wire.AoeCommand.ATA: wire.ATA_BYTES,
    wire.AoeCommand.CONFIG: wire.CONFIG_BYTES,
    wire.AoeCommand.MASK: wire.MASK_BYTES,
    wire.AoeCommand.RESERVE: wire.RESERVE_BYTES,
}
_DEVICE_FAULT = Status.DRDY | Status.DF | Status.ERR


class Question(NamedTuple):
    """A frame for an export, and the interface that it came on: its MAC, and how much its frames hold.

    With a ``wildcard`` it is for other exports too; a ``broadcast`` has a wildcard or the broadcast MAC.
    """

    header: wire.Header
    frame: bytes | memoryview
    mac: bytes
    max_sectors: int
    wildcard: bool
    broadcast: bool


class FlushRequest(NamedTuple):
    """A FLUSH that waits for the store: sync it, then :meth:`Export.finish_flush` makes the answer."""

    question: Question
    ata: wire.AtaArgument


class Export:
    """The export of ``store`` at ``address``, to the hosts that ``access`` admits (by default all).

    ``report`` is called with one line for each failure of the store; it must not raise, and limits its own rate.
    ValueError for a broadcast address and for a ``buffer_count`` outside 1 to 65535.
    """

    def __init__(
        self,
        address: wire.Address,
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
        self.read_sectors = self.written_sectors = self.store_errors = 0
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
        config = self._config_argument(wire.ConfigCommand.READ, max_sectors)
        audience = [wire.BROADCAST_MAC] if self.access.heard is None else sorted(self.access.heard)
        header = wire.Header(b"", mac, self.address, wire.AoeCommand.CONFIG, 0, wire.Flag.RESPONSE)
        return [wire.encode(replace(header, destination=to), config) for to in audience]

    def handle_untrusted(
        self, frame: bytes | memoryview, *, mac: bytes, max_sectors: int
    ) -> bytes | FlushRequest | None:
        """The answer to a frame that came on an interface with this ``mac``, whose frames hold ``max_sectors``.

        None when the frame is not for us or gets no answer by the protocol.
        """
        try:
            return self._handle(frame, mac, max_sectors)
        except FrameError:  # shorter than a header
            return None

    def finish_flush(self, request: FlushRequest, error: OSError | None) -> bytes:
        """The answer to a FLUSH.  ``error`` is the failure of a sync that *began* after the FLUSH came, or None."""
        if error is not None:
            self.sync_failed = True
            self._store_failed("sync", 0, error)
        return self._ata_answer(*request, _DEVICE_FAULT if self.sync_failed else Status.DRDY)

    def _handle(self, frame: bytes | memoryview, mac: bytes, max_sectors: int) -> bytes | FlushRequest | None:
        header = wire.decode_header_untrusted(frame)
        shelf, slot = header.address
        wildcard = shelf == wire.BROADCAST_ADDRESS.shelf or slot == wire.BROADCAST_ADDRESS.slot
        if (
            header.is_response
            or header.destination not in (mac, wire.BROADCAST_MAC)
            or shelf not in (self.address.shelf, wire.BROADCAST_ADDRESS.shelf)
            or slot not in (self.address.slot, wire.BROADCAST_ADDRESS.slot)
            or header.source[0] & 1  # a group address: an answer would go to many hosts
            or not self.access.hears(header.source)
        ):
            return None
        broadcast = wildcard or header.destination == wire.BROADCAST_MAC
        question = Question(header, frame, mac, max_sectors, wildcard, broadcast)
        if header.version != 1:
            return self._answer(question, None, wire.ErrorCode.UNSUPPORTED_VERSION)
        if len(frame) < _LEAST_BYTES.get(header.command, 0):
            return None
        if header.command == wire.AoeCommand.CONFIG:
            return self._handle_config(question)
        if header.command == wire.AoeCommand.ATA:
            return self._handle_ata(question)
        if broadcast:
            return None
        try:
            if header.command == wire.AoeCommand.MASK:
                return self._handle_mask(question)
            if header.command == wire.AoeCommand.RESERVE:
                return self._handle_reserve(question)
        except FrameError:
            return self._answer(question, None, wire.ErrorCode.BAD_ARGUMENT)
        return self._answer(question, None, wire.ErrorCode.UNRECOGNIZED_COMMAND)

    def _answer(
        self, question: Question, argument: wire.Argument | None, error: int = 0, data: bytes | memoryview = b""
    ) -> bytes:
        """The answer with this argument; None: with the header alone, as an AoE error may be."""
        asked = question.header
        flags = wire.Flag.RESPONSE | (wire.Flag.ERROR if error else 0)
        header = wire.Header(asked.source, question.mac, self.address, asked.command, asked.tag, flags, error)
        return wire.pad(wire.encode_header(header)) if argument is None else wire.encode(header, argument, data)

    # ── config query ──────────────────────────────────────────────────────────────────────────────────────────────

    def _config_argument(self, command: int, max_sectors: int) -> wire.ConfigArgument:
        return wire.ConfigArgument(command, self.config_string, self.buffer_count, FIRMWARE, max_sectors, version=1)

    def _handle_config(self, question: Question) -> bytes | None:
        command = question.frame[_CONFIG_COMMAND_OFFSET] & 0x0F
        if question.wildcard and command > wire.ConfigCommand.PREFIX:  # the commands above it set, or are unknown
            return None
        error = 0
        if command != wire.ConfigCommand.READ:  # a READ has no string; tools put anything into its length
            try:
                wanted = wire.decode_config_untrusted(question.frame).string
            except FrameError:
                error = wire.ErrorCode.BAD_ARGUMENT
            else:
                if command == wire.ConfigCommand.TEST and wanted != self.config_string:
                    return None
                if command == wire.ConfigCommand.PREFIX and not self.config_string.startswith(wanted):
                    return None
                if command > wire.ConfigCommand.FORCE_SET:
                    error = wire.ErrorCode.BAD_ARGUMENT
                elif command == wire.ConfigCommand.SET and self.config_string not in (b"", wanted):
                    error = wire.ErrorCode.CONFIG_STRING_PRESENT
                elif command in (wire.ConfigCommand.SET, wire.ConfigCommand.FORCE_SET):
                    self.config_string = wanted
        return self._answer(question, self._config_argument(command, question.max_sectors), error)

    # ── access ────────────────────────────────────────────────────────────────────────────────────────────────────

    def _handle_mask(self, question: Question) -> bytes:
        """AoEr11 section 3.3.  An edit is answered even if its sender is not on the list afterwards."""
        command = question.frame[_MASK_COMMAND_OFFSET]
        if command == wire.MaskCommand.EDIT:
            wanted = wire.decode_mask_untrusted(question.frame)
            if wanted.error:
                raise FrameError("mask edit: with an error no directives follow")
            error, index = self.access.edit_mask(wanted.directives)
            if error:
                return self._answer(question, wire.MaskArgument(command, (), error, index))
        elif command != wire.MaskCommand.READ:  # a READ has no directives; its count is ignored
            raise FrameError(f"mask command {command}")
        entries = tuple((int(wire.MaskDirective.NONE), entry) for entry in self.access.mask)
        return self._answer(question, wire.MaskArgument(command, entries))

    def _handle_reserve(self, question: Question) -> bytes:
        """AoEr11 section 3.4.  Every answer but "bad argument" carries the list as it is after the command."""
        command = question.frame[wire.HEADER_BYTES]
        done = True
        if command in (wire.ReserveCommand.SET, wire.ReserveCommand.FORCE_SET):
            macs = wire.decode_reserve_untrusted(question.frame).macs
            if len(set(macs)) > MAX_MACS:
                raise FrameError(f"reserve list: more than {MAX_MACS} MACs")
            done = self.access.reserve(question.header.source, macs, force=command == wire.ReserveCommand.FORCE_SET)
        elif command != wire.ReserveCommand.READ:
            raise FrameError(f"reserve command {command}")
        error = 0 if done else wire.ErrorCode.TARGET_IS_RESERVED
        return self._answer(question, wire.ReserveArgument(command, self.access.holders), error)

    # ── ATA ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def _ata_answer(
        self,
        question: Question,
        ata: wire.AtaArgument,
        status: int = Status.DRDY,
        error: int = 0,
        *,
        count: int = 0,
        data: bytes | bytearray = b"",
    ) -> bytes:
        """An answer with the registers after the command.  ``count`` sectors were *not* transferred, as vblade says."""
        registers = wire.AtaArgument(ata.flags, error, count, status, ata.lba)
        return self._answer(question, registers, data=memoryview(data))

    def _abort(self, question: Question, ata: wire.AtaArgument, bit: ErrorBit = ErrorBit.ABRT) -> bytes:
        return self._ata_answer(question, ata, Status.DRDY | Status.ERR, bit, count=ata.count)

    def _handle_ata(self, question: Question) -> bytes | FlushRequest | None:
        ata = wire.decode_ata_untrusted(question.frame)
        opcode = ata.command
        if opcode == Opcode.IDENTIFY:  # always one sector, whatever the count
            return self._ata_answer(question, ata, data=self._identify)
        if question.broadcast:
            return None
        if not self.access.admits(question.header.source):
            return self._answer(question, ata, wire.ErrorCode.TARGET_IS_RESERVED)
        if opcode in READ_OPCODES or opcode in WRITE_OPCODES:
            return self._transfer(question, ata, write=opcode in WRITE_OPCODES)
        if opcode in (Opcode.FLUSH, Opcode.FLUSH_EXT):
            return FlushRequest(question, ata)
        if opcode == Opcode.CHECK_POWER_MODE:
            return self._ata_answer(question, ata, count=0xFF)  # active or idle
        if opcode == Opcode.SMART and is_smart_untrusted(ata):
            return self._smart(question, ata)
        return self._abort(question, ata)

    def _smart(self, question: Question, ata: wire.AtaArgument) -> bytes:
        if ata.feature == Feature.RETURN_STATUS:
            answer = replace(ata, lba=status_lba(ata.lba, failing=self.sync_failed))
            return self._ata_answer(question, answer, data=bytes(wire.SECTOR_BYTES))  # aoeping takes no shorter one
        if ata.feature != Feature.READ_DATA:
            return self._abort(question, ata)
        health = max(1, 100 - self.store_errors)
        attributes = (
            Attribute(187, health, health, self.store_errors),
            Attribute(241, 100, 100, self.written_sectors),
            Attribute(242, 100, 100, self.read_sectors),
        )
        return self._ata_answer(question, ata, data=encode_smart(attributes))

    def _transfer(self, question: Question, ata: wire.AtaArgument, *, write: bool) -> bytes:
        lba = ata.lba if ata.command in EXTENDED_OPCODES else ata.lba & LBA28_MASK
        size = ata.count * wire.SECTOR_BYTES
        written = memoryview(question.frame)[wire.ATA_BYTES : wire.ATA_BYTES + size]
        # A count of 0 means 256 or 65536 sectors in ATA, which no frame holds.
        if not 1 <= ata.count <= question.max_sectors or (write and len(written) < size):
            return self._answer(question, ata, wire.ErrorCode.BAD_ARGUMENT)
        if lba + ata.count > self.store.sectors:
            return self._abort(question, ata, ErrorBit.IDNF)
        if write and self.store.read_only:
            return self._abort(question, ata)
        data = bytearray(0 if write else size)
        try:
            if write:
                moved = self.store.writev([written], lba * wire.SECTOR_BYTES)
            else:
                moved = self.store.readv([data], lba * wire.SECTOR_BYTES)
            if moved != size:
                raise OSError("the store took only a part" if write else "the store is shorter than it was")
        except OSError as error:
            self._store_failed("write" if write else "read", lba, error)
            if write:
                return self._ata_answer(question, ata, _DEVICE_FAULT, count=ata.count)
            return self._abort(question, ata, ErrorBit.UNC)
        self.count(ata.count, write=write)
        return self._ata_answer(question, ata, data=data)

    def count(self, sectors: int, *, write: bool) -> None:
        """So many more were read or written."""
        if write:
            self.written_sectors += sectors
        else:
            self.read_sectors += sectors

    def _store_failed(self, what: str, lba: int, error: OSError) -> None:
        self.store_errors += 1
        self.report(f"{self.address}: {what} at sector {lba} failed: {error.strerror or error}")
