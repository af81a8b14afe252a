"""Solids in space as pictures: surfaces of flat faces, shaded by orientation and painted from back to front.

A plane is the ground, or a wall: a disc around the point that the camera looks at, with a grid that stands still in
the world and the shadows of what is in front of it (parallel to its normal).  Faces are shaded by a light that moves
with the camera.  The page in the browser paints the same faces by the same rules (``diffsim/rendering/viewer.html``).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

Floats: TypeAlias = NDArray[np.floating[Any]]
Point: TypeAlias = Sequence[float] | Floats
Form: TypeAlias = Literal["plane", "sphere", "capsule", "ellipsoid", "cylinder", "box"]

FORMS: tuple[str, ...] = ("plane", "sphere", "capsule", "ellipsoid", "cylinder", "box")
LIGHT = (-0.40, 0.55, 0.73)
"""Where the light comes from: right, up and toward the viewer, of length 1."""
DARKEST, LIGHTEST = 0.55, 1.08
"""Brightness of faces that no light meets, and of those that face it."""
SHADES = 16
"""Levels of brightness: few, so that a GIF holds them all."""
GRID, SHADOW = 0.93, 0.82
"""Brightness of the lines and shadows of a plane."""
_DISC = 72  # corners of the disc of a plane
_LINES = 6  # of the grid, about, between the middle of the disc and its rim

_IDENTITY = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))


@dataclass(frozen=True)
class Solid:
    """A solid, with the sizes of MuJoCo's geoms.

    ``size`` is the radius of a sphere; radius and half length of a capsule or cylinder along its z axis; half axes of
    an ellipsoid; half sides of a box.  A plane has none: it has no end, and its normal is its z axis.  ``rotation`` are
    the rows of the matrix from the solid's axes to the world's.  ``behind`` moves a solid back by so much where solids
    are put in order, which decides between two in the same place.
    """

    form: Form
    size: Sequence[float] = ()
    position: Point = (0.0, 0.0, 0.0)
    rotation: Sequence[Sequence[float]] | Floats = field(default=_IDENTITY)
    colour: str = "body"
    behind: float = 0.0

    def checked(self) -> tuple[Floats, Floats]:
        """Position and rotation as arrays.

        Raises:
            ValueError: an unknown form, a size that it does not have, or a pose that is not finite.
        """
        if self.form not in FORMS:
            raise ValueError(f"unknown form {self.form!r} of a solid; known: {', '.join(FORMS)}")
        needed = {"plane": 0, "sphere": 1, "capsule": 2, "cylinder": 2}.get(self.form, 3)
        size = tuple(float(s) for s in self.size[:needed])
        if len(size) < needed or not all(s > 0 and math.isfinite(s) for s in size):
            raise ValueError(f"a {self.form} needs {needed} sizes above 0, got {tuple(self.size)}")
        position, rotation = np.asarray(self.position, float), np.asarray(self.rotation, float)
        if position.shape != (3,) or rotation.shape != (3, 3):
            raise ValueError(
                f"a {self.form} has a position of 3 and a rotation of 3 x 3 numbers, "
                f"got {position.shape} and {rotation.shape}"
            )
        if not (np.isfinite(position).all() and np.isfinite(rotation).all()):
            raise ValueError(f"a {self.form} has a pose that is not finite: {position.tolist()}")
        return position, rotation


@dataclass(frozen=True)
class Surface:
    """Vertices ``[k, 3]``, convex faces (indices, anticlockwise from outside), their normals and centres ``[f, 3]``."""

    vertices: Floats
    faces: tuple[tuple[int, ...], ...]
    normals: Floats
    centres: Floats


def surface(form: Form, size: Sequence[float]) -> Surface:
    """The surface of a solid in its own axes; of round ones, a polyhedron inside it."""
    return _surface(form, tuple(float(s) for s in size))


@functools.lru_cache(maxsize=512)
def _surface(form: str, size: tuple[float, ...]) -> Surface:
    if form == "box":
        return _box(size)
    if form == "cylinder":
        r, h = size[:2]
        cuts = min(6, max(1, round(h / r)))
        return _turned([(r, -h + 2 * h * k / cuts) for k in range(cuts + 1)])
    if form == "capsule":
        r, h = size[:2]
        cuts = min(8, max(1, round(h / r)))
        arc = [math.pi / 2 * k / 4 for k in range(5)]
        low = [(r * math.sin(a), -h - r * math.cos(a)) for a in arc]
        middle = [(r, -h + 2 * h * k / cuts) for k in range(1, cuts)]
        return _turned([*low, *middle, *[(radius, -z) for radius, z in reversed(low)]])
    arc = [math.pi * k / 12 for k in range(13)]
    unit = _turned([(math.sin(a), -math.cos(a)) for a in arc], 24)
    scale = (size[0],) * 3 if form == "sphere" else size[:3]
    return _finished(unit.vertices * scale, unit.faces)


def _turned(profile: Sequence[tuple[float, float]], sides: int = 16) -> Surface:
    """The solid of revolution of ``(radius, z)``, from below; ends with a radius are closed by a face."""
    vertices: list[tuple[float, float, float]] = []
    rings: list[list[int]] = []
    for radius, z in profile:
        count = sides if radius > 1e-9 else 1
        rings.append(list(range(len(vertices), len(vertices) + count)))
        turns = [2 * math.pi * k / sides for k in range(count)]
        vertices += [(radius * math.cos(t), radius * math.sin(t), z) for t in turns]
    faces: list[tuple[int, ...]] = []
    for below, above in pairwise(rings):
        for k in range(sides):
            corners = [below[k % len(below)], below[(k + 1) % len(below)]]
            corners += [above[(k + 1) % len(above)], above[k % len(above)]]
            faces.append(tuple(dict.fromkeys(corners)))
    if len(rings[0]) > 1:
        faces.append(tuple(reversed(rings[0])))
    if len(rings[-1]) > 1:
        faces.append(tuple(rings[-1]))
    return _finished(np.array(vertices), tuple(faces))


def _box(size: Sequence[float]) -> Surface:
    """Faces are cut into at most 4 x 4 parts, which puts them in order beside smaller solids."""
    vertices: list[list[float]] = []
    faces: list[tuple[int, ...]] = []
    cuts = [min(4, max(1, round(s / min(size)))) for s in size]
    for axis in range(3):
        one, other = (axis + 1) % 3, (axis + 2) % 3
        for side in (-1.0, 1.0):
            first = len(vertices)
            for i in range(cuts[one] + 1):
                for j in range(cuts[other] + 1):
                    corner = [0.0, 0.0, 0.0]
                    corner[axis] = side * size[axis]
                    corner[one] = (2 * i / cuts[one] - 1) * size[one]
                    corner[other] = (2 * j / cuts[other] - 1) * size[other]
                    vertices.append(corner)
            width = cuts[other] + 1
            for i in range(cuts[one]):
                for j in range(cuts[other]):
                    at = first + i * width + j
                    around = (at, at + width, at + width + 1, at + 1)
                    faces.append(around if side > 0 else around[::-1])
    return _finished(np.array(vertices), tuple(faces))


def _finished(vertices: Floats, faces: tuple[tuple[int, ...], ...]) -> Surface:
    normals, centres = [], []
    for face in faces:
        corners = vertices[list(face)]
        centre = corners.mean(0)
        # Newell's: a mean over all corners, sound for faces that are nearly degenerate.
        normal = np.cross(corners - centre, np.roll(corners, -1, 0) - centre).sum(0)
        normals.append(normal / max(float(np.linalg.norm(normal)), 1e-300))
        centres.append(centre)
    return Surface(vertices, faces, np.array(normals), np.array(centres))


def quaternion(rotation: Floats) -> tuple[float, float, float, float]:
    """The quaternion, real part first and not negative, of a rotation matrix."""
    m = rotation
    # Four times the products of the largest component with all, which is the largest row of this matrix.
    rows = np.array(
        [
            [1 + m[0, 0] + m[1, 1] + m[2, 2], m[2, 1] - m[1, 2], m[0, 2] - m[2, 0], m[1, 0] - m[0, 1]],
            [m[2, 1] - m[1, 2], 1 + m[0, 0] - m[1, 1] - m[2, 2], m[0, 1] + m[1, 0], m[0, 2] + m[2, 0]],
            [m[0, 2] - m[2, 0], m[0, 1] + m[1, 0], 1 - m[0, 0] + m[1, 1] - m[2, 2], m[1, 2] + m[2, 1]],
            [m[1, 0] - m[0, 1], m[0, 2] + m[2, 0], m[1, 2] + m[2, 1], 1 - m[0, 0] - m[1, 1] + m[2, 2]],
        ]
    )
    row = rows[int(np.argmax(np.diag(rows)))]
    w, x, y, z = (row / np.linalg.norm(row) * (-1.0 if row[0] < 0 else 1.0)).tolist()
    return w, x, y, z


def shade(brightness: Floats) -> Floats:
    """The nearest of ``SHADES`` levels for ``[f]`` cosines between normals and light."""
    lit = np.clip(brightness, 0.0, 1.0)
    return DARKEST + (LIGHTEST - DARKEST) * np.rint(lit * (SHADES - 1)) / (SHADES - 1)


@functools.cache
def shaded(colour: str, brightness: float) -> str:
    """``"#rrggbb"`` darkened by a factor below 1, or mixed with white above 1."""
    channels = bytes.fromhex(colour.lstrip("#"))
    if brightness <= 1.0:
        mixed = [round(c * brightness) for c in channels]
    else:
        mixed = [round(c + (255 - c) * (brightness - 1.0)) for c in channels]
    return "#" + bytes(mixed).hex()


def painted(
    shapes: Iterable[dict[str, Any]], axes: Floats, focus: Floats, radius: float
) -> list[dict[str, Any]]:
    """Polygons and lines, from back to front, of plain shapes of which some are solids.

    Args:
        shapes: solids as of :func:`robotics_envs.drawing.as_data`, and flat ones whose ``"points"`` are in the
            picture's plane, with their ``"depth"`` toward the viewer.
        axes: right, up and toward the viewer as rows ``[3, 3]``.
        focus: the point of the world in the middle of the picture.
        radius: of what is seen of planes, m.
    """
    shapes = list(shapes)
    solids = [s for s in shapes if s["kind"] == "solid"]
    planes = [s for s in solids if s["form"] == "plane"]
    bodies = [s for s in solids if s["form"] != "plane"]
    flat = [s for s in shapes if s["kind"] != "solid"]
    back = [part for plane in planes for part in _ground(plane, bodies, axes, focus, radius)]
    front = [face for body in bodies for face in _faces(body, axes, focus)] + flat
    return [*back, *sorted(front, key=lambda shape: shape["depth"])]


def _faces(body: dict[str, Any], axes: Floats, focus: Floats) -> list[dict[str, Any]]:
    shell = surface(body["form"], body["size"])
    turned = axes @ body["rotation"]  # from the solid's axes to those of the picture
    place = axes @ (body["position"] - focus)
    corners = (shell.vertices @ turned.T + place)[:, :2].tolist()
    normals = shell.normals @ turned.T
    depths = shell.centres @ turned[2] + (place[2] - body["behind"])
    brightness = shade(normals @ LIGHT)
    return [
        {
            **{"kind": "polygon", "points": [corners[i] for i in shell.faces[k]], "colour": body["colour"]},
            **{"shade": float(brightness[k]), "depth": float(depths[k])},
        }
        for k in np.flatnonzero(normals[:, 2] > 0)
    ]


def _ground(
    plane: dict[str, Any], bodies: Sequence[dict[str, Any]], axes: Floats, focus: Floats, radius: float
) -> list[dict[str, Any]]:
    """The disc, grid and shadows of a plane; from behind, the grid alone."""
    rotation, origin = plane["rotation"], plane["position"]
    along = rotation.T @ (focus - origin)
    middle = along[:2]  # of the disc, in the plane's axes

    def place(flat: Any) -> list[list[float]]:
        world = np.asarray(flat) @ rotation[:, :2].T + origin
        return ((world - focus) @ axes[:2].T).tolist()

    turns = np.arange(_DISC) * (2 * math.pi / _DISC)
    rim = middle + radius * np.stack((np.cos(turns), np.sin(turns)), -1)
    look = {"colour": plane["colour"], "depth": -math.inf}
    parts: list[dict[str, Any]] = []
    seen = float(axes[2] @ rotation[:, 2]) > 0
    if seen:
        parts.append({"kind": "polygon", "points": place(rim), "shade": 1.0, **look})
    step = grid_step(radius)
    for axis in (0, 1):
        for k in range(
            math.ceil((middle[axis] - radius) / step), math.floor((middle[axis] + radius) / step) + 1
        ):
            half = math.sqrt(max(0.0, radius**2 - (k * step - middle[axis]) ** 2))
            ends = np.full((2, 2), k * step)
            ends[:, 1 - axis] = middle[1 - axis] - half, middle[1 - axis] + half
            parts.append({"kind": "line", "points": place(ends), "width": 0.0, "shade": GRID, **look})
    for body in bodies if seen else ():
        turned = rotation.T @ body["rotation"]
        corner = rotation.T @ (body["position"] - origin)
        if corner[2] <= 0 or float(np.hypot(*(corner[:2] - middle))) > radius:
            continue
        shell = surface(body["form"], body["size"])
        fallen = _hull((shell.vertices @ turned[:2].T + corner[:2]).tolist())
        parts.append({"kind": "polygon", "points": place(fallen), "shade": SHADOW, **look})
    return parts


def _hull(points: list[list[float]]) -> list[list[float]]:
    """The convex hull of points in a plane, anticlockwise (Andrew's monotone chain)."""
    hull: list[list[float]] = []
    ordered = sorted(points)
    for way in (ordered, ordered[::-1]):
        first = len(hull)
        for x, y in way:
            while len(hull) > first + 1:
                (a, b), (c, d) = hull[-2:]
                if (c - a) * (y - b) > (d - b) * (x - a):
                    break
                hull.pop()
            hull.append([x, y])
        hull.pop()
    return hull or points[:1]


def grid_step(radius: float) -> float:
    """1, 2 or 5 times a power of ten: about six lines from the middle of a disc to its rim."""
    rough = radius / _LINES
    power = 10.0 ** math.floor(math.log10(rough))
    return next(factor for factor in (1.0, 2.0, 5.0, 10.0) if factor * power >= rough * 0.999) * power
