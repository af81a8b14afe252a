"""Where two geoms touch: MuJoCo's own collision functions, as formulas of a fixed number of candidate points.

Points are relative to the origin of the second geom's tree (:class:`~robotics_envs.robots.kinematics.Motions`).
Sources: MuJoCo's ``engine_collision_primitive.c`` and, for ellipsoids, the support point of
``engine_collision_convex.c``.
"""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from robotics_envs.robots.kinematics import Motions
from robotics_envs.robots.model import Geom, Pair, RobotModel
from robotics_envs.robots.scalars import (
    Mat,
    Scalar,
    Vec,
    absolute,
    add,
    apply,
    below,
    both,
    clamp,
    cross,
    dot,
    inverse_length,
    mul,
    neg,
    product,
    scale,
    sub,
    total,
    transpose,
    unit,
    vadd,
    vsub,
    where,
)
from solvers.compiler.contributions import Call, add_contributions

FEW = 24
"""In a plane so few contacts are written out: each takes fewer operations than a call."""


@dataclass
class Touch:
    """A candidate contact.

    Attributes:
        distance: between the surfaces in m, negative where they overlap.
        point: halfway between them.
        normal: from the first geom to the second.
        tangent: the direction that the first tangent is made of; None for MuJoCo's default.
        present: a mask, where the distance alone does not decide whether MuJoCo makes this contact.
    """

    distance: Scalar
    point: Vec
    normal: Vec
    tangent: Vec | None = None
    present: Any = True


@dataclass
class _Placed:
    """A geom in the axes of the world; ``centre`` relative to the origin of the second geom's tree."""

    geom: Geom
    centre: Vec
    rotation: Mat

    def axis(self, k: int) -> list[Scalar]:
        return [row[k] for row in self.rotation]


def candidates(model: RobotModel, motions: Motions) -> list[tuple[Pair, Touch]]:
    """All candidate contacts, pair after pair."""
    placed = [_placed_pair(pair, motions) for pair in model.pairs]
    apart = [k for k, pair in enumerate(model.pairs) if pair.first.kind != "plane"]
    between = dict(
        zip(apart, _between([model.pairs[k] for k in apart], [placed[k] for k in apart]), strict=True)
    )
    found = []
    for k, (pair, (first, second)) in enumerate(zip(model.pairs, placed, strict=True)):
        touches = between[k] if k in between else _OF_PLANES[pair.second.kind](first, second, pair.margin)
        found += [(pair, touch) for touch in touches]
    return found


def _placed_pair(pair: Pair, motions: Motions) -> tuple[_Placed, _Placed]:
    first, second = _placed(pair.first, motions), _placed(pair.second, motions)
    if not _same_tree(pair.first.body, pair.second.body, motions):
        between = vsub(motions.origin[pair.first.body], motions.origin[pair.second.body])
        first.centre = vadd(first.centre, between)
    return first, second


def origin_offset(motions: Motions, body: int, other: int) -> Vec | None:
    """From the origin of ``body``'s tree to that of ``other``'s; None in one tree."""
    if _same_tree(body, other, motions):
        return None
    return vsub(motions.origin[other], motions.origin[body])


def _same_tree(body: int, other: int, motions: Motions) -> bool:
    return all(a is b for a, b in zip(motions.origin[body], motions.origin[other], strict=True))


def _placed(geom: Geom, motions: Motions) -> _Placed:
    rotation = motions.rotation[geom.body]
    centre = vadd(motions.position[geom.body], apply(rotation, geom.offset))
    return _Placed(geom, centre, product(rotation, geom.rotation))


def _radius(placed: _Placed) -> float:
    return placed.geom.size[0]


# ---- Planes ----------------------------------------------------------------------------------------------------------


def _on_plane(plane: _Placed, point: Vec, radius: float = 0.0, tangent: Vec | None = None) -> Touch:
    """A ball, or a point, above a plane."""
    normal = plane.axis(2)
    distance = sub(dot(normal, vsub(point, plane.centre)), radius)
    middle = vsub(point, scale(add(mul(0.5, distance), radius), normal))
    return Touch(distance, middle, normal, tangent)


