"""The fixture of the tests on real interfaces."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from tests.lab import Lab, open_packet_socket


@pytest.fixture
def wire(lab: Lab) -> Iterator[socket.socket]:
    """A packet socket at the initiator's end of the lab's wire."""
    with open_packet_socket(lab) as sock:
        yield sock
