"""Programs that use the mount: open files, and calls that are checked for their bounds, errors and data.

A call is a handler of ``fuse.operations``, called as pyfuse3 would: a file is released when its last call has ended.
"""

from __future__ import annotations

import errno
import math
import os
from collections.abc import Awaitable, Callable
from functools import partial
from types import SimpleNamespace
from typing import Any, cast

import pyfuse3
import trio
from pyfuse3 import FUSEError

from aoefs.engine.disk import Disk
from aoefs.engine.engine import Engine
from aoefs.engine.inplace import PATIENCE
from aoefs.errors import RequestError
from aoefs.fuse.nodes import Node
from aoefs.fuse.operations import AoeOperations
from aoefs.fuse.tree import CONTROL, ROOT
from aoefs.protocol.wire import SECTOR_BYTES, Address
from tests.simulation.plan import Plan
from tests.simulation.register import Register, Write
from tests.simulation.requests import Requests
from tests.simulation.world import World

CONTEXT = cast(pyfuse3.RequestContext, SimpleNamespace(uid=1000))
MOMENT = 0.02  # seconds that a call may still take after the stop
PROMPT = 0.02  # seconds for a call that waits for nothing
DATA_ERRORS = {errno.EIO, errno.ENXIO, errno.EBUSY, errno.ESTALE, errno.EROFS}


class Open:
    """An open file.  ``reported`` are the lost writes of which fsync spoke, ``reported_to_writer`` those of which
    fsync or write did.
    """

    def __init__(self, number: int, node: Node, register: Register, flags: int, lost: list[Write]) -> None:
        self.number = number
        self.node = node
        self.register = register
        self.flags = flags
        self.reported = set(lost)
        self.reported_to_writer = set(lost)
        self.opened = register.now()
        self.calls = 0
        self.closing = False

    @property
    def disk(self) -> Disk:
        return self.node.disk

    def room(self, offset: int) -> int:
        """Bytes from there to the end of the file."""
        return 0 if self.node.gone and self.node.partition else self.node.room(offset)

    @property
    def writes(self) -> bool:
        return self.flags & os.O_ACCMODE != os.O_RDONLY

    @property
    def reads(self) -> bool:
        return self.flags & os.O_ACCMODE != os.O_WRONLY


