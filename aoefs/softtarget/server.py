"""The software target on real interfaces: every export on every interface, frames in batches.

Owns the packet sockets and the tasks.  What an answer looks like belongs to ``softtarget.export``.  The tasks, all in
the nursery of :meth:`Server.run`:

- one for each *service* (an interface that is served): it receives a batch, executes it and answers it;
- one that listens for changes of interfaces (netlink) and announces the exports again;
- one for each export that is being synced, and one for each whose config string is being kept; the work itself
  (fdatasync, writing the file) runs in a thread.

A few array expressions find the *runs* in a batch: consecutive frames that read (or write) consecutive sectors of one
export, and that the export would serve without an error.  A run is one preadv into the send buffer or one pwritev out
of the receive buffer.  Then the headers of the requests are turned into those of the answers in place, and one
sendmmsg sends them.  A batch that is one run and nothing else, as a fast initiator makes it, is found by comparing all
rows with the first.  Up to a few frames are served one by one, which is then faster than numpy.  Every other frame
goes to :meth:`Export.handle_untrusted`, and so does each frame of a run whose transfer failed: only the export makes
errors.

What holds always:

- The frames of a batch are executed in the order in which they came, and a batch is answered before the next one is
  received: a read sees every write before it, whichever initiator sent it.
- A FLUSH is answered after a sync that began after the FLUSH came.  FLUSHes that wait for one export share the next
  sync.
- Where config strings are kept, an answer with a new one waits until it is kept, or could not be.
- A sender that ``Export.access`` does not admit is not served here either.  The check is one comparison for a batch
  that is one run, and for any other run as long as no list is set.
- A batch is bounded, and so is the time between two checkpoints.  After a batch the task waits for the next one
  without a turn of trio's loop, for a fifth of a millisecond at most and not when another interface has frames (about
  10 % more frames/s for most loads of 16 frames in flight, by noisy measurement; nothing clear for 64).
- An answer that finds no room in the socket for ``_SEND_PATIENCE`` is dropped and counted, like one lost on the wire.

Stores are read and written in trio's thread: most calls only reach the page cache, where another thread would cost
several times the work.  The price: a read that has to wait for the disk, or any write with --sync, makes the other
exports of this process wait too.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import select
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

import numpy as np
import trio
from numpy.typing import NDArray

from aoefs.net.netlink import Interface, InterfaceGone, InterfaceMonitor
from aoefs.net.packetsocket import LINK_DOWN, PacketSocket, Role
from aoefs.protocol.ata import Status
from aoefs.protocol.wire import ATA_BYTES, MIN_FRAME_BYTES, SECTOR_BYTES, VERSION, Address, AoeCommand, Flag
from aoefs.softtarget.batch import LBA48_MASK, ROW_BYTES, SLOTS, Batch
from aoefs.softtarget.configfile import ConfigFile
from aoefs.softtarget.export import Export, FlushRequest

log = logging.getLogger(__name__)

_FEW_FRAMES = 3  # up to here one by one is faster than numpy even for a single run ...
_FEW_MIXED_FRAMES = 8  # ... and up to here for anything else
_PART_FRAMES = 4  # of a run, at least, for one call of the store and one sendmmsg ...
_PART_BYTES = 64 << 10  # ... and about so many bytes
_BATCHES_PER_CHECKPOINT = 8
_SEND_PATIENCE = 0.1  # seconds
_PATIENCE = 0.0002  # seconds to wait for the next frame outside of trio: the reaction time of an initiator on a LAN
_SELECT_LIMIT = 1024  # descriptors that select(2) can take
_MAX_WAITING = 1024  # answers of one export that wait for a thread; an initiator waits for one or two

# A row of headers: MACs, a word of ethertype, version, flags and error, a word of address and command, tag, registers.
_ROW = struct.Struct("<6s6sIIIBBBBQ")
_ANSWER = VERSION << 4 | Flag.RESPONSE
_ANSWER_START = b"\x88\xa2" + bytes([_ANSWER, 0])
_ANSWER_WORD = int.from_bytes(_ANSWER_START, "little")
_REQUEST_WORD = int.from_bytes(b"\x88\xa2" + bytes([VERSION << 4, 0]), "little")
_DRDY = int(Status.DRDY)
_COMMAND_OFFSET = 19  # of the AoE command in a frame
# What the rows of a run have in common once the steps of their LBA are subtracted: everything but the tag and what
# follows the registers.
_RUN_MASK = np.array([~0 & (1 << 64) - 1, ~0 & (1 << 64) - 1, 0xFFFF_FFFF, ~0 & (1 << 64) - 1, 0xFFFF_FFFF], "<u8")
_WRITE_BIT = 0x10  # of an opcode: set for WRITE (EXT), clear for READ (EXT)


@functools.cache
def _run_steps(sectors: int) -> NDArray[np.uint64]:
    """How row i of a run differs from row 0, except for the tag: i times ``sectors`` in the low half of its LBA."""
    steps = np.zeros((SLOTS, 5), "<u8")
    steps[:, 3] = np.arange(SLOTS, dtype=np.uint64) * (sectors << 32)
    return steps


def _admits(export: Export, batch: Batch, first: int, end: int) -> bool:
    """Whether all senders of the frames in these slots may use the export; those of a run may be several."""
    admitted = export.access.admitted
    if admitted is None:
        return True
    rows = range(first * ROW_BYTES + 6, end * ROW_BYTES, ROW_BYTES)
    return all(bytes(batch.headers[row : row + 6]) in admitted for row in rows)


@dataclass(slots=True, eq=False)
class Service:
    """One interface that is served, and its counters: ``lone`` frames were served one by one, ``dropped`` answers found
    no room.  ``socket`` is replaced when another interface takes the name, ``batch`` when the MTU changes.
    """

    socket: PacketSocket
    batch: Batch
    running: bool = False  # the exports were announced since the interface last came up
    batches: int = 0
    lone: int = 0
    dropped: int = 0


@dataclass(slots=True, eq=False)
class _Work:
    """Work in a thread, and the answers of one export that wait for it, each with the service to answer on.

    ``begin`` returns when the work is done; OSError when it failed.
    """

    name: str
    begin: Callable[[], None]
    waiting: list[tuple[Service, FlushRequest | bytes]] = field(default_factory=list)
    active: bool = False


class Server:
    """Serves ``exports`` on ``sockets`` (of ``Role.TARGET``) while :meth:`run` runs, which also closes the sockets.

    ``config_files`` keep the config strings of these exports; those of the others end with the process.
    ValueError for two exports of the same address.
    """

    def __init__(
        self,
        exports: Sequence[Export],
        sockets: Sequence[PacketSocket],
        config_files: Mapping[Address, ConfigFile] = MappingProxyType({}),
    ) -> None:
        self.exports = {export.address: export for export in exports}
        if len(self.exports) != len(exports):
            raise ValueError("two exports have the same address")
        self._export_by_word = {_address_word(address): export for address, export in self.exports.items()}
        self.services = [Service(socket, Batch(socket.max_sectors)) for socket in sockets]
        self._config_files = config_files
        self._syncs = {address: _Work("sync", export.store.sync) for address, export in self.exports.items()}
        self._saves = {
            address: _Work("config string", functools.partial(keep_config, self.exports[address], file))
            for address, file in config_files.items()
        }
        self._limiter = trio.CapacityLimiter(max(1, 2 * len(exports)))  # no export waits for a thread

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Announce every export, then serve until cancelled.  Started when the announcements were sent."""
        try:
            # The monitor comes before the announcements, so that no change between the two is missed.
            with InterfaceMonitor() as monitor:
                async with trio.open_nursery() as nursery:
                    self._nursery = nursery
                    for service in self.services:
                        interface = monitor.interfaces.get(service.socket.index)
                        if interface is None:
                            self._announce(service)
                        else:
                            self._follow(service, interface)
                        nursery.start_soon(self._serve, service, name=f"target on {service.socket.interface}")
                    nursery.start_soon(self._watch_interfaces, monitor, name="target interfaces")
                    task_status.started()
        finally:
            for service in self.services:
                service.socket.close()

    async def sync_all(self) -> list[tuple[Export, OSError]]:
        """Sync every store, one after another in a thread; the exports whose sync failed, with the error."""
        failed = []
        for export in self.exports.values():
            try:
                await trio.to_thread.run_sync(export.store.sync)
            except OSError as error:
                failed.append((export, error))
        return failed

    # ── interfaces ────────────────────────────────────────────────────────────────────────────────────────────────

    def _announce(self, service: Service) -> None:
        if service.socket.max_sectors:
            for export in self.exports.values():
                for frame in export.announcements(mac=service.socket.mac, max_sectors=service.socket.max_sectors):
                    service.socket.send_frame(frame)

    async def _watch_interfaces(self, monitor: InterfaceMonitor) -> None:
        async for change in monitor:
            for service in self.services:
                if change.name != service.socket.interface:
                    continue
                if isinstance(change, InterfaceGone):
                    service.running = service.socket.up = False
                else:
                    self._follow(service, change)

    def _follow(self, service: Service, interface: Interface) -> None:
        """Adopt the state of an interface: a new MTU, down, up again, or another interface under the same name."""
        old = service.socket
        replaced = (interface.index, interface.mac) != (old.index, old.mac)
        if replaced:
            try:
                service.socket = PacketSocket(interface.name, role=Role.TARGET)
            except OSError as error:  # it changed again, which the monitor will report
                log.warning("%s: %s", interface.name, error.strerror)
                return
            trio.lowlevel.notify_closing(old.socket)
            old.close()
        socket = service.socket
        sectors = old.max_sectors
        with contextlib.suppress(OSError):
            socket.refresh()
        socket.up = interface.up
        announce = interface.running and (replaced or not service.running or socket.max_sectors != sectors)
        service.running = interface.running
        if not socket.max_sectors:
            log.warning("%s: an MTU of %d holds no sector, nothing is served here", socket.interface, socket.mtu)
        elif announce:
            self._announce(service)

    # ── frames ────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _serve(self, service: Service) -> None:
        batches = 0
        while True:
            socket = service.socket
            if service.batch.max_sectors != socket.max_sectors:
                service.batch = Batch(socket.max_sectors)
            try:
                count = service.batch.input.receive(socket.descriptor, SLOTS)
            except OSError as error:
                if error.errno not in LINK_DOWN:
                    raise
                socket.up = False  # reported once; then the queue is empty until the interface is back
                continue
            if count:
                batches += 1
                await self._answer_batch(service, count)
                if batches < _BATCHES_PER_CHECKPOINT:
                    continue
                batches = 0
                await trio.lowlevel.checkpoint()
            elif not self._wait_in_place(socket):
                batches = 0
                with contextlib.suppress(trio.ClosedResourceError):  # the socket was replaced
                    await trio.lowlevel.wait_readable(socket.descriptor)

    def _wait_in_place(self, socket: PacketSocket) -> bool:
        """Wait a moment for the next frame without a turn of trio's loop.

        True when this socket has frames; False when another one has, or none in time: trio should wait then.
        """
        descriptors = [service.socket.descriptor for service in self.services]
        if max(descriptors) >= _SELECT_LIMIT:
            return False
        return socket.descriptor in select.select(descriptors, (), (), _PATIENCE)[0]

    async def _answer_batch(self, service: Service, count: int) -> None:
        service.socket.rx_frames += count
        if not service.batch.max_sectors:
            return  # _follow has logged it
        if count <= _FEW_FRAMES:
            answers = self._execute_one_by_one(service, count)
        elif (export := self._find_run(service, count)) is not None:
            service.batches += 1
            await self._answer_run(service, export, count)
            return
        elif count <= _FEW_MIXED_FRAMES:
            answers = self._execute_one_by_one(service, count)
        else:
            service.batches += 1
            answers = self._execute_runs(service, count)
        for first, end in answers:
            await self._send(service, first, end)

    async def _send(self, service: Service, first: int, end: int) -> None:
        """Send the answers in the slots ``first`` to ``end``."""
        socket = service.socket
        while first < end:
            try:
                sent = service.batch.output.send(socket.descriptor, end - first, first)
            except OSError as error:
                socket.on_send_error(error)
                if not isinstance(error, BlockingIOError):
                    service.dropped += end - first
                    return
                with trio.move_on_after(_SEND_PATIENCE) as patience, contextlib.suppress(trio.ClosedResourceError):
                    await trio.lowlevel.wait_writable(socket.descriptor)
                if patience.cancelled_caught or socket is not service.socket:
                    service.dropped += end - first
                    return
            else:
                socket.tx_frames += sent
                first += sent

    def _find_run(self, service: Service, count: int) -> Export | None:
        """The export that the whole batch is for, if the batch is one run from one initiator.

        The first frame is checked closely; the others may differ from it by tag and LBA only.
        """
        batch = service.batch
        destination, sender, start, word, _, _, _, sectors, opcode, lba = _ROW.unpack_from(batch.headers)
        export = self._export_by_word.get(word)
        if (
            export is None
            or destination != service.socket.mac
            or start != _REQUEST_WORD
            or sender[0] & 1
            or ((admitted := export.access.admitted) is not None and sender not in admitted)
            or not 1 <= sectors <= batch.max_sectors
            or (lba & 0xFFFF_FFFF) + count * sectors > 0xFFFF_FFFF  # the steps do not carry
        ):
            return None
        rows = batch.rows[:count]
        if (((rows[:, :5] - _run_steps(sectors)[:count]) ^ rows[0, :5]) & _RUN_MASK).any():
            return None
        needed = ATA_BYTES + (sectors * SECTOR_BYTES if opcode & _WRITE_BIT else 0)
        return export if int(batch.input.length[:count].min()) >= needed else None

    async def _answer_run(self, service: Service, export: Export, count: int) -> None:
        """Execute and answer a run in parts, so that the initiator works on one part while we do the next."""
        batch, mac = service.batch, service.socket.mac
        _, sender, _, _, _, flags, _, sectors, opcode, _ = _ROW.unpack_from(batch.headers)
        size = sectors * SECTOR_BYTES
        batch.lay_out(size, write=bool(opcode & _WRITE_BIT))
        macs = np.frombuffer(sender + mac + _ANSWER_START, "<u8")
        registers = _DRDY << 24 | flags  # no error, no sectors left
        part = max(_PART_FRAMES, _PART_BYTES // size)
        for first in range(0, count, part):
            end = min(first + part, count)
            if not batch.transfer(export, first, end, first * size, end * size):
                for slot in range(first, count):
                    self._handle_frame(service, batch.frame(slot))
                return
            batch.rows[first:end, 0:2] = macs
            batch.row_words[first:end, 6] = registers
            await self._send(service, first, end)

    def _execute_one_by_one(self, service: Service, count: int) -> list[tuple[int, int]]:
        """Execute a batch of a few frames; what is to be sent, as (first slot, end)."""
        batch, mac = service.batch, service.socket.mac
        batch.layout = None
        headers = batch.headers
        service.lone += count
        position = 0  # of the data of the next READ in the send buffer
        answers = []
        for slot in range(count):
            row = slot * ROW_BYTES
            length = int(batch.input.length[slot])
            destination, sender, start, word, tag, flags, _, sectors, opcode, lba = _ROW.unpack_from(headers, row)
            end = position + sectors * SECTOR_BYTES
            export = self._export_by_word.get(word)
            if (
                export is None
                or destination != mac
                or start != _REQUEST_WORD
                or sender[0] & 1
                or ((admitted := export.access.admitted) is not None and sender not in admitted)
                or not 1 <= sectors <= batch.max_sectors
                or length < ATA_BYTES + (end - position if opcode & _WRITE_BIT else 0)
                or not batch.transfer(export, slot, slot + 1, position, end)
            ):
                self._handle_frame(service, batch.frame(slot))
                continue
            if opcode & _WRITE_BIT:
                batch.output.base[slot, 1] = batch.padding_address
                batch.output.size[slot, 1] = MIN_FRAME_BYTES - ATA_BYTES
            else:
                batch.output.base[slot, 1] = batch.to_send_address + position
                batch.output.size[slot, 1] = end - position
                position = end
            _ROW.pack_into(headers, row, sender, mac, _ANSWER_WORD, word, tag, flags, 0, 0, _DRDY, lba & LBA48_MASK)
            answers.append((slot, slot + 1))
        return answers if len(answers) < count else [(0, count)]

    def _execute_runs(self, service: Service, count: int) -> list[tuple[int, int]]:
        """Find and execute the runs of a batch; what is to be sent, as (first slot, end)."""
        batch = service.batch
        batch.layout = None
        rows = batch.rows[:count]
        registers = rows[:, 3]
        words = rows[:, 2] & 0xFFFF_FFFF
        sectors = registers >> 16 & 0xFF
        opcodes = registers >> 24 & 0xFF
        lbas = registers >> 32 | (rows[:, 4] & 0xFFFF) << 32
        sizes = sectors * SECTOR_BYTES
        # Not zero where a frame cannot be part of a run: another destination or a group address as the source (the
        # lowest bit of byte 6), another version or flags, no or too many sectors, too short.
        odd = (rows[:, 0] & 0x1_FFFF_FFFF_FFFF) ^ int.from_bytes(service.socket.mac, "little")
        odd |= rows[:, 1] >> 32 ^ _REQUEST_WORD
        odd |= sectors - 1 >= batch.max_sectors  # unsigned: 0 becomes the largest number
        odd |= batch.input.length[:count] < ATA_BYTES + sizes * (opcodes >> 4 & 1)
        # Not zero where a frame does not continue the one before it.
        change = (words[1:] ^ words[:-1]) | (opcodes[1:] ^ opcodes[:-1]) | (lbas[1:] - lbas[:-1] ^ sectors[:-1])
        change |= odd[1:] | odd[:-1]

        stops = np.cumsum(sizes)
        starts = stops - sizes
        writes = opcodes & _WRITE_BIT
        batch.output.base[:count, 1] = np.where(writes, batch.padding_address, starts + batch.to_send_address)
        batch.output.size[:count, 1] = np.where(writes, MIN_FRAME_BYTES - ATA_BYTES, sizes)

        run_ends = [*(np.flatnonzero(change) + 1).tolist(), count]
        answers: list[tuple[int, int]] = []
        unsent = first = 0
        for end in run_ends:
            export = None if odd[first] else self._export_by_word.get(int(words[first]))
            if export is None or not (
                _admits(export, batch, first, end)
                and batch.transfer(export, first, end, int(starts[first]), int(stops[end - 1]))
            ):
                if unsent < first:
                    answers.append((unsent, first))
                unsent = end
                for slot in range(first, end):
                    self._handle_frame(service, batch.frame(slot))
            first = end
        if unsent < count:
            answers.append((unsent, count))

        headers = batch.row_bytes[:count]
        headers[:, 0:6] = headers[:, 6:12]
        headers[:, 6:12] = np.frombuffer(service.socket.mac, np.uint8)
        headers[:, 14] = _ANSWER
        headers[:, 25:27] = 0
        headers[:, 27] = _DRDY
        headers[:, 34:36] = 0
        return answers

    def _handle_frame(self, service: Service, frame: bytes) -> None:
        """Let the exports answer any frame: the one that it addresses, or all of them."""
        socket = service.socket
        export = self.exports.get(Address(int.from_bytes(frame[16:18], "big"), frame[18])) if len(frame) > 18 else None
        for each in (export,) if export is not None else tuple(self.exports.values()):
            answer = each.handle_untrusted(frame, mac=socket.mac, max_sectors=socket.max_sectors)
            if isinstance(answer, FlushRequest):
                self._queue(each, self._syncs[each.address], service, answer)
            elif answer is not None and answer[_COMMAND_OFFSET] == AoeCommand.CONFIG and not self._is_kept(each):
                self._queue(each, self._saves[each.address], service, answer)
            elif answer is not None and not socket.send_frame(answer):
                service.dropped += 1

    # ── work in threads ───────────────────────────────────────────────────────────────────────────────────────────

    def _is_kept(self, export: Export) -> bool:
        file = self._config_files.get(export.address)
        return file is None or file.string == export.config_string

    def _queue(self, export: Export, work: _Work, service: Service, answer: FlushRequest | bytes) -> None:
        if len(work.waiting) >= _MAX_WAITING:
            service.dropped += 1
            return
        work.waiting.append((service, answer))
        if not work.active:
            work.active = True
            self._nursery.start_soon(self._carry_out, export, work, name=f"{work.name} {export.address}")

    async def _carry_out(self, export: Export, work: _Work) -> None:
        """Do the work until no answer waits for it.  One that comes meanwhile waits for the next time: what happened
        before it may have come too late for this one.
        """
        while work.waiting:
            served, work.waiting = work.waiting, []
            failure = None
            try:
                await trio.to_thread.run_sync(work.begin, limiter=self._limiter)
            except OSError as error:
                failure = error
            for service, answer in served:
                frame = export.finish_flush(answer, failure) if isinstance(answer, FlushRequest) else answer
                if not service.socket.send_frame(frame):
                    service.dropped += 1
        work.active = False  # no await since the list was found empty


def keep_config(export: Export, file: ConfigFile) -> None:
    """Keep the config string of an export.  If that fails it is reported, and the string is good while we run."""
    try:
        file.save(export.config_string)
    except OSError as error:
        export.report(f"{export.address}: its config string cannot be kept in {file.path}: {error.strerror}")


def _address_word(address: Address) -> int:
    """Shelf, slot and the command ATA as the 32-bit word that they are in a row of headers."""
    word: int = struct.unpack("<I", struct.pack(">HBB", *address, 0))[0]
    return word
