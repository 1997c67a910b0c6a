"""The software target on real interfaces: every export on every interface, frames in batches.

Owns the packet sockets and the tasks.  What an answer looks like belongs to ``softtarget.export``.  The tasks, all in
the nursery of :meth:`Server.run`:

- one for each *service* (an interface that is served): it receives a batch, executes it and answers it;
- one that listens for changes of interfaces (netlink) and announces the exports again;
- one for each export that is being synced, and one for each whose config string is being kept; the work itself
  (fdatasync, writing the file) runs in a thread.

``net.requests`` finds the *runs* in a batch: consecutive frames that read (or write) consecutive sectors of one export.
A run is one preadv into the send buffer or one pwritev out of the receive buffer, and one sendmmsg.  Every other frame
goes to :meth:`Export.handle_untrusted`, and so does each frame of a run whose transfer failed: only the export makes
errors.

What holds always:

- The frames of a batch are executed in the order in which they came, and a batch is answered before the next one is
  received: a read sees every write before it, whichever initiator sent it.
- A FLUSH is answered after a sync that began after the FLUSH came.  FLUSHes that wait for one export share the next
  sync.
- Where config strings are kept, an answer with a new one waits until it is kept, or could not be.
- A sender that ``Export.access`` does not admit is not served here either.
- A batch is bounded, and so is the time between two checkpoints.  After a batch the task waits for the next one
  without a turn of trio's loop, for a fifth of a millisecond at most and not when another interface has frames (about
  10 % more frames/s for most loads of 16 frames in flight, by noisy measurement; nothing clear for 64).
- An answer that finds no room in the socket for ``_SEND_PATIENCE`` is dropped, like one lost on the wire.  The socket
  counts how often it had none.

Stores are read and written in trio's thread: most calls only reach the page cache, where another thread would cost
several times the work.  The price: a read that has to wait for the disk, or any write with --sync, makes the other
exports of this process wait too.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import select
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

import trio

from aoefs.net.netlink import Interface, InterfaceGone, InterfaceMonitor
from aoefs.net.packetsocket import LINK_DOWN, PacketSocket, Role
from aoefs.net.requests import Requests
from aoefs.protocol.wire import SECTOR_BYTES, Address, AoeCommand
from aoefs.softtarget.configfile import ConfigFile
from aoefs.softtarget.export import EXTENDED_OPCODES, LBA28_MASK, READ_OPCODES, WRITE_OPCODES, Export, FlushRequest

log = logging.getLogger(__name__)

Run = tuple[int, int, int, int, int, int]  # see net.requests

_BATCHES_PER_CHECKPOINT = 8
_SEND_PATIENCE = 0.1  # seconds
_PATIENCE = 0.0002  # seconds to wait for the next frame outside of trio: the reaction time of an initiator on a LAN
_SELECT_LIMIT = 1024  # descriptors that select(2) can take
_MAX_WAITING = 1024  # answers of one export that wait for a thread; an initiator waits for one or two

_COMMAND_OFFSET = 19  # of the AoE command in a frame


def transfer(export: Export, batch: Requests, run: Run) -> bool:
    """Execute a run.  False when nothing was answered for: the run goes beyond the end, the store failed, the opcode is
    neither READ nor WRITE.  The frames then have to go to the export one by one, which tries again and reports.
    """
    first, end, _, opcode, lba, size = run
    store = export.store
    limit = store.sectors
    if opcode not in EXTENDED_OPCODES:
        lba &= LBA28_MASK
        limit = min(limit, LBA28_MASK + 1)
    if lba + size // SECTOR_BYTES > limit:
        return False
    try:
        if opcode in READ_OPCODES:
            moved = store.readv([batch.room(first, size)], lba * SECTOR_BYTES)
        elif opcode in WRITE_OPCODES and not store.read_only:
            moved = store.writev(batch.payloads(first, end, size), lba * SECTOR_BYTES)
        else:
            return False
    except OSError:
        return False
    if moved == size:
        export.count(size // SECTOR_BYTES, write=opcode in WRITE_OPCODES)
    return moved == size


@dataclass(slots=True, eq=False)
class Service:
    """One interface that is served.

    ``socket`` is replaced when another interface takes the name, ``batch`` when the MTU changes.
    """

    socket: PacketSocket
    batch: Requests
    running: bool = False  # the exports were announced since the interface last came up


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
        self.services = [Service(socket, Requests(socket.max_sectors)) for socket in sockets]
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
                service.batch = Requests(socket.max_sectors)
            try:
                count = service.batch.receive(socket.descriptor)
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
        batch, mac = service.batch, service.socket.mac
        for run in batch.runs_untrusted(mac):
            first, end, word, *_ = run
            export = self._export_by_word.get(word)
            admitted = None if export is None else export.access.admitted
            if (
                export is not None
                and (admitted is None or batch.sender(first) in admitted)
                and transfer(export, batch, run)
            ):
                batch.answer(first, end, mac)
                await self._send(service, first, end)
            else:
                for slot in range(first, end):
                    self._handle_frame(service, batch.frame(slot))

    async def _send(self, service: Service, first: int, end: int) -> None:
        """Send the answers in the slots ``first`` to ``end``."""
        socket = service.socket
        while first < end:
            try:
                sent = service.batch.send(socket.descriptor, first, end)
            except OSError as error:
                socket.on_send_error(error)
                if not isinstance(error, BlockingIOError):
                    return
                with trio.move_on_after(_SEND_PATIENCE) as patience, contextlib.suppress(trio.ClosedResourceError):
                    await trio.lowlevel.wait_writable(socket.descriptor)
                if patience.cancelled_caught or socket is not service.socket:
                    return
            else:
                socket.tx_frames += sent
                first += sent

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
            elif answer is not None:
                socket.send_frame(answer)

    # ── work in threads ───────────────────────────────────────────────────────────────────────────────────────────

    def _is_kept(self, export: Export) -> bool:
        file = self._config_files.get(export.address)
        return file is None or file.string == export.config_string

    def _queue(self, export: Export, work: _Work, service: Service, answer: FlushRequest | bytes) -> None:
        if len(work.waiting) >= _MAX_WAITING:
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
                service.socket.send_frame(frame)
        work.active = False  # no await since the list was found empty


def keep_config(export: Export, file: ConfigFile) -> None:
    """Keep the config string of an export.  If that fails it is reported, and the string is good while we run."""
    try:
        file.save(export.config_string)
    except OSError as error:
        export.report(f"{export.address}: its config string cannot be kept in {file.path}: {error.strerror}")


def _address_word(address: Address) -> int:
    """Shelf, slot and the command ATA as a number, see ``net.requests``."""
    return address.shelf << 16 | address.slot << 8 | AoeCommand.ATA
