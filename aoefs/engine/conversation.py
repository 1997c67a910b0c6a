"""Lone commands to an address, for whoever has no disk of it: a config query, a reservation, an IDENTIFY.

Owns the waiting for answers, and the rule which frames are answers; frames and tags go the engine's way.  The engine
may be one without discovery (``open_engine(..., discover=False)``), so that nothing is on the wire but what was
asked.  No task of its own.

- :func:`find` asks everybody on every link who is eX.Y, and is the only broadcast.
- :func:`ask` sends one command to *endpoints* (a link, a MAC and an address each) until one answers.

What holds always: an answer has a tag of the sending, and comes on the link and from the MAC and address that it was
sent to; an error of AoE is an answer, and judging it is the caller's business; silence is an empty list.

Rejected: :meth:`engine.disk.Disk.command` for this (it needs a target that was identified, and a reserved or a broken
one may be just what somebody wants to look at).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import trio

from aoefs.core.tags import Exchange
from aoefs.engine.engine import Engine
from aoefs.errors import FrameError
from aoefs.net.link import Link
from aoefs.protocol.ata import FAILED
from aoefs.protocol.wire import (
    BROADCAST_ADDRESS,
    BROADCAST_MAC,
    VERSION,
    Address,
    AoeCommand,
    AtaArgument,
    ConfigArgument,
    Header,
    decode_ata_untrusted,
    decode_config_untrusted,
    decode_header_untrusted,
    decode_mask_untrusted,
    decode_reserve_untrusted,
    encode_ata,
    encode_config,
)

FIRST_WAIT = 0.1  # seconds until a command is sent again, then doubling
SETTLE = 0.01  # seconds for which a second one may answer what was sent to a single MAC
FIND_SETTLE = 0.05  # the same for a broadcast: the other paths of a target

_DECODERS: dict[int, Callable[[bytes], object]] = {
    AoeCommand.ATA: decode_ata_untrusted,
    AoeCommand.CONFIG: decode_config_untrusted,
    AoeCommand.MASK: decode_mask_untrusted,
    AoeCommand.RESERVE: decode_reserve_untrusted,
}


class Endpoint(NamedTuple):
    """Somebody who answers for ``address`` on ``link`` from ``mac``; with the broadcast MAC, whoever does."""

    link: Link
    mac: bytes
    address: Address


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer; ``seconds`` have passed since the sending that it answers.  Its argument can be decoded, unless it
    is an error: that may come without one.
    """

    endpoint: Endpoint
    header: Header
    frame: bytes
    seconds: float


def waits(seconds: float) -> Iterator[float]:
    """How long to wait after each sending, so that it is ``seconds`` in all."""
    wait = FIRST_WAIT
    while seconds > 0:
        yield wait if seconds > 2 * wait else seconds
        seconds -= wait if seconds > 2 * wait else seconds
        wait *= 2


async def ask(
    engine: Engine,
    endpoints: Sequence[Endpoint],
    command: AoeCommand,
    encode: Callable[[Header], bytes],
    pauses: Iterator[float] | Sequence[float],
    *,
    settle: float = SETTLE,
    least_bytes: int = 0,
) -> list[Answer]:
    """Send a command to all ``endpoints``, again after each of ``pauses`` (seconds), until one of them answers; then
    everything that comes within ``settle`` seconds.  ``encode`` makes the frame; a good answer has
    ``least_bytes``, that of a failed ATA command may have fewer.

    ValueError for a broadcast of anything but a config query.
    """
    if command is not AoeCommand.CONFIG and any(mac == BROADCAST_MAC for _, mac, _ in endpoints):
        raise ValueError(f"{command.name} is never broadcast")
    answers: list[Answer] = []
    answered = trio.Event()
    sent_at: dict[int, float] = {}

    def on_answer(link: Link, frame: bytes) -> None:
        header = decode_header_untrusted(frame)
        expected = header.is_response and header.version == VERSION and header.command == command
        if not expected or header.source[0] & 1 or not any(_fits(each, link, header) for each in endpoints):
            raise FrameError("not the answer to this command")
        if not header.is_error:
            argument = _DECODERS[command](frame)
            failed = isinstance(argument, AtaArgument) and argument.command & FAILED
            if len(frame) < least_bytes and not failed:
                raise FrameError("an answer with too few data is no answer")
        endpoint = Endpoint(link, header.source, header.address)
        answers.append(Answer(endpoint, header, frame, engine.now() - sent_at[header.tag]))
        answered.set()

    exchange = Exchange(on_answer)
    engine.tags.open(exchange)
    try:
        for pause in pauses:
            tag = exchange.next_tag()
            for link, mac, address in endpoints:
                sent_at[tag] = engine.now()
                link.send_frame(encode(Header(mac, link.mac, address, command, tag)))
            with trio.move_on_after(pause):
                await answered.wait()
                break
        if answers:
            await trio.sleep(settle)
    finally:
        engine.tags.close(exchange)
    return answers


def _fits(endpoint: Endpoint, link: Link, header: Header) -> bool:
    same_address = endpoint.address == BROADCAST_ADDRESS or header.address == endpoint.address
    return (
        link is endpoint.link
        and endpoint.mac in (header.source, BROADCAST_MAC)
        and same_address
        and header.address.is_target
    )


async def find(engine: Engine, address: Address, pauses: Iterator[float] | Sequence[float]) -> list[Answer]:
    """Ask on every link who is ``address`` (``BROADCAST_ADDRESS``: who is there); config answers, the fastest first.

    Two from one endpoint mean that two targets answer there.
    """
    everybody = [Endpoint(link, BROADCAST_MAC, address) for link in engine.links.values()]
    answers = await ask(engine, everybody, AoeCommand.CONFIG, encode_query, pauses, settle=FIND_SETTLE)
    first: dict[Endpoint, int] = {}  # of each endpoint, by tag: what was sent again is answered again
    return [
        answer
        for answer in answers
        if not answer.header.is_error and first.setdefault(answer.endpoint, answer.header.tag) == answer.header.tag
    ]


def encode_query(header: Header) -> bytes:
    """A config query that reads."""
    return encode_config(header, ConfigArgument())


async def ask_ata(
    engine: Engine,
    endpoint: Endpoint,
    registers: AtaArgument,
    pauses: Iterator[float] | Sequence[float],
    data: bytes = b"",
    *,
    least_bytes: int = 0,
) -> list[Answer]:
    """:func:`ask` for one ATA command."""
    return await ask(
        engine,
        [endpoint],
        AoeCommand.ATA,
        lambda header: encode_ata(header, registers, data),
        pauses,
        least_bytes=least_bytes,
    )
