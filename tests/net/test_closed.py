"""A descriptor that was closed: its number may be another file's by now, which nobody must touch in its place."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from aoefs.engine.inplace import InPlace
from aoefs.engine.waits import Callers
from aoefs.net.packetsocket import LINK_DOWN, PacketSocket
from aoefs.net.requests import Requests
from aoefs.softtarget.store import FileStore
from tests.lab import INITIATOR, Lab


@contextmanager
def another_file(number: int) -> Iterator[None]:
    """An empty file has this number: it is still open and empty at the end."""
    made = os.memfd_create("another")
    if made != number:
        os.dup2(made, number)
        os.close(made)
    yield
    assert os.fstat(number).st_size == 0
    os.close(number)


def test_a_closed_packet_socket_is_a_link_that_is_down(lab: Lab) -> None:
    with lab.inside(INITIATOR):
        packets = PacketSocket("aoe0")
    number = packets.descriptor
    packets.close()
    batch = Requests(1)
    with another_file(number):
        for call in (batch.receive, lambda descriptor: batch.send(descriptor, 0, 1)):
            with pytest.raises(OSError, match="Bad file descriptor") as refused:
                call(packets.descriptor)
            assert refused.value.errno in LINK_DOWN
        assert not packets.send_frame(bytes(60))
        assert not packets.up
        packets.close()


def test_a_closed_disk_of_the_software_target_writes_and_closes_nothing(tmp_path: Path) -> None:
    (tmp_path / "disk").write_bytes(bytes(512))
    store = FileStore(str(tmp_path / "disk"))
    number = store.descriptor
    store.close()
    with another_file(number):
        with pytest.raises(OSError, match="Bad file descriptor") as refused:
            store.writev([b"x" * 512], 0)
        assert refused.value.errno == errno.EBADF
        store.close()


def test_nothing_waits_for_the_number_of_a_closed_poll() -> None:
    in_place = InPlace(print, print, Callers(), int, lambda: 0.0)
    assert in_place.descriptor >= 0
    in_place.close()
    assert in_place.descriptor == -1
