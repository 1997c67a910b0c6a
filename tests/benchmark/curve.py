"""How reads grow with the processes of a mount, as one picture: a line for each workload, as many times as one process.

The dashed line is what as many processors would give.
"""

from __future__ import annotations

import statistics
from html import escape

from tests.benchmark.contenders import Results
from tests.benchmark.workers import WORKERS

_COLOURS = ("#2563eb", "#60a5fa", "#d97706", "#78350f")
_LEFT, _TOP, _WIDTH, _HEIGHT, _MOST = 44, 20, 400, 220, 4


def draw(results: Results) -> str:
    """An SVG document."""
    rows = {
        workload: [statistics.median(row[name]) for name in map(_name, WORKERS)]
        for workload, row in results.items()
        if all(_name(count) in row for count in WORKERS) and workload.endswith(("(IOPS)", "(MB/s)"))
    }
    parts = [_line([1, _MOST], [(1, 1), (_MOST, _MOST)], "#999", "4 4", "linear")]
    for tick in range(1, _MOST + 1):
        x, y = _at(tick, tick)
        parts.append(f'<text x="{x}" y="{_TOP + _HEIGHT + 18}" text-anchor="middle">{tick}</text>')
        parts.append(f'<text x="{_LEFT - 8}" y="{y + 4}" text-anchor="end">{tick}</text>')
        parts.append(f'<line x1="{_LEFT}" x2="{_LEFT + _WIDTH}" y1="{y}" y2="{y}" stroke="#eee"/>')
    for number, (workload, medians) in enumerate(rows.items()):
        points = [(count, median / medians[0]) for count, median in zip(WORKERS, medians, strict=True)]
        colour = _COLOURS[number % len(_COLOURS)]
        parts.append(_line(medians, points, colour, "", workload))
        parts.append(
            f'<text x="{_LEFT + _WIDTH + 14}" y="{_TOP + 14 + 20 * number}" fill="{colour}">{escape(workload)}</text>'
        )
    parts.append(f'<text x="{_LEFT + _WIDTH / 2}" y="{_TOP + _HEIGHT + 36}" text-anchor="middle">processes</text>')
    style = "font: 12px sans-serif; background: white"
    size = f'width="{_LEFT + _WIDTH + 400}" height="{_TOP + _HEIGHT + 44}"'
    body = "\n".join(parts)
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size} style="{style}">\n{body}\n</svg>\n'


def _name(count: int) -> str:
    return f"{count} worker{'s' * (count > 1)}"


def _at(count: float, times: float) -> tuple[float, float]:
    x = _LEFT + _WIDTH * (count - 1) / (_MOST - 1)
    return round(x, 1), round(_TOP + _HEIGHT * (1 - min(times, _MOST) / _MOST), 1)


def _line(medians: list[float], points: list[tuple[int, float]], colour: str, dashes: str, title: str) -> str:
    path = " ".join(f"{x},{y}" for x, y in (_at(*point) for point in points))
    shown = ", ".join(f"{median:.0f}" for median in medians)
    return (
        f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2" stroke-dasharray="{dashes}">'
        f"<title>{escape(title)}: {shown}</title></polyline>"
    )
