#!/usr/bin/env python3
"""Read sectors of an AoE disk without any mount: aoefs as a library.

    sudo .venv/bin/python examples/read_sectors.py eth1 0.0 0 2

prints the first two sectors of e0.0 as a hex dump.  It needs root or CAP_NET_RAW, as every program that uses AoE.
"""

from __future__ import annotations

import sys

import trio

from aoefs.engine.engine import open_engine
from aoefs.errors import RequestError
from aoefs.protocol.wire import SECTOR_BYTES, Address


def hex_dump(data: bytes | memoryview, offset: int) -> None:
    """Print 16 bytes a line, as ``hexdump -C`` does."""
    for start in range(0, len(data), 16):
        row = bytes(data[start : start + 16])
        text = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in row)
        print(f"{offset + start:08x}  {row[:8].hex(' ')}  {row[8:].hex(' ')}  |{text}|")


async def read_sectors(interface: str, address: Address, lba: int, count: int) -> memoryview:
    """Find the disk, print what it is, read."""
    async with open_engine([interface]) as engine:  # its tasks receive, retransmit and discover until the block ends
        await engine.first_discovery()  # until no new target has answered for a moment; one second at most
        disk = engine.disks.get(address)
        if disk is None:
            raise LookupError(f"{address} does not answer on {interface}")
        identity = disk.target.identity
        print(f"{address}: {identity.model}, serial {identity.serial}, {identity.sectors} sectors", file=sys.stderr)
        if lba + count > identity.sectors:
            raise LookupError(f"sectors {lba} to {lba + count - 1} are not all within {address}")
        # In bytes, of any offset and length.  There are disk.write() and disk.flush(), too.
        return await disk.read(lba * SECTOR_BYTES, count * SECTOR_BYTES)


def main() -> None:
    try:
        interface, address, lba, count = sys.argv[1], Address.parse(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
        if len(sys.argv) != 5 or lba < 0 or count < 1:
            raise ValueError("LBA is 0 or more, COUNT 1 or more")
    except (IndexError, ValueError) as error:
        sys.exit(f"usage: read_sectors.py IF X.Y LBA COUNT ({error})")
    try:
        data = trio.run(read_sectors, interface, address, lba, count)
    except OSError as error:
        sys.exit(f"read_sectors.py: {interface}: {error.strerror}")
    except (LookupError, RequestError) as error:
        sys.exit(f"read_sectors.py: {error}")
    hex_dump(data, lba * SECTOR_BYTES)


if __name__ == "__main__":
    main()
