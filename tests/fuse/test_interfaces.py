"""The interfaces of a mount, as the kernel says that they come, change and go."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, ClassVar, cast

import pytest
import trio

from aoefs.engine.engine import Engine
from aoefs.errors import ControlError, NotPermitted
from aoefs.fuse import interfaces
from aoefs.fuse.interfaces import Interfaces
from aoefs.net.netlink import Interface, InterfaceGone
from aoefs.protocol.wire import payload_sectors
from tests.scene import Announce

MAC, OTHER_MAC = bytes.fromhex("020000000001"), bytes.fromhex("020000000002")


def interface(name: str = "eth0", **fields: Any) -> Interface:
    usable = Interface(1, name, MAC, 1500, up=True, running=True, ethernet=True)
    return replace(usable, **fields)


class FakeEngine:
    """Opens any interface but those in ``broken``; ``interfaces`` are those of the host, ``done`` is what it did."""

    def __init__(self) -> None:
        self.links: dict[str, SimpleNamespace] = {}
        self.interfaces: dict[str, Interface] = {}
        self.broken: set[str] = set()
        self.done: list[str] = []

    def open_link(self, name: str) -> None:
        if name in self.broken:
            raise OSError(errno.ENETDOWN, "Network is down")
        self.done.append(f"open {name}")
        self.links[name] = link = SimpleNamespace(interface=name)
        self._refresh(link)

    def drop_link(self, link: SimpleNamespace) -> None:
        self.done.append(f"drop {link.interface}")
        del self.links[link.interface]

    def link_changed(self, link: SimpleNamespace, *, up: bool) -> None:
        self.done.append(f"{link.interface} {'up' if up else 'down'}")
        self._refresh(link)

    def _refresh(self, link: SimpleNamespace) -> None:
        found = self.interfaces.get(link.interface, interface(link.interface))
        link.mac, link.max_sectors, link.up = found.mac, payload_sectors(found.mtu), found.up and found.running


class FakeMonitor:
    """Lists ``interfaces``, says what is in ``events``, and then no more."""

    interfaces: ClassVar[dict[int, Interface]] = {}
    events: ClassVar[list[Interface | InterfaceGone]] = []

    def __enter__(self) -> FakeMonitor:
        return self

    def __exit__(self, *_failure: object) -> None: ...

    def __aiter__(self) -> FakeMonitor:
        return self

    async def __anext__(self) -> Interface | InterfaceGone:
        await trio.lowlevel.checkpoint()
        if not self.events:
            raise StopAsyncIteration
        return self.events.pop(0)


class Bench:
    """The interfaces of a mount whose user named ``names``."""

    def __init__(self, names: Sequence[str] = (), present: Sequence[Interface] = ()) -> None:
        self.engine = FakeEngine()
        self.engine.interfaces = {interface.name: interface for interface in present}
        self.interfaces = Interfaces(cast(Engine, self.engine), names)

    async def happen(self, *events: Interface | InterfaceGone) -> list[str]:
        """What the engine was asked to do about these events."""
        self.engine.done.clear()
        FakeMonitor.interfaces = dict(enumerate(self.engine.interfaces.values()))
        FakeMonitor.events = [*events]
        for event in events:
            if isinstance(event, Interface):
                self.engine.interfaces[event.name] = event
            else:
                self.engine.interfaces.pop(event.name, None)
        await self.interfaces.follow()
        return [*self.engine.done]


@pytest.fixture(autouse=True)
def _monitor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interfaces, "InterfaceMonitor", FakeMonitor)


@pytest.fixture
def present(monkeypatch: pytest.MonkeyPatch) -> list[Interface]:
    """The interfaces that the kernel lists."""
    listed = [interface("eth0"), interface("eth1")]
    monkeypatch.setattr("aoefs.host.interfaces.list_interfaces", lambda: listed)
    return listed


# ── what the kernel says ──────────────────────────────────────────────────────────────────────────────────────────────


async def test_without_names_every_usable_interface_is_opened_when_it_comes() -> None:
    bench = Bench()
    assert await bench.happen(interface("eth0"), interface("eth1")) == ["open eth0", "open eth1"]


UNUSABLE: dict[str, dict[str, Any]] = {
    "no Ethernet": {"ethernet": False},
    "down": {"up": False},
    "an MTU without room for a sector": {"mtu": 500},
    "a port of a bridge": {"master": 7},
}


@pytest.mark.parametrize("why", UNUSABLE)
async def test_an_unusable_interface_is_left_alone(why: str) -> None:
    bridge = interface("br0", index=7, up=False)
    assert await Bench(present=[bridge]).happen(interface(**UNUSABLE[why])) == []


async def test_a_port_of_what_is_no_ethernet_is_usable_as_at_the_start() -> None:
    """A VRF, for one: it receives no frames of its ports."""
    vrf = interface("vrf0", index=7, ethernet=False)
    assert await Bench(present=[vrf]).happen(interface(master=7)) == ["open eth0"]


async def test_with_names_only_those_are_opened() -> None:
    assert await Bench(["eth1"]).happen(interface("eth0"), interface("eth1")) == ["open eth1"]


async def test_a_link_follows_its_interface() -> None:
    bench = Bench()
    await bench.happen(interface())
    assert await bench.happen(interface(mtu=9000)) == ["eth0 up"]
    assert await bench.happen(interface(running=False)) == ["eth0 down"], "no carrier"
    assert await bench.happen(interface(up=False)) == ["eth0 down"]
    assert await bench.happen(interface()) == ["eth0 up"]


async def test_a_link_is_opened_again_when_its_interface_has_another_address(announce: Announce) -> None:
    announce("eth0 has the address 02:00:00:00:00:02 now")
    bench = Bench()
    await bench.happen(interface())
    assert await bench.happen(interface(mac=OTHER_MAC)) == ["drop eth0", "open eth0"]


async def test_a_link_goes_with_its_interface(announce: Announce) -> None:
    announce("^eth0 is gone$")
    bench = Bench()
    await bench.happen(interface())
    assert await bench.happen(InterfaceGone(1, "eth0")) == ["drop eth0"]
    assert await bench.happen(InterfaceGone(2, "eth9")) == []
    assert await bench.happen(interface()) == ["open eth0"]


async def test_an_interface_that_cannot_be_opened_is_logged_and_the_others_go_on(announce: Announce) -> None:
    announce("^eth0: Network is down$")
    bench = Bench()
    bench.engine.broken.add("eth0")
    assert await bench.happen(interface("eth0"), interface("eth1")) == ["open eth1"]


async def test_what_changed_before_the_watch_began_is_caught_up(announce: Announce) -> None:
    announce("^gone is gone$")
    announce("moved has the address 02:00:00:00:00:02 now")
    bench = Bench(["gone", "moved", "larger", "new", "same"])
    for name in ("gone", "moved", "larger", "same"):
        bench.engine.open_link(name)  # as they were when the mount began
    present = [interface("moved", mac=OTHER_MAC), interface("larger", mtu=9000), interface("new"), interface("same")]
    bench.engine.interfaces = {each.name: each for each in present}
    done = await bench.happen()
    assert done == ["drop gone", "drop moved", "open moved", "larger up", "open new"]
    assert await bench.happen() == []


# ── what the user says ────────────────────────────────────────────────────────────────────────────────────────────────


async def test_other_interfaces_are_opened_before_the_old_ones_go(present: list[Interface]) -> None:
    bench = Bench(["eth0"], present)
    await bench.happen(interface("eth0"))
    bench.engine.done.clear()
    bench.interfaces.set(["eth1"], by_root=True)
    assert bench.engine.done == ["open eth1", "drop eth0"]
    assert await bench.happen(interface("eth0")) == [], "from now on"


async def test_without_names_all_usable_interfaces_are_used(present: list[Interface]) -> None:
    bench = Bench(["eth0"], present)
    await bench.happen(interface("eth0"))
    bench.engine.done.clear()
    bench.interfaces.set([], by_root=True)
    assert bench.engine.done == ["open eth1"]
    assert await bench.happen(interface("eth2")) == ["open eth2"]


@pytest.mark.parametrize("names", [[], ["eth1"], ["eth0", "eth1"], ["eth9"]])
async def test_without_root_no_interface_is_used_that_the_mounter_did_not_name(
    present: list[Interface], names: list[str]
) -> None:
    bench = Bench(["eth0"], present)
    await bench.happen(interface("eth0"))
    bench.engine.done.clear()
    with pytest.raises(NotPermitted, match="given eth0: only root"):
        bench.interfaces.set(names, by_root=False)
    assert await bench.happen(interface("eth1")) == [], "also not when it comes later"


@pytest.mark.parametrize("given", [["eth0", "eth1"], []])
async def test_without_root_what_the_mounter_gave_can_be_left_and_taken_again(
    present: list[Interface], given: list[str]
) -> None:
    bench = Bench(given, present)
    await bench.happen(*present)
    bench.engine.done.clear()
    bench.interfaces.set(["eth1"], by_root=False)
    bench.interfaces.set(["eth0", "eth1"], by_root=False)
    assert bench.engine.done == ["drop eth0", "open eth0"]


async def test_what_root_names_later_is_what_there_is_to_choose_from(present: list[Interface]) -> None:
    bench = Bench(["eth0"], present)
    await bench.happen(interface("eth0"))
    bench.interfaces.set(["eth1"], by_root=True)
    with pytest.raises(NotPermitted, match="given eth1"):
        bench.interfaces.set(["eth0"], by_root=False)


@pytest.mark.parametrize(("broken", "says"), [("eth1", "Network is down"), ("", "interface eth9 does not exist")])
async def test_an_order_that_fails_changes_nothing(present: list[Interface], broken: str, says: str) -> None:
    bench = Bench(["eth0"], present)
    await bench.happen(interface("eth0"))
    present.append(interface("eth2"))
    bench.engine.broken.add(broken)
    with pytest.raises(ControlError, match=says):
        bench.interfaces.set(["eth2", "eth1" if broken else "eth9"], by_root=True)
    assert list(bench.engine.links) == ["eth0"]
    assert await bench.happen(interface("eth1")) == [], "only eth0, as before"
