"""The control directory ``.aoefs``: its files, as tables of functions from and to bytes.

    status.json   the mount, its targets, paths, links, shards and last events, as one JSON object
    events        the last 1000 events, a line each: time, level, text
    discover      written, whatever it is: look for targets now
    revalidate    written: names of targets (or nothing, or "all") to be asked for IDENTIFY again
    flush         written: names of targets to forget (nothing, or "all": each that is down and not open)
    interfaces    the interfaces that are spoken on, a line each; written: names that replace them ("any": every one);
                  only root may name others than those that the mount was given
    options       the options of the mount, as one JSON object; written: an object of those that change now
    eX.Y/ident    the 512 bytes of the last IDENTIFY answer
    eX.Y/config   the config string and a newline; written: the new one, less a newline at its end
    eX.Y/stats    the object of the target in status.json

What always holds:

- A file shows what was there when it was opened.  One write(2) is one order, at any offset; it is carried out as a
  whole, or raises ControlError and changes nothing.
- No function waits for a target, except ``config``, for ``CONFIG_SECONDS`` at most: a program that waits in a FUSE
  file cannot be killed.  Events report what takes longer.

Names are separated by blanks or commas.

Rejected: commands in one ``ctl`` file (file modes could not say who may do what).
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import partial

import trio

from aoefs.engine.disk import Disk
from aoefs.engine.engine import Engine
from aoefs.errors import ControlError, TargetBusy, TargetLost
from aoefs.protocol.wire import MAX_CONFIG_BYTES, Address
from aoefs.status.events import Event, EventRing
from aoefs.status.report import target_report
from aoefs.status.text import printable

CONFIG_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class ControlFile:
    """``read()`` gives all of it, ``write(order)`` carries one out or raises; None: that is not possible.

    ``read_later()`` is a ``read`` that waits.  ``as_root`` is what root opens instead, where that makes a difference.
    """

    read: Callable[[], bytes] | None = None
    write: Callable[[bytes], Awaitable[None]] | None = None
    as_root: ControlFile | None = None
    read_later: Callable[[], Awaitable[bytes]] | None = None

    @property
    def is_readable(self) -> bool:
        return self.read is not None or self.read_later is not None


class Control:
    """``status()`` gives the text of status.json; ``set_interfaces(names, by_root=...)`` speaks on these only (none:
    on every usable one) or raises ControlError.  ``options`` is the file of that name.
    """

    def __init__(
        self,
        engine: Engine,
        events: EventRing,
        status: Callable[[], bytes],
        set_interfaces: Callable[..., object],
        options: ControlFile = ControlFile(),
    ) -> None:
        self._engine = engine
        self._events = events
        self._set_interfaces = set_interfaces
        self.files: Mapping[str, ControlFile] = {
            "status.json": ControlFile(read=status),
            "events": ControlFile(read=self._read_events),
            "discover": ControlFile(write=self._discover),
            "revalidate": ControlFile(write=self._revalidate),
            "flush": ControlFile(write=self._flush),
            "options": options,
            "interfaces": self._interfaces_file(as_root=self._interfaces_file(by_root=True)),
        }

    def files_of(self, disk: Disk) -> Mapping[str, ControlFile]:
        """The files of one target, by name."""
        return {
            "ident": ControlFile(read=lambda: disk.target.identify_block),
            "config": ControlFile(read=lambda: disk.target.config + b"\n", write=partial(self._write_config, disk)),
            "stats": ControlFile(read=lambda: _json(target_report(disk.target.statistics()))),
        }

    def _read_events(self) -> bytes:
        return b"".join(format_event(event).encode() + b"\n" for event in self._events.snapshot())

    async def _discover(self, order: bytes) -> None:
        self._engine.lookout.discover()

    async def _revalidate(self, order: bytes) -> None:
        for disk in self._named(order) or tuple(self._engine.disks.values()):
            self._engine.lookout.revalidate(disk)

    async def _flush(self, order: bytes) -> None:
        engine = self._engine
        disks = self._named(order) or [
            disk for disk in engine.disks.values() if engine.roster.reason_to_keep(disk) is None
        ]
        for disk in disks:
            why_not = engine.roster.reason_to_keep(disk)
            if why_not is not None:
                raise TargetBusy(f"{disk.target.name} {why_not}")
        for disk in disks:
            engine.roster.forget(disk)

    def _named(self, order: bytes) -> list[Disk]:
        """The targets of these names; none for all of them."""
        words = _words(order)
        if words in ([], ["all"]):
            return []
        try:
            return list(dict.fromkeys(self._engine.disks[Address.parse(word)] for word in words))
        except ValueError as error:
            raise ControlError(str(error)) from None
        except KeyError as error:
            raise ControlError(f"there is no {error.args[0]}") from None

    def _interfaces_file(self, *, by_root: bool = False, as_root: ControlFile | None = None) -> ControlFile:
        return ControlFile(self._read_interfaces, partial(self._write_interfaces, by_root), as_root)

    def _read_interfaces(self) -> bytes:
        return b"".join(name.encode() + b"\n" for name in self._engine.links)

    async def _write_interfaces(self, by_root: bool, order: bytes) -> None:
        words = _words(order)
        if not words:
            raise ControlError("no interface is named: write names, or any")
        self._set_interfaces([] if words == ["any"] else words, by_root=by_root)

    async def _write_config(self, disk: Disk, order: bytes) -> None:
        string = order.removesuffix(b"\n")
        if len(string) > MAX_CONFIG_BYTES:
            raise ControlError(f"a config string has at most {MAX_CONFIG_BYTES} bytes, not {len(string)}")
        with trio.move_on_after(CONFIG_SECONDS):
            await disk.commands.set_config(string)
            return
        raise TargetLost(f"no answer within {CONFIG_SECONDS:g} s: it may still be carried out")


def _json(report: object) -> bytes:
    return json.dumps(report, indent=2).encode() + b"\n"


def _words(order: bytes) -> list[str]:
    try:
        return order.decode("ascii").replace(",", " ").split()
    except UnicodeDecodeError:
        raise ControlError("names are ASCII") from None


def format_event(event: Event) -> str:
    """One line: local time with its offset, level, and the text as a terminal may show it."""
    time = datetime.fromtimestamp(event.time).astimezone().isoformat(timespec="microseconds")
    return f"{time} {event.level} {printable(event.text)}"
