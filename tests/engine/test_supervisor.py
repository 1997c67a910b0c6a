"""Background tasks: a failure of one is logged and ends nothing else."""

from __future__ import annotations

import gc
import logging

import pytest
import trio
import trio.testing

from aoefs.engine.supervisor import Supervisor
from tests.scene import Announce


async def fail() -> None:
    await trio.lowlevel.checkpoint()
    raise ZeroDivisionError("a defect")


async def test_an_exception_is_logged_and_ends_that_task_only(
    announce: Announce, caplog: pytest.LogCaptureFixture
) -> None:
    announce("^telling the kernel failed unexpectedly$")
    done: list[str] = []

    async def work() -> None:
        await trio.testing.wait_all_tasks_blocked()
        done.append("work")

    async with trio.open_nursery() as nursery:
        supervisor = Supervisor(nursery)
        supervisor.start("work", work)
        supervisor.start("telling the kernel", fail)
    assert done == ["work"]
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert record.exc_info is not None
    assert isinstance(record.exc_info[1], ZeroDivisionError)


async def test_cancel_ends_all_that_runs_and_nothing_that_starts_later() -> None:
    ended: list[str] = []

    async def sleep(name: str) -> None:
        try:
            await trio.sleep_forever()
        finally:
            ended.append(name)

    async with trio.open_nursery() as nursery:
        supervisor = Supervisor(nursery)
        for name in ("one", "two"):
            supervisor.start(name, lambda name=name: sleep(name))  # type: ignore[misc]
        await trio.testing.wait_all_tasks_blocked()
        assert {task.name for task in nursery.child_tasks} == {"one", "two"}
        supervisor.cancel()
        supervisor.start("three", lambda: sleep("three"))
        await trio.testing.wait_all_tasks_blocked()
        assert sorted(ended) == ["one", "two"]
        supervisor.cancel()
    assert ended[-1] == "three"


def scopes() -> int:
    """How many cancel scopes there are in this process."""
    gc.collect()
    return sum(isinstance(thing, trio.CancelScope) for thing in gc.get_objects())


async def test_nothing_is_kept_of_a_task_that_ended() -> None:
    async with trio.open_nursery() as nursery:
        supervisor = Supervisor(nursery)
        before = scopes()
        for _ in range(50):
            supervisor.start("short", trio.lowlevel.checkpoint)
        await trio.testing.wait_all_tasks_blocked()
        assert not nursery.child_tasks
        assert scopes() - before < 10
