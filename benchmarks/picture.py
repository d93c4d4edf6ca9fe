"""The SVG picture of a run: horizontal bars of ratios, each beside the line of its goal.

Rules: plain SVG that a browser shows on light and on dark ground; the axis is logarithmic, so that twice
and half are equally far from 1. Nothing here knows where the numbers come from.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH = 860
LABEL = 400
ROW = 26
TOP = 46
BOTTOM = 14
BAR = 16
GREEN, RED, GREY = "#2a9d5c", "#c8553d", "#888888"
TICKS = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)


@dataclass(frozen=True)
class Bar:
    """value and goal: ratios above zero; good: the goal was reached."""

    label: str
    value: float
    goal: float
    good: bool


def bars(title: str, rows: Sequence[Bar]) -> str:
    """An SVG document."""
    height = TOP + ROW * len(rows) + BOTTOM
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" '
        f'viewBox="0 0 {WIDTH} {height}" font-family="sans-serif" font-size="13" fill="{GREY}">',
        f"<title>{escape(title)}</title>",
        f'<text x="8" y="18" font-weight="bold">{escape(title)}</text>',
    ]
    for tick in TICKS:
        x = _x(tick)
        lines += [
            f'<line x1="{x}" y1="{TOP}" x2="{x}" y2="{height - BOTTOM}" stroke="{GREY}" '
            f'stroke-opacity="{0.9 if tick == 1 else 0.25}"/>',
            f'<text x="{x}" y="{TOP - 6}" text-anchor="middle" font-size="11">{tick:g}</text>',
        ]
    for index, row in enumerate(rows):
        lines += _row(row, TOP + ROW * index + (ROW - BAR) / 2)
    return "\n".join([*lines, "</svg>", ""])


def _row(row: Bar, y: float) -> list[str]:
    colour = GREEN if row.good else RED
    start, end, goal = sorted((_x(1.0), _x(row.value))) + [_x(row.goal)]
    return [
        f'<text x="{LABEL - 10}" y="{y + 12}" text-anchor="end">{escape(row.label)}</text>',
        f'<rect x="{start}" y="{y}" width="{max(1.0, round(end - start, 1))}" height="{BAR}" '
        f'fill="{colour}" fill-opacity="0.8"/>',
        f'<line x1="{goal}" y1="{y - 3}" x2="{goal}" y2="{y + BAR + 3}" stroke="{colour}" '
        'stroke-width="3"/>',
        f'<text x="{WIDTH - 6}" y="{y + 12}" text-anchor="end">{row.value:.2f}</text>',
    ]


def _x(ratio: float) -> float:
    """Where a ratio is on the axis; what is beyond its ends is drawn at them."""
    low, high = math.log(TICKS[0]), math.log(TICKS[-1])
    place = (min(max(math.log(ratio), low), high) - low) / (high - low)
    return round(LABEL + place * (WIDTH - LABEL - 56), 1)
