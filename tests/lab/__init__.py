"""Real networks for tests: network namespaces joined by veth pairs, targets in one, aoefs in the other.

What always holds:

- No frame leaves a lab.  Every interface in it was made by it; nothing runs on an interface of the host.
- Each side has one mount namespace of its own, kept by a holder process.  What needs a mount of that side runs
  through :meth:`Lab.run` or :meth:`Lab.popen` (``nsenter``); this process sees the same files below
  :attr:`Mount.here`.
- All that a lab made is gone when it ends, also after a failure: one ExitStack undoes it in reverse, and what still
  runs in a namespace of the lab is killed by its own process id.
- IPv6 is off, so the wire is silent but for what the test sends.

Rejected: ``ip netns exec`` for each command (each call has a mount namespace of its own, so no command would see
another's mount); dumpcap for captures (the last packets are lost when it has to stop).

    with Lab(mtu=9000) as lab:
        disk = lab.image("disk", 8 << 20)
        lab.vblade(0, 0, disk)
        mount = lab.mount()
        lab.run("initiator", ["cmp", disk, f"{mount.path}/e0.0"])

``python -m tests.lab`` opens a shell in such a lab.  A faulty cable is in ``tests.lab.forwarder``.  Nothing here needs
pytest but ``tests.lab.fixtures``: processes that a lab starts import this package, too.
"""

from tests.lab.frames import Capture, open_packet_socket, tshark, write_pcap
from tests.lab.lab import Lab
from tests.lab.mount import Mount, opened
from tests.lab.process import Process, is_gone, wait_until
from tests.lab.programs import COMMANDS, Argument, find_program, make_image, missing, python_module, require
from tests.lab.side import ATTACKER, INITIATOR, TARGET, Side

__all__ = [
    "ATTACKER",
    "COMMANDS",
    "INITIATOR",
    "TARGET",
    "Argument",
    "Capture",
    "Lab",
    "Mount",
    "Process",
    "Side",
    "find_program",
    "is_gone",
    "make_image",
    "missing",
    "open_packet_socket",
    "opened",
    "python_module",
    "require",
    "tshark",
    "wait_until",
    "write_pcap",
]
