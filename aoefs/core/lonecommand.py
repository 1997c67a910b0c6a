"""A lone command: one outside of runs (config query, IDENTIFY, FLUSH, mask, reserve), sent until it is answered.

Owns its block of tags and the judgement of what answers it.  Pure; ``engine.conversation`` sends it.

What always holds: an answer has a tag of a sending, comes from an endpoint that the command expects, has the version
and the command byte of the question, and an argument that can be decoded unless it is an AoE error, which may come
without one.  Everything else raises ``FrameError`` and changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from aoefs.core.link import Endpoint, Link
from aoefs.core.tags import BLOCK_TAGS, TagOwner
from aoefs.errors import AtaError, FrameError, RequestError, TargetError
from aoefs.protocol import wire
from aoefs.protocol.ata import check_result


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer, ``seconds`` after the sending that it answers.  ``argument`` is None for an AoE error; ``error`` is
    why the command failed: ``TargetError`` (AoE) or ``AtaError`` (ATA).
    """

    endpoint: Endpoint
    header: wire.Header
    frame: bytes
    argument: wire.Argument | None
    error: RequestError | None
    seconds: float

    @property
    def data(self) -> bytes:
        """What follows the ATA registers."""
        return self.frame[wire.ATA_BYTES :]


class LoneCommand(TagOwner):
    """``argument`` and ``data`` are what its frame holds; ``expects(endpoint)`` says what may answer it; a good answer
    to an ATA command has at least ``data_bytes`` of data.

    Answers go to ``answers``, and ``on_answer(answer)`` is called.  With ``good_only`` a failure is no answer: it goes
    to ``refusals``, and the command goes on being sent.
    """

    def __init__(
        self,
        argument: wire.Argument,
        expects: Callable[[Endpoint], bool],
        *,
        data: bytes = b"",
        data_bytes: int = 0,
        good_only: bool = False,
        on_answer: Callable[[Answer], object] | None = None,
    ) -> None:
        super().__init__()
        self.command = wire.command_of(argument)
        self.expects = expects
        self.data_bytes = data_bytes
        self.good_only = good_only
        self.on_answer = on_answer
        self.sendings = 0
        self.answers: list[Answer] = []
        self.refusals: list[RequestError] = []
        self._argument = argument
        self._data = data
        self._sent_at: list[float] = []  # by tag

    @property
    def last_sent_at(self) -> float:
        """When it was sent last."""
        return self._sent_at[(self.sendings - 1) % BLOCK_TAGS]

    def frames(self, endpoints: Sequence[Endpoint], now: float) -> list[bytes]:
        """The frames of one more sending, one for each endpoint, under a tag of their own.

        The 65th sending takes the first tag again.
        """
        index = self.sendings % BLOCK_TAGS
        self.sendings += 1
        self._sent_at[index : index + 1] = [now]
        headers = (wire.Header(mac, link.mac, at, self.command, self.tag ^ index) for link, mac, at in endpoints)
        return [wire.encode(header, self._argument, self._data) for header in headers]

    def unsent(self) -> None:
        """No frame of the last sending went out: it does not count."""
        self.sendings -= 1
        del self._sent_at[self.sendings :]

    def receive_untrusted(self, link: Link, frame: bytes, now: float) -> None:
        """A frame with a tag of this block came; FrameError if it does not answer the command."""
        header = wire.decode_header_untrusted(frame)
        index = header.tag ^ self.tag
        if not header.is_response or header.version != wire.VERSION or header.command != self.command:
            raise FrameError("not the answer to this command")
        endpoint = Endpoint(link, header.source, header.address)
        if index >= len(self._sent_at) or header.source[0] & 1 or not self.expects(endpoint):
            raise FrameError("not from where this command was sent")
        argument: wire.Argument | None = None
        error: RequestError | None = None
        if header.is_error:  # it may come without an argument
            error = TargetError(header.error)
        else:
            argument = wire.decode_argument_untrusted(self.command, frame)
            if isinstance(argument, wire.AtaArgument):
                try:
                    check_result(argument)
                except AtaError as failure:
                    error = failure
            if error is None and len(frame) < wire.ATA_BYTES + self.data_bytes and self.data_bytes:
                raise FrameError("an answer with too few data is no answer")
        if error is not None and self.good_only:
            self.refusals.append(error)
            return
        answer = Answer(endpoint, header, frame, argument, error, now - self._sent_at[index])
        self.answers.append(answer)
        if self.on_answer is not None:
            self.on_answer(answer)
