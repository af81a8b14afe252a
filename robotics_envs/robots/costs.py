"""The cost of a constraint: its derivatives by the accelerations along its rows.

The cost of an elliptic cone: with the normal's lack of acceleration N (times mu) and the length T of the tangential
ones (times their coefficients), none where ``N >= mu T`` (the contact opens), the quadratic of all rows where
``mu N + T <= 0`` (it sticks), and between these ``½ D (N - mu T)² / (mu² (1 + mu²))`` (it slides).  Source: MuJoCo's
documentation, chapter Computation, and ``mj_constraintUpdate`` of ``engine_core_constraint.c``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from robotics_envs.robots.inertia import Matrix
from robotics_envs.robots.rows import Cone, Constraint
from robotics_envs.robots.scalars import Scalar, absolute, add, dot, mul, neg, sub, total, where

_TIP = 1e-30
"""The square of a tangential acceleration is taken for at least this: the tip of a cone has no direction."""


@dataclass
class Cost:
    """Gradient and Hessian by the accelerations along the basis rows."""

    slope: list[Scalar]
    curvature: Matrix


def cost_of(row: Constraint | Cone, values: list[Scalar], is_first: Any) -> Cost:
    """The cost's derivatives at accelerations ``values`` along the basis rows."""
    if isinstance(row, Cone):
        return _of_cone(row, values, is_first)
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
            pull = where(is_within, pull, clamp_to(pull, row.bound))
            stiffness = where(is_within, stiffness, 0.0, like=pull)
        elif not row.always:
            is_active = (lack < 0) | is_first
            pull = where(is_active, pull, 0.0, like=pull)
            stiffness = where(is_active, stiffness, 0.0, like=pull)
        for i in range(count):
            slope[i] = add(slope[i], mul(weights[i], pull))
            for j in range(count):
                curvature[i][j] = add(curvature[i][j], mul(mul(weights[i], weights[j]), stiffness))
    return Cost(slope, curvature)


def _of_cone(row: Cone, values: list[Scalar], is_first: Any) -> Cost:
    mu, friction = row.mu, row.friction
    normal = add(sub(values[0], row.pull), mul(row.damping, row.velocity[0]))
    sideways = [
        mul(f, add(y, mul(row.damping, v)))
        for f, y, v in zip(friction, values[1:], row.velocity[1:], strict=True)
    ]
    high: Any = mul(mu, normal)
    square: Any = total(mul(x, x) for x in sideways)
    far = length_of(square)
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
    return Cost(slope, curvature)


def clamp_to(force: Any, bound: Scalar) -> Scalar:
    """A force of at most ``bound`` either way."""
    outside = where(force > 0, bound, neg(bound), like=force)
    return where(absolute(force) < bound, force, outside)


def length_of(square: Any) -> Any:
    """The length of a tangential acceleration of this square."""
    return torch.sqrt(square.clamp_min(_TIP))
