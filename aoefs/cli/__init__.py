"""The command line.

Owns the parsers, the man pages (``data``), the error lines and exit codes, and the commands, each a module in
``commands``.  A command imports heavy modules (trio, pyfuse3, rich) when it runs, so that ``--help`` is fast.

Imports everything; nothing imports it.
Begin with ``main``.
"""
