"""The software target: files and block devices as AoE targets, for ``aoefs target``, the demo and the tests.

Owns what an export answers (``export``, pure), to whom (``access``), where its sectors are (``store``), and
how frames are served in batches (``server``, ``batch``).  It shares only ``protocol`` and ``net`` with the initiator.

Imports ``net`` and what is below it; of the world trio and the files that it exports.
Begin with ``export``.
"""
