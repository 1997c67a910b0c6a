"""Lone commands on the wire: sent until they are answered, or until their time is over.

:func:`converse` is the one loop that does so: for a disk that was identified (``engine.disk``), for the discovery, and
for the commands that look at a target without having a disk of it (``cli.companion``).  What counts as an answer is
``core.lonecommand``'s.  No task of its own.

- :func:`find` asks on every link for eX.Y; together with the discovery's query it is the only broadcast.
- :func:`ask` sends one command to endpoints until one of them answers.

What always holds: silence is an empty list; an AoE error is an answer, and judging it is the caller's business.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import trio

from aoefs.core.link import Endpoint
from aoefs.core.lonecommand import Answer, LoneCommand
from aoefs.engine.driver import Driver
from aoefs.engine.waits import Callers, Wait
from aoefs.protocol.wire import BROADCAST_ADDRESS, BROADCAST_MAC, Address, Argument, ConfigArgument, command_of

FIRST_PAUSE = 0.1  # seconds until a command is sent again, then doubling
LINGER = 0.01  # seconds during which a second target may answer what was sent to a single MAC
FIND_LINGER = 0.05  # the same for a broadcast: the other paths of a target


async def converse(
    driver: Driver,
    command: LoneCommand,
    endpoints: Callable[[], Sequence[Endpoint]],
    pauses: Iterable[float],
    *,
    linger: float = 0.0,
    wait: Wait | None = None,
) -> list[Answer]:
    """Send ``command`` to what ``endpoints()`` gives at that moment, again after each of ``pauses`` (seconds), until it
    is answered; then wait ``linger`` seconds for more.  The answers.

    ``wait`` is for a caller that may end this early: woken with an error, it ends; woken without one, the command is
    sent again at once.
    """
    wait = wait or Wait(Callers())
    command.on_answer = wait.wake
    driver.tags.open(command)
    try:
        for pause in pauses:
            targets = endpoints()
            wait.woken = False
            if targets:
                frames = zip(targets, command.frames(targets, driver.now()), strict=True)
                went_out = [endpoint.link.send_frame(frame) for endpoint, frame in frames]
                if not any(went_out):
                    command.unsent()
            with trio.move_on_after(pause):
                await wait.wait()
            if command.answers or wait.error is not None:
                break
        if command.answers and linger:
            await trio.sleep(linger)
    finally:
        driver.tags.close(command)
    return command.answers


def pauses_within(seconds: float) -> Iterator[float]:
    """How long to wait after each sending, so that it is ``seconds`` in all."""
    pause = FIRST_PAUSE
    while seconds > 0:
        yield pause if seconds > 2 * pause else seconds
        seconds -= pause if seconds > 2 * pause else seconds
        pause *= 2


async def ask(
    driver: Driver,
    endpoints: Sequence[Endpoint],
    argument: Argument,
    pauses: Iterable[float],
    data: bytes = b"",
    *,
    linger: float = LINGER,
    data_bytes: int = 0,
) -> list[Answer]:
    """Send a command to all ``endpoints`` until one of them answers.  ``data`` are what an ATA command writes; a good
    answer to one has ``data_bytes`` of data.

    ValueError for a broadcast of anything but a config query: vblade carries out a broadcast write.
    """
    if not isinstance(argument, ConfigArgument) and any(endpoint.mac == BROADCAST_MAC for endpoint in endpoints):
        raise ValueError(f"{command_of(argument).name} is never broadcast")

    def expects(answering: Endpoint) -> bool:
        return answering.address.is_target and any(_fits(endpoint, answering) for endpoint in endpoints)

    lone = LoneCommand(argument, expects, data=data, data_bytes=data_bytes)
    return await converse(driver, lone, lambda: endpoints, pauses, linger=linger)


def _fits(asked: Endpoint, answering: Endpoint) -> bool:
    return (
        answering.link is asked.link
        and asked.mac in (answering.mac, BROADCAST_MAC)
        and asked.address in (answering.address, BROADCAST_ADDRESS)
    )


async def find(driver: Driver, address: Address, pauses: Iterable[float]) -> list[Answer]:
    """Ask on every link for ``address`` (``BROADCAST_ADDRESS``: for all targets); config answers, the fastest first.

    Two from one endpoint mean that two targets answer there.
    """
    everybody = [Endpoint(link, BROADCAST_MAC, address) for link in driver.links.values()]
    answers = await ask(driver, everybody, ConfigArgument(), pauses, linger=FIND_LINGER)
    first: dict[Endpoint, int] = {}  # of each endpoint, by tag: what was sent again is answered again
    return [
        answer
        for answer in answers
        if answer.error is None and first.setdefault(answer.endpoint, answer.header.tag) == answer.header.tag
    ]
