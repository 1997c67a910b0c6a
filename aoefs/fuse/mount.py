"""A mount from its first interface to its last flush: one exit stack builds it and takes it down in reverse.

Owns the order of things.  Up: engine and links, then FUSE, then the first discovery, then "ready" (to the parent or
to systemd, and into the pid file).  Down: the kernel has let go (``pyfuse3.main`` returned), flush every dirty target,
close FUSE, stop the engine.

A stop by signal has two steps.  The mount is taken out of the tree at once (lazily), and open files are served until
the last one is closed or ``GRACE`` seconds have passed; then what still waits fails.  A second signal, whenever it
comes, ends the process within a second: without the last flush, if that takes longer.  The last flush is tried however
the mount ends.  The exit code is 0 only if every flush succeeded.

No thread may be left in a call of ``fuse.kernel`` when requests are no longer answered (see there): so requests fail
first, then these calls end, then the loop of pyfuse3.

Rejected: ``pyfuse3.terminate`` alone (the user's later close would get ECONNABORTED), and flushing at release (the
last one may never be delivered).
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import fields, replace
from functools import partial
from time import perf_counter
from typing import TYPE_CHECKING

import pyfuse3
import trio

from aoefs import __version__
from aoefs.core.life import State
from aoefs.engine.changes import Change
from aoefs.engine.disk import Disk
from aoefs.engine.engine import Engine, EngineStatistics, open_engine
from aoefs.engine.lastflush import last_flush
from aoefs.engine.settings import Settings
from aoefs.errors import ControlError, UserError
from aoefs.fuse import tuning, workerloop
from aoefs.fuse.bounds import bounds
from aoefs.fuse.control import Control, ControlFile
from aoefs.fuse.interfaces import Interfaces
from aoefs.fuse.kernel import Kernel
from aoefs.fuse.operations import AoeOperations
from aoefs.fuse.options import LIVE, MountOptions, Part
from aoefs.host import interfaces, mountpoint
from aoefs.host.background import Ready
from aoefs.host.service import NOTIFY_VARIABLE, PidFile, notify
from aoefs.host.systemlog import LogLimit
from aoefs.protocol.wire import ALL, Share
from aoefs.status.events import EventRing
from aoefs.status.report import StatusText

if TYPE_CHECKING:
    from aoefs.fuse.workers import Workers

log = logging.getLogger("aoefs")

GRACE = 10.0  # seconds for which open files are served after a signal
FLUSH_GRACE = 10.0  # seconds that the last flush of all targets may take
TABLE_PATIENCE = 0.1  # seconds that "ready" waits for partition tables: they take less, or long
MIN_WORKERS = 32  # FUSE tasks that stay; each one more is made and ended on demand
MORE_WORKERS = 32  # than max_background, or the kernel's queue would be ours
ROOM_PERIOD = 0.5  # seconds
SUMMARY_PERIOD = 5.0  # seconds between two looks at the targets of workers, for systemd
KERNEL_GRACE = 0.5  # seconds that the kernel may take to let go of our threads: it takes a few milliseconds
WORKER_PATIENCE = 3.0  # seconds that "ready" waits for workers: half a second, but for a busy machine
MOST_WORKERS = 8  # of --workers auto
PARENT_SECONDS = 0.1  # from the end of a worker's stdin until its parent counts as gone
LAST_SECOND = 0.9  # seconds from a second signal to the end ...
LAST_FLUSH = 0.6  # ... of which so many are for KERNEL_GRACE and the last flush

_NAMES = [field.name for field in fields(MountOptions)]


def run(
    options: MountOptions,
    ready: Ready,
    reread: Callable[[], MountOptions] | None = None,
    part: Part | None = None,
) -> int:
    """Mount, serve until unmounted, flush; the exit code.  UserError if it cannot begin.

    ``reread`` gives the options again, after a SIGHUP.  ``part`` is what a worker is of another mount.
    """
    return trio.run(Mount(options, ready, reread, part).run)


async def serve(most_tasks: int) -> None:
    """Until the connection ends, in so many tasks at most.  A read of ours that is under way then fails with ENODEV,
    which libfuse takes for the end, or by chance with ECONNABORTED, which it does not.
    """
    try:
        await pyfuse3.main(min_tasks=MIN_WORKERS, max_tasks=most_tasks)
    except* ConnectionAbortedError:
        log.debug("the kernel aborted the connection")


class Mount:
    """One mount; see the module."""

    def __init__(
        self,
        options: MountOptions,
        ready: Ready,
        reread: Callable[[], MountOptions] | None = None,
        part: Part | None = None,
    ) -> None:
        self._options = options
        self._part = part or Part(_share(options))
        self._reread = reread or (lambda: options)
        self._ready = ready
        self._bounds = bounds(options, self._part.share)
        self._events = EventRing(self._bounds.events)
        self._mount: mountpoint.Mount | None = None
        self._unmounted = False
        self._terminated = False
        self._stopping, self._hurrying = trio.Event(), trio.Event()
        self._flushing = False
        self._workers: Workers | None = None
        self._last_flush = trio.CancelScope(shield=True)

    async def run(self) -> int:
        options, part = self._options, self._part
        self._events.addFilter(LogLimit())
        self._events.listen_to(log)
        names = [interface.name for interface in interfaces.choose(options.interfaces)]
        async with AsyncExitStack() as stack:
            signals = stack.enter_context(trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT))
            pid_file = None if options.pid_file is None else stack.enter_context(PidFile(options.pid_file))
            settings = Settings(
                deadsecs=tuning.bound_deadsecs(options.deadsecs),
                maxout=options.maxout,
                allow_mac=frozenset(options.allow_mac),
                serials=dict(reversed(options.disk)),
                max_targets=self._bounds.max_targets,
                fixed_paths=options.fixed_paths,
                busy_poll=None if isinstance(options.busy_poll, str) else options.busy_poll / 1e6,
                slow=options.slow,
                shards=self._bounds.shards,
                share=part.share,
                read_sectors=self._bounds.read_sectors,
            )
            try:
                engine = await stack.enter_async_context(open_engine(names, settings, clock=perf_counter))
            except OSError as error:
                raise UserError(f"{', '.join(names)}: {error.strerror}") from None
            if options.metrics is not None:
                from aoefs.status import metrics  # prometheus_client is needed for nothing else

                listeners = await metrics.listen(*options.metrics)
                server = metrics.Server(
                    listeners, partial(self._statistics, engine), self._processes, version=__version__
                )
                engine.supervisor.start("metrics", server.run)
            spoken_on = Interfaces(engine, options.interfaces)
            change = partial(self._change, engine, spoken_on)
            options_file = ControlFile(self._read_options, partial(self._write_options, change))
            control = Control(engine, self._events, self._status(engine).read, spoken_on.set, options_file)
            kernel = Kernel(engine.supervisor)
            workers: Workers | None = None
            if part.share.of > 1 and not part.serves:
                from aoefs.fuse.workers import Workers  # a mount of one process needs nothing of it

                workers = self._workers = Workers(
                    engine,
                    kernel,
                    lambda: replace(self._options, interfaces=spoken_on.names),
                    part.share,
                    is_daemon=self._ready.is_daemon,
                )
                stack.callback(workers.close)
                workers.take_over(control)
            operations = AoeOperations(
                engine, control, kernel, options, workers, part.number, self._bounds.read_ahead_chunks
            )
            engine.changes.subscribe(partial(self._on_change, engine))
            if not options.plain_loop:
                workerloop.install(engine.in_place)
            self._open_fuse(operations)
            stack.callback(self._close_fuse)
            _complain(tuning.become_io_flusher(), tuning.avoid_oom_killer(), tuning.receive_by_read())
            stack.callback(engine.supervisor.cancel)
            engine.supervisor.start("interfaces", spoken_on.follow)
            if self._ready.is_daemon or not os.isatty(0):  # else the terminal has gone, and the mount goes, too
                hangups = stack.enter_context(trio.open_signal_receiver(signal.SIGHUP))
                engine.supervisor.start("options", partial(self._reread_on_hangup, hangups, change))
            nursery = await stack.enter_async_context(trio.open_nursery())
            nursery.start_soon(self._stop_on_signal, signals, name="signals")
            nursery.start_soon(self._stop, engine, kernel, name="stop")
            nursery.start_soon(self._become_ready, engine, operations, pid_file, name="ready")
            if workers is not None:
                nursery.start_soon(workers.run, operations.tree, name="workers")
            if part.serves:
                nursery.start_soon(self._follow_main_process, name="main process")
            clean = False
            try:
                await serve(self._bounds.most_background + MORE_WORKERS)
                self._unmounted = self._unmounted or not self._terminated
            finally:
                self._tell_systemd("STOPPING=1")
                self._flushing = True
                kernel.close()
                clean = await last_flush(engine, FLUSH_GRACE, self._last_flush)
                if workers is not None:
                    clean = await workers.end() and clean
            nursery.cancel_scope.cancel()
        return 0 if clean else 1

    # ── FUSE ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def _open_fuse(self, operations: AoeOperations) -> None:
        options = self._options
        words = {
            "fsname=" + ("\\,".join(options.interfaces) or "any"),
            "subtype=aoefs-worker" if self._part.serves else "subtype=aoefs",
        }
        if options.read_only:
            words.add("ro")
        if options.allow_other:
            words |= {"allow_other", "default_permissions"}
        try:
            pyfuse3.init(operations, options.mountpoint, words)
        except RuntimeError as error:
            raise UserError(f"{options.mountpoint}: cannot be mounted ({error})") from None
        found = mountpoint.find_mount(options.mountpoint)
        self._mount = found if found is not None and found.is_trusted else None  # else it was moved just now

    def _close_fuse(self) -> None:
        """Unmount only what is still mounted, so that nothing mounted there meanwhile is hit."""
        if not self._unmounted:
            self._unmount_lazily()
        pyfuse3.close(unmount=False)

    def _tune(self) -> tuple[tuning.Background, bool]:
        """Ask the kernel for what makes a mount fast and safe; and whether it reads ahead far enough now."""
        device = os.stat(self._options.mountpoint).st_dev
        small = tuning.set_read_ahead(device)
        background = tuning.Background(device, self._bounds.background)
        _complain(small, background.complaint)
        return background, small is None

    async def _become_ready(self, engine: Engine, operations: AoeOperations, pid_file: PidFile | None) -> None:
        background, kernel_reads_ahead = await trio.to_thread.run_sync(self._tune)
        if not background.complaint:
            engine.supervisor.start("room", partial(self._make_room, engine, background))
        operations.read_aheads.wanted = not kernel_reads_ahead
        await engine.first_discovery()
        if self._workers is not None:
            await self._workers.settled(WORKER_PATIENCE)
        links, count = ", ".join(engine.links), len(engine.disks)
        with trio.move_on_after(TABLE_PATIENCE):
            async with trio.open_nursery() as nursery:
                for disk in engine.disks.values():
                    nursery.start_soon(partial(operations.read_table, again=False), disk, name="partition table")
        tuning.collect_garbage_rarely()
        tuning.keep_freed_memory(self._bounds.kept_bytes)
        if pid_file is not None:
            try:
                pid_file.write()
            except OSError as error:  # a disk that is full by now; the mount is live all the same
                log.error("--pid-file %s: %s", self._options.pid_file, error.strerror)
        count += 0 if self._workers is None else self._workers.targets
        text = f"mounted on {self._options.mountpoint}: {count} target{'s' * (count != 1)} on {links}"
        if not count:
            text = f"mounted, but no target answers on {links} yet: files appear when one does"
        if is_private := self._mount is not None and mountpoint.is_private(self._mount):
            text += "; visible in this mount namespace only"
        surprising = not count or (is_private and sys.stderr.isatty())
        if self._part.serves:
            text, surprising = f"worker {self._part.share.number} serves {count} target{'s' * (count != 1)}", False
        self._ready.ok(text if surprising else None)
        if not surprising or self._ready.is_daemon:
            log.info("%s", text)
        self._tell_systemd("READY=1", _summary(_states(engine)))
        if self._workers is not None and NOTIFY_VARIABLE in os.environ and not self._ready.is_daemon:
            engine.supervisor.start("summary", partial(self._tell_of_all, self._workers))

    def _tell_systemd(self, *assignments: str) -> None:
        """Not from the background, where the socket would be that of a service which only started us."""
        if not self._ready.is_daemon:
            notify(*assignments)

    async def _statistics(self, engine: Engine) -> EngineStatistics:
        """Of all processes of the mount."""
        return engine.statistics() if self._workers is None else await self._workers.statistics()

    def _processes(self) -> dict[int, str]:
        workers = {} if self._workers is None else self._workers.pids
        return {0: "self", **{number: str(pid) for number, pid in workers.items()}}

    def _status(self, engine: Engine) -> StatusText:
        return StatusText(
            engine.statistics,
            self._events.snapshot,
            trio.current_time,
            mountpoint=self._options.mountpoint,
            pid=os.getpid(),
            version=__version__,
        )

    # ── while it runs ─────────────────────────────────────────────────────────────────────────────────────────────

    def _on_change(self, engine: Engine, disk: Disk, change: Change) -> None:
        """systemd shows how many there are.  A worker that started again gives back what the one before held."""
        if change is Change.APPEARED and self._options.reserve and self._part.incarnation:
            engine.supervisor.start("reservation", disk.reservation.give_back_left)
        if self._workers is None:
            self._tell_systemd(_summary(_states(engine)))

    async def _tell_of_all(self, workers: Workers) -> None:
        while True:
            self._tell_systemd(_summary([target.state for target in (await workers.statistics()).targets]))
            await trio.sleep(SUMMARY_PERIOD)

    async def _make_room(self, engine: Engine, background: tuning.Background) -> None:
        """Only requests that cost memory and will end soon count against the kernel's bound: so a deep queue of a slow
        or silent target leaves room for the requests of the others.  As many again may be waiting in the kernel.
        """
        least, most = self._bounds.background, self._bounds.most_background
        allowed = least
        with contextlib.closing(background):
            while True:
                await trio.sleep(ROOM_PERIOD)
                wanted = min(least + 2 * engine.exempt_calls(), most)
                if wanted != allowed:
                    log.debug("max_background is %d", wanted)
                    background.allow(wanted)
                    allowed = wanted

    # ── options of a live mount ───────────────────────────────────────────────────────────────────────────────────

    def _read_options(self) -> bytes:
        return json.dumps({name: getattr(self._options, name) for name in _NAMES}, default=str).encode() + b"\n"

    async def _write_options(self, change: Callable[[MountOptions], None], order: bytes) -> None:
        try:
            wanted = json.loads(order)
        except (ValueError, RecursionError):
            wanted = None
        if type(wanted) is not dict or not all(name in LIVE and LIVE[name](wanted[name]) for name in wanted):
            raise ControlError(f"not an object of {', '.join(LIVE)}")
        names = wanted.get("interfaces", self._options.interfaces)
        change(replace(self._options, **{**wanted, "interfaces": tuple(names)}))

    def _change(self, engine: Engine, spoken_on: Interfaces, wanted: MountOptions) -> None:
        """Take over what can be changed now, or raise ControlError; a warning names the rest."""
        before = self._options
        changed = [name for name in _NAMES if getattr(wanted, name) != getattr(before, name)]
        if "interfaces" in changed:
            spoken_on.set(wanted.interfaces, by_root=False)
        engine.roster.set_bounds(tuning.bound_deadsecs(wanted.deadsecs), wanted.maxout)
        level = (wanted.log_level or "info").upper()
        if "log_level" in changed:
            for handler in log.handlers:
                if handler is not self._events:
                    handler.setLevel(level)
            log.setLevel(min(logging.INFO, getattr(logging, level)))
        self._options = replace(before, **{name: getattr(wanted, name) for name in LIVE})
        values = {"deadsecs": f"{wanted.deadsecs:g}", "maxout": str(wanted.maxout), "log_level": level.lower()}
        values["interfaces"] = ",".join(wanted.interfaces) or "any"
        now = ", ".join(f"{name.replace('_', '-')} {values[name]}" for name in LIVE if name in changed)
        log.info("options: %s", f"{now} from now on" if now else "no change")
        if stuck := ", ".join(name for name in changed if name not in LIVE).replace("_", "-"):
            log.warning("%s cannot be changed while it is mounted: unmount first", stuck)

    async def _reread_on_hangup(self, signals: AsyncIterator[int], change: Callable[[MountOptions], None]) -> None:
        async for _ in signals:
            try:
                change(self._reread())
            except (UserError, ControlError) as error:
                log.error("the options stay as they are: %s", error)

    # ── the end ───────────────────────────────────────────────────────────────────────────────────────────────────

    async def _stop_on_signal(self, signals: AsyncIterator[int]) -> None:
        number = await anext(signals)
        if not self._stopping.is_set():
            log.info("%s: unmounting; open files are served for %g s", signal.Signals(number).name, GRACE)
        self._stopping.set()
        await anext(signals)
        self._hurrying.set()
        async for _ in signals:  # one that is never taken would end this process by its number, when trio lets go
            pass

    async def _stop(self, engine: Engine, kernel: Kernel) -> None:
        await self._stopping.wait()
        if self._workers is not None:
            self._workers.stop()
        self._tell_systemd("STOPPING=1")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._hurry)
            nursery.start_soon(partial(trio.to_thread.run_sync, self._unmount_lazily, abandon_on_cancel=True))
            with trio.move_on_after(GRACE):
                await self._hurrying.wait()
            if not self._flushing:  # which is for users that are gone, and has a bound of its own
                engine.close()
                await kernel.end(KERNEL_GRACE)
                self._terminated = True
                pyfuse3.terminate()

    async def _hurry(self) -> None:
        """A second signal: nothing is waited for any more, and this process is gone within ``LAST_SECOND``."""
        await self._hurrying.wait()
        log.warning("a second signal: ending at once")
        if self._workers is not None:
            self._workers.hurry()
        self._last_flush.deadline = min(self._last_flush.deadline, trio.current_time() + LAST_FLUSH)
        signal.setitimer(signal.ITIMER_REAL, LAST_SECOND)  # SIGALRM ends what cannot be cancelled: nothing handles it

    async def _follow_main_process(self) -> None:
        """Of a worker: stop when the main process wants it (a byte on stdin; a second one: at once), or is gone.

        What a terminal or systemd sends to all processes counts for itself, or it would be the second signal.
        """
        wanted = iter((self._stopping, self._hurrying))
        while True:
            await trio.lowlevel.wait_readable(0)
            if not os.read(0, 1):
                break
            next(wanted, self._hurrying).set()
        self._stopping.set()
        await trio.sleep(PARENT_SECONDS)
        if os.getppid() != self._part.main_process:
            from aoefs.host import binds  # a mount of one process needs nothing of it

            await trio.to_thread.run_sync(binds.leave_dead, self._part.serves, abandon_on_cancel=True)

    def _unmount_lazily(self) -> None:
        try:
            if self._mount is not None:
                mountpoint.unmount(self._mount, lazy=True)
        except (OSError, UserError) as error:
            if not (isinstance(error, OSError) and error.errno == errno.EINVAL):  # else somebody was faster
                log.warning("%s", error)
                return
        self._unmounted = True


def _share(options: MountOptions) -> Share:
    """That of the main process.  UserError if workers are wanted and not possible."""
    count = options.workers
    if count == 1:
        return ALL
    from aoefs.host import binds  # a mount of one process needs nothing of it

    if os.geteuid() != 0 or binds.place() is None:
        why = "only root can bind-mount the files of others, and needs a place in /run or XDG_RUNTIME_DIR"
        if isinstance(count, int):
            raise UserError(f"--workers {count} is not possible: {why}", exit_code=2)
        log.info("one process serves all targets: %s", why)
        return ALL
    if not isinstance(count, int):
        count = min(MOST_WORKERS, len(os.sched_getaffinity(0)))
    return Share(0, min(count, options.max_targets))  # one without a target would be for nothing


def _complain(*complaints: str | None) -> None:
    """Log what is not as fast or as safe as it could be."""
    for complaint in filter(None, complaints):
        log.info("%s", complaint)


def _states(engine: Engine) -> list[str]:
    return [disk.target.life.state.value for disk in engine.disks.values()]


def _summary(states: Sequence[str]) -> str:
    """The line that ``systemctl status`` shows."""
    down = sum(state in (State.DOWN.value, State.REPLACED.value) for state in states)
    return f"STATUS={len(states)} target{'' if len(states) == 1 else 's'}" + (f", {down} of them down" if down else "")
