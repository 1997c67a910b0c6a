"""The software target: files and block devices as AoE targets, for ``aoefs target``, the demo and the tests.

Owns what an export answers (``export``, a pure machine), where its sectors are kept (``store``), and how frames are
served in batches (``server``).  It shares nothing with the initiator but ``protocol`` and ``net``.

Imports ``net`` and what is below it; of the world trio, numpy and the files that it exports.
Begin with ``export``.
"""
