"""Sizes in words for people, here since the log of the engine has them too.  Pure."""

from __future__ import annotations


def three_digits(value: float) -> str:
    """A number below 999.5 with three significant digits, in at most four characters: ``1.00``, ``10.0``, ``999``."""
    return f"{value:.{2 if value < 9.995 else 1 if value < 99.95 else 0}f}"


def format_size(size: float) -> str:
    """Bytes with a binary unit and three significant digits: ``1.00 GiB``."""
    value, units = float(round(size)), ["B", "KiB", "MiB", "GiB", "TiB", "PiB"]
    while value >= 999.5 and len(units) > 1:
        value /= 1024
        units.pop(0)
    return f"{value:.0f} B" if units[0] == "B" else f"{three_digits(value)} {units[0]}"
