"""aoefs: every ATA-over-Ethernet disk of the local network as a file."""

__version__ = "0.1.0"


def is_compiled() -> bool:
    """Whether the modules of the hot path run as machine code: all of them, or none.  Imports none of them."""
    from importlib.util import find_spec

    spec = find_spec("aoefs.core.target")
    return spec is not None and not str(spec.origin).endswith(".py")
