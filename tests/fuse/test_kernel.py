"""What the kernel is asked to forget: in order, in the background, and without harm when it knows nothing of it."""

from __future__ import annotations

import errno
import logging
import threading

import pyfuse3
import pytest
import trio
import trio.testing

from aoefs.engine.supervisor import Supervisor
from aoefs.fuse.kernel import Kernel, Notice
from tests.scene import Announce


class Calls:
    """What pyfuse3 is called with.  A call waits until ``go`` is set (those for other inodes than the ``slow`` ones do
    not, if there are any), and then raises the first of ``failures``.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seen: list[tuple[int, object]] = []
        self.failures: list[OSError | None] = []
        self.go = threading.Event()
        self.go.set()
        self.slow: set[int] = set()
        self.threads: set[int] = set()
        monkeypatch.setattr(pyfuse3, "invalidate_entry", self.invalidate_entry)
        monkeypatch.setattr(pyfuse3, "invalidate_inode", self.invalidate_inode)

    def _note(self, inode: int, what: object) -> None:
        assert (self.slow and inode not in self.slow) or self.go.wait(30)
        self.threads.add(threading.get_ident())
        self.seen.append((inode, what))
        failure = self.failures.pop(0) if self.failures else None
        if failure is not None:
            raise failure

    def invalidate_entry(self, inode: int, name: bytes) -> None:
        self._note(inode, name)

    def invalidate_inode(self, inode: int, *, attr_only: bool) -> None:
        self._note(inode, "attributes" if attr_only else "pages")


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    return Calls(monkeypatch)


async def test_each_notice_is_the_call_that_it_means_one_after_the_other(calls: Calls) -> None:
    async with trio.open_nursery() as nursery:
        kernel = Kernel(Supervisor(nursery))
        for _ in range(2):
            calls.seen.clear()
            kernel.notify("disk", [Notice(1, b"e0.0"), Notice(17), Notice(18, pages=False)])
            with trio.fail_after(30):
                while nursery.child_tasks:  # noqa: ASYNC110 (a thread ends them)
                    await trio.sleep(0.001)
            assert calls.seen == [(1, b"e0.0"), (17, "pages"), (18, "attributes")]


async def test_the_caller_does_not_wait_and_the_calls_are_made_in_a_thread(calls: Calls) -> None:
    calls.go.clear()
    async with trio.open_nursery() as nursery:
        Kernel(Supervisor(nursery)).notify("disk", [Notice(17)])
        await trio.testing.wait_all_tasks_blocked()
        assert calls.seen == []
        calls.go.set()
    assert calls.seen == [(17, "pages")]
    assert threading.get_ident() not in calls.threads


async def test_while_the_kernel_lets_one_disk_wait_there_is_one_task_for_it_and_others_go_on(calls: Calls) -> None:
    calls.slow.add(17)
    calls.go.clear()
    async with trio.open_nursery() as nursery:
        kernel = Kernel(Supervisor(nursery))
        for _ in range(5):
            kernel.notify("slow", [Notice(17), Notice(18)])
            await trio.testing.wait_all_tasks_blocked()
        assert len(nursery.child_tasks) == 1
        kernel.notify("other", [Notice(20)])
        with trio.fail_after(30):
            while not calls.seen:  # noqa: ASYNC110 (a thread sets it)
                await trio.sleep(0.001)
        assert calls.seen == [(20, "pages")]
        calls.go.set()
    assert calls.seen[1:] == [(17, "pages"), (18, "pages"), (17, "pages")], "what was pending already is not repeated"


async def test_what_the_kernel_does_not_know_is_no_error_and_the_rest_follows(
    calls: Calls, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "aoefs")
    calls.failures = [OSError(errno.ENOENT, "No such file or directory")]
    async with trio.open_nursery() as nursery:
        Kernel(Supervisor(nursery)).notify("disk", [Notice(17), Notice(18)])
    assert calls.seen == [(17, "pages"), (18, "pages")]
    assert [(record.levelno, record.getMessage()) for record in caplog.records] == [
        (logging.DEBUG, "invalidation of inode 17: [Errno 2] No such file or directory")
    ]


async def test_without_notices_no_task_is_started() -> None:
    async with trio.open_nursery() as nursery:
        Kernel(Supervisor(nursery)).notify("disk", [])
        assert not nursery.child_tasks


async def test_the_end_of_a_mount_does_not_wait_for_the_kernel(calls: Calls) -> None:
    calls.go.clear()
    async with trio.open_nursery() as nursery:
        supervisor = Supervisor(nursery)
        Kernel(supervisor).notify("disk", [Notice(17), Notice(18)])
        await trio.testing.wait_all_tasks_blocked()
        supervisor.cancel()
    calls.go.set()
    assert (18, "pages") not in calls.seen


# ── the end ───────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_the_end_of_a_mount_waits_until_the_kernel_lets_go_and_gives_no_more_notices(calls: Calls) -> None:
    calls.go.clear()
    async with trio.open_nursery() as nursery:
        kernel = Kernel(Supervisor(nursery))
        for disk in (117, 127):  # threads of other tests may still come with theirs
            kernel.notify(disk, [Notice(disk), Notice(disk + 1)])
        await trio.testing.wait_all_tasks_blocked()
        timer = threading.Timer(0.2, calls.go.set)
        timer.start()
        with trio.fail_after(30):
            await kernel.end(30)
        seen = [f"{inode} {what!r}" for inode, what in calls.seen if inode > 100]
        assert sorted(seen) == ["117 'pages'", "127 'pages'"]
        kernel.notify("late", [Notice(137)])
        assert not nursery.child_tasks
        with trio.fail_after(30):
            await kernel.end(30)
    timer.join()


async def test_the_end_of_a_mount_waits_no_longer_than_it_should(calls: Calls, announce: Announce) -> None:
    announce("the kernel still holds 2 calls that invalidate pages")
    calls.go.clear()
    async with trio.open_nursery() as nursery:
        supervisor = Supervisor(nursery)
        kernel = Kernel(supervisor)
        for disk in (17, 27):
            kernel.notify(disk, [Notice(disk)])
        await trio.testing.wait_all_tasks_blocked()
        with trio.fail_after(30):
            await kernel.end(0.05)
        supervisor.cancel()
    calls.go.set()