def _plane_sphere(plane: _Placed, sphere: _Placed, margin: float) -> list[Touch]:
    return [_on_plane(plane, sphere.centre, _radius(sphere))]


def _plane_capsule(plane: _Placed, capsule: _Placed, margin: float) -> list[Touch]:
    axis = capsule.axis(2)
    reach = scale(capsule.geom.size[1], axis)
    ends = vadd(capsule.centre, reach), vsub(capsule.centre, reach)
    return [_on_plane(plane, end, _radius(capsule), axis) for end in ends]


def _plane_box(plane: _Placed, box: _Placed, margin: float) -> list[Touch]:
    """The corners below the box's centre, the first four that are near enough."""
    normal = plane.axis(2)
    height = dot(normal, vsub(box.centre, plane.centre))
    found: list[Touch] = []
    earlier: Scalar = 0.0
    for corner in range(8):
        signs = [1.0 if corner & (1 << k) else -1.0 for k in range(3)]
        offset = apply(box.rotation, [s * half for s, half in zip(signs, box.geom.size, strict=True)])
        along = dot(normal, offset)
        distance = add(height, along)
        counts = both(_holds(distance, margin), _holds(along, 0.0))
        point = vsub(vadd(box.centre, offset), scale(mul(0.5, distance), normal))
        found.append(Touch(distance, point, normal, present=both(counts, below(earlier, 4.0))))
        earlier = add(earlier, where(counts, 1.0, 0.0, like=distance))
    return found


def _holds(value: Scalar, bound: Scalar) -> Any:
    return value <= bound


def _plane_ellipsoid(plane: _Placed, ellipsoid: _Placed, margin: float) -> list[Touch]:
    normal = plane.axis(2)
    local = apply(transpose(ellipsoid.rotation), scale(-1.0, normal))
    stretched = [mul(half, x) for half, x in zip(ellipsoid.geom.size, local, strict=True)]
    lowest = [mul(half, x) for half, x in zip(ellipsoid.geom.size, unit(stretched), strict=True)]
    return [_on_plane(plane, vadd(ellipsoid.centre, apply(ellipsoid.rotation, lowest)))]


def _plane_cylinder(plane: _Placed, cylinder: _Placed, margin: float) -> list[Touch]:
    """The lowest point of each rim, and two more of the lower disk, so that it can stand on four or three points."""
    normal, (radius, half, _) = plane.axis(2), cylinder.geom.size
    upward = dot(normal, cylinder.axis(2))
    flip = where(upward > 0, -1.0, 1.0, like=upward)
    axis = scale(flip, cylinder.axis(2))  # towards the plane
    slope = mul(flip, upward)
    sideways = vsub(scale(slope, axis), normal)
    square = dot(sideways, sideways)
    is_upright = square < 1e-30
    toward = scale(radius, scale(inverse_length(square, 1e-30), sideways))
    toward = [where(is_upright, mul(radius, x), y) for x, y in zip(cylinder.axis(0), toward, strict=True)]
    along = scale(half, axis)
    first = _on_plane(plane, vadd(vadd(cylinder.centre, toward), along))
    near = _holds(first.distance, margin)
    second = _on_plane(plane, vsub(vadd(cylinder.centre, toward), along))
    second.present = near
    across = unit(cross(toward, along))
    across = scale(radius * math.sqrt(3.0) / 2.0, across)
    lower = vsub(vadd(cylinder.centre, along), scale(0.5, toward))
    others = [_on_plane(plane, vadd(lower, across)), _on_plane(plane, vsub(lower, across))]
    for other in others:
        other.present = near
    return [first, second, *others]


_OF_PLANES = {
    "sphere": _plane_sphere,
    "capsule": _plane_capsule,
    "box": _plane_box,
    "ellipsoid": _plane_ellipsoid,
    "cylinder": _plane_cylinder,
}


# ---- Spheres and capsules --------------------------------------------------------------------------------------------


@dataclass
class _Rod:
    """A capsule, or a sphere of length 0: centre, the direction of its axis, half its length, and its radius."""

    centre: Vec
    axis: Vec
    half: Scalar
    radius: Scalar


Flat = list[Scalar]
"""Distance, point, normal, and 1 where the contact is present, of one candidate after the other."""


