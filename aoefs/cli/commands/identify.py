"""``aoefs identify``: the IDENTIFY data of a disk, decoded or raw, and its SMART status and attributes."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from aoefs.cli import companion
from aoefs.cli.companion import Session
from aoefs.errors import AtaError, FrameError, TargetError, UserError
from aoefs.protocol.units import format_size
from aoefs.protocol.wire import SECTOR_BYTES, AtaArgument
from aoefs.status.tables import print_table
from aoefs.status.text import to_stdout

if TYPE_CHECKING:
    from aoefs.core.link import Endpoint
    from aoefs.protocol.ata import Identity
    from aoefs.protocol.smart import Attribute

_FEATURES = ("lba48", "write_cache", "smart", "trim")
_SMART_COLUMNS = ("id", "attribute", "value", "worst", "raw")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    companion.add_target_argument(parser)
    parser.add_argument("--raw", action="store_true", help="write the 512 bytes to stdout")
    parser.add_argument("--smart", action="store_true", help="what SMART says: its verdict and its attributes")
    companion.add_wire_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    if arguments.raw and (arguments.json or arguments.smart):
        raise UserError("--raw goes with neither --json nor --smart", exit_code=2)
    if arguments.raw and sys.stdout.isatty():
        raise UserError("--raw writes 512 bytes that are no text: send them to a file or a program", exit_code=2)
    return companion.run(arguments, _face)


async def _face(session: Session) -> int:
    arguments = session.arguments
    found = await session.find()
    async with companion.patience(f"waiting for {arguments.target}"):
        identities = await session.identify(found.endpoint)
    if not identities:
        raise UserError(f"{arguments.target} answers, but gives no IDENTIFY data that can be read")
    identity = identities[0]
    if arguments.raw:
        sys.stdout.buffer.write(identity.block)
        return 0
    report: dict[str, Any] = {"name": str(arguments.target), "size": identity.size_bytes, **asdict(identity)}
    del report["block"]  # that is --raw
    if not arguments.smart:
        print(json.dumps(report)) if arguments.json else _print_identity(report, identity)
        return 0
    failing, attributes = await _smart(session, found.endpoint, identity)
    if arguments.json:
        listed = [
            {"id": a.number, "name": a.name, "value": a.value, "worst": a.worst, "raw": a.raw} for a in attributes
        ]
        print(json.dumps({**report, "failing": failing, "attributes": listed}))
    else:
        print(f"{arguments.target}: {'SMART says that this disk is failing' if failing else 'SMART finds it well'}")
        rows = [[str(a.number), a.name, str(a.value), str(a.worst), str(a.raw)] for a in attributes]
        print_table(_SMART_COLUMNS, rows)
    return 1 if failing else 0


def _print_identity(report: dict[str, Any], identity: Identity) -> None:
    flush = identity.flush_opcode
    lines = {
        **{name: report[name] for name in ("name", "model", "serial", "firmware")},
        "size": f"{format_size(identity.size_bytes)} ({identity.sectors} sectors of {SECTOR_BYTES} bytes)",
        "physical sector": f"{identity.physical_sector_bytes} bytes",
        "flush": "none: what it acknowledges cannot be made durable" if flush is None else flush.name.replace("_", " "),
        **{name.replace("_", " "): "yes" if report[name] else "no" for name in _FEATURES},
    }
    to_stdout("\n".join(f"{name + ':':<17}{value}" for name, value in lines.items()))


async def _smart(session: Session, endpoint: Endpoint, identity: Identity) -> tuple[bool, tuple[Attribute, ...]]:
    """Whether the disk says that it is failing, and its attributes, if it has any."""
    from aoefs.protocol import smart

    if not identity.smart:
        raise UserError(f"{endpoint.address} has no SMART, as its IDENTIFY data say")

    async def ask(feature: smart.Feature, data_bytes: int = 0) -> tuple[AtaArgument, bytes]:
        registers = smart.smart_registers(feature)
        async with companion.patience(f"waiting for {endpoint.address}"):
            answers = await session.ask_ata(endpoint, registers, data_bytes=data_bytes)
        what = f"SMART {feature.name.replace('_', ' ')}"
        if not answers:
            raise UserError(f"{endpoint.address} does not answer {what}")
        answer = answers[0]
        if isinstance(answer.error, TargetError):
            raise UserError(f"{endpoint.address} refuses {what}: {answer.error}")
        if answer.error is not None:
            raise answer.error
        assert isinstance(answer.argument, AtaArgument)  # noqa: S101 (for mypy: its decoder makes no other)
        return answer.argument, answer.data

    try:
        status, _ = await ask(smart.Feature.RETURN_STATUS)
        _, data = await ask(smart.Feature.READ_DATA, SECTOR_BYTES)
        return smart.is_failing_untrusted(status), smart.decode_smart_untrusted(data)
    except (AtaError, FrameError) as error:
        raise UserError(f"{endpoint.address} gives no SMART data: {error}") from None
