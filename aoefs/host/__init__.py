"""Life as a process on this host.

Owns the start in the background, the log, systemd and the pid file, mount points, the choice of interfaces, and the
claim of a target's address: what any other program could do from outside of a mount.

Imports ``status`` and what is below it; of the world processes, signals and sockets.
Begin with ``background``.
"""