class Users:
    """``registers`` by serial.  ``early`` are the writes of each disk that were answered before the target did."""

    def __init__(
        self,
        world: World,
        plan: Plan,
        engine: Engine,
        operations: AoeOperations,
        requests: Requests,
        registers: dict[str, Register],
    ) -> None:
        self.open: dict[int, Open] = {}
        self.early: dict[Disk, list[Write]] = {}
        self.calls = 0
        self.good_calls = 0
        self.all_calls = 0
        self.closed = False
        self.some_call_ended = trio.lowlevel.ParkingLot()
        self._world = world
        self._plan = plan
        self._engine = engine
        self._operations: Any = operations
        self._requests = requests
        self._registers = registers
        self._scopes: dict[trio.CancelScope, str] = {}  # of the calls under way
        self._busy: dict[int, int] = {}  # inode: calls under way

    # ── a call and its bound ──────────────────────────────────────────────────────────────────────────────────────

    def _bound(self, waits: int) -> float:
        """Seconds for a call that waits ``waits`` times for a target: each of them at most deadsecs once it is sent,
        and what is not sent yet waits for what is.
        """
        if not self._plan.deadsecs:
            return math.inf
        return self._plan.deadsecs * (waits + self.calls) + 10

    async def call(self, name: str, call: Callable[[], Awaitable[Any]], bound: float) -> tuple[Any, int]:
        """(result, errno) of a call; None if it was cut off since it took too long, which is an error of the run."""
        began = trio.current_time()
        bound = (MOMENT if self.closed else bound) + self._turns
        code = 0
        result = None
        self.calls += 1
        self.all_calls += 1
        with trio.CancelScope(deadline=began + bound) as scope:
            self._scopes[scope] = f"{name} since {began:.6f}"
            try:
                result = await self._requests.carry_out(call)
            except FUSEError as error:
                code = error.errno
            finally:
                self.calls -= 1
                del self._scopes[scope]
                self.some_call_ended.unpark_all()
        if scope.cancelled_caught:
            taken = trio.current_time() - began
            self._world.complain(f"{name} began at {began:.6f} and did not end within {taken:.3f} s")
            code = errno.ETIMEDOUT
        self.good_calls += not code
        self._world.log(f"{name}: {errno.errorcode[code] if code else 'good'}")
        return result, code

    def freeze(self, seconds: float) -> None:
        """So long no call could end."""
        for scope in self._scopes:
            scope.deadline += seconds

    def close(self) -> None:
        """From now on every call ends within a moment."""
        self.closed = True
        for scope in self._scopes:
            scope.deadline = min(scope.deadline, trio.current_time() + MOMENT + self._turns)

    @property
    def _turns(self) -> float:
        """Seconds that workers may wait in place before each of the calls under way had its turn."""
        return 2 * PATIENCE * self.calls if self._plan.in_place else 0.0

    @property
    def under_way(self) -> str:
        """The calls that have not ended, in words."""
        return ", ".join(self._scopes.values())

    async def all_ended(self) -> None:
        while self.calls:
            await self.some_call_ended.park()

    async def is_quiet(self, inode: int) -> None:
        """Wait until no call uses the file, as the kernel does before it drops its pages."""
        while self._busy.get(inode):
            await self.some_call_ended.park()

    def _expect(self, name: str, code: int, allowed: set[int]) -> None:
        if code and code not in allowed and code != errno.ETIMEDOUT:
            self._world.complain(f"{name} failed with {errno.errorcode[code]}")

    # ── open files ────────────────────────────────────────────────────────────────────────────────────────────────

    async def open_file(self, slot: int, name: str, flags: int) -> None:
        if slot in self.open:
            return
        what = f"open {slot} {name} {flags:#x}"
        entry, code = await self.call(f"lookup {name}", lambda: self._lookup(name), PROMPT)
        if code:
            self._expect(what, code, {errno.ENOENT})
            return
        waits = 4 if self._plan.reserve and flags & os.O_ACCMODE else 0
        bound = self._bound(waits) if waits else PROMPT
        info, code = await self.call(what, lambda: self._operations.open(entry.st_ino, flags, CONTEXT), bound)
        if code:
            self._expect(what, code, {errno.ESTALE, errno.EBUSY, errno.EIO, errno.ENXIO})
            return
        node = self._operations.tree.nodes[entry.st_ino]
        register = self._registers[node.target.identity.serial]
        file = Open(info.fh, node, register, flags, self._lost(node.disk))
        if slot in self.open:  # another open was faster
            await self._release(file)
        else:
            self.open[slot] = file

    async def _lookup(self, name: str, parent: int = ROOT) -> Any:
        return await self._operations.lookup(parent, name.encode(), CONTEXT)

    async def close_file(self, slot: int) -> None:
        file = self.open.pop(slot, None)
        if file is None:
            return
        file.closing = True
        await self._flush(file, f"close {slot}")
        while file.calls:
            await self.some_call_ended.park()
        await self._release(file)

    async def _release(self, file: Open) -> None:
        bound = self._bound(6) if self._plan.reserve else PROMPT
        _, code = await self.call(f"release {file.number}", lambda: self._operations.release(file.number), bound)
        self._expect("release", code, set())

    async def _on(self, file: Open, name: str, call: Callable[[], Awaitable[Any]], waits: int) -> tuple[Any, int]:
        inode = file.node.inode
        file.calls += 1
        self._busy[inode] = self._busy.get(inode, 0) + 1
        try:
            return await self.call(name, call, self._bound(waits))
        finally:
            file.calls -= 1
            self._busy[inode] -= 1
            self.some_call_ended.unpark_all()

    # ── reads ─────────────────────────────────────────────────────────────────────────────────────────────────────

    async def read(self, slot: int, offset: int, size: int) -> int:
        """How many bytes were read."""
        file = self.open.get(slot)
        if file is None or not file.reads:
            return 0
        name = f"read {slot} {offset}+{size}"
        expected = 0

        async def carry_out() -> Any:
            nonlocal expected
            expected = max(0, min(size, file.room(offset)))
            return await self._operations.read(file.number, offset, size)

        started = file.register.begin_read()
        found, code = await self._on(file, name, carry_out, 2)
        data = b"" if code else found
        since = file.opened if self._plan.read_ahead else None
        self._world.complain(file.register.end_read(started, file.node.start + offset, data, since=since))
        self._expect(name, code, DATA_ERRORS)
        if not code and len(data) != expected:
            self._world.complain(f"{name} gave {len(data)} bytes, not {expected}")
        return len(data)

    async def scan(self, slot: int, offset: int, block: int, count: int) -> None:
        for turn in range(count):
            if await self.read(slot, offset + turn * block, block) < block:
                return

    # ── writes ────────────────────────────────────────────────────────────────────────────────────────────────────

    def _lost(self, disk: Disk) -> list[Write]:
        return [write for write in self.early.get(disk, ()) if write.request is not None and write.request.error]

    async def write(self, slot: int, offset: int, size: int) -> bool:
        file = self.open.get(slot)
        if file is None or not file.writes:
            return False
        name = f"write {slot} {offset}+{size}"
        fitting = min(size, file.room(offset))
        if fitting <= 0:
            await self._write_behind_the_end(file, name, offset, size)
            return False
        register, disk = file.register, file.disk
        write = register.begin_write(file.node.start + offset, fitting)
        write.via = disk
        data = write.data + bytes(size - fitting)
        unreported: list[Write] = []

        async def carry_out() -> int:
            """All that is looked at here belongs to the moments at which the handler begins and ends."""
            if min(size, file.room(offset)) != fitting:
                raise FUSEError(errno.EINTR)  # the file has another size now
            lost = self._lost(disk)
            unreported.extend(other for other in lost if other not in file.reported_to_writer)
            file.reported_to_writer.update(lost)
            written: int = await self._operations.write(file.number, offset, data)
            for request in disk.write_behind.pending:
                if _covers(request.lba, request.sectors, write):  # it is answered before it is acknowledged
                    write.request = request
                    self.early.setdefault(disk, []).append(write)
            return written

        written, code = await self._on(file, name, carry_out, 5)
        register.end_write(write, ok=not code)
        self._expect(name, code, {*DATA_ERRORS, errno.ENOSPC, errno.EINTR})
        if not code and written != fitting:
            self._world.complain(f"{name} took {written} bytes, not {fitting}")
        if not code and unreported:
            self._world.complain(f"{name} is good, though it was never said that {unreported[0]} is lost")
        if not code and self._plan.direct and file.flags & os.O_SYNC:
            register.end_flush(write.started)
            register.end_flush_of(write)
        return not code

    async def _write_behind_the_end(self, file: Open, name: str, offset: int, size: int) -> None:
        async def carry_out() -> Any:
            if file.room(offset) > 0:
                raise FUSEError(errno.ENOSPC)  # the file has another size now
            return await self._operations.write(file.number, offset, bytes(size))

        _, code = await self._on(file, name, carry_out, 0)
        if code != errno.ENOSPC and not (code == errno.ESTALE and file.node.gone and file.node.partition):
            self._world.complain(f"{name} behind the end gave {code}")

    async def stream(self, slot: int, offset: int, block: int, count: int, pause: float, reads: bool) -> None:
        """One block after another, and perhaps each of them read back."""
        for turn in range(count):
            if not await self.write(slot, offset + turn * block, block):
                return
            if reads:
                await self.read(slot, offset + turn * block, block)
            if pause:
                await trio.sleep(pause)

    async def copy(
        self, name: str, offset: int, block: int, count: int, pause: float, reads: bool, syncs: bool
    ) -> None:
        """As dd does: a file of its own, which nothing else uses."""
        slot = -self.all_calls - 2
        await self.open_file(slot, name, os.O_RDWR)
        await self.stream(slot, offset, block, count, pause, reads)
        if syncs:
            await self.fsync(slot)
        await self.close_file(slot)

    async def rewrite(self, slot: int, offset: int, size: int, count: int, pause: float) -> None:
        """The same range several times."""
        for _ in range(count):
            await self.write(slot, offset, size)
            await trio.sleep(pause)

    async def fsync(self, slot: int) -> None:
        file = self.open.get(slot)
        if file is None:
            return
        started = file.register.now()
        name = f"fsync {slot}"

        async def carry_out() -> None:
            try:
                await self._operations.fsync(file.number, False)
            except FUSEError:
                lost = self._lost(file.disk)
                file.reported.update(lost)
                file.reported_to_writer.update(lost)
                raise

        _, code = await self._on(file, name, carry_out, 4)
        self._check_flush(file, name, started, code)
        if not code:
            file.register.end_flush(started)

    async def _flush(self, file: Open, name: str) -> None:
        started = file.register.now()
        _, code = await self._on(file, name, lambda: self._operations.flush(file.number), 5)
        if file.writes:
            self._check_flush(file, name, started, code)
            if not code:
                file.register.end_flush(started, via=file.disk)

    def _check_flush(self, file: Open, name: str, started: int, code: int) -> None:
        self._expect(name, code, DATA_ERRORS)
        if code:
            return
        for write in self.early.get(file.disk, ()):
            if not write.ended_before(started) or write.request is None:
                continue
            if not write.request.ended:
                self._world.complain(f"{name} is good before {write} was acknowledged")
            elif write.request.error is not None and write not in file.reported:
                self._world.complain(f"{name} is good, though it was never said that {write} is lost")

    async def use(self, name: str, sectors: int) -> None:
        """All is well with this disk: it can be opened, read, written, flushed and closed."""
        slot = -1
        await self.open_file(slot, name, os.O_RDWR)
        size = sectors * SECTOR_BYTES
        done = 0
        while slot in self.open and (read := await self.read(slot, done, 16384)):
            done += read
        good = self.good_calls
        written = slot in self.open and await self.write(slot, 0, SECTOR_BYTES)
        await self.fsync(slot)
        await self.close_file(slot)
        if done != size or not written or self.good_calls - good < 4:
            self._world.complain(f"{name} does not work although all is well")

    # ── the rest ──────────────────────────────────────────────────────────────────────────────────────────────────

    async def call_disk(self, name: str, call: str, offset: int, size: int, patience: float) -> None:
        """As a user of the library, who may lose his patience."""
        disk = self._engine.disks.get(Address.parse(name))
        if disk is None or offset + size > disk.size_bytes or self.closed:
            return
        register = self._registers[disk.target.identity.serial]
        text = f"disk {name} {call} {offset}+{size}"
        in_task = self._engine.driver.callers.in_task
        if call == "read":
            started = register.begin_read()
            found, code = await self.call(
                text, lambda: in_task(_patiently, disk.read(offset, size), patience), self._bound(2)
            )
            self._world.complain(register.end_read(started, offset, b"" if code else found))
        elif call == "write":
            write = register.begin_write(offset, size)
            write.via = disk
            _, code = await self.call(
                text, lambda: in_task(_patiently, disk.write(offset, write.data), patience), self._bound(5)
            )
            register.end_write(write, ok=not code)
        else:
            started = register.now()
            _, code = await self.call(text, lambda: in_task(_patiently, disk.flush(), patience), self._bound(4))
            if not code and not any(
                write.ended_before(started) and write.request is not None and write.request.error
                for write in self.early.get(disk, ())
            ):
                register.end_flush(started)

    async def statfs(self) -> None:
        _, code = await self.call("statfs", lambda: self._operations.statfs(CONTEXT), PROMPT)
        self._expect("statfs", code, set())

    async def names(self) -> None:
        """List the root and the directory of control files."""
        for call in (partial(self._operations.readdir, inode, 0, object()) for inode in (ROOT, CONTROL)):
            _, code = await self.call("readdir", call, PROMPT)
            self._expect("readdir", code, set())

    async def attributes(self, slot: int) -> None:
        file = self.open.get(slot)
        if file is not None:
            node = file.node
            entry, code = await self.call("getattr", lambda: self._operations.getattr(node.inode, CONTEXT), PROMPT)
            self._expect("getattr", code, {errno.ESTALE} if node.gone else set())
            if not code and entry.st_size != node.size_bytes:
                self._world.complain(f"getattr says {entry.st_size} bytes, not {node.size_bytes}")

    async def order(self, path: str, text: str) -> None:
        """Write to a control file, and read it if it can be read."""
        parent, code = await self.call(f"lookup {path}", lambda: self._walk(path), PROMPT)
        if code:
            self._expect(path, code, {errno.ENOENT})
            return
        for flags in (os.O_WRONLY, os.O_RDONLY):
            await self._use_control(parent.st_ino, path, flags, text)

    async def _use_control(self, inode: int, path: str, flags: int, text: str) -> None:
        info, code = await self.call(f"open {path}", lambda: self._operations.open(inode, flags, CONTEXT), PROMPT)
        if code:
            self._expect(path, code, {errno.EACCES, errno.ESTALE})
            return
        if flags == os.O_WRONLY:
            bound = 1.0 + PROMPT if path.endswith("config") else PROMPT
            _, code = await self.call(
                f"order {path} {text}", lambda: self._operations.write(info.fh, 0, text.encode()), bound
            )
            self._expect(path, code, {*DATA_ERRORS, errno.EINVAL})
        else:
            _, code = await self.call(f"read {path}", lambda: self._operations.read(info.fh, 0, 1 << 20), PROMPT)
            self._expect(path, code, set())
        await self.call(f"release {path}", lambda: self._operations.release(info.fh), PROMPT)

    async def _walk(self, path: str) -> Any:
        entry = await self._lookup(".aoefs")
        for name in path.split("/"):
            entry = await self._lookup(name, entry.st_ino)
        return entry


def _covers(lba: int, sectors: int, write: Write) -> bool:
    return lba * SECTOR_BYTES == write.offset and sectors * SECTOR_BYTES == write.size


async def _patiently(call: Awaitable[Any], patience: float) -> Any:
    """The result; FUSEError for a call that failed or was cancelled."""
    try:
        with trio.move_on_after(patience):
            return await call
    except RequestError:
        raise FUSEError(errno.EIO) from None
    raise FUSEError(errno.EINTR)
