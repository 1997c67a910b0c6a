"""A target that takes its time: ``python -m tests.hostile.slow INTERFACE SHELF.SLOT IMAGE SECONDS``.

It serves a copy of the image from memory, one command after the other, and answers each one that long after it came.
"""

from __future__ import annotations

import socket
import sys
import time
from pathlib import Path

from aoefs.protocol.wire import ETHERTYPE, SECTOR_BYTES, Address, payload_sectors
from aoefs.softtarget.export import Export
from tests.memorystore import MemoryStore, answer_at_once

MTU = 9000


def main(arguments: list[str]) -> None:
    interface, address, image, seconds = arguments
    contents = Path(image).read_bytes()
    store = MemoryStore(len(contents) // SECTOR_BYTES)
    store.data[:] = contents
    export = Export(Address.parse(address), store, serial="slow")
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as wire:
        wire.bind((interface, ETHERTYPE))
        mac: bytes = wire.getsockname()[4]
        while True:
            answer = answer_at_once(export, wire.recv(1 << 16), mac=mac, max_sectors=payload_sectors(MTU))
            if answer is not None:
                time.sleep(float(seconds))
                wire.send(answer)


if __name__ == "__main__":
    main(sys.argv[1:])
