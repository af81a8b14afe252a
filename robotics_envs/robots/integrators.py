"""MuJoCo's integrators: what a step makes of positions, velocities and accelerations."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from robotics_envs.robots.model import RobotModel
from robotics_envs.robots.scalars import Scalar, Vec, add, dot, inverse_length, mul, scale, sub, total

Rates = Callable[[Tensor], Tensor]
"""From a state ``[B, nq + nv]`` to ``[positions', accelerations]`` of the same shape."""


def quaternion_product(a: Vec, b: Vec) -> list[Scalar]:
    """The product of quaternions ``(w, x, y, z)``."""
    return [
        sub(sub(sub(mul(a[0], b[0]), mul(a[1], b[1])), mul(a[2], b[2])), mul(a[3], b[3])),
        sub(add(add(mul(a[0], b[1]), mul(a[1], b[0])), mul(a[2], b[3])), mul(a[3], b[2])),
        add(add(sub(mul(a[0], b[2]), mul(a[1], b[3])), mul(a[2], b[0])), mul(a[3], b[1])),
        add(sub(add(mul(a[0], b[3]), mul(a[1], b[2])), mul(a[2], b[1])), mul(a[3], b[0])),
    ]


def turned(quaternion: Vec, rotation: Sequence[Tensor]) -> list[Scalar]:
    """A quaternion of any length but 0 after a rotation by a vector in its own frame (rad), of length 1.

    MuJoCo's ``mju_quatIntegrate`` makes it one of length 1 too.
    """
    square = dot(rotation, rotation)
    assert isinstance(square, Tensor)
    # sin(a/2)/a by its series near zero, where it has no derivative otherwise.
    small = square < 1e-6
    angle = torch.sqrt(torch.where(small, 1.0, square))
    series = 0.5 - square * (1.0 / 48.0 - square * (1.0 / 3840.0))
    share = torch.where(small, series, torch.sin(0.5 * angle) / angle)
    flat = 1.0 - square * (1.0 / 8.0 - square * (1.0 / 384.0))
    cosine = torch.where(small, flat, torch.cos(0.5 * angle))
    inverse = inverse_length(dot(quaternion, quaternion))
    return quaternion_product(scale(inverse, quaternion), [cosine, *scale(share, rotation)])


def moved(model: RobotModel, positions: Tensor, motion: Tensor) -> Tensor:
    """Positions ``[B, nq]`` after a motion ``[B, nv]``: velocities times a time (MuJoCo's ``mj_integratePos``)."""
    if model.positions == model.velocities:
        return positions + motion
    q, d = positions.unbind(-1), motion.unbind(-1)
    result: list[Scalar] = []
    for joint in model.joints:
        at, dof = joint.position, joint.velocity
        if joint.kind == "free":
            result += [q[at + k] + d[dof + k] for k in range(3)]
            at, dof = at + 3, dof + 3
        if joint.kind in ("free", "ball"):
            result += turned(q[at : at + 4], d[dof : dof + 3])
        else:
            result.append(q[at] + d[dof])
    return torch.stack(result, -1)  # type: ignore[arg-type]


def position_rates(model: RobotModel, q: Vec, v: Vec) -> list[Scalar]:
    """The derivative of the positions, of quaternions too."""
    rates: list[Scalar] = []
    for joint in model.joints:
        at, dof = joint.position, joint.velocity
        if joint.kind == "free":
            rates += v[dof : dof + 3]
            at, dof = at + 3, dof + 3
        if joint.kind in ("free", "ball"):
            half = scale(0.5, v[dof : dof + 3])
            rates += quaternion_product(q[at : at + 4], [0.0, *half])
        else:
            rates.append(v[dof])
    return rates


def times(matrix: list[list[Scalar]], vector: Vec) -> list[Scalar]:
    """A symmetric matrix, both triangles given, times a vector."""
    return [total(mul(x, y) for x, y in zip(row, vector, strict=True)) for row in matrix]


def runge_kutta(model: RobotModel, rates: Rates, x: Tensor, h: Tensor | float) -> Tensor:
    """A step of the classical method of order 4, whose stages move positions as rotations do."""
    n = model.positions
    q, v = x[..., :n], x[..., n:]

    def stage(share: float, before: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        speed, acceleration = before
        there = torch.cat((moved(model, q, share * h * speed), v + share * h * acceleration), -1)
        return there[..., n:], rates(there)[..., n:]

    first = (v, rates(x)[..., n:])
    second = stage(0.5, first)
    third = stage(0.5, second)
    fourth = stage(1.0, third)
    speed, acceleration = (
        (a + 2.0 * b + 2.0 * c + d) / 6.0 for a, b, c, d in zip(first, second, third, fourth, strict=True)
    )
    return torch.cat((moved(model, q, h * speed), v + h * acceleration), -1)
