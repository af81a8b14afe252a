"""A Newton step with a line search for constraints with elliptic friction cones.

Beyond the rows of :mod:`robotics_envs.robots.newton` the cost has one term a contact: with the normal's lack of
acceleration N (times mu) and the length T of the tangential ones (times their coefficients), no cost where
``N >= mu T`` (the contact opens), the quadratic of all rows where ``mu N + T <= 0`` (it sticks), and between these
``½ D (N - mu T)² / (mu² (1 + mu²))`` (it slides).  Source: MuJoCo's documentation, chapter Computation, and
``mj_constraintUpdate`` of ``engine_core_constraint.c``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from robotics_envs.robots.inertia import Matrix, factor, solve
from robotics_envs.robots.rows import Cone, Constraint, Row
from robotics_envs.robots.scalars import (
    Scalar,
    Vec,
    absolute,
    add,
    both,
    dot,
    larger,
    mul,
    neg,
    sub,
    total,
    where,
)

_SECANTS = 4
"""Steps of the line search where the full Newton step goes too far."""
_FLAT = 0.1
"""A full step is taken if the slope at its end is at most this share of that at its start."""
_TIP = 1e-30
"""The square of a tangential acceleration is taken for at least this: the tip of a cone has no direction."""


@dataclass
class _Local:
    """Gradient and Hessian of a constraint's cost by the accelerations along its basis rows."""

    slope: list[Scalar]
    curvature: Matrix


def conic_step(
    matrix: Matrix, force: list[Scalar], rows: Sequence[Constraint | Cone], a: Vec, count: Scalar
) -> tuple[list[Scalar], Scalar]:
    """The accelerations after one step, and whether it settled (1 or 0).

    ``count`` is that of the steps before: in the first all constraints push, and once settled, where it is -1, the
    steps are full ones.  The derivative is that of the gradient of the cost alone: at the solution, where that is zero,
    the change of the Hessian has no effect.
    """
    is_first, is_last = count == 0, count < 0
    full = _symmetric(matrix)
    slope = [sub(dot(row, a), f) for row, f in zip(full, force, strict=True)]
    hessian: Matrix = [[_cut(x) for x in row] for row in matrix]
    along = [[_along(basis, a) for basis in row.basis] for row in rows]
    for row, values in zip(rows, along, strict=True):
        _add(slope, hessian, row, _local(row, values, is_first))
    step = solve(factor(hessian), [neg(x) for x in slope])
    size = largest([absolute(_cut(x)) for x in a])
    moved = largest([absolute(_cut(s)) for s in step])
    tolerance = torch.finfo(a[0].dtype).eps ** 0.6  # type: ignore[union-attr]
    is_small = moved <= mul(tolerance, add(1.0, size))
    # A kernel differentiates the last step that it made: that has to be a full one.
    length = where(is_first | is_last | is_small, 1.0, _length(full, force, rows, a, along, step), like=a[0])
    following = [add(x, mul(length, s)) for x, s in zip(a, step, strict=True)]
    return following, where(both(is_small, ~is_first), 1.0, 0.0, like=a[0])


def largest(values: Sequence[Scalar]) -> Scalar:
    result = values[0]
    for value in values[1:]:
        result = larger(result, value)
    return result


def _cut(x: Scalar) -> Scalar:
    """Without a derivative."""
    return x.detach() if isinstance(x, Tensor) else x


def _symmetric(lower: Matrix) -> Matrix:
    n = len(lower)
    return [[lower[max(i, j)][min(i, j)] for j in range(n)] for i in range(n)]


def _along(basis: Row, a: Vec) -> Scalar:
    return total(mul(x, a[k]) for k, x in basis.items())


def _add(slope: list[Scalar], hessian: Matrix, row: Constraint | Cone, local: _Local) -> None:
    for basis, pull in zip(row.basis, local.slope, strict=True):
        for k, x in basis.items():
            slope[k] = add(slope[k], mul(x, pull))
    for i, basis in enumerate(row.basis):
        spread: Row = {}
        for j, other in enumerate(row.basis):
            for k, y in other.items():
                spread[k] = add(spread.get(k, 0.0), mul(_cut(local.curvature[i][j]), _cut(y)))
        for k, x in basis.items():
            for other_k, y in spread.items():
                if other_k <= k:
                    hessian[k][other_k] = add(hessian[k][other_k], mul(_cut(x), y))


def _length(
    matrix: Matrix,
    force: list[Scalar],
    rows: Sequence[Constraint | Cone],
    a: Vec,
    along: list[list[Scalar]],
    step: Vec,
) -> Scalar:
    """The share of the Newton step to take: all of it, unless the cost rises steeply at its end."""
    a, step = [_cut(x) for x in a], [_cut(s) for s in step]
    rows = [_constant(row) for row in rows]
    along = [[_cut(y) for y in values] for values in along]
    rates = [[_along(basis, step) for basis in row.basis] for row in rows]
    matrix = [[_cut(x) for x in row] for row in matrix]
    pushed = [dot(row, step) for row in matrix]
    flat = sub(dot(a, pushed), dot([_cut(f) for f in force], step))
    bent = dot(step, pushed)

    def slope(share: Scalar) -> Any:
        result = add(flat, mul(share, bent))
        for row, values, rate in zip(rows, along, rates, strict=True):
            there = [add(y, mul(share, r)) for y, r in zip(values, rate, strict=True)]
            result = add(result, dot(_slope(row, there), rate))
        return result

    at_start, at_end = slope(0.0), slope(1.0)
    low, high, at_low, at_high = 0.0 * at_start, 0.0 * at_start + 1.0, at_start, at_end
    for _ in range(_SECANTS):
        width = high - low
        share = low + width * (at_low / (at_low - at_high)).clamp(0.05, 0.95)
        here = slope(share)
        is_beyond = here > 0
        # The end that stays counts half the next time (Illinois), so that it does not stay for ever.
        at_low, at_high = where(is_beyond, 0.5 * at_low, here), where(is_beyond, here, 0.5 * at_high)
        low, high = where(is_beyond, low, share), where(is_beyond, share, high)
    found = where(both(low > 0, absolute(at_low) <= absolute(at_high)), low, high)
    return where(at_end <= -_FLAT * at_start, 1.0, found)


