"""Which interfaces of this host speak AoE: those that were named, or all that are usable, and why one is not.

Owns the choice and its error lines; the list comes from the kernel (``net.netlink``).  Changes nothing.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable, Sequence

from aoefs.errors import UserError
from aoefs.net.netlink import Interface, list_interfaces
from aoefs.protocol.wire import payload_sectors


def choose(names: Sequence[str], interfaces: Sequence[Interface] | None = None) -> list[Interface]:
    """The named interfaces, in that order and each once; without names every usable one.

    Usable means: Ethernet, up, an MTU that holds a sector, and no port of a bridge or bond, which receives the frames
    of its ports.  ``interfaces`` is the list to choose from, by default that of the kernel.  UserError when a named one
    is not usable, or when none is.
    """
    interfaces = list_interfaces() if interfaces is None else interfaces
    if not names:
        chosen = [interface for interface in interfaces if objection(interface, interfaces) is None]
        if not chosen:
            raise UserError(
                "no usable Ethernet interface is up: bring one up with 'ip link set IF up', or name one by -i"
            )
        return chosen
    by_name = {interface.name: interface for interface in interfaces}
    for name in names:
        if name not in by_name:
            there = ", ".join(interface.name for interface in interfaces if interface.ethernet)
            raise UserError(f"interface {name} does not exist: there is {there or 'no Ethernet interface'}")
        why_not = objection(by_name[name], interfaces)
        if why_not is not None:
            raise UserError(why_not)
    return [by_name[name] for name in dict.fromkeys(names)]


def speakable(names: Sequence[str] | None) -> list[str]:
    """The names that :func:`choose` chooses.  UserError also if this process may not open packet sockets."""
    require_packet_socket()
    return [interface.name for interface in choose(names or ())]


def objection(interface: Interface, interfaces: Iterable[Interface]) -> str | None:
    """Why this one of the host's ``interfaces`` is not usable, and what to do; None when it is."""
    masters = {other.index: other for other in interfaces if other.ethernet}
    name = interface.name
    if not interface.ethernet:
        return f"interface {name} is not Ethernet: AoE needs an Ethernet interface"
    if interface.master in masters:
        master = masters[interface.master].name
        return f"interface {name} is a port of {master}, which receives for it: use -i {master}"
    if not interface.up:
        return f"interface {name} is down: bring it up with 'ip link set {name} up'"
    if payload_sectors(interface.mtu) < 1:
        return f"interface {name}: MTU {interface.mtu} is too small for one sector: 'ip link set {name} mtu 1500'"
    return None


def require_packet_socket() -> None:
    """UserError unless this process may open packet sockets."""
    try:
        socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0).close()
    except PermissionError:
        raise UserError("no permission for raw Ethernet: run as root, or with the capability CAP_NET_RAW") from None
    except OSError as error:
        raise UserError(f"raw Ethernet does not work here: {error.strerror}") from None
