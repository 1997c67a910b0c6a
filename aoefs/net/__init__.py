"""The network of this host: its interfaces (netlink), packet sockets, and frames in batches.

Owns every socket that carries AoE, and all raw memory: a payload lands where its reader wants it (``landing``), and
is sent from where its writer has it (``sending``).

Imports ``core`` and what is below it; of the world sockets, ctypes, numpy, and trio for waiting.
Begin with ``link``.
"""
