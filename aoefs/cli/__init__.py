"""The command line: which command, its options, and what a person gets to see when it goes wrong.

Owns the parsers, the man pages (``data``) and the commands, a module each in ``commands``.  What is heavy is imported
by the command that needs it, when it runs: ``--help`` waits for nobody.

Imports everything; nothing imports it.
Begin with ``main``.
"""
