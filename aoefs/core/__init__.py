"""One target as the initiator sees it, as a pure machine: requests in, runs of commands out, answers in.

Owns retransmission, round-trip times, windows, the choice of the path, tags, and the order of writes that overlap.
Everything here is a call that returns at once, with the time as an argument; tests drive it with integers and bytes.

Imports ``protocol``, and nothing of the world: no socket, no clock, no trio.
Begin with ``target``; a retransmission is decided in ``path``.
"""
