"""aoefs: every ATA-over-Ethernet disk of the local network as a file."""

__version__ = "0.1.0"
