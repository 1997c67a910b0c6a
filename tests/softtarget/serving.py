"""A server over a wire of this process, and the client at its other end.

The wire is a pair of datagram sockets: the server sees no difference to a packet socket, and no rights are needed.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import AsyncIterator, Callable

import trio

from aoefs.net.packetsocket import PacketSocket
from aoefs.protocol.ata import Opcode, flush_registers, transfer_registers
from aoefs.protocol.wire import Address, AoeCommand, AtaArgument, Header, encode
from aoefs.softtarget.configfile import ConfigFile
from aoefs.softtarget.export import Export
from aoefs.softtarget.server import Server
from tests.memorystore import MemoryStore

OURS = bytes.fromhex("020000000001")
THEIRS = bytes.fromhex("020000000002")
STRANGER = bytes.fromhex("020000000003")
ADDRESSES = (Address(0, 0), Address(7, 3))
SECTORS = 64


def datagram_pair(family: socket.AddressFamily = socket.AF_INET) -> tuple[socket.socket, socket.socket]:
    """Two connected sockets that keep the bounds of messages.  UDP for long queues, AF_UNIX for short ones."""
    if family == socket.AF_UNIX:
        left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    else:
        left, right = (socket.socket(family, socket.SOCK_DGRAM) for _ in range(2))
        for sock in (left, right):
            sock.bind(("127.0.0.1", 0))
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        left.connect(right.getsockname())
        right.connect(left.getsockname())
    for sock in (left, right):
        sock.setblocking(False)
    return left, right


class WireSocket(PacketSocket):
    """A packet socket over any datagram socket."""

    def __init__(self, sock: socket.socket, mtu: int = 1500) -> None:
        self.interface = "wire"
        self.index = -1
        self.mac = OURS
        self.up = True
        self.rx_frames = self.rx_unknown = self.tx_frames = self.tx_full = self.rx_dropped = 0
        self.socket = sock
        self.descriptor = sock.fileno()
        self.mtu = mtu


def make_export(address: Address = ADDRESSES[0], store: MemoryStore | None = None) -> Export:
    store = store if store is not None else MemoryStore(SECTORS)
    store.data[:] = os.urandom(len(store.data))
    return Export(address, store, serial=str(address))


def twin(original: Export) -> Export:
    """The same export on a store of its own."""
    assert isinstance(original.store, MemoryStore)
    store = MemoryStore(original.store.sectors, read_only=original.store.read_only)
    store.data[:] = original.store.data
    return Export(original.address, store, serial=original.identity.serial)


def request(
    tag: int,
    ata: AtaArgument,
    data: bytes = b"",
    *,
    address: Address = ADDRESSES[0],
    to: bytes = OURS,
    sender: bytes = THEIRS,
) -> bytes:
    return encode(Header(to, sender, address, AoeCommand.ATA, tag), ata, data)


def read(tag: int, lba: int, count: int = 2, address: Address = ADDRESSES[0]) -> bytes:
    return request(tag, transfer_registers(lba, count, write=False, lba48=True), address=address)


def write(tag: int, lba: int, data: bytes, address: Address = ADDRESSES[0]) -> bytes:
    return request(tag, transfer_registers(lba, len(data) // 512, write=True, lba48=True), data, address=address)


FLUSH = flush_registers(Opcode.FLUSH_EXT)


class Client:
    """The other end of a :class:`WireSocket`."""

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock

    def send(self, *frames: bytes) -> None:
        for frame in frames:
            self.socket.send(frame)

    async def receive(self, count: int = 1) -> list[bytes]:
        answers: list[bytes] = []
        with trio.fail_after(5):
            while len(answers) < count:
                try:
                    answers.append(self.socket.recv(1 << 16))
                except BlockingIOError:
                    await trio.lowlevel.wait_readable(self.socket)
        return answers

    async def ask(self, frame: bytes) -> bytes:
        self.send(frame)
        return (await self.receive())[0]


@contextlib.asynccontextmanager
async def serving(
    *exports: Export,
    mtu: int = 1500,
    family: socket.AddressFamily = socket.AF_INET,
    config_file: ConfigFile | None = None,
) -> AsyncIterator[tuple[Server, Client]]:
    """A server over one wire, whose announcements were already received; ``config_file`` is the first export's."""
    config_files = {} if config_file is None else {exports[0].address: config_file}
    theirs, ours = datagram_pair(family)
    with theirs:
        server = Server(exports, [WireSocket(ours, mtu)], config_files)
        async with trio.open_nursery() as nursery:
            await nursery.start(server.run)
            client = Client(theirs)
            for each in exports:
                await client.receive(len(each.announcements(mac=OURS, max_sectors=1)))
            yield server, client
            nursery.cancel_scope.cancel()


class SlowSync(MemoryStore):
    """Each sync begins at once and ends when the test lets it."""

    def __init__(self) -> None:
        super().__init__(SECTORS)
        self.begun = 0
        self.go = threading.Semaphore(0)
        self.failure: OSError | None = None

    def sync(self) -> None:
        self.begun += 1
        assert self.go.acquire(timeout=10)
        super().sync()
        if self.failure is not None:
            raise self.failure


async def until(predicate: Callable[[], bool]) -> None:
    with trio.fail_after(5):
        while not predicate():  # noqa: ASYNC110 (what is waited for happens in threads and in the kernel)
            await trio.sleep(0.001)
