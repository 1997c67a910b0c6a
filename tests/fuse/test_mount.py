"""The life of a mount, without a kernel: it flushes however it ends, and nothing in the background ends it."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager

import pyfuse3
import pytest
import trio
from trio.testing import MockClock

from aoefs.engine.engine import Engine
from aoefs.engine.settings import Settings
from aoefs.errors import UserError
from aoefs.fuse import mount, tuning
from aoefs.fuse.mount import Mount
from aoefs.fuse.options import MountOptions
from aoefs.host import interfaces, mountpoint
from aoefs.host.background import Ready
from tests.engine.answers import flushes, is_flush
from tests.scene import DELAY, Announce, Scene, SimulatedTarget, open_scene

Main = Callable[[], Awaitable[object]]


class NoBackground:
    """Stands for the kernel's limit of requests, which cannot be changed here."""

    complaint = "not here"

    def __init__(self, _device: int) -> None:
        pass


RIGHTS = ("become_io_flusher", "avoid_oom_killer", "receive_by_read")
TUNING = ("set_read_ahead", "collect_garbage_rarely", "keep_freed_memory", *RIGHTS)


class FakeInterfaces:
    """What a mount speaks on; ``follow`` ends at once, or fails."""

    failure: Exception | None = None

    def __init__(self, _engine: Engine, _names: Sequence[str]) -> None:
        pass

    async def set(self, names: Sequence[str]) -> None:
        pass

    async def follow(self) -> None:
        await trio.lowlevel.checkpoint()
        if self.failure is not None:
            raise self.failure


async def run_in_place(call: Callable[..., object], *arguments: object, **_named: object) -> object:
    """Instead of a thread, for which the virtual clock would not wait."""
    await trio.lowlevel.checkpoint()
    return call(*arguments)


