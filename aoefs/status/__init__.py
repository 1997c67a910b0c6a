"""What people and programs get to see: frozen records of the engine in, text, JSON and metrics out.

Owns the event ring, the JSON of ``status`` and ``discover``, the Prometheus metrics and the console.  Nothing here
changes anything of a mount.

Imports ``engine`` and what is below it; of the world rich, prometheus_client and the terminal.
Begin with ``report``.
"""
