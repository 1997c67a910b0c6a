"""What a run will be: machines, options of the mount, and the schedule of user actions and faults, drawn from a seed.

A plan can be cut short (:meth:`Plan.prefix`): what is left happens as before, up to the first action that is missing.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any

from aoefs.core.path import FRAME_LIFETIME
from tests.segment import Faults

SLOTS = 6  # places for open files
HOT = 24  # sectors in which most of what happens happens
LARGE_BYTES = 40 << 10  # more than a small read (core.memory)
HELD = 0.8 * FRAME_LIFETIME  # seconds by which a frame is late at most: with all else it lives shorter than that


@dataclass(frozen=True)
class Action:
    """``what`` happens ``at`` seconds to machine, cable or open file ``who``; the rest is what the action needs."""

    at: float
    what: str
    who: int = 0
    given: tuple[Any, ...] = ()

    def __str__(self) -> str:
        return f"{self.at:9.4f} {self.what}({', '.join(map(str, (self.who, *self.given)))})"


@dataclass(frozen=True)
class MachinePlan:
    """``cables`` by number; the drive has ``sectors``, and a cache unless it is not ``volatile``."""

    cables: tuple[int, ...]
    sectors: int
    bufcnt: int
    service: float
    jitter: float
    flush_seconds: float
    blocks: bool
    volatile: bool


@dataclass(frozen=True)
class Plan:
    """``cables`` have the sectors that a frame holds.  ``actions`` are in the order of time; the last one is the end:
    ``stops`` by a signal, ``grace`` seconds after which open files are not served any more, or by an unmount.  If it
    ``heals``, the faults end before that, and all must be well.  With a ``liar``, there is a hostile host.
    """

    seed: int
    cables: tuple[int, ...]
    machines: tuple[MachinePlan, ...]
    deadsecs: float
    maxout: int
    shards: int
    direct: bool
    sync: bool
    reserve: bool
    read_ahead: bool
    in_place: bool
    seconds: float
    heals: bool
    stops: bool
    grace: float
    liar: bool = False
    actions: tuple[Action, ...] = field(default=(), repr=False)

    def prefix(self, length: int) -> Plan:
        return replace(self, actions=self.actions[:length])

    def without(self, index: int) -> Plan:
        return replace(self, actions=self.actions[:index] + self.actions[index + 1 :])


def draw(seed: int, *, liar: bool = False) -> Plan:
    dice = Random(seed)
    cables = tuple(dice.choice((2, 2, 8, 17)) for _ in range(dice.choice((1, 1, 2))))
    machines = tuple(_draw_machine(dice, len(cables)) for _ in range(dice.choice((1, 1, 2, 3))))
    plan = Plan(
        seed=seed,
        cables=cables,
        machines=machines,
        deadsecs=dice.choice((3.0, 4.0, 6.0, 6.0, 12.0, 0.0)),
        maxout=dice.choice((64, 64, 4, 1)),
        shards=dice.randrange(1, 4),
        direct=dice.random() < 0.15,
        sync=dice.random() < 0.1,
        reserve=dice.random() < 0.2,
        read_ahead=dice.random() < 0.5,
        in_place=dice.random() < 0.5,
        seconds=dice.uniform(15.0, 45.0),
        heals=dice.random() < 0.5,
        stops=dice.random() < 0.7,
        grace=dice.choice((0.0, 0.0, 0.3, 2.0, 10.0)),
        liar=liar,
    )
    drawn = _Actions(dice, plan)
    drawn.draw()
    return replace(plan, actions=tuple(sorted(drawn.actions, key=lambda action: action.at)))


def _draw_machine(dice: Random, cables: int) -> MachinePlan:
    both = cables > 1 and dice.random() < 0.7
    return MachinePlan(
        cables=tuple(range(cables)) if both else (dice.randrange(cables),),
        sectors=dice.choice((96, 128, 200)),
        bufcnt=dice.choice((1, 4, 16, 16, 64)),
        service=dice.choice((0.00005, 0.0005, 0.005)),
        jitter=dice.choice((0.0, 0.0, 0.0003, 0.005)),
        flush_seconds=dice.choice((0.0002, 0.005, 0.05, 0.8)),
        blocks=dice.random() < 0.3,
        volatile=dice.random() < 0.9,
    )


class _Actions:
    """Draws what happens: bursts of what users do, and faults that begin beside them."""

    def __init__(self, dice: Random, plan: Plan) -> None:
        self.actions: list[Action] = []
        self._dice = dice
        self._plan = plan
        self._open: dict[int, int] = {}  # slot: machine

    def draw(self) -> None:
        dice, seconds = self._dice, self._plan.seconds
        times = sorted(dice.uniform(0.3, seconds - 0.3) for _ in range(dice.randrange(5, 20)))
        for at in times:
            self._draw_burst(at)
            if dice.random() < 0.6:
                self._draw_fault(at + dice.choice((-0.01, 0.0, 0.002, 0.05, 0.3)))

    def _add(self, at: float, what: str, who: int = 0, *given: Any) -> None:
        if at < self._plan.seconds:
            self.actions.append(Action(max(0.0, at), what, who, given))

    # ── users ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def _draw_burst(self, at: float) -> None:
        dice = self._dice
        spread = dice.choice((0.0, 0.001, 0.02, 0.3, 2.0))
        users: list[tuple[Callable[[float, int], None], int]] = [
            (self._open_file, 6),
            (self._read, 12),
            (self._write, 14),
            (self._stream, 2),
            (self._copy, 4),
            (self._rewrite, 3),
            (self._scan, 3),
            (self._fsync, 5),
            (self._close, 3),
            (self._look, 2),
            (self._order, 2),
            (self._call_disk, 3),
        ]
        kinds, weights = zip(*users, strict=True)
        slots = dice.sample(range(SLOTS), dice.randrange(1, SLOTS))
        if not self._open:
            for slot in slots[:2]:
                self._open_file(at - 0.001, slot)
        for _ in range(dice.randrange(2, 18)):
            kind = dice.choices(kinds, weights)[0]
            kind(at + dice.uniform(0.0, spread), dice.choice(slots))

    def _machine_of(self, slot: int) -> MachinePlan:
        return self._plan.machines[self._open.get(slot, 0)]

    def _place(self, slot: int, size: int) -> int:
        """An offset (bytes): most often in the hot sectors."""
        sectors = self._machine_of(slot).sectors
        return self._dice.randrange(HOT * 512) if self._dice.random() < 0.7 else self._dice.randrange(sectors * 512)

    def _range(self, slot: int) -> tuple[int, int]:
        """Offset and size in bytes: in whole sectors, whole pages, or anything."""
        dice = self._dice
        kind = dice.random()
        if kind < 0.35:
            return self._place(slot, 0), dice.randrange(1, dice.choice((8, 600, 3000)))
        unit = 512 if kind < 0.8 else 4096
        size = unit * dice.randrange(1, dice.choice((2, 5, 9, 20)))
        return self._place(slot, size) // unit * unit, size

    def _open_file(self, at: float, slot: int) -> None:
        dice = self._dice
        machine = self._open[slot] = dice.randrange(len(self._plan.machines))
        access = dice.choice((os.O_RDWR, os.O_RDWR, os.O_RDWR, os.O_WRONLY, os.O_RDONLY))
        more = dice.choice((0, 0, 0, 0, os.O_SYNC, os.O_DIRECT))
        name = f"e0.{machine}" + dice.choice(("", "", "", "p1", "p2"))
        self._add(at, "open", slot, name, access | more)

    def _read(self, at: float, slot: int) -> None:
        offset, size = self._range(slot)
        if self._dice.random() < 0.15:
            for turn in range(self._dice.randrange(1, 4)):  # one after another in one buffer
                self._add(at + 0.004 * turn, "read", slot, self._dice.randrange(16) * 512, LARGE_BYTES)
        else:
            self._add(at, "read", slot, offset, size)

    def _write(self, at: float, slot: int) -> None:
        self._add(at, "write", slot, *self._range(slot))

    def _stream(self, at: float, slot: int) -> None:
        dice = self._dice
        block = dice.choice((512, 1024, 4096))
        start = self._place(slot, 0) // block * block
        reads = dice.random() < 0.5
        self._add(at, "stream", slot, start, block, dice.randrange(9, 24), dice.choice((0.0, 0.0, 0.003)), reads)

    def _copy(self, at: float, slot: int) -> None:
        dice = self._dice
        machine = self._open.get(slot, dice.randrange(len(self._plan.machines)))
        block = dice.choice((512, 1024, 2048))
        start = self._place(slot, 0) // block * block
        turns, pause = dice.randrange(10, 26), dice.choice((0.0, 0.0, 0.003, 0.1))
        self._add(at, "copy", machine, start, block, turns, pause, dice.random() < 0.4, dice.random() < 0.5)

    def _rewrite(self, at: float, slot: int) -> None:
        dice = self._dice
        self._add(at, "rewrite", slot, *self._range(slot), dice.randrange(2, 9), dice.choice((0.0, 0.02, 0.15)))

    def _scan(self, at: float, slot: int) -> None:
        block = self._dice.choice((1024, 4096, 16384))
        self._add(at, "scan", slot, 0, block, self._dice.randrange(3, 12))

    def _fsync(self, at: float, slot: int) -> None:
        self._add(at, "fsync", slot)

    def _close(self, at: float, slot: int) -> None:
        self._add(at, "close", slot)

    def _look(self, at: float, slot: int) -> None:
        self._add(at, self._dice.choice(("statfs", "names", "attributes")), slot)

    def _order(self, at: float, slot: int) -> None:
        dice = self._dice
        machine = dice.randrange(len(self._plan.machines))
        file, text = dice.choice(
            (
                ("discover", ""),
                ("revalidate", ""),
                ("revalidate", f"e0.{machine}"),
                ("flush", ""),
                ("flush", f"e0.{machine}"),
                ("interfaces", "any"),
                (f"e0.{machine}/config", f"a string at {at:.2f}"),
            )
        )
        self._add(at, "order", slot, file, text)

    def _call_disk(self, at: float, slot: int) -> None:
        """A call of the library, perhaps cancelled."""
        dice = self._dice
        offset, size = self._range(slot)
        call, patience = dice.choice(("read", "write", "flush")), dice.choice((0.0005, 0.02, 9.0))
        self._add(at, "call", dice.randrange(len(self._plan.machines)), call, offset, size, patience)

    # ── faults ────────────────────────────────────────────────────────────────────────────────────────────────────

    def _draw_fault(self, at: float) -> None:
        dice, plan = self._dice, self._plan
        seconds = dice.choice((0.05, 0.4, 1.5, 3.0, 6.0, 9.0))
        machine, cable = dice.randrange(len(plan.machines)), dice.randrange(len(plan.cables))
        faults: list[tuple[int, Callable[[], None]]] = [
            (10, lambda: self._draw_cable_fault(at, cable, seconds)),
            (4, lambda: self._add(at, "silent", machine, seconds)),
            (3, lambda: self._add(at, "asleep", machine, seconds)),
            (5, lambda: self._add(at, "power cut", machine, seconds, dice.random() < 0.3)),
            (2, lambda: self._add(at, "swap", machine, dice.uniform(3.5, 6.0))),
            (2, lambda: self._add(at, "slow", machine, seconds, dice.choice((0.02, 0.15)), dice.choice((0.0, 0.1)))),
            (3, lambda: self._add(at, "slow flush", machine, seconds, dice.uniform(0.5, 8.0), dice.random() < 0.5)),
            (2, lambda: self._add(at, "broken flush", machine, seconds, dice.choice((0.3, 1.0)))),
            (2, lambda: self._add(at, "refusals", machine, seconds, dice.choice((0.1, 1.0)), dice.choice((2, 3, 6)))),
            (2, lambda: self._add(at, "bad sectors", machine, seconds, dice.randrange(HOT), dice.randrange(1, 4))),
            (2, lambda: self._add(at, "resize", machine, dice.choice((64, 96, 128, 200)), dice.random() < 0.7)),
            (1, lambda: self._add(at, "announce", machine)),
            (3, lambda: self._add(at, "link down", cable, seconds)),
            (2, lambda: self._add(at, "link gone", cable, seconds, dice.random() < 0.5)),
            (2, lambda: self._add(at, "mtu", cable, seconds, dice.choice((1, 2, 4)))),
            (3, lambda: self._add(at, "full", cable, seconds, dice.choice((0, 1, 3)))),
            (2, lambda: self._add(at, "freeze", 0, dice.choice((0.2, 2.0, 5.0)))),
        ]
        weights, kinds = zip(*faults, strict=True)
        dice.choices(kinds, weights)[0]()

    def _draw_cable_fault(self, at: float, cable: int, seconds: float) -> None:
        dice = self._dice
        faults, held = dice.choice(
            (
                (Faults(loss=dice.choice((0.02, 0.1, 0.3, 0.7))), 0.0),
                (Faults(loss=0.03, burst=dice.randrange(2, 9)), 0.0),
                (Faults(loss_of_answers=dice.choice((0.2, 1.0))), 0.0),
                (Faults(loss_of_requests=dice.choice((0.2, 1.0))), 0.0),
                (Faults(loss=1.0), 0.0),
                (Faults(duplicate=0.3), 0.0),
                (Faults(reorder=0.2, reorder_by=dice.choice((0.0005, 0.003, 0.02))), 0.0),
                (Faults(jitter=dice.choice((0.0003, 0.005, 0.03))), 0.0),
                (Faults(longest=1514), 0.0),
                (Faults(corrupt=0.05), 0.0),
                (Faults(loss=0.05, duplicate=0.1), 0.1),
                (Faults(), 0.15),
                (Faults(), 0.5),
                (Faults(loss=0.1), 0.3),
                (Faults(loss=0.02, burst=2, duplicate=0.05, reorder=0.05, jitter=0.0003, corrupt=0.01), 0.03),
            )
        )
        self._add(at, "cable", cable, seconds, faults, held)
        for meet in (self._rewrite, self._rewrite, self._rewrite, self._copy) if held else (self._copy,):
            meet(at + dice.uniform(0.0, min(seconds, 2.0)), dice.randrange(SLOTS))  # what is late meets what is newer
