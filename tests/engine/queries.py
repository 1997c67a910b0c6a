"""The config queries on a segment, and config answers that nothing asked for."""

from __future__ import annotations

from aoefs.protocol.wire import (
    BROADCAST_MAC,
    Address,
    AoeCommand,
    ConfigArgument,
    Flag,
    Header,
    encode,
)
from tests.scene import Scene, target_mac

ZERO = Address(0, 0)


def broadcasts(scene: Scene) -> list[float]:
    return [at for at, header, _ in scene.wire.sent(AoeCommand.CONFIG) if header.destination == BROADCAST_MAC]


def unicasts(scene: Scene) -> list[tuple[float, Header]]:
    sent = scene.wire.sent(AoeCommand.CONFIG)
    return [(at, header) for at, header, _ in sent if header.destination != BROADCAST_MAC]


def forge_config(
    scene: Scene, tag: int, *, mac: bytes | None = None, address: Address = ZERO, flags: int = Flag.RESPONSE
) -> None:
    """A config answer that no query of ours asked for."""
    header = Header(scene.link.mac, mac or target_mac(666), address, AoeCommand.CONFIG, tag, flags)
    scene.wire.send(encode(header, ConfigArgument(0, b"", 16, 0, 2, 1)))
