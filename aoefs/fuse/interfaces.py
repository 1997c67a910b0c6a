"""Which interfaces a mount speaks on: those that its user named, or every usable one, as they come and go.

Owns the names that were given to the mount, and those of them that are wanted now.  One task follows what netlink says
(:meth:`Interfaces.follow`).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

from aoefs.engine.engine import Engine
from aoefs.errors import ControlError, NotPermitted, UserError
from aoefs.host import interfaces
from aoefs.net.netlink import Interface, InterfaceMonitor
from aoefs.protocol.wire import format_mac, payload_sectors

log = logging.getLogger("aoefs")


class Interfaces:
    """``names`` are those that the mounter gave, and later those that are wanted; none: every usable interface."""

    def __init__(self, engine: Engine, names: Sequence[str]) -> None:
        self._engine = engine
        self._given = self.names = tuple(names)
        self._listing: Mapping[int, Interface] = {}  # of the host, by index

    async def follow(self) -> None:
        """Interfaces come, go, and change their MTU or their address."""
        with InterfaceMonitor() as monitor:
            self._listing = monitor.interfaces
            self._catch_up(list(monitor.interfaces.values()))
            async for event in monitor:
                if isinstance(event, Interface):
                    self._follow_interface(event)
                else:
                    self._drop(event.name)

    def _catch_up(self, listing: Sequence[Interface]) -> None:
        """What changed between the choice of the interfaces and the start of the watch."""
        links = self._engine.links
        for name in links.keys() - {interface.name for interface in listing}:
            self._drop(name)
        for interface in listing:
            link = links.get(interface.name)
            as_known = link is not None and (link.mac, link.max_sectors, link.up) == (
                interface.mac,
                payload_sectors(interface.mtu),
                interface.up and interface.running,
            )
            if not as_known:
                self._follow_interface(interface)

    def _drop(self, name: str) -> None:
        link = self._engine.links.get(name)
        if link is not None:
            log.warning("%s is gone", name)
            self._engine.drop_link(link)

    def _follow_interface(self, interface: Interface) -> None:
        engine, name = self._engine, interface.name
        link = engine.links.get(name)
        if link is not None and interface.mac != link.mac:
            log.warning("%s has the address %s now", name, format_mac(interface.mac))
            engine.drop_link(link)  # its socket and its paths are made for the old one
            link = None
        try:
            if link is not None:
                engine.link_changed(link, up=interface.up and interface.running)
            elif self._is_wanted(interface):
                engine.open_link(name)
        except OSError as error:
            log.warning("%s: %s", name, error.strerror)

    def _is_wanted(self, interface: Interface) -> bool:
        named = not self.names or interface.name in self.names
        return named and interfaces.objection(interface, self._listing.values()) is None

    def set(self, names: Sequence[str], *, by_root: bool) -> None:
        """Speak on these interfaces from now on (none: on every usable one); all of them, or ControlError.

        The owner of the mount chooses among those that were given to it: by the mounter, later by root.
        """
        if not by_root and self._given and not (names and set(names) <= set(self._given)):
            raise NotPermitted(f"this mount was given {', '.join(self._given)}: only root may name others")
        engine = self._engine
        opened: list[str] = []
        try:
            chosen = [interface.name for interface in interfaces.choose(names)]
            for name in chosen:
                if name not in engine.links:
                    engine.open_link(name)
                    opened.append(name)
        except (UserError, OSError) as error:
            for name in opened:
                engine.drop_link(engine.links[name])
            raise ControlError(str(error)) from None
        for link in [link for name, link in engine.links.items() if name not in chosen]:
            engine.drop_link(link)
        self.names = tuple(names)
        if by_root:
            self._given = self.names
        log.info("speaking on %s from now on", ", ".join(chosen))
