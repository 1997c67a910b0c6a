"""The benchmark as one picture: how many times as fast as the others aoefs is, a dot for each workload.

All dots are on one logarithmic axis: as far to the right of the line at 1 as a workload is faster, by the medians.  The
workloads of a group (what stands before the colon) are together.  Times, memory and shares have no dot.
"""

from __future__ import annotations

import itertools
import math
import re
import statistics
from html import escape

_COLOURS = {"before": "#93c5fd", "nbdfuse": "#d97706", "C": "#4b5563", "vblade": "#059669"}
_LABELS = {"C": "a C client without FUSE", "before": "aoefs before"}
_FASTER = re.compile(r" \((?:MB/s|IOPS|frames/s)\)$")
_TICKS = (0.2, 0.5, 1, 2, 4)
_LEFT, _WIDTH, _ROW, _TOP = 300, 440, 19, 58


def draw(results: dict[str, dict[str, list[float]]]) -> str:
    """An SVG document."""
    rows = [
        (
            *_FASTER.sub("", workload).rpartition(": ")[::2],
            {name: statistics.median(them) for name, them in row.items()},
        )
        for workload, row in results.items()
        if _FASTER.search(workload) and "aoefs" in row and len(row) > 1
    ]
    y = _TOP
    dots: list[str] = []
    for group, members in itertools.groupby(rows, key=lambda row: row[0]):
        y += _ROW // 2
        dots.append(f'<text x="12" y="{y + 4}" font-weight="bold">{escape(group)}</text>')
        y += _ROW
        for _, workload, medians in members:
            dots.append(f'<text x="{_LEFT - 14}" y="{y + 4}" text-anchor="end">{escape(workload)}</text>')
            dots.append(f'<line x1="{_LEFT}" x2="{_LEFT + _WIDTH}" y1="{y}" y2="{y}" stroke="#eee"/>')
            for name, median in medians.items():
                if name != "aoefs":
                    dots.append(_dot(medians["aoefs"] / median, y, name))
            y += _ROW
    axis = [_tick(value, y) for value in _TICKS]
    others = dict.fromkeys(name for *_, medians in rows for name in medians if name != "aoefs")
    key = ['<text x="12" y="20" font-size="14" font-weight="bold">aoefs: how many times as fast as ...</text>']
    for number, name in enumerate(others):
        x = _LEFT + 20 + number * 165
        key.append(f'<circle cx="{x}" cy="16" r="5" fill="{_COLOURS[name]}"/>')
        key.append(f'<text x="{x + 10}" y="20">{escape(_LABELS.get(name, name))}</text>')
    size = f'width="{_LEFT + _WIDTH + 30}" height="{y + 12}"'
    style = "font: 12px sans-serif; background: white"
    body = "\n".join((*key, *axis, *dots))
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size} style="{style}">\n{body}\n</svg>\n'


def _x(ratio: float) -> float:
    """Where a ratio is on the axis; what is beyond its ends is at them."""
    span = math.log(_TICKS[-1] / _TICKS[0])
    return round(_LEFT + _WIDTH * min(1.0, max(0.0, math.log(ratio / _TICKS[0]) / span)), 1)


def _dot(ratio: float, y: int, name: str) -> str:
    title = f"<title>{ratio:.2f} of {escape(name)}</title>"
    return f'<circle cx="{_x(ratio)}" cy="{y}" r="5" fill="{_COLOURS[name]}" fill-opacity=".85">{title}</circle>'


def _tick(value: float, bottom: int) -> str:
    x = _x(value)
    line = 'stroke="#111" stroke-width="1.5"' if value == 1 else 'stroke="#ccc"'
    label = f'<text x="{x}" y="{_TOP - 10}" text-anchor="middle">{value:g}</text>'
    return f'{label}<line x1="{x}" x2="{x}" y1="{_TOP - 4}" y2="{bottom}" {line}/>'
