"""The workers of a mount: processes that serve a share of the targets each, behind one mount point.

The main process is worker 0: it owns the mount point, its directory and ``.aoefs``.  Another worker is started when the
first target of its share is found (``Discovery.on_other_share``).  It is a mount of its own in a private directory
(``host.binds``), and each of its files is bound over a placeholder of the mount point (``fuse.wholetree``).

The file system is the interface: this module lists a worker's directory, reads its ``status.json`` and ``events``, and
writes its control files.  One task per worker keeps its process running (``fuse.keeper``).  Whatever touches a worker's
mount does so in a thread that nothing but this worker's part waits for.

What always holds: a name is listed only while its bind is there.  A worker that dies takes down the files of its share
only; they fail until it is back.  A bind that somebody took away comes back within some seconds while the mount is.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import math
import os
import pickle
import resource
import subprocess
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import trio
from pyfuse3 import FUSEError

import aoefs
from aoefs.engine.engine import Engine, EngineStatistics
from aoefs.errors import ControlError
from aoefs.fuse.control import Control, ControlFile
from aoefs.fuse.keeper import Keeper, Signal
from aoefs.fuse.kernel import Kernel, Notice
from aoefs.fuse.options import LIVE, MountOptions, Part
from aoefs.fuse.tree import ROOT, Tree
from aoefs.fuse.wholetree import Placeholder, WholeTree
from aoefs.host import binds, mountpoint
from aoefs.host.background import READY_VARIABLE, own_command
from aoefs.host.workerlife import Input, State
from aoefs.protocol.wire import SECTOR_BYTES, Address, Share
from aoefs.status.merge import merged_events, merged_status, statistics_of

log = logging.getLogger("aoefs")

T = TypeVar("T")

PATIENCE = 1.0  # seconds for an answer of a worker; then a report leaves it out.  Who asks the mount waits for two
ORDER_PATIENCE = 2.0  # ... to an order: one waits for a target, for a second
PERIOD = 0.5  # seconds between two looks at a worker's directory
FIRST_PERIOD = 0.1  # ... in its first seconds
FIRST_SECONDS = 3.0
END_SECONDS = 23.0  # from a stop by signal: what the worker itself allows open files and the last flush, and some more
SILENT_SECONDS = 10.0  # from any stop, of one that does not answer: it may have files open for ever
HURRY_SECONDS = 0.8  # from a second signal: this process has a tenth of a second more
MAX_THREADS = 8  # that wait for one worker: others must not wait for one that hangs

_HOME = str(Path(aoefs.__file__).resolve().parents[1])
_START = "from aoefs.fuse.worker import main; main()"


@dataclass(slots=True, eq=False)
class Worker:
    """One of them.  ``names`` are its files that are bound; ``report`` is its last status."""

    number: int
    keeper: Keeper = field(init=False)
    process: trio.Process | None = None
    directory: str = ""
    options: MountOptions | None = None  # that it has
    names: set[bytes] = field(default_factory=set)
    missing: set[bytes] = field(default_factory=set)  # of these, those without a bind at the last look
    report: dict[str, Any] | None = None
    looked: bool = False  # its first files are bound
    looks_since: float = math.inf  # when the look at its directory began that is not over
    limiter: trio.CapacityLimiter = field(default_factory=lambda: trio.CapacityLimiter(MAX_THREADS))

    @property
    def is_ready(self) -> bool:
        return self.keeper.state is State.READY

    @property
    def answers(self) -> bool:
        """It is ready and does not hang: nothing else is to be asked, since a thread would wait with it each time."""
        return self.is_ready and trio.current_time() < self.looks_since + PATIENCE

    def say_stop(self) -> None:
        """A byte on its stdin: stop; a second one: at once."""
        stdin = self.process.stdin if self.process is not None else None
        with contextlib.suppress(OSError):  # it has ended
            if isinstance(stdin, trio.lowlevel.FdStream) and stdin.fileno() >= 0:
                os.write(stdin.fileno(), b".")

    def close(self) -> None:
        """The end of its stdin: stop."""
        stdin = self.process.stdin if self.process is not None else None
        if isinstance(stdin, trio.lowlevel.FdStream):
            stdin.close()

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()

    async def in_thread(self, function: Callable[..., T], *arguments: Any) -> T:
        return await trio.to_thread.run_sync(function, *arguments, abandon_on_cancel=True, limiter=self.limiter)


class Workers:
    """See the module.  ``options()`` gives those of the mount as they are now, with the interfaces it speaks on."""

    def __init__(
        self, engine: Engine, kernel: Kernel, options: Callable[[], MountOptions], share: Share, *, is_daemon: bool
    ) -> None:
        self._engine = engine
        self._share = share
        self._kernel = kernel
        self._options = options
        self._is_daemon = is_daemon
        self._private = binds.PrivateDirectory()
        self._changed = Signal()
        self._all = {number: self._make(number) for number in range(1, share.of)}
        self._own_status: Callable[[], bytes] | None = None
        self._device = ""
        self._tree: WholeTree | None = None
        self._nursery: trio.Nursery | None = None
        self._deadline = trio.CancelScope()
        engine.discovery.on_other_share = self._want

    async def run(self, tree: Tree) -> None:
        """Start workers as they are wanted, until :meth:`end`."""
        assert isinstance(tree, WholeTree)  # noqa: S101 (for mypy)
        mount = mountpoint.find_mount(self._options().mountpoint)
        self._device = "" if mount is None else mount.device
        async with trio.open_nursery() as nursery:
            self._tree, self._nursery = tree, nursery
            for worker in self._all.values():
                if worker.keeper.state is not State.IDLE:
                    nursery.start_soon(worker.keeper.keep, name=f"worker {worker.number}")
            await trio.sleep_forever()

    def close(self) -> None:
        self._private.close()

    # ── one worker ────────────────────────────────────────────────────────────────────────────────────────────────

    def _make(self, number: int) -> Worker:
        worker = Worker(number)
        run, on_death = partial(self._run_process, worker), partial(self._on_death, worker)
        worker.keeper = Keeper(self._changed, run, worker.kill, on_death)
        return worker

    def _want(self, number: int) -> None:
        if self._all[number].keeper.take(Input.WANTED) and self._nursery is not None:
            self._nursery.start_soon(self._all[number].keeper.keep, name=f"worker {number}")

    def _on_death(self, worker: Worker, how: str, pause: float) -> None:
        worker.looked = True  # nothing waits for one that fails
        log.error("worker %d %s: its targets fail; it starts again in %.1f s", worker.number, how, pause)

    async def _run_process(self, worker: Worker) -> int:
        """One process from its start to its end; its exit code."""
        worker.directory = await worker.in_thread(self._private.room, str(worker.number))
        options = self._options()
        worker.options = given = replace(options, mountpoint=worker.directory, pid_file=None, metrics=None)
        part = Part(Share(worker.number, self._share.of), options.mountpoint, worker.keeper.restarts, os.getpid())
        command = own_command()[:-2]
        home = "/" if "-P" in command else _HOME
        what = f"aoefs worker {worker.number} of {self._share.of}: {options.mountpoint}"
        read_end, write_end = os.pipe()
        try:
            worker.process = process = await trio.lowlevel.open_process(
                [*command, "-c", _START, worker.directory, what],
                stdin=subprocess.PIPE,
                pass_fds=(write_end,),
                cwd=home,
                env={**{k: v for k, v in os.environ.items() if k != "NOTIFY_SOCKET"}, READY_VARIABLE: str(write_end)},
            )
        finally:
            os.close(write_end)
        async with trio.lowlevel.FdStream(read_end) as pipe, trio.open_nursery() as nursery:
            nursery.start_soon(self._follow, worker, pipe)
            assert process.stdin is not None  # noqa: S101 (for mypy)
            with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                await process.stdin.send_all(pickle.dumps((given, part, self._is_daemon)))
            if worker.keeper.state is State.STOPPING:  # since before there was a process
                await process.stdin.aclose()
            code = await process.wait()
            nursery.cancel_scope.cancel()
        await worker.in_thread(binds.empty, worker.directory)
        return code

    async def _follow(self, worker: Worker, pipe: trio.lowlevel.FdStream) -> None:
        """Wait until the process is ready; then look at its files again and again."""
        await worker.keeper.become_ready(pipe.receive_some)
        ready_at = trio.current_time()
        while worker.is_ready:
            worker.looks_since = trio.current_time()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_report_silence, worker)
                with contextlib.suppress(OSError):  # it dies, or the mount goes
                    await self._pass_options(worker)
                    await self._look(worker)
                    worker.looked = True
                    self._changed.wake()
                nursery.cancel_scope.cancel()
            worker.looks_since = math.inf
            young = trio.current_time() < ready_at + FIRST_SECONDS
            await trio.sleep(FIRST_PERIOD if young else PERIOD)

    async def _pass_options(self, worker: Worker) -> None:
        """Let it have what has changed since it was started, or since the last look."""
        assert worker.options is not None  # noqa: S101 (for mypy)
        before, now = worker.options, self._options()
        worker.options = now
        changed = {name: getattr(now, name) for name in LIVE if getattr(now, name) != getattr(before, name)}
        names = changed.pop("interfaces", None)
        orders = {"options": json.dumps(changed)} if changed else {}
        if names is not None:  # as root: the main process knows who may name which
            orders["interfaces"] = " ".join(names) or "any"
        for file, order in orders.items():
            try:
                await worker.in_thread(_write, f"{worker.directory}/.aoefs/{file}", order.encode())
            except OSError as error:
                log.error("worker %d does not take over %s: %s", worker.number, order, error.strerror)

    async def _look(self, worker: Worker) -> None:
        """See which files a worker has now, and bind them."""
        tree = self._tree
        assert tree is not None  # noqa: S101 (for mypy)
        files = await worker.in_thread(_list, worker.directory)
        missing = await worker.in_thread(self._find_missing, set(worker.names))
        for name in missing & worker.missing:  # not those that a umount -R takes away right now: it would fail
            tree.placeholders[name].bound = 0
        worker.missing = missing
        wanted = {}
        for name, inode in files.items():
            placeholder = tree.placeholder(name, self._files_of(worker, name) if b"p" not in name else {})
            if placeholder.bound != inode:
                wanted[placeholder] = inode
        gone = worker.names - files.keys()
        if not (wanted or gone):
            return
        if gone:
            await worker.in_thread(self._unbind, gone)
            for name in gone:
                tree.placeholders[name].bound = 0
                self._kernel.notify(worker, [Notice(ROOT, name)])
            worker.names -= gone
        for placeholder in wanted:
            if placeholder.directory is not None:
                placeholder.serial = await worker.in_thread(_serial, worker.directory, placeholder.name.decode())
        binding = trio.Event()
        for placeholder in wanted:
            placeholder.binding = binding
        try:
            for placeholder in await worker.in_thread(self._bind, tree, worker.directory, list(wanted)):
                placeholder.bound = wanted[placeholder]
                worker.names.add(placeholder.name)
                if placeholder.serial:
                    tree.report_rivals(placeholder.serial)
        finally:
            binding.set()
            for placeholder in wanted:
                placeholder.binding = None

    # ── in threads ────────────────────────────────────────────────────────────────────────────────────────────────

    def _find_mount(self) -> mountpoint.Mount:
        """The mount of the main process, wherever it was moved; OSError when it is unmounted."""
        for mount in mountpoint.aoefs_mounts():
            if mount.device == self._device:
                return mount
        raise OSError(errno.EINVAL, "it is not mounted any more")

    def _bind(self, tree: WholeTree, directory: str, wanted: Sequence[Placeholder]) -> list[Placeholder]:
        """Those that are bound now."""
        thread, done = binds.thread_id(), []
        tree.binders.add(thread)
        try:
            mount = self._find_mount()
            for placeholder in wanted:
                name = placeholder.name.decode()
                with contextlib.suppress(OSError):
                    mountpoint.umount2(f"{mount.path}/{name}", lazy=True)
                with contextlib.suppress(OSError):
                    binds.bind(f"{directory}/{name}", f"{mount.path}/{name}")
                    done.append(placeholder)
        finally:
            tree.binders.discard(thread)
        return done

    def _unbind(self, names: set[bytes]) -> None:
        mount = self._find_mount()
        for name in names:
            with contextlib.suppress(OSError):
                mountpoint.umount2(f"{mount.path}/{name.decode()}", lazy=True)

    def _find_missing(self, names: set[bytes]) -> set[bytes]:
        """Those of which somebody took the bind away."""
        there = {os.fsencode(os.path.basename(path)) for path in binds.bound(self._find_mount())}
        return names - there

    # ── the whole ─────────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def targets(self) -> int:
        """How many targets the workers serve."""
        return sum(b"p" not in name for worker in self._all.values() for name in worker.names)

    @property
    def pids(self) -> dict[int, int]:
        """Those that run, by number."""
        processes = {number: worker.process for number, worker in self._all.items()}
        return {
            number: process.pid
            for number, process in processes.items()
            if process is not None and process.returncode is None
        }

    async def room(self) -> tuple[int, int]:
        """Sectors and files of those that answer, for df(1)."""
        found = await self._of_all(lambda worker: os.statvfs(worker.directory))
        return (
            sum(room.f_blocks * room.f_frsize // SECTOR_BYTES for room in found.values()),
            sum(room.f_files for room in found.values()),
        )

    async def settled(self, seconds: float) -> None:
        """Wait until those that are wanted have bound their first files, ``seconds`` at most."""
        with trio.move_on_after(seconds):
            workers = self._all.values()
            await self._changed.until(
                lambda: all(worker.looked or worker.keeper.state is State.IDLE for worker in workers)
            )

    async def _of_all(
        self, ask: Callable[[Worker], T], workers: Iterable[Worker] | None = None, patience: float = PATIENCE
    ) -> dict[int, T]:
        """What ``ask`` returns, in a thread, for these workers (all of them), of those that answer."""
        answers = {}

        async def ask_one(worker: Worker) -> None:
            with contextlib.suppress(OSError):
                answers[worker.number] = await worker.in_thread(ask, worker)

        with trio.move_on_after(patience):
            async with trio.open_nursery() as nursery:
                for worker in self._all.values() if workers is None else workers:
                    if worker.answers:
                        nursery.start_soon(ask_one, worker)
        return answers

    async def _read(self, name: str) -> dict[int, bytes]:
        return await self._of_all(lambda worker: Path(worker.directory, name).read_bytes())

    async def _order(self, name: str, order: bytes, worker: Worker | None = None) -> None:
        """Write an order to a control file of a worker, or of all that answer; FUSEError if one refuses."""

        def write(to: Worker) -> int:
            try:
                _write(f"{to.directory}/{name}", order)
            except OSError as error:
                return error.errno or errno.EIO
            return 0

        codes = await self._of_all(write, None if worker is None else [worker], ORDER_PATIENCE)
        code = max(codes.values(), default=0) if worker is None else codes.get(worker.number, errno.EIO)
        if code:
            raise FUSEError(code)

    # ── control files ─────────────────────────────────────────────────────────────────────────────────────────────

    def take_over(self, control: Control) -> None:
        """Make the control files of the main process speak of all."""
        files = dict(control.files)
        own_events = files["events"].read
        self._own_status = files["status.json"].read
        files["status.json"] = ControlFile(read_later=self._read_status)
        files["events"] = ControlFile(read_later=partial(self._read_events, own_events))
        for name in ("discover", "revalidate", "flush"):
            own = files[name].write
            assert own is not None  # noqa: S101 (for mypy)
            files[name] = ControlFile(write=partial(self._order_all, name, own))
        files["interfaces"] = self._passed_at_once(files["interfaces"])
        control.files = files

    def _passed_at_once(self, file: ControlFile) -> ControlFile:
        own, as_root = file.write, file.as_root
        assert own is not None  # noqa: S101 (for mypy)

        async def write(order: bytes) -> None:
            await own(order)
            with trio.move_on_after(ORDER_PATIENCE):
                async with trio.open_nursery() as nursery:
                    for worker in self._all.values():
                        if worker.answers:
                            nursery.start_soon(self._pass_options, worker)

        return replace(file, write=write, as_root=None if as_root is None else self._passed_at_once(as_root))

    async def _read_status(self) -> bytes:
        return json.dumps(await self._status()).encode() + b"\n"

    async def _status(self) -> dict[str, Any]:
        assert self._own_status is not None  # noqa: S101 (for mypy)
        status: dict[str, Any] = json.loads(self._own_status())
        answers = await self._read(mountpoint.STATUS_FILE)
        reports = {}
        for worker in self._all.values():
            if worker.number in answers:
                worker.report = json.loads(answers[worker.number])
            elif worker.report is not None:  # it does not answer, or is gone
                unknown = {"state": "down", **({"dirty": True} if worker.is_ready else {})}
                targets = [{**target, **unknown} for target in worker.report["targets"]]
                worker.report = {**worker.report, "targets": targets}
                if worker.process is None or worker.process.returncode is not None:
                    worker.report["cpu_seconds"] = 0.0  # counted as that of a process that ended
            if worker.report is not None:
                reports[worker.number] = worker.report
        restarts = {worker.number: worker.keeper.restarts for worker in self._all.values() if worker.keeper.starts}
        merged_status(status, reports, restarts, self._share.of)
        ended = resource.getrusage(resource.RUSAGE_CHILDREN)
        status["cpu_seconds"] += ended.ru_utime + ended.ru_stime
        return status

    async def statistics(self) -> EngineStatistics:
        """Of all, as one engine would have them."""
        return statistics_of(await self._status())

    async def _read_events(self, own: Callable[[], bytes] | None) -> bytes:
        assert own is not None  # noqa: S101 (for mypy)
        answers = await self._read(".aoefs/events")
        return merged_events([own(), *answers.values()])

    async def _order_all(self, name: str, own: Callable[[bytes], Awaitable[None]], order: bytes) -> None:
        """An order to the main process, and to each worker that it is about."""
        if name == "discover" or order.split() in ([], [b"all"]):
            await own(order)
            await self._order(f".aoefs/{name}", order)
            return
        shares: dict[int, list[str]] = {}
        try:
            for word in order.decode("ascii").replace(",", " ").split():
                address = Address.parse(word)
                number = self._share.number_of(address)
                there = self._engine.disks if number == 0 else self._all[number].names
                if (address if number == 0 else str(address).encode()) not in there:
                    raise ControlError(f"there is no {address}")
                shares.setdefault(number, []).append(word)
        except ValueError as error:
            raise ControlError(str(error)) from None
        for number, words in shares.items():
            part = " ".join(words).encode()
            await (own(part) if number == 0 else self._order(f".aoefs/{name}", part, self._all[number]))

    def _files_of(self, worker: Worker, name: bytes) -> Mapping[str, ControlFile]:
        """The control files of one target of a worker."""

        async def read(file: str) -> bytes:
            answers = await self._of_all(lambda to: Path(to.directory, file).read_bytes(), [worker])
            if worker.number not in answers:
                raise FUSEError(errno.EIO)
            return answers[worker.number]

        path = f".aoefs/{name.decode()}"
        return {
            "ident": ControlFile(read_later=partial(read, f"{path}/ident")),
            "config": ControlFile(
                read_later=partial(read, f"{path}/config"),
                write=lambda order: self._order(f"{path}/config", order, worker),
            ),
            "stats": ControlFile(read_later=partial(read, f"{path}/stats")),
        }

    # ── the end ───────────────────────────────────────────────────────────────────────────────────────────────────

    def stop(self) -> None:
        """By a signal: workers serve open files for some seconds, then flush and end."""
        self._deadline.deadline = min(self._deadline.deadline, trio.current_time() + END_SECONDS)
        self._stop(at_once=True)

    def _stop(self, *, at_once: bool) -> None:
        for worker in self._all.values():
            was_ready = worker.is_ready
            if not worker.keeper.take(Input.STOP):
                continue
            if at_once and was_ready:
                worker.say_stop()
            elif not was_ready:
                worker.close()

    def hurry(self) -> None:
        """By a second signal."""
        self._deadline.deadline = min(self._deadline.deadline, trio.current_time() + HURRY_SECONDS)
        for worker in self._all.values():
            worker.say_stop()

    async def end(self) -> bool:
        """After the mount has ended: wait until the workers have, whose files may still be open.  True if all flushed.

        Without a stop by a signal that takes as long as files are open.
        """
        self._stop(at_once=False)
        with self._deadline:
            async with trio.open_nursery() as nursery:
                for worker in self._all.values():
                    if worker.keeper.is_running:
                        nursery.start_soon(self._end_one, worker)
        late = [worker for worker in self._all.values() if worker.keeper.is_running]
        for worker in late:
            log.error("worker %d does not end: it is killed", worker.number)
            worker.kill()
        for worker in self._all.values():
            if worker.keeper.code < 0 and worker not in late:
                log.error(
                    "worker %d was killed by signal %d: its disks may not be flushed",
                    worker.number,
                    -worker.keeper.code,
                )
        if self._nursery is not None:
            self._nursery.cancel_scope.cancel()
        return not (late or any(worker.keeper.code for worker in self._all.values()))

    async def _end_one(self, worker: Worker) -> None:
        """Wait for its end, which comes when its mount was taken away and all files are closed, unless it hangs."""
        with trio.move_on_after(SILENT_SECONDS) as patience, contextlib.suppress(OSError):
            await worker.in_thread(os.statvfs, worker.directory)
            await worker.in_thread(partial(mountpoint.umount2, worker.directory, lazy=True))
        if not patience.cancelled_caught:
            await self._changed.until(lambda: not worker.keeper.is_running)


async def _report_silence(worker: Worker) -> None:
    """While it is looked at."""
    await trio.sleep(PATIENCE)
    log.warning("worker %d does not answer: its targets wait for it", worker.number)
    try:
        await trio.sleep_forever()
    finally:
        log.info("worker %d answers again, or has ended", worker.number)


def _list(directory: str) -> dict[bytes, int]:
    """The files of a worker and their inode numbers."""
    with os.scandir(directory) as entries:
        return {os.fsencode(entry.name): entry.inode() for entry in entries if entry.name[0] == "e"}


def _serial(directory: str, name: str) -> str:
    """The serial number of a target of a worker, which stays the same as long as its inode number."""
    return str(json.loads(Path(directory, f".aoefs/{name}/stats").read_bytes())["serial"])


def _write(path: str, order: bytes) -> None:
    with mountpoint.opened(path, os.O_WRONLY) as file:
        os.write(file, order)
