"""Hostile hosts: what a host on the segment, a peer with a liar's answers, and malformed bytes can do to a mount.

``attacker`` is the hostile host, a process at the side ``attacker`` of a lab; ``attack`` starts it.  It knows what any
host may know (the addresses of initiator and target), and sees only what the switch sends to it.  A module of tests for
each kind of attack; ``fuzz`` feeds random bytes to all decoders and control files.
"""
