"""Text for people: what may reach a terminal or a log, and figures of a fixed width.

What always holds: text of the network or the system (config strings, models, names of interfaces and processes) is
shown only as :func:`printable` returns it.  The last step sees to that, and nothing before it: lines
(:func:`to_stdout`, :func:`to_stderr`), tables (``status.tables``), the console (``status.layout``) and the log
(``host.systemlog``).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from aoefs.protocol.units import three_digits

BARS = "▁▂▃▄▅▆▇"  # not the full block: rows would fuse


def printable(value: object) -> str:
    """The text without anything that a terminal would obey: control characters become ``\\x1b`` and the like."""
    text = str(value)
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else f"\\x{ord(char):02x}" for char in text)


def printable_lines(text: str) -> str:
    """The same with line ends as they are."""
    return "\n".join(map(printable, text.split("\n")))


def one_line(text: str) -> str:
    """The text with every run of white space as one blank."""
    return " ".join(text.split())


def to_stdout(text: str) -> None:
    """Print lines that were asked for, at once."""
    print(printable_lines(text), flush=True)


def to_stderr(message: str) -> None:
    """Print one line for a person: ``aoefs: message``."""
    print(f"aoefs: {printable(one_line(message))}", file=sys.stderr)


def format_count(count: float) -> str:
    """At most five characters: ``0``, ``9999``, ``12.3k``, ``456M``."""
    if count < 9999.5:
        return f"{count:.0f}"
    power = 1
    while count >= 999.5 * 1000**power and power < 4:
        power += 1
    count /= 1000**power
    return f"{count:.{1 if count < 99.95 else 0}f}{'kMGT'[power - 1]}"


def format_us(microseconds: float | None) -> str:
    """At most six characters: ``85µs``, ``1.23ms``, ``12.3s``, and ``-`` for what was not measured."""
    if not microseconds:
        return "-"
    if microseconds < 999.5:
        return f"{microseconds:.0f}µs"
    value, unit = (microseconds / 1e3, "ms") if microseconds < 999.5e3 else (microseconds / 1e6, "s")
    return f"{three_digits(value)}{unit}"


def sparkline(values: Sequence[float], width: int, top: float = 0.0) -> str:
    """The last ``width`` values as bars.  ``top`` or the largest is full; zero, and nothing else, is the lowest."""
    shown = list(values)[-width:] if width > 0 else []
    top = max(shown, default=top) if top == 0 else max(top, *shown, 0.0)
    bars = (BARS[max(1, round(value / top * (len(BARS) - 1)))] if value > 0 else BARS[0] for value in shown)
    return "".join(bars).rjust(width)