def _between(pairs: Sequence[Pair], placed: Sequence[tuple[_Placed, _Placed]]) -> list[list[Touch]]:
    """By pair the candidate contacts of spheres and capsules.

    Kernels leave out pairs that are far apart in all rollouts of a vector, whose contacts are then not present.
    """
    calls, start = [], [0]
    for pair, two in zip(pairs, placed, strict=True):
        function, count = _OF_RODS[pair.first.kind, pair.second.kind]
        rods = [_rod(one) for one in two]
        across = vsub(rods[1].centre, rods[0].centre)
        reach = sum(rod.half + rod.radius for rod in rods)
        square = dot(across, across)
        near = where(square < (reach + max(pair.margin, 0.0)) ** 2, 1.0, 0.0, like=square)
        given = [(rod.centre, rod.axis, rod.half, rod.radius) for rod in rods]
        adds = range(start[-1], start[-1] + 8 * count)
        start.append(adds.stop)
        calls.append(
            Call(function, (*given, pair.margin, near), adds, near if isinstance(near, Tensor) else None)
        )
    spatial = any(isinstance(x, Tensor) for two in placed for one in two for x in one.axis(1))
    if spatial or start[-1] > 8 * FEW:
        flat = add_contributions([0.0] * start[-1], calls)
    else:
        flat = [x for call in calls for x in call.function(*call.args)]
    touches = [
        [_touch(flat[at : at + 8]) for at in range(first, last, 8)]
        for first, last in itertools.pairwise(start)
    ]
    return [[touch for touch in of if touch.present is not False] for of in touches]


def _rod(placed: _Placed) -> _Rod:
    size = placed.geom.size
    return _Rod(placed.centre, placed.axis(2), size[1] if placed.geom.kind == "capsule" else 0.0, size[0])


def _touch(flat: Flat) -> Touch:
    distance, present = flat[0], flat[7]
    return Touch(
        distance, flat[1:4], flat[4:7], present=present > 0 if isinstance(present, Tensor) else present != 0
    )


def _flat(touch: Touch) -> Flat:
    present = where(touch.present, 1.0, 0.0, like=touch.distance)
    return [touch.distance, *touch.point, *touch.normal, present]


def _spheres(a: Vec, b: Vec, one: _Rod, other: _Rod) -> Touch:
    """Balls about points of two geoms, with the geoms' radii.

    Where the points are the same, as where axes of capsules cross, the normal is across the axes of both geoms.
    """
    across = vsub(b, a)
    square = dot(across, across)
    # MuJoCo's limit is 1e-15 m; differences of positions of some metres are rounded to more.
    eps = torch.finfo(square.dtype).eps if isinstance(square, Tensor) else sys.float_info.epsilon
    least = (64.0 * eps) ** 2
    inverse = inverse_length(square, least)
    length, normal = 1.0 / inverse, scale(inverse, across)
    if isinstance(square, Tensor):
        is_same = square < least
        sideways = unit(cross(one.axis, other.axis))
        normal = [where(is_same, x, y, like=square) for x, y in zip(sideways, normal, strict=True)]
    distance = sub(length, add(one.radius, other.radius))
    return Touch(distance, vadd(a, scale(add(mul(0.5, distance), one.radius), normal)), normal)


def _two_spheres(first: tuple[Any, ...], second: tuple[Any, ...], margin: Scalar, near: Scalar) -> Flat:
    one, other = _Rod(*first), _Rod(*second)
    return _flat(_spheres(one.centre, other.centre, one, other))


def _sphere_capsule(first: tuple[Any, ...], second: tuple[Any, ...], margin: Scalar, near: Scalar) -> Flat:
    sphere, capsule = _Rod(*first), _Rod(*second)
    along = dot(capsule.axis, vsub(sphere.centre, capsule.centre))
    for half in (capsule.half, neg(capsule.half)):
        beyond = (along > half) if half is capsule.half else (along < half)
        along = where(beyond, half, along, like=along)
    return _flat(_spheres(sphere.centre, vadd(capsule.centre, scale(along, capsule.axis)), sphere, capsule))