class Stage:
    """A mount on a simulated segment with one dirty target; ``main`` is what pyfuse3's loop does."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, mountpoint_path: str) -> None:
        self.main: Main = trio.lowlevel.checkpoint
        self.mount = mountpoint.Mount(mountpoint_path, mountpoint.FILE_SYSTEM_TYPE, "any", "0:47", 90, os.geteuid())
        self.unmounts: list[mountpoint.Mount] = []
        self.timers: list[tuple[object, ...]] = []
        self.terminated = trio.Event()
        self.scene: Scene
        self.target: SimulatedTarget
        self._options = MountOptions(mountpoint=mountpoint_path, uid=0, gid=0, plain_loop=True)

        async def loop(**_tasks: int) -> None:
            await self.main()

        monkeypatch.setattr(pyfuse3, "init", lambda *_: None)
        monkeypatch.setattr(pyfuse3, "main", loop)
        monkeypatch.setattr(pyfuse3, "terminate", self.terminate)
        monkeypatch.setattr(pyfuse3, "close", self.close)
        monkeypatch.setattr(mount, "open_engine", self.open_engine)
        monkeypatch.setattr(tuning, "Background", NoBackground)
        for name in TUNING:  # nothing of this machine is changed
            monkeypatch.setattr(tuning, name, lambda *_: None)
        monkeypatch.setattr(mount, "Interfaces", FakeInterfaces)
        monkeypatch.setattr(interfaces, "choose", lambda _: [])
        monkeypatch.setattr(mountpoint, "find_mount", lambda _path: self.mount)
        monkeypatch.setattr(mountpoint, "unmount", self.unmount)
        monkeypatch.setattr(signal, "setitimer", lambda *timer: self.timers.append(timer))
        monkeypatch.setattr(trio.to_thread, "run_sync", run_in_place)

    @asynccontextmanager
    async def open_engine(self, _names: Sequence[str], settings: Settings) -> AsyncIterator[Engine]:
        async with open_scene(settings) as scene:
            self.scene = scene
            self.target = scene.add_target()
            disk = await scene.disk()
            await disk.write(0, bytes(512))
            yield scene.engine

    def terminate(self) -> None:
        self.terminated.set()

    def unmount(self, found: mountpoint.Mount, *, lazy: bool) -> None:
        assert lazy
        self.unmounts.append(found)

    def close(self, *, unmount: bool) -> None:
        assert not unmount, "by its path, which may lead to another mount by now"

    async def run(self) -> int:
        return await Mount(self._options, Ready()).run()

    def flushed(self) -> int:
        return len(flushes(self.scene))


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch, tmp_path: os.PathLike[str]) -> Stage:
    return Stage(monkeypatch, os.fspath(tmp_path))


async def test_a_mount_that_is_unmounted_flushes_what_is_dirty(stage: Stage, autojump_clock: MockClock) -> None:
    assert await stage.run() == 0
    assert stage.flushed() == 1
    assert stage.unmounts == []


async def test_what_is_a_right_of_a_thread_is_arranged_in_the_one_that_serves_and_before_it_does(
    stage: Stage, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[str, bool]] = []
    elsewhere = False

    async def run_elsewhere(call: Callable[..., object], *arguments: object, **_named: object) -> object:
        nonlocal elsewhere
        await trio.lowlevel.checkpoint()
        elsewhere = True
        try:
            return call(*arguments)
        finally:
            elsewhere = False

    async def serve() -> None:
        await trio.sleep(1)
        calls.append(("main", elsewhere))

    def arrange(name: str) -> Callable[[], None]:
        return lambda: calls.append((name, elsewhere))

    monkeypatch.setattr(trio.to_thread, "run_sync", run_elsewhere)
    for name in RIGHTS:
        monkeypatch.setattr(tuning, name, arrange(name))
    stage.main = serve
    assert await stage.run() == 0
    assert calls == [*((name, False) for name in RIGHTS), ("main", False)]


async def test_a_mount_that_ends_by_an_exception_flushes_and_unmounts(stage: Stage, autojump_clock: MockClock) -> None:
    async def fail() -> None:
        await trio.sleep(1)
        raise ZeroDivisionError("a defect")

    stage.main = fail
    with pytest.RaisesGroup(ZeroDivisionError, flatten_subgroups=True):
        await stage.run()
    assert stage.flushed() == 1
    assert stage.unmounts == [stage.mount]


async def test_an_exception_of_a_background_task_is_logged_and_the_mount_goes_on(
    stage: Stage, autojump_clock: MockClock, announce: Announce, monkeypatch: pytest.MonkeyPatch
) -> None:
    announce("^interfaces failed unexpectedly$")
    announce("^background failed unexpectedly$")
    monkeypatch.setattr(FakeInterfaces, "failure", ZeroDivisionError("a defect"))

    async def fail() -> None:
        raise ZeroDivisionError("another one")

    async def serve() -> None:
        await trio.sleep(1)
        stage.scene.engine.supervisor.start("background", fail)
        await trio.sleep(1)
        served.append(trio.current_time())

    served: list[float] = []
    stage.main = serve
    assert await stage.run() == 0
    assert served
    assert stage.flushed() == 1


async def test_a_last_flush_that_fails_is_the_exit_code(
    stage: Stage, autojump_clock: MockClock, announce: Announce
) -> None:
    announce(f"e0.0: the last flush was not answered within {mount.FLUSH_GRACE:g} s")

    async def silence() -> None:
        stage.target.silent = True

    stage.main = silence
    assert await stage.run() == 1


async def test_when_requests_are_no_longer_served_the_kernel_is_told_nothing(
    stage: Stage, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thread that told it something could wait for one of these requests for ever."""
    calls: list[float] = []
    monkeypatch.setattr(pyfuse3, "invalidate_inode", lambda *_, **__: calls.append(trio.current_time()))

    async def revalidate() -> None:
        for disk in stage.scene.engine.disks.values():
            stage.scene.engine.lookout.revalidate(disk)
        await trio.sleep(0.5)

    async def serve() -> None:
        await trio.sleep(1)
        await revalidate()
        assert calls
        calls.clear()
        stage.scene.wire.route = lambda frame: [(3.0 if is_flush(frame) else DELAY, frame)]
        stage.scene.nursery.start_soon(revalidate)

    stage.main = serve
    assert await stage.run() == 0
    assert not calls


