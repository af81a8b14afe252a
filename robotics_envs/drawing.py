"""Pictures of simulators as data: shapes in world units, a view of the world, and their rasterisation.

``Env.draw`` gives the shapes of one state.  The same shapes become pixels here (:func:`rasterise`, which
needs Pillow) and an animation in the browser, so a simulator describes its picture once.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from lazy_registry.installation import install_command

Floats: TypeAlias = NDArray[np.floating[Any]]
Point: TypeAlias = Sequence[float] | Floats
"""``(right, up)`` in a plane, or ``(x, y, z)`` in space, in metres or what the view is in."""

COLOURS = {
    "ink": "#2b2d42",
    "body": "#3d6fb4",
    "limb": "#e07a3f",
    "joint": "#2b2d42",
    "force": "#c0392b",
    "target": "#2a9d5c",
    "ground": "#b8bcc8",
    "faint": "#dfe2ea",
    "hot": "#d62828",
    "cold": "#4895ef",
}
"""The palette. Shapes name colours of it, so that pictures of all simulators have one style."""
BACKGROUND = "#ffffff"


@dataclass(frozen=True)
class View:
    """The visible rectangle ``(right, up)`` of the world, and the camera's direction for scenes in space.

    Points in space are projected orthographically along the line of sight of a camera at ``azimuth``
    and ``elevation`` degrees about the origin (z up; azimuth 0 looks along -x, so y points right).
    """

    low: tuple[float, float]
    high: tuple[float, float]
    azimuth: float = -60.0
    elevation: float = 20.0

    def __post_init__(self) -> None:
        if not all(math.isfinite(a) and a < b < math.inf for a, b in zip(self.low, self.high, strict=True)):
            raise ValueError(f"a view needs finite corners with low < high, got {self.low} and {self.high}")

    def project(self, points: Iterable[Point]) -> Floats:
        """Points ``[k, 2]`` or ``[k, 3]`` as ``[k, 2]``: right and up in the picture, in world units."""
        array = np.asarray(list(points), dtype=float)
        if array.ndim != 2 or array.shape[1] not in (2, 3):
            raise ValueError(f"points are pairs or triples of numbers, got an array of shape {array.shape}")
        return array if array.shape[1] == 2 else array @ _axes(self.azimuth, self.elevation)


@functools.lru_cache(maxsize=64)
def _axes(azimuth: float, elevation: float) -> Floats:
    a, e = math.radians(azimuth), math.radians(elevation)
    right = (-math.sin(a), math.cos(a), 0.0)
    up = (-math.sin(e) * math.cos(a), -math.sin(e) * math.sin(a), math.cos(e))
    return np.array((right, up)).T


@dataclass(frozen=True)
class Line:
    """A polyline; ``width`` in world units, 0 for a hairline."""

    points: Sequence[Point] | Floats
    colour: str = "ink"
    width: float = 0.0


@dataclass(frozen=True)
class Polygon:
    """A filled polygon."""

    points: Sequence[Point] | Floats
    colour: str = "body"


@dataclass(frozen=True)
class Circle:
    """A disc, or a ring where it is not ``filled``; ``radius`` in world units."""

    centre: Point
    radius: float
    colour: str = "joint"
    filled: bool = True


@dataclass(frozen=True)
class Text:
    """A short text that starts at a point; ``size`` is its height in world units."""

    at: Point
    text: str
    size: float
    colour: str = "ink"


Shape: TypeAlias = Line | Polygon | Circle | Text


def flatten(shapes: Iterable[Shape], view: View) -> list[dict[str, Any]]:
    """Shapes as plain data in the picture's plane, ready for JSON.

    Each is ``{"kind", "points" [[right, up], …], "colour"}`` and ``width``, ``radius`` and ``filled``, or
    ``text`` and ``size`` as its kind has them.

    Raises:
        ValueError: an unknown colour, a point that is not finite, or an object that is no shape.
    """
    plain: list[dict[str, Any]] = []
    for shape in shapes:
        if isinstance(shape, Line):
            points, more = shape.points, {"kind": "line", "width": float(shape.width)}
        elif isinstance(shape, Polygon):
            points, more = shape.points, {"kind": "polygon"}
        elif isinstance(shape, Circle):
            more = {"kind": "circle", "radius": float(shape.radius), "filled": bool(shape.filled)}
            points = [shape.centre]
        elif isinstance(shape, Text):
            points, more = [shape.at], {"kind": "text", "text": str(shape.text), "size": float(shape.size)}
        else:
            raise ValueError(f"draw gives Line, Polygon, Circle and Text, not {shape!r}")
        if shape.colour not in COLOURS:
            raise ValueError(f"unknown colour {shape.colour!r}; known: {', '.join(sorted(COLOURS))}")
        where = view.project(points)
        if not np.isfinite(where).all():
            raise ValueError(f"a {more['kind']} has a point that is not finite: {where.tolist()}")
        plain.append({**more, "points": where.tolist(), "colour": shape.colour})
    return plain


def state_bars(x: Floats, names: Sequence[str], low: Sequence[float], high: Sequence[float]) -> list[Shape]:
    """A horizontal bar for each state, scaled to its bounds: the default picture of a simulator."""
    shapes: list[Shape] = [Line([(0.0, -1.1), (0.0, 1.1)], "faint")]
    height = 2.2 / len(names)
    for i, (name, value, a, b) in enumerate(zip(names, x, low, high, strict=True)):
        top = 1.1 - i * height
        reach = max(abs(a), abs(b)) or 1.0
        end = float(np.clip(value / reach, -1.15, 1.15))
        middle = top - 0.5 * height
        shapes.append(Line([(0.0, middle), (end, middle)], "body", 0.5 * height))
        shapes.append(Text((-1.15, middle - 0.2 * height), name, min(0.4 * height, 0.1)))
    return shapes


def rasterise(
    shapes: Iterable[Shape], view: View, width: int = 480, height: int | None = None
) -> NDArray[np.uint8]:
    """Pixels ``[height, width, 3]`` of the shapes in order; the view is centred, its aspect ratio kept.

    ``height`` follows from the view's aspect ratio if not given.

    Raises:
        ModuleNotFoundError: Pillow is not installed.
    """
    try:
        from PIL import Image, ImageDraw, ImageFont
    except ModuleNotFoundError:
        raise ModuleNotFoundError(f"drawing needs Pillow: {install_command('render')}") from None
    (left, bottom), (right, top) = view.low, view.high
    if height is None:
        height = max(2, round(width * (top - bottom) / (right - left)))
    fine = 2  # drawn at twice the size and scaled down, which smooths edges
    scale = fine * min(width / (right - left), height / (top - bottom))
    middle = ((left + right) / 2, (bottom + top) / 2)
    image = Image.new("RGB", (fine * width, fine * height), BACKGROUND)
    pen = ImageDraw.Draw(image)

    def pixels(points: Any) -> list[tuple[float, float]]:
        return [
            (fine * width / 2 + scale * (x - middle[0]), fine * height / 2 - scale * (y - middle[1]))
            for x, y in points
        ]

    for shape in flatten(shapes, view):
        points, colour = pixels(shape["points"]), COLOURS[shape["colour"]]
        if shape["kind"] == "line":
            thick = max(fine, round(scale * shape["width"]))
            pen.line(points, fill=colour, width=thick, joint="curve")
            if thick > 2 * fine:  # round ends, as the browser draws them
                for x, y in (points[0], points[-1]):
                    pen.ellipse((x - thick / 2, y - thick / 2, x + thick / 2, y + thick / 2), fill=colour)
        elif shape["kind"] == "polygon":
            pen.polygon(points, fill=colour)
        elif shape["kind"] == "circle":
            (x, y), r = points[0], max(scale * shape["radius"], 1.0)
            where = (x - r, y - r, x + r, y + r)
            if shape["filled"]:
                pen.ellipse(where, fill=colour)
            else:
                pen.ellipse(where, outline=colour, width=fine)
        else:
            font = ImageFont.load_default(max(6.0, scale * shape["size"]))
            pen.text(points[0], shape["text"], fill=colour, font=font, anchor="ls")
    return np.asarray(image.resize((width, height), Image.Resampling.BOX), dtype=np.uint8)
