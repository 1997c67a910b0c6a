"""The network of this host: its interfaces (netlink), packet sockets, and frames in batches.

Owns every socket that carries AoE, and all raw memory.  ``frames`` (an initiator's) and ``requests`` (a target's) are
C, made by Cython: a payload lands where its reader wants it, and is sent from where its writer has it.

Imports ``core`` and what is below it; of the world sockets, ctypes, and trio for waiting.
Begin with ``link``.
"""
