"""One run: the engine, its mount and its users in the world that a plan describes, to the end."""

from __future__ import annotations

import traceback
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from random import Random

import trio

from aoefs.core.lonecommand import LoneCommand
from aoefs.core.request import Run
from aoefs.core.target import Target
from aoefs.engine.changes import Change
from aoefs.engine.disk import Disk
from aoefs.engine.engine import Engine, open_engine
from aoefs.engine.lastflush import last_flush
from aoefs.engine.settings import Settings
from aoefs.fuse.control import Control
from aoefs.fuse.kernel import Kernel
from aoefs.fuse.mount import FLUSH_GRACE
from aoefs.fuse.operations import AoeOperations
from aoefs.fuse.options import MountOptions
from aoefs.protocol.wire import SECTOR_BYTES, AoeCommand
from aoefs.status.events import EventRing
from aoefs.status.report import StatusText
from tests.pair import check_invariants
from tests.scene import nothing_is_left
from tests.simulation.determined import Threads, determined
from tests.simulation.faults import Surroundings
from tests.simulation.liar import Liar
from tests.simulation.plan import Action, Plan
from tests.simulation.register import ANYTHING
from tests.simulation.requests import Requests
from tests.simulation.users import MOMENT, Users
from tests.simulation.world import Turns, World

HEALING = 40.0  # seconds within which all is well again after the last fault: a silent target is asked every 15 s
MOST_SECONDS = 900.0  # seconds that a run may take beyond its plan
RESTING = 30.0  # seconds within which nothing is under way any more


@dataclass(frozen=True)
class Outcome:
    """``complaint`` is what was wrong, empty if nothing was; ``digest`` is that of the log; ``frames`` went over the
    cables, and of ``calls`` so many were ``good``.
    """

    complaint: str
    digest: str
    lines: list[str]
    frames: int
    calls: int
    good: int


def run(plan: Plan, *, verbose: bool = False) -> Outcome:
    """Carry it out, in virtual time."""
    world = World(until=plan.seconds + MOST_SECONDS, verbose=verbose)
    simulation = Simulation(plan, world)
    with determined(plan.seed, world, simulation.threads, simulation.requests):
        try:
            turns = Turns(world, lambda: world.complain("it goes round in a circle"))
            trio.run(simulation.run, clock=world, instruments=[turns])
        except Exception as error:
            world.on_complaint = lambda: None
            world.complain(failure_of(error))
    users = simulation.users
    return Outcome(
        complaint=world.complaint,
        digest=world.digest.hexdigest(),
        lines=world.lines,
        frames=world.frames,
        calls=users.all_calls if users else 0,
        good=users.good_calls if users else 0,
    )