def _constant(row: Constraint | Cone) -> Constraint | Cone:
    """The same without derivatives."""
    basis = [{k: _cut(x) for k, x in entries.items()} for entries in row.basis]
    velocity = [_cut(x) for x in row.velocity]
    stiffness, pull = _cut(row.stiffness), _cut(row.pull)
    if isinstance(row, Cone):
        friction = [_cut(x) for x in row.friction]
        return Cone(basis, velocity, stiffness, pull, row.damping, friction, _cut(row.mu))
    edges = [(tuple(_cut(w) for w in weights), many) for weights, many in row.edges]
    bound = None if row.bound is None else _cut(row.bound)
    return Constraint(basis, velocity, stiffness, pull, row.damping, edges, bound, row.always)


def _slope(row: Constraint | Cone, values: list[Scalar]) -> list[Scalar]:
    return _local(row, values, False, curved=False).slope


def _local(row: Constraint | Cone, values: list[Scalar], is_first: Any, curved: bool = True) -> _Local:
    """The cost's derivatives at accelerations ``values`` along the basis rows."""
    if isinstance(row, Cone):
        return _of_cone(row, values, is_first, curved)
    count = len(row.basis)
    slope: list[Scalar] = [0.0] * count
    curvature: Matrix = [[0.0] * count for _ in range(count)]
    for weights, many in row.edges:
        reference = sub(row.pull, mul(row.damping, dot(weights, row.velocity)))
        lack = sub(dot(weights, values), reference)
        stiffness = mul(float(many), row.stiffness)
        pull: Any = mul(stiffness, lack)
        if row.bound is not None:
            is_within = (absolute(pull) < row.bound) | is_first
            pull = where(is_within, pull, where(pull > 0, row.bound, neg(row.bound), like=pull))
            stiffness = where(is_within, stiffness, 0.0, like=pull)
        elif not row.always:
            is_active = (lack < 0) | is_first
            pull = where(is_active, pull, 0.0, like=pull)
            stiffness = where(is_active, stiffness, 0.0, like=pull)
        for i in range(count):
            slope[i] = add(slope[i], mul(weights[i], pull))
            if curved:
                for j in range(count):
                    curvature[i][j] = add(curvature[i][j], mul(mul(weights[i], weights[j]), stiffness))
    return _Local(slope, curvature)


def _of_cone(row: Cone, values: list[Scalar], is_first: Any, curved: bool) -> _Local:
    mu, friction = row.mu, row.friction
    normal = add(sub(values[0], row.pull), mul(row.damping, row.velocity[0]))
    sideways = [
        mul(f, add(y, mul(row.damping, v)))
        for f, y, v in zip(friction, values[1:], row.velocity[1:], strict=True)
    ]
    high: Any = mul(mu, normal)
    square: Any = total(mul(x, x) for x in sideways)
    far = torch.sqrt(square.clamp_min(_TIP))
    sticks = (mul(mu, high) + far <= 0) | is_first
    slides = ~sticks & (high < mul(mu, far))
    inverse = 1.0 / far
    of_sideways = mul(row.stiffness, 1.0 / mul(mu, mu))  # of a sticking contact, by friction squared
    sliding = mul(of_sideways, 1.0 / add(1.0, mul(mu, mu)))
    gap = sub(high, mul(mu, far))
    push: Any = mul(mul(sliding, mu), gap)
    outward = [mul(f, mul(x, inverse)) for f, x in zip(friction, sideways, strict=True)]

    def zone(sticking: Scalar, when_sliding: Scalar) -> Scalar:
        return where(sticks, sticking, where(slides, when_sliding, 0.0, like=far), like=far)

    slope = [zone(mul(row.stiffness, normal), push)]
    slope += [
        zone(mul(of_sideways, mul(f, x)), neg(mul(push, t)))
        for f, x, t in zip(friction, sideways, outward, strict=True)
    ]
    count = len(values)
    curvature: Matrix = [[0.0] * count for _ in range(count)]
    if not curved:
        return _Local(slope, curvature)
    steep = mul(sliding, mul(mu, mu))
    bend = neg(mul(push, inverse))
    curvature[0][0] = zone(row.stiffness, steep)
    for i in range(1, count):
        t = outward[i - 1]
        curvature[0][i] = curvature[i][0] = zone(0.0, neg(mul(steep, t)))
        for j in range(1, i + 1):
            both_out = mul(t, outward[j - 1])
            value = mul(sub(steep, bend), both_out)
            if i == j:
                value = add(value, mul(bend, mul(friction[i - 1], friction[i - 1])))
                curvature[i][i] = zone(mul(of_sideways, mul(friction[i - 1], friction[i - 1])), value)
            else:
                curvature[i][j] = curvature[j][i] = zone(0.0, value)
    return _Local(slope, curvature)
