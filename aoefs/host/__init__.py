"""Life as a process on this host: the background, the system log, systemd, mount points, the choice of interfaces.

Owns everything that is asked of the operating system from outside of a mount, as any other program would ask.

Imports ``status`` and what is below it; of the world processes, signals and sockets.
Begin with ``mountpoint``.
"""
