"""The machines and cables of a run, and all that can happen to them, to our links and to our process.

The names of faults in a plan are those of methods here, with ``do_`` before them.  A fault that lasts is a task; what
ends it is an event of the world, since the initiator may be frozen then.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import replace
from random import Random

import trio

from aoefs.core.life import State
from aoefs.engine.disk import Disk
from aoefs.engine.engine import Engine
from aoefs.errors import RequestError
from aoefs.protocol.wire import SECTOR_BYTES, Address
from tests.segment import NO_FAULTS, Faults, Segment
from tests.simulation.drive import Drive
from tests.simulation.plan import HELD, Plan
from tests.simulation.register import Ledger, Register
from tests.simulation.world import Cable, Habits, Link, Machine, World

MOST_SECTORS = 200  # of any drive


def mac(first: int, number: int, cable: int) -> bytes:
    return bytes((0x02, first, 0, 0, number, cable))


class Surroundings:
    """See the module.  ``registers`` are by serial; ``under_way`` counts the faults that have not ended."""

    def __init__(self, plan: Plan, world: World, engine: Engine, on_frame: Callable[[], object]) -> None:
        self.world = world
        self._on_frame = on_frame
        self.engine = engine
        self.cables: list[Cable] = []
        self.machines: list[Machine] = []
        self.ledger = Ledger()
        self.registers: dict[str, Register] = {}
        self.swapping: dict[Machine, None] = {}
        self.under_way = 0
        self.on_freeze: Callable[[float], object] = lambda _seconds: None
        self._dice = Random(plan.seed ^ 0x5EED)
        self._homes: list[Drive] = []  # the drive that each machine had first
        self._episodes: dict[object, int] = {}
        self._macs = 0
        # Such a target keeps its name, whatever answers with another serial where it has no path.
        self._never_down = not plan.deadsecs
        for number, sectors in enumerate(plan.cables):
            segment = Segment(seed=plan.seed * 8 + number, checked=True)
            self.cables.append(Cable(world, f"seg{number}", segment, sectors))
        for number, made in enumerate(plan.machines):
            drive = self._new_drive(made.sectors, volatile=made.volatile)
            cables = {self.cables[cable]: mac(0xAA, number, cable) for cable in made.cables}
            habits = Habits(made.service, made.jitter, made.flush_seconds, made.blocks)
            dice = Random(plan.seed * 8 + number)
            address = Address(0, number)
            self.machines.append(Machine(world, address, drive, cables, bufcnt=made.bufcnt, habits=habits, dice=dice))
            self._homes.append(drive)
        for cable in self.cables:
            self.add_link(cable)

    def _new_drive(self, sectors: int, *, volatile: bool) -> Drive:
        drive = Drive(len(self.registers), sectors, most_sectors=MOST_SECTORS, volatile=volatile)
        register = self.registers[drive.serial] = Register(drive, self.ledger)
        drive.check = lambda sector, data: self.world.complain(register.check_owner(sector, data))
        return drive

    def cut_power(self, drive: Drive, *, kindly: bool = True) -> None:
        """Some of what the drive had only in its cache is lost; all of it if not ``kindly``."""
        register = self.registers[drive.serial]
        register.cut_power()
        drive.cut_power(self._dice if kindly else None)
        self.world.complain(register.check(drive.current, "after a power cut the disk"))

    def add_link(self, cable: Cable) -> None:
        """With a MAC of its own."""
        self._macs += 1
        our_mac = mac(0, 0, self._macs)
        self.engine.add_link(Link(cable, self.engine.driver.tags, our_mac, 100 + self._macs, self._on_frame))

    def links(self) -> list[Link]:
        return [link for link in self.engine.links.values() if isinstance(link, Link)]

    def link_on(self, cable: Cable) -> Link | None:
        link = self.engine.links.get(cable.name)
        return link if isinstance(link, Link) else None

    # ── how it is ─────────────────────────────────────────────────────────────────────────────────────────────────

    def knows(self, name: str) -> bool:
        """There is a fault of this name."""
        return hasattr(self, _method(name))

    async def carry_out(self, name: str, who: int, given: tuple[object, ...]) -> None:
        """To be called with the fault counted in ``under_way``."""
        try:
            await getattr(self, _method(name))(who, *given)
        finally:
            self.under_way -= 1

    def heal(self) -> None:
        for cable in self.cables:
            self.set_faults(cable, NO_FAULTS, 0.0)
        for machine in self.machines:
            machine.habits, machine.silent = machine.usual_habits, False
            machine.drive.bad.clear()
            machine.sleep(False)
            machine.announce()

    def is_up(self, machine: Machine) -> bool:
        """The engine serves this disk."""
        disk = self.engine.disks.get(machine.address)
        if disk is None or disk.target.life.state is not State.UP:
            return False
        identity = disk.target.identity
        return (identity.serial, identity.sectors) == (machine.drive.serial, machine.drive.sectors)

    def is_well(self, machine: Machine) -> bool:
        """So are all ways to it."""
        links = [self.link_on(cable) for cable in machine.cables]
        cables_are_well = all(cable.segment.faults == NO_FAULTS and not cable.segment.hold for cable in machine.cables)
        links_are_well = all(link and link.carrier and link.room == float("inf") for link in links)
        is_here = machine.is_healthy and machine not in self.swapping and self.is_up(machine)
        return is_here and cables_are_well and links_are_well and not self._has_lost_a_path(machine)

    def _has_lost_a_path(self, machine: Machine) -> bool:
        """A MAC of it is gone; the engine may not know yet."""
        target = self.engine.disks[machine.address].target
        return any(path.mac not in machine.cables.values() for path in target.paths)

    # ── faults of machines ────────────────────────────────────────────────────────────────────────────────────────

    async def _during(self, what: object, seconds: float, end: Callable[[], object]) -> None:
        """Carry out ``end`` after some time, unless another episode of the same kind began meanwhile.

        The world does so, whether the initiator is frozen or not.
        """
        number = self._episodes[what] = self._episodes.get(what, 0) + 1
        over = trio.Event()

        def stop() -> None:
            if self._episodes[what] == number:
                end()
            over.set()
            self.world.touch()

        self.world.after(seconds, stop)
        await over.wait()

    async def do_silent(self, number: int, seconds: float) -> None:
        machine = self.machines[number]
        machine.silent = True
        await self._during(("silent", number), seconds, lambda: setattr(machine, "silent", False))

    async def do_asleep(self, number: int, seconds: float) -> None:
        machine = self.machines[number]
        machine.sleep(True)
        await self._during(("asleep", number), seconds, lambda: machine.sleep(False))

    async def do_power_cut(self, number: int, seconds: float, other_macs: bool) -> None:
        machine = self.machines[number]
        if machine.off:
            return
        machine.lose_power()
        self.cut_power(machine.drive)

        def return_power() -> None:
            if other_macs:
                self._macs += 1
                machine.cables.update({cable: mac(0xBB, number, self._macs) for cable in machine.cables})
            machine.get_power()

        await self._during(("power", number), seconds, return_power)

    async def do_swap(self, number: int, seconds: float) -> None:
        """Another disk takes the place of this one, or the first one comes back.  Something waits for it meanwhile,
        so that its silence is noticed.
        """
        machine = self.machines[number]
        if machine.off or self._never_down:
            return
        self.swapping[machine] = None
        machine.lose_power()
        self.cut_power(machine.drive)
        disk = self.engine.disks.get(machine.address)
        async with trio.open_nursery() as nursery:
            if disk is not None:
                nursery.start_soon(_try_to_read, disk)
            await trio.sleep(seconds)
            home = self._homes[number]
            if machine.drive is home:
                machine.get_power(self._new_drive(self._dice.choice((home.sectors, 96)), volatile=True))
            else:
                machine.get_power(home)
            self.world.log(f"e0.{number} is {machine.drive.serial} now")
            del self.swapping[machine]

    async def _change_habits(self, number: int, what: str, seconds: float, habits: Habits) -> None:
        machine = self.machines[number]
        machine.habits = habits

        def end() -> None:
            machine.habits = machine.usual_habits

        await self._during(("habits", number), seconds, end)

    async def do_slow(self, number: int, seconds: float, service: float, jitter: float) -> None:
        usual = self.machines[number].usual_habits
        await self._change_habits(number, "slow", seconds, replace(usual, service=service, jitter=jitter))

    async def do_slow_flush(self, number: int, seconds: float, flush: float, blocks: bool) -> None:
        usual = self.machines[number].usual_habits
        await self._change_habits(number, "flush", seconds, replace(usual, flush_seconds=flush, blocks=blocks))

    async def do_broken_flush(self, number: int, seconds: float, share: float) -> None:
        usual = self.machines[number].usual_habits
        await self._change_habits(number, "flush", seconds, replace(usual, broken_flushes=share))

    async def do_refusals(self, number: int, seconds: float, share: float, error: int) -> None:
        usual = self.machines[number].usual_habits
        await self._change_habits(number, "refusals", seconds, replace(usual, refusals=share, error=error))

    async def do_bad_sectors(self, number: int, seconds: float, first: int, count: int) -> None:
        drive = self.machines[number].drive
        drive.bad.update(range(first, first + count))
        await self._during(("bad", drive.serial), seconds, drive.bad.clear)

    async def do_resize(self, number: int, sectors: int, announced: bool) -> None:
        machine = self.machines[number]
        if not machine.off:
            machine.drive.sectors = sectors
            machine.insert(machine.drive)
            if announced:
                machine.announce()

    async def do_announce(self, number: int) -> None:
        if not self.machines[number].off:
            self.machines[number].announce()

    # ── faults of cables, links and the process ───────────────────────────────────────────────────────────────────

    def set_faults(self, cable: Cable, faults: Faults, held: float) -> None:
        """A share ``held`` of the frames is late."""
        dice = self._dice

        def hold(_frame: bytes) -> float:
            return dice.uniform(0.01, HELD) if dice.random() < held else 0.0

        cable.segment.faults = faults
        cable.segment.hold = hold if held else None

    async def do_cable(self, number: int, seconds: float, faults: Faults, held: float) -> None:
        cable = self.cables[number]
        self.set_faults(cable, faults, held)
        await self._during(("cable", number), seconds, lambda: self.set_faults(cable, NO_FAULTS, 0.0))

    async def do_link_down(self, number: int, seconds: float) -> None:
        link = self.link_on(self.cables[number])
        if link is None:
            return
        link.carrier = False
        await trio.sleep(0.001)
        await self._tell_of_change(link)
        await self._during(("carrier", link.mac), seconds, lambda: setattr(link, "carrier", True))
        await self._tell_of_change(link)

    async def _tell_of_change(self, link: Link) -> None:
        """As netlink does."""
        if not link.closed:
            self.engine.link_changed(link, up=link.carrier)

    async def do_link_gone(self, number: int, seconds: float, noticed_late: bool) -> None:
        cable = self.cables[number]
        link = self.link_on(cable)
        if link is None:
            return
        link.carrier = False
        if noticed_late:
            await trio.sleep(0.05)
        if not link.closed:
            self.engine.drop_link(link)
        await trio.sleep(seconds)
        if self.link_on(cable) is None:
            self.add_link(cable)

    async def do_mtu(self, number: int, seconds: float, sectors: int) -> None:
        cable = self.cables[number]
        link = self.link_on(cable)
        if link is None:
            return
        link.mtu_sectors = min(sectors, cable.max_sectors)
        await trio.sleep(0.001)
        await self._tell_of_change(link)
        await self._during(("mtu", link.mac), seconds, lambda: setattr(link, "mtu_sectors", cable.max_sectors))
        await self._tell_of_change(link)

    async def do_full(self, number: int, seconds: float, room: int) -> None:
        """The socket takes few frames, and has room again from time to time."""
        link = self.link_on(self.cables[number])
        if link is None:
            return
        until = trio.current_time() + seconds
        while trio.current_time() < until:
            link.set_room(room)
            await trio.sleep(0.01)
        link.set_room(float("inf"))

    async def do_freeze(self, _number: int, seconds: float) -> None:
        """The process is stopped; not during a swap, which an initiator that sleeps cannot notice."""
        if not self.swapping:
            self.on_freeze(seconds)
            self.world.freeze(seconds)


def _method(name: str) -> str:
    return "do_" + name.replace(" ", "_")


async def _try_to_read(disk: Disk) -> None:
    with contextlib.suppress(RequestError):
        await disk.read(0, SECTOR_BYTES)