# ── signals ───────────────────────────────────────────────────────────────────────────────────────────────────────────


async def stop(stage: Stage, *pauses: float, silent: bool = False, main: Main | None = None) -> tuple[int, float]:
    """A mount whose files stay open gets a signal after each pause: its exit code, and when it ended after the last."""

    async def send() -> None:
        for pause in pauses:
            await trio.sleep(pause)
            stage.target.silent = stage.target.silent or silent
            os.kill(os.getpid(), signal.SIGTERM)

    stage.main = main or stage.terminated.wait
    began = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        code = await stage.run()
    return code, trio.current_time() - began - sum(pauses)


async def test_after_a_signal_open_files_are_served_for_a_while(stage: Stage, autojump_clock: MockClock) -> None:
    code, seconds = await stop(stage, 1.0)
    assert code == 0
    assert seconds == pytest.approx(mount.GRACE, abs=0.1)
    assert stage.flushed() == 1
    assert stage.unmounts == [stage.mount], "the signal unmounted it"


async def test_the_last_flush_has_all_its_time_when_the_last_file_is_closed_late(
    stage: Stage, autojump_clock: MockClock
) -> None:
    seconds_of_flush = 3.0

    def slow(frame: bytes) -> list[tuple[float, bytes]]:
        return [(seconds_of_flush if is_flush(frame) else DELAY, frame)]

    async def use() -> None:
        await trio.sleep(mount.GRACE - 1)
        stage.scene.wire.route = slow

    code, seconds = await stop(stage, 0.1, main=use)
    assert code == 0
    assert seconds == pytest.approx(mount.GRACE - 1 + seconds_of_flush, abs=0.2)


async def test_what_a_signal_could_not_unmount_is_unmounted_at_the_end(
    stage: Stage, autojump_clock: MockClock, announce: Announce, monkeypatch: pytest.MonkeyPatch
) -> None:
    announce("fusermount3 is missing")

    def fail(_found: mountpoint.Mount, *, lazy: bool) -> None:
        monkeypatch.setattr(mountpoint, "unmount", stage.unmount)
        raise UserError("fusermount3 is missing")

    monkeypatch.setattr(mountpoint, "unmount", fail)
    await stop(stage, 1.0)
    assert stage.unmounts == [stage.mount]


async def test_a_second_signal_leaves_time_to_flush_what_answers(
    stage: Stage, autojump_clock: MockClock, announce: Announce
) -> None:
    announce("a second signal: ending at once")
    code, seconds = await stop(stage, 1.0, 1.0)
    assert code == 0
    assert seconds < 0.1
    assert stage.flushed() == 1


@pytest.mark.parametrize("pause", [1.0, mount.GRACE + 1.0], ids=["while files are served", "during the last flush"])
async def test_a_second_signal_leaves_no_time_to_what_is_silent(
    stage: Stage, autojump_clock: MockClock, announce: Announce, pause: float
) -> None:
    announce("a second signal: ending at once")
    announce("e0.0: the last flush was not answered within")
    code, seconds = await stop(stage, 1.0, pause, silent=True)
    assert code == 1
    assert seconds == pytest.approx(mount.LAST_FLUSH, abs=0.1)


async def test_a_third_signal_delays_nothing(stage: Stage, autojump_clock: MockClock, announce: Announce) -> None:
    announce("a second signal: ending at once")
    announce("e0.0: the last flush was not answered within")
    code, seconds = await stop(stage, 1.0, 1.0, 0.3, silent=True)
    assert code == 1
    assert seconds == pytest.approx(mount.LAST_FLUSH - 0.3, abs=0.1)
    assert stage.timers == [(signal.ITIMER_REAL, mount.LAST_SECOND)], "it ends what hangs, counted from the second"