def failure_of(error: Exception) -> str:
    """The exception in one line, and its traceback."""
    while isinstance(error, ExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return f"{error!r}\n{''.join(traceback.format_exception(error))}"


class Simulation:
    def __init__(self, plan: Plan, world: World) -> None:
        self.plan = plan
        self.world = world
        self.users: Users | None = None
        self.threads = Threads(world)
        self.requests = Requests(world)
        self._targets: list[Target] = []  # all that ever were
        self._all_began = trio.Event()  # all actions
        self._around: Surroundings
        self._engine: Engine

    # ── the run ───────────────────────────────────────────────────────────────────────────────────────────────────

    async def run(self) -> None:
        plan, world = self.plan, self.world
        world.log(f"{plan}")
        with trio.CancelScope() as scope:
            world.on_complaint = scope.cancel
            async with trio.open_nursery() as nursery:
                self.threads.nursery = nursery
                settings = Settings(shards=plan.shards, deadsecs=plan.deadsecs, maxout=plan.maxout)
                async with AsyncExitStack() as stack:
                    with self.requests.is_epoll():
                        engine = await stack.enter_async_context(open_engine([], settings))
                    self._engine = engine
                    engine.changes.subscribe(self._on_change)
                    self._around = Surroundings(plan, world, engine, self.requests.wake)
                    if plan.liar:
                        Liar(self._around, Random(plan.seed ^ 0x11A5), plan.seconds)
                    self.users = self._mount(engine)
                    self._around.on_freeze = self.users.freeze
                    if plan.in_place:
                        self.requests.serve(nursery, engine.in_place, self._around.links)
                    async with trio.open_nursery() as actions:
                        await self._live(actions, self.users)
                    left_at = trio.current_time()
                if trio.current_time() > left_at + MOMENT:
                    world.complain(f"the engine ended after {trio.current_time() - left_at:.3f} s")
                self._check_the_end()
                nursery.cancel_scope.cancel()

    def _mount(self, engine: Engine) -> Users:
        plan = self.plan
        ring = EventRing()
        status = StatusText(
            engine.statistics, ring.snapshot, trio.current_time, mountpoint="/mnt/aoe", pid=1, version="0"
        )
        control = Control(engine, ring, status.read, lambda _names, by_root: None)
        options = MountOptions(
            mountpoint="/mnt/aoe", uid=0, gid=0, direct=plan.direct, sync=plan.sync, reserve=plan.reserve
        )
        operations = AoeOperations(engine, control, Kernel(engine.supervisor), options)
        operations.read_aheads.wanted = plan.read_ahead
        users = self.threads.users = Users(self.world, plan, engine, operations, self.requests, self._around.registers)
        return users

    def _on_change(self, disk: Disk, change: Change) -> None:
        self.world.log(f"{disk.target.name} {change.value}")
        if change is Change.APPEARED:
            self._targets.append(disk.target)

    async def _live(self, actions: trio.Nursery, users: Users) -> None:
        """All actions, then the end that the plan wants."""
        plan = self.plan
        async with trio.open_nursery() as calls:
            with trio.CancelScope() as scope:
                calls.start_soon(self._act, actions, calls, users)
                await trio.sleep_until(plan.seconds)
                if plan.heals:
                    await self._all_began.wait()
                    await self._heal(users)
                if plan.stops:
                    await trio.sleep(plan.grace)
                    await self._stop(calls, users)
                else:
                    await self._unmount(calls, users)
            scope.cancel()
            calls.cancel_scope.cancel()
        self.requests.end()
        await self._end()
        actions.cancel_scope.cancel()

    async def _act(self, faults: trio.Nursery, calls: trio.Nursery, users: Users) -> None:
        for action in self.plan.actions:
            await trio.sleep_until(action.at)
            self.world.log(f"── {action}")
            if self._around.knows(action.what):
                self._around.under_way += 1  # not in the task: all could be healed before its first step
                faults.start_soon(self._around.carry_out, action.what, action.who, action.given, name=str(action))
            else:
                calls.start_soon(self._user_action(users, action), name=str(action))
            for disk in self._engine.disks.values():
                check_invariants(disk.target)
        self._all_began.set()

    def _user_action(self, users: Users, action: Action) -> Callable[[], Awaitable[object]]:
        who, given = action.who, action.given
        return {
            "open": lambda: users.open_file(who, *given),
            "read": lambda: users.read(who, *given),
            "write": lambda: users.write(who, *given),
            "stream": lambda: users.stream(who, *given),
            "copy": lambda: users.copy(f"e0.{who}", *given),
            "rewrite": lambda: users.rewrite(who, *given),
            "scan": lambda: users.scan(who, *given),
            "fsync": lambda: users.fsync(who),
            "close": lambda: users.close_file(who),
            "statfs": users.statfs,
            "names": users.names,
            "attributes": lambda: users.attributes(who),
            "order": lambda: users.order(*given),
            "call": lambda: users.call_disk(f"e0.{who}", *given),
        }[action.what]

    # ── the end ───────────────────────────────────────────────────────────────────────────────────────────────────

    async def _heal(self, users: Users) -> None:
        """All faults end; then every disk must be there and work, and in the end nothing is under way."""
        world, around = self.world, self._around
        while around.under_way:  # noqa: ASYNC110 (virtual time costs nothing)
            await trio.sleep(0.25)
        around.heal()
        world.log("── all is well again")
        if not await self._all_are_up():
            return
        while users.calls:  # many calls may wait for a slow target, as long as they end one after another
            if not await self._within(HEALING, users.some_call_ended.park):
                world.complain(f"not ended although all is well: {users.under_way}")
                return
        while any(disk.target.statistics().quarantined for disk in self._engine.disks.values()):  # noqa: ASYNC110 (virtual time costs nothing)
            await trio.sleep(0.25)  # sixteen seconds at most: four times the longest RTO
        for slot in list(users.open):  # a partition that is open for writing keeps the whole disk from being so
            await users.close_file(slot)
        if not await self._all_are_up():  # each close was a FLUSH, of which a target may do one at a time
            return
        for number, machine in enumerate(around.machines):
            await users.use(f"e0.{number}", machine.drive.sectors)
        until = trio.current_time() + RESTING
        while left := self._what_is_left():
            await trio.sleep(0.25)
            if trio.current_time() > until:
                world.complain(f"at rest there is still {left}")
                return

    async def _all_are_up(self) -> bool:
        around = self._around
        while not all(machine.is_idle for machine in around.machines):  # noqa: ASYNC110 (virtual time costs nothing)
            await trio.sleep(0.25)
        until = trio.current_time() + HEALING
        while lacking := [machine.drive.serial for machine in around.machines if not around.is_up(machine)]:
            await trio.sleep(0.25)
            if trio.current_time() > until:
                self.world.complain(f"{', '.join(lacking)} did not come back within {HEALING:g} s")
                return False
        return True

    async def _within(self, seconds: float, call: Callable[[], Awaitable[object]]) -> bool:
        with trio.move_on_after(seconds) as scope:
            await call()
        return not scope.cancelled_caught

    def _what_is_left(self) -> str:
        """What is under way in the engine, in words; empty if nothing is."""
        driver = self._engine.driver
        if left := [target.name for target in self._targets if not nothing_is_left(target)]:
            return f"something of {', '.join(left)}"
        if tags := [owner for owner in driver.tags.live if not _is_query(owner)]:
            return f"{len(tags)} tags"
        if driver.callers.asleep or driver.callers.ready or self._engine.exempt_calls():
            return f"{driver.callers.asleep} waits, {driver.callers.ready} of them woken"
        if queued := sum(shard.queued for shard in self._engine.statistics().shards):
            return f"{queued} answers in shards"
        return ""

    async def _stop(self, calls: trio.Nursery, users: Users) -> None:
        """As a signal does: what waits fails, and so does what comes now."""
        self.world.log("── the mount stops")
        self._engine.close()
        users.close()
        for slot in list(users.open):
            calls.start_soon(users.read, slot, 0, SECTOR_BYTES)
            calls.start_soon(users.write, slot, 0, SECTOR_BYTES)
            calls.start_soon(users.fsync, slot)
        await trio.sleep(MOMENT)
        await users.all_ended()

    async def _unmount(self, calls: trio.Nursery, users: Users) -> None:
        """As umount does: no file is open any more."""
        self.world.log("── the files are closed")

        async def close_all() -> None:
            while users.open or users.calls:
                for slot in list(users.open):
                    calls.start_soon(users.close_file, slot)
                await trio.sleep(0.25)

        if not await self._within(30 * self.plan.deadsecs + 300, close_all):
            self.world.complain(f"not ended: {users.under_way}")

    async def _end(self) -> None:
        """The last flush.  Targets that are well must be flushed, whatever the others do."""
        world, engine, around = self.world, self._engine, self._around
        world.log("── the last flush")
        started = around.ledger.next()
        began = trio.current_time()
        well = [machine for machine in around.machines if around.is_well(machine)]
        with trio.CancelScope(shield=True, deadline=began + FLUSH_GRACE + 1):
            clean = await last_flush(engine, FLUSH_GRACE)
        taken = trio.current_time() - began
        world.log(f"── the last flush took {taken:.3f} s: {clean}")
        if taken > FLUSH_GRACE + MOMENT:
            world.complain(f"the last flush took {taken:.3f} s")
        for machine in well:
            if engine.disks[machine.address].target.dirty:
                world.complain(f"the last flush left out {machine.address}, which was well")
        if clean:
            for register in around.registers.values():
                register.end_flush(started, via=ANYTHING)

    def _check_the_end(self) -> None:
        """The engine is gone: nothing waits any more, and the disks hold what was promised."""
        world = self.world
        if left := [target.name for target in self._targets if target.requests()]:
            world.complain(f"requests of {', '.join(left)} still wait after the end")
        for register in self._around.registers.values():
            world.complain(register.check(register.drive.current, "in the end the disk"))
            self._around.cut_power(register.drive, kindly=False)


def _is_query(owner: Run | LoneCommand) -> bool:
    """A config query: paths that are degraded are asked once a second."""
    return isinstance(owner, LoneCommand) and owner.command is AoeCommand.CONFIG