def _two_capsules(first: tuple[Any, ...], second: tuple[Any, ...], margin: Scalar, near: Scalar) -> Flat:
    """The nearest points of two segments; where those are parallel, up to two pairs of an end and a nearest point."""
    one, other = _Rod(*first), _Rod(*second)
    axes = scale(one.half, one.axis), scale(other.half, other.axis)
    across = vsub(one.centre, other.centre)
    ma, mc = mul(one.half, one.half), mul(other.half, other.half)
    mb = neg(dot(*axes))
    u, v = neg(dot(axes[0], across)), dot(axes[1], across)
    determinant = sub(mul(ma, mc), mul(mb, mb))
    is_parallel = absolute(determinant) < 1e-15
    divisor = where(is_parallel, 1.0, determinant)
    x1, x2 = sub(mul(mc, u), mul(mb, v)) / divisor, sub(mul(ma, v), mul(mb, u)) / divisor
    # Beyond an end of one segment: the nearest point of the other to that end.
    for bound in (1.0, -1.0):
        beyond = (x1 > bound) if bound > 0 else (x1 < bound)
        x1, x2 = where(beyond, bound, x1), where(beyond, sub(v, mul(bound, mb)) / mc, x2)
    for bound in (1.0, -1.0):
        beyond = (x2 > bound) if bound > 0 else (x2 < bound)
        other_end = clamp(sub(u, mul(bound, mb)) / ma, -1.0, 1.0)
        x1, x2 = where(beyond, other_end, x1), where(beyond, bound, x2)

    def at(a: Scalar, b: Scalar) -> Touch:
        return _spheres(
            vadd(one.centre, scale(a, axes[0])), vadd(other.centre, scale(b, axes[1])), one, other
        )

    single = at(x1, x2)
    single.present = ~is_parallel if isinstance(is_parallel, Tensor) else not is_parallel
    found = [single, *_parallel(at, ma, mb, mc, u, v, margin, is_parallel)]
    return [x for touch in found for x in _flat(touch)]


def _parallel(
    at: Any, ma: Scalar, mb: Scalar, mc: Scalar, u: Scalar, v: Scalar, margin: Scalar, is_parallel: Any
) -> list[Touch]:
    """The four ends with the nearest points of the other segment; MuJoCo keeps the first two."""
    candidates: list[tuple[Scalar, Scalar, Any]] = []
    for bound in (1.0, -1.0):
        x2 = sub(v, mul(bound, mb)) / mc
        candidates.append((bound, x2, both(_holds(x2, 1.0), x2 >= -1.0)))
    for bound in (1.0, -1.0):
        x1 = sub(u, mul(bound, mb)) / ma
        candidates.append((x1, bound, both(x1 < 1.0, x1 > -1.0)))
    found: list[Touch] = []
    earlier: Scalar = 0.0
    for a, b, inside in candidates:
        touch = at(a, b)
        counts = both(inside, _holds(touch.distance, margin))
        touch.present = both(is_parallel, both(counts, below(earlier, 2.0)))
        earlier = add(earlier, where(counts, 1.0, 0.0, like=touch.distance))
        found.append(touch)
    return found


_OF_RODS = {
    ("sphere", "sphere"): (_two_spheres, 1),
    ("sphere", "capsule"): (_sphere_capsule, 1),
    ("capsule", "capsule"): (_two_capsules, 5),
}


def frame(touch: Touch) -> Sequence[Vec]:
    """Normal and two tangents, as ``mju_makeFrame`` makes them."""
    n = touch.normal
    if touch.tangent is not None:
        y: Vec = touch.tangent
    elif isinstance(n[1], float):
        y = (0.0, 1.0, 0.0) if abs(n[1]) < 0.5 else (0.0, 0.0, 1.0)
    else:
        flat = absolute(n[1]) < 0.5
        y = (0.0, where(flat, 1.0, 0.0, n[1]), where(flat, 0.0, 1.0, n[1]))
    across = unit(vsub(y, scale(dot(n, y), n)))
    return n, across, cross(n, across)


def speed(jacobian: dict[int, Scalar], v: Vec) -> Scalar:
    """A row of a Jacobian times the velocities."""
    return total(mul(x, v[k]) for k, x in jacobian.items())
