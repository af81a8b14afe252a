"""Figures of a report as SVG elements inside the page: colours are CSS variables, so light and dark both work.

Every element of a contender has the class ``c0``, ``c1``, ...; the page hides those that the reader unchecks.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
from numpy.typing import NDArray

from diffsim.comparison.statistics import Estimate

Floats = NDArray[np.float64]

WIDTH, HEIGHT = 480, 300
LEFT, RIGHT, TOP, BOTTOM = 62, 14, 12, 44
DASHES = ("", "7 3", "2 3", "9 3 2 3")
"""Contenders that share a colour differ in their dashes."""
COLOURS = 8


@dataclass(frozen=True)
class Line:
    """One run: a polyline, and whether it failed at its end."""

    label: str
    x: Floats
    y: Floats
    failed: bool = False


@dataclass(frozen=True)
class Series:
    """What one contender shows in a figure: thin lines of runs, and a thick line."""

    number: int
    name: str
    lines: Sequence[Line] = ()
    x: Floats | None = None
    y: Floats | None = None
    steps: bool = False
    """Whether the thick line is a step curve."""

    @property
    def style(self) -> str:
        return f"c{self.number}"


@dataclass(frozen=True)
class Row:
    """A value with its interval in a figure of intervals."""

    number: int
    name: str
    value: Estimate


def nice_ticks(low: float, high: float, most: int = 5) -> list[float]:
    """At most about ``most`` round numbers within [low, high]."""
    span = high - low
    if not (span > 0 and math.isfinite(span)):
        return [low]
    raw = span / most
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * m for m in (1, 2, 2.5, 5, 10) if power * m >= raw * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    return [k * step for k in range(first, math.floor(high / step + 1e-9) + 1)]


def short(value: float) -> str:
    """A number on an axis: ``1.2M``, ``20k``, ``0.5``."""
    for bound, unit in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= bound:
            return f"{value / (1e3 if unit == 'k' else bound):.4g}{unit}".replace("-", "−")
    return f"{value:.4g}".replace("-", "−")


class Frame:
    """Axes with ticks, and the mapping from numbers to places."""

    def __init__(
        self,
        x: tuple[float, float],
        y: tuple[float, float],
        labels: tuple[str, str],
        height: int = HEIGHT,
        left: int = LEFT,
        y_ticks: bool = True,
    ) -> None:
        self.x, self.y, self.height, self.left = x, y, height, left
        self.right, self.bottom = WIDTH - RIGHT, height - BOTTOM
        self.parts: list[str] = []
        for tick in nice_ticks(*x):
            place = self.px(tick)
            self.parts.append(f'<path class="grid" d="M{place:.1f} {TOP}V{self.bottom}"/>')
            self.text(place, self.bottom + 16, short(tick), "middle")
        for tick in nice_ticks(*y) if y_ticks else ():
            place = self.py(tick)
            self.parts.append(f'<path class="grid" d="M{left} {place:.1f}H{self.right}"/>')
            self.text(left - 6, place + 4, short(tick), "end")
        self.text((left + self.right) / 2, height - 8, labels[0], "middle", "label")
        if labels[1]:
            at = (TOP + self.bottom) / 2
            self.parts.append(
                f'<text class="label" text-anchor="middle" transform="translate(13 {at:.0f}) rotate(-90)">'
                f"{escape(labels[1])}</text>"
            )

    def px(self, x: float) -> float:
        return self.left + (x - self.x[0]) / (self.x[1] - self.x[0]) * (self.right - self.left)

    def py(self, y: float) -> float:
        return self.bottom - (y - self.y[0]) / (self.y[1] - self.y[0]) * (self.bottom - TOP)

    def text(self, x: float, y: float, words: str, anchor: str, style: str = "") -> None:
        kind = f' class="{style}"' if style else ""
        self.parts.append(
            f'<text{kind} x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(words)}</text>'
        )

    def points(self, x: Floats, y: Floats) -> str:
        """Places of a polyline; what is outside of the axes is drawn to just outside of them, and cut there."""
        px = self.left + (x - self.x[0]) / (self.x[1] - self.x[0]) * (self.right - self.left)
        py = self.bottom - (y - self.y[0]) / (self.y[1] - self.y[0]) * (self.bottom - TOP)
        return " ".join(
            f"{a:.1f},{b:.1f}".replace(".0", "") for a, b in zip(px, np.clip(py, -999, 1999), strict=True)
        )

    def svg(self, words: str) -> str:
        """The whole figure; ``words`` is what a screen reader says."""
        body = "".join(self.parts)
        return (
            f'<svg viewBox="0 0 {WIDTH} {self.height}" role="img" aria-label="{escape(words)}">'
            f"<title>{escape(words)}</title>{body}</svg>"
        )


def curves(
    series: Sequence[Series],
    labels: tuple[str, str],
    words: str,
    x: tuple[float, float],
    y: tuple[float, float],
    mark: float | None = None,
    mark_label: str = "",
    most_points: int = 60,
) -> str:
    """Lines of runs and contenders over an axis; ``mark`` is a horizontal line."""
    frame = Frame(x, y, labels)
    inside = (
        f'<svg x="{frame.left}" y="{TOP}" width="{frame.right - frame.left}" height="{frame.bottom - TOP}" '
    )
    frame.parts.append(
        inside + f'viewBox="{frame.left} {TOP} {frame.right - frame.left} {frame.bottom - TOP}">'
    )
    if mark is not None and y[0] <= mark <= y[1]:
        place = frame.py(mark)
        frame.parts.append(f'<path class="mark" d="M{frame.left} {place:.1f}H{frame.right}"/>')
        frame.text(frame.right - 4, place - 5 if place > 30 else place + 14, mark_label, "end", "quiet")
    for one in series:
        frame.parts.append(f'<g class="c {one.style}">')
        for line in one.lines:
            lx, ly = thinned(line.x, line.y, most_points)
            title = f"<title>{escape(one.name)}, {escape(line.label)}</title>"
            frame.parts.append(f'<polyline class="run" points="{frame.points(lx, ly)}">{title}</polyline>')
            if line.failed and len(lx):
                a, b = (
                    frame.px(float(lx[-1])),
                    float(np.clip(frame.py(float(ly[-1])), TOP + 5, frame.bottom - 5)),
                )
                frame.parts.append(
                    f'<path class="cross" d="M{a - 4:.1f} {b - 4:.1f}l8 8m0 -8l-8 8">{title}</path>'
                )
        frame.parts.append("</g>")
    for one in series:  # above all runs
        if one.x is not None and one.y is not None and len(one.x):
            gx, gy = stepped(one.x, one.y) if one.steps else (one.x, one.y)
            dash = f' stroke-dasharray="{d}"' if (d := DASHES[one.number // COLOURS % len(DASHES)]) else ""
            frame.parts.append(
                f'<g class="c {one.style}"><polyline class="middle"{dash} points="{frame.points(gx, gy)}">'
                f"<title>{escape(one.name)}</title></polyline></g>"
            )
    frame.parts.append("</svg>")
    return frame.svg(words)


def intervals(
    rows: Sequence[Row], label: str, words: str, x: tuple[float, float], marks: Iterable[float] = ()
) -> str:
    """Dots with their intervals, one contender a line, on a common axis."""
    height = TOP + BOTTOM + 46 * len(rows)
    frame = Frame(x, (0, 1), (label, ""), height, left=14, y_ticks=False)
    for mark in marks:
        if x[0] <= mark <= x[1]:
            frame.parts.append(f'<path class="mark" d="M{frame.px(mark):.1f} {TOP}V{frame.bottom}"/>')
    for place, row in enumerate(rows):
        y, value = TOP + 46 * place + 34, row.value
        frame.parts.append(f'<g class="c c{row.number}">')
        frame.text(frame.left + 2, y - 14, _fitted(row.name), "start", "name")
        frame.text(frame.right, y - 14, numbers(value), "end", "quiet")
        low, high = (
            frame.px(min(max(end, x[0]), x[1])) if not math.isnan(end) else None
            for end in (value.low, value.high)
        )
        if low is not None and high is not None:
            frame.parts.append(f'<path class="interval" d="M{low:.1f} {y}H{high:.1f}"/>')
        if x[0] <= value.value <= x[1]:
            frame.parts.append(f'<circle class="dot" cx="{frame.px(value.value):.1f}" cy="{y}" r="6"/>')
        frame.parts.append("</g>")
    return frame.svg(words)


def numbers(value: Estimate) -> str:
    """``0.93 [0.85, 0.98]``."""
    if math.isnan(value.value):
        return "not known"
    if math.isnan(value.low):
        return short3(value.value)
    return f"{short3(value.value)} [{short3(value.low)}, {short3(value.high)}]"


def short3(value: float) -> str:
    """Three significant digits, of large numbers with a unit."""
    if math.isnan(value):
        return "–"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    for bound, unit in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= bound:
            return f"{value / (1e3 if unit == 'k' else bound):.3g}{unit}".replace("-", "−")
    text = f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return text.replace("-", "−")


def thinned(x: Floats, y: Floats, most: int) -> tuple[Floats, Floats]:
    """At most ``most`` points of a line, first and last among them."""
    if len(x) <= most:
        return x, y
    kept = np.unique(np.linspace(0, len(x) - 1, most).round().astype(int))
    return x[kept], y[kept]


def stepped(x: Floats, y: Floats) -> tuple[Floats, Floats]:
    """The corners of a step curve that has the value ``y[i]`` from ``x[i]`` on."""
    return np.repeat(x, 2)[1:], np.repeat(y, 2)[:-1]


def score_range(values: Iterable[Floats], marks: Iterable[float]) -> tuple[float, float]:
    """A range of the y axis that shows where curves end, the marks, and not the depth of a first fall.

    From the tenth part of all values to the largest.  What lies below is cut off in the figure and is in its table.
    """
    pooled = np.concatenate([np.asarray(v, dtype=np.float64) for v in values] or [np.zeros(1)])
    pooled = pooled[np.isfinite(pooled)]
    shown = [float(m) for m in marks if math.isfinite(m)]
    if not len(pooled):
        pooled = np.array(shown or [0.0])
    low = min([float(np.quantile(pooled, 0.1)), *shown])
    high = max([float(pooled.max()), *shown])
    room = 0.05 * (high - low) or max(abs(high), 1.0) * 0.05
    return low - room, high + room


def _fitted(name: str, most: int = 34) -> str:
    return name if len(name) <= most else name[: most - 1] + "…"
