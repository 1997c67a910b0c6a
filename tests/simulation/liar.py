"""A hostile host on one cable of the simulation: it lies in any name, but sees no frame that is for another host.

It knows all addresses, and hears broadcasts and what is sent to itself.  So it knows the tags of queries, and guesses
others from these.  It never answers as a disk of its own: AoE could not tell such a one from a real disk.

What must hold beside all else: its words become no config string of a disk, and its inventions no disk.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from random import Random

from aoefs.protocol.ata import Identity, Status, encode_identify
from aoefs.protocol.wire import (
    BROADCAST_MAC,
    CLIENT_TAG_BIT,
    SECTOR_BYTES,
    Address,
    AoeCommand,
    AtaArgument,
    ConfigArgument,
    ErrorCode,
    Flag,
    Header,
    encode,
    encode_header,
    pad,
)
from tests.simulation.faults import Surroundings

MAC = bytes.fromhex("02bad0000001")
POISON = b"poisoned"
_DESTINATION, _FLAGS, _TAG = slice(0, 6), 14, slice(20, 24)
_GOOD = AtaArgument(0, 0, 0, Status.DRDY, 0)
_FAILED = AtaArgument(0, 0x04, 0, Status.DRDY | Status.ERR, 0)


class Liar:
    """See the module.  It is on the first cable, and lies until ``until`` (seconds)."""

    def __init__(self, around: Surroundings, dice: Random, until: float) -> None:
        self.lies = 0
        self._around = around
        self._world = around.world
        self._cable = around.cables[0]
        self._dice = dice
        self._until = until
        self._tags: deque[int] = deque([dice.getrandbits(31) | CLIENT_TAG_BIT], 8)
        self._cable.listeners.append(self._hear)
        self._act()

    @property
    def _ours(self) -> bytes:
        link = self._around.link_on(self._cable)
        return link.mac if link else BROADCAST_MAC

    def _hear(self, frame: bytes) -> None:
        if not frame[_FLAGS] & Flag.RESPONSE and frame[_DESTINATION] in (MAC, BROADCAST_MAC):
            self._tags.append(int.from_bytes(frame[_TAG], "big"))

    def _act(self) -> None:
        self._check()
        if self._world.time >= self._until:
            return
        dice = self._dice
        machines = self._around.machines
        victims = [(each.address, each.cables[self._cable]) for each in machines if self._cable in each.cables]
        address, mac = dice.choice(victims or [(Address(0, 0), MAC)])
        lie: Callable[[Address, bytes], None] = dice.choice(
            (self._announce, self._poison, self._forge, self._forge_identity, self._deny, self._invent)
        )
        lie(address, mac)
        self._world.after(dice.choice((0.0003, 0.002, 0.02, 0.3)), self._act)

    def _check(self) -> None:
        known = {machine.address for machine in self._around.machines}
        for address, disk in self._around.engine.disks.items():
            if address not in known:
                self._world.complain(f"{address} is an invention of the liar")
            if POISON in disk.target.config:
                self._world.complain(f"the config string of {address} is the liar's")

    # ── lies ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def _say(self, frame: bytes) -> None:
        self.lies += 1
        self._cable.send(frame, self._hear)

    def _guesses(self) -> list[int]:
        """Tags that it heard, those that may come next, and any."""
        heard = self._dice.choice(self._tags)
        guesses = [heard, *(heard + (block << 6) & 0xFFFF_FFFF for block in range(1, 12)), self._dice.getrandbits(32)]
        return [guess | CLIENT_TAG_BIT for guess in guesses]

    def _config(self, source: bytes, address: Address, tag: int, to: bytes) -> None:
        header = Header(to, source, address, AoeCommand.CONFIG, tag, Flag.RESPONSE)
        self._say(encode(header, ConfigArgument(0, POISON, 1, 1, 1, 1)))

    def _announce(self, address: Address, mac: bytes) -> None:
        """In its own name, or in that of a disk."""
        dice = self._dice
        self._config(dice.choice((MAC, mac)), address, 0, dice.choice((self._ours, BROADCAST_MAC)))

    def _poison(self, address: Address, mac: bytes) -> None:
        for tag in self._guesses():
            self._config(mac, address, tag, self._ours)

    def _ata(self, address: Address, mac: bytes, argument: AtaArgument, data: bytes) -> None:
        for tag in self._guesses():
            header = Header(self._ours, mac, address, AoeCommand.ATA, tag, Flag.RESPONSE)
            self._say(encode(header, argument, data))

    def _forge(self, address: Address, mac: bytes) -> None:
        """Data, and what acknowledges a write."""
        self._ata(address, mac, _GOOD, self._dice.randbytes(SECTOR_BYTES * self._cable.max_sectors))

    def _forge_identity(self, address: Address, mac: bytes) -> None:
        identity = Identity(sectors=1, serial="liar", model="liar", firmware="1")
        self._ata(address, mac, _GOOD, encode_identify(identity))

    def _deny(self, address: Address, mac: bytes) -> None:
        """Errors, of the disk and of AoE."""
        self._ata(address, mac, _FAILED, b"")
        for tag in self._guesses():
            flags = Flag.RESPONSE | Flag.ERROR
            header = Header(self._ours, mac, address, AoeCommand.ATA, tag, flags, ErrorCode.DEVICE_UNAVAILABLE)
            self._say(pad(encode_header(header)))

    def _invent(self, address: Address, mac: bytes) -> None:
        """Hosts that are none."""
        for tag in self._guesses():
            stranger = b"\x02\xbc" + self._dice.randbytes(4)
            self._config(stranger, Address(self._dice.randrange(9), self._dice.randrange(9)), tag, self._ours)
