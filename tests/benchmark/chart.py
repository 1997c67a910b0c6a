"""The medians of a benchmark as one SVG document: a bar for each contender, relative to the best of its workload."""

from __future__ import annotations

import statistics
from html import escape

_COLOURS = {"aoefs": "#2563eb", "before": "#93c5fd", "nbdfuse": "#d97706", "C": "#6b7280", "vblade": "#059669"}
_ROW, _BAR, _LEFT, _WIDTH = 16, 12, 330, 420


def draw(results: dict[str, dict[str, list[float]]]) -> str:
    """An SVG document; workloads with one contender only are left out."""
    lines: list[str] = []
    y = 24
    for workload, row in results.items():
        if len(row) < 2:
            continue
        medians = {name: statistics.median(figures) for name, figures in row.items()}
        best = max(medians.values())
        lines.append(f'<text x="{_LEFT - 10}" y="{y + 11}" text-anchor="end">{escape(workload)}</text>')
        for name, median in medians.items():
            width = max(1, round(median / best * _WIDTH))
            colour = _COLOURS.get(name, "#111827")
            lines.append(f'<rect x="{_LEFT}" y="{y}" width="{width}" height="{_BAR}" fill="{colour}"/>')
            figure = f"{median:.3g}" if median < 10 else f"{median:.0f}"
            lines.append(f'<text x="{_LEFT + width + 6}" y="{y + 10}">{escape(name)} {figure}</text>')
            y += _ROW
        y += 8
    size = f'width="{_LEFT + _WIDTH + 140}" height="{y + 8}"'
    style = "font: 11px sans-serif; background: white"
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size} style="{style}">\n' + "\n".join(lines) + "\n</svg>\n"
