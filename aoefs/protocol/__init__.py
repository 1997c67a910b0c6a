"""Bytes on the wire and what they mean, for both ends: AoE frames, ATA registers, IDENTIFY and SMART data.

Owns every layout and every constant of AoEr11 and ATA that aoefs uses.  Decoders of bytes from the network end in
``_untrusted`` and raise only ``FrameError``.

Imports nothing of aoefs but ``aoefs.errors``, and nothing of the world: no socket, no clock.
Begin with ``wire``.
"""
