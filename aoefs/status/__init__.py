"""What people and programs see of a mount: frozen records of the engine in, text, JSON and metrics out.

Owns the JSON of ``status`` and ``discover`` (``report``), its past (``history``), the console (``columns`` in a
``layout``), the ring of events, the metrics of Prometheus and the terminal.  Changes nothing in a mount.

Imports ``engine`` and what is below it; of the world rich, prometheus_client and the terminal.
Begin with ``report``, then ``console``.
"""
