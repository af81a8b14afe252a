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
from robotics_envs.solids import Floats, Point, Solid, painted, shaded

GROUND_RADIUS = 1.6
"""Radius of what is seen of a plane in space, in half widths of the view."""

COLOURS = {
    "ink": "#2b2d42",
    "body": "#3d6fb4",
    "limb": "#e07a3f",
    "other_limb": "#8b62b0",
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
    and ``elevation`` degrees about ``focus``, which is at (0, 0) of the rectangle (z up; azimuth 0 looks along -x, so
    y points right).  Points of a plane, ``(right, up)``, are of the picture and do not move with the focus.
    """

    low: tuple[float, float]
    high: tuple[float, float]
    azimuth: float = -60.0
    elevation: float = 20.0
    focus: tuple[float, float, float] = (0.0, 0.0, 0.0)

    def __post_init__(self) -> None:
        if not all(math.isfinite(a) and a < b < math.inf for a, b in zip(self.low, self.high, strict=True)):
            raise ValueError(f"a view needs finite corners with low < high, got {self.low} and {self.high}")

    def project(self, points: Iterable[Point]) -> Floats:
        """Points ``[k, 2]`` or ``[k, 3]`` as ``[k, 2]``: right and up in the picture, in world units."""
        array = _points(points)
        return array if array.shape[1] == 2 else (array - self.focus) @ self.axes[:2].T

    @property
    def axes(self) -> Floats:
        """Right, up and toward the viewer, as rows ``[3, 3]`` in the axes of the world."""
        return _axes(self.azimuth, self.elevation)


def _points(points: Iterable[Point]) -> Floats:
    array = np.asarray(list(points), dtype=float)
    if array.ndim != 2 or array.shape[1] not in (2, 3):
        raise ValueError(f"points are pairs or triples of numbers, got an array of shape {array.shape}")
    return array


@functools.lru_cache(maxsize=64)
def _axes(azimuth: float, elevation: float) -> Floats:
    a, e = math.radians(azimuth), math.radians(elevation)
    right = (-math.sin(a), math.cos(a), 0.0)
    up = (-math.sin(e) * math.cos(a), -math.sin(e) * math.sin(a), math.cos(e))
    toward = (math.cos(e) * math.cos(a), math.cos(e) * math.sin(a), math.sin(e))
    return np.array((right, up, toward))


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


Shape: TypeAlias = Line | Polygon | Circle | Text | Solid


def as_data(shapes: Iterable[Shape]) -> list[dict[str, Any]]:
    """Shapes as plain data in world units.

    Each is ``{"kind", "points" [k, 2 or 3], "colour"}`` and ``width``, ``radius`` and ``filled``, or ``text`` and
    ``size`` as its kind has them; a solid has ``"form", "size", "position" [3], "rotation" [3, 3], "behind"`` instead
    of points.

    Raises:
        ValueError: an unknown colour, a point that is not finite, or an object that is no shape.
    """
    plain: list[dict[str, Any]] = []
    for shape in shapes:
        more: dict[str, Any]
        if isinstance(shape, Line):
            points, more = shape.points, {"kind": "line", "width": float(shape.width)}
        elif isinstance(shape, Polygon):
            points, more = shape.points, {"kind": "polygon"}
        elif isinstance(shape, Circle):
            more = {"kind": "circle", "radius": float(shape.radius), "filled": bool(shape.filled)}
            points = [shape.centre]
        elif isinstance(shape, Text):
            points, more = [shape.at], {"kind": "text", "text": str(shape.text), "size": float(shape.size)}
        elif isinstance(shape, Solid):
            position, rotation = shape.checked()
            size = tuple(float(s) for s in shape.size)
            points = [position]
            more = {"kind": "solid", "form": shape.form, "size": size, "behind": float(shape.behind)}
            more |= {"position": position, "rotation": rotation}
        else:
            raise ValueError(f"draw gives Line, Polygon, Circle, Text and Solid, not {shape!r}")
        if shape.colour not in COLOURS:
            raise ValueError(f"unknown colour {shape.colour!r}; known: {', '.join(sorted(COLOURS))}")
        where = _points(points)
        if not np.isfinite(where).all():
            raise ValueError(f"a {more['kind']} has a point that is not finite: {where.tolist()}")
        place = {} if more["kind"] == "solid" else {"points": where}
        plain.append({**more, **place, "colour": shape.colour})
    return plain


def flatten(shapes: Iterable[Shape], view: View) -> list[dict[str, Any]]:
    """Shapes as plain data in the picture's plane, ready for JSON, in the order in which they are painted.

    As :func:`as_data`, with points ``[right, up]``.  Solids are polygons with a ``shade``, a factor of their colour's
    brightness; where there are any, shapes in space are in the order of their depth, and planes behind all.

    Raises:
        ValueError: as :func:`as_data`.
    """
    plain = as_data(shapes)
    in_space = any(shape["kind"] == "solid" for shape in plain)
    for shape in plain:
        if shape["kind"] == "solid":
            continue
        points = shape["points"]
        if in_space:
            flat = points.shape[1] == 2  # of the picture: in front of everything
            toward = view.axes[2]
            shape["depth"] = math.inf if flat else float(((points - view.focus) @ toward).mean())
        shape["points"] = view.project(points).tolist()
    if not in_space:
        return plain
    radius = GROUND_RADIUS * (view.high[0] - view.low[0]) / 2
    ordered = painted(plain, view.axes, np.array(view.focus), radius)
    for shape in ordered:
        del shape["depth"]
    return ordered


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
        points, colour = pixels(shape["points"]), shaded(COLOURS[shape["colour"]], shape.get("shade", 1.0))
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
