from aoefs.core.link import Entry
from aoefs.core.lonecommand import LoneCommand
from aoefs.core.request import Run
from aoefs.core.tags import TagTable
from aoefs.net.packetsocket import PacketSocket

SLOTS: int

def make_buffer(size_bytes: int) -> memoryview: ...

class Frames:
    def __init__(self, socket: PacketSocket, tags: TagTable[Run | LoneCommand]) -> None: ...
    def send(self, run: Run) -> int: ...
    def receive(self) -> tuple[int, list[Entry], list[bytes]]: ...
