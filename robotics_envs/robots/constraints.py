"""MuJoCo's soft constraints as rows: equality, joint limits, dry friction and contacts, with their softness."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from robotics_envs.robots.kinematics import Motions
from robotics_envs.robots.model import Joint, Pair, RobotModel, Softness
from robotics_envs.robots.onset import begun
from robotics_envs.robots.rows import Cone, Constraint, Row
from robotics_envs.robots.scalars import (
    Scalar,
    Vec,
    absolute,
    add,
    both,
    cross,
    dot,
    is_zero,
    larger,
    mul,
    neg,
    sub,
    vadd,
    where,
)
from robotics_envs.robots.touching import Touch, frame, origin_offset, speed, touches

_LEAST, _MOST = 1e-4, 0.9999  # MuJoCo's mjMINIMP and mjMAXIMP
_LEAST_SOFTNESS = 1e-15  # its mjMINVAL
_WEIGHTLESS = 1e-10


def constraints(model: RobotModel, motions: Motions, q: Vec, v: Vec) -> list[Constraint | Cone]:
    """All constraints that can be active at positions ``q`` and velocities ``v``."""
    found: list[Constraint | Cone] = [
        _friction(model, k, v) for k, dof in enumerate(model.dofs) if not is_zero(dof.friction)
    ]
    found += [_limit(model, joint, side, q, v) for joint in model.limits for side in (1.0, -1.0)]
    for pair in model.pairs:
        contacts = [contact(model, pair, touch, motions, v) for touch in touches(pair, motions)]
        found += [row for row in contacts if isinstance(row, Cone) or row.edges]
    return found


def _friction(model: RobotModel, k: int, v: Vec) -> Constraint:
    dof = model.dofs[k]
    _, damping = _spring_damper(model, dof.softness)
    impedance = impedance_of(dof.softness.solimp, 0.0)
    softness = (1.0 - impedance) / impedance * dof.inverse_weight
    return Constraint([{k: 1.0}], [v[k]], 1.0 / softness, 0.0, damping, [((1.0,), 1)], dof.friction)


def _limit(model: RobotModel, joint: Joint, side: float, q: Vec, v: Vec) -> Constraint:
    limit = joint.limit
    assert limit is not None
    at, k = q[joint.position], joint.velocity
    distance = sub(at, limit.range[0]) if side > 0 else sub(limit.range[1], at)
    gap = sub(distance, limit.margin)
    weight = model.dofs[k].inverse_weight
    stiffness, pull, damping = _soft(model, limit.softness, gap, weight, onset=model.onset)
    return Constraint([{k: side}], [mul(side, v[k])], stiffness, pull, damping, [((1.0,), 1)])


def contact(model: RobotModel, pair: Pair, touch: Touch, motions: Motions, v: Vec) -> Constraint | Cone:
    """The constraint of two geoms at one of the points where they can touch."""
    directions = frame(touch) if pair.dimensions > 1 else (touch.normal,)
    basis = [_jacobian(model, pair, touch, motions, direction) for direction in directions]
    basis += [_turning(model, pair, motions, direction) for direction in directions[: pair.dimensions - 3]]
    sliding, torsion, rolling = pair.friction
    coefficients = [sliding, sliding, torsion, rolling, rolling][: pair.dimensions - 1]
    gap, weight = sub(touch.distance, pair.margin), pair.inverse_weight
    if model.cone == "elliptic" and any(basis[1:]):
        stiffness, pull, damping = _soft(model, pair.softness, gap, weight, touch.present, model.onset)
        used = [k for k in range(len(basis)) if k == 0 or basis[k]]
        rows = [basis[k] for k in used]
        return Cone(
            basis=rows,
            velocity=[speed(row, v) for row in rows],
            stiffness=stiffness,
            pull=pull,
            damping=damping,
            friction=[coefficients[k - 1] for k in used[1:]],
            mu=sliding / math.sqrt(model.impedance_ratio),
        )
    weights: list[tuple[Scalar, ...]] = [(1.0,)]
    if pair.dimensions > 1 and model.cone == "pyramidal":
        weight = weight * ((1 + sliding * sliding) * 2 * sliding * sliding / model.impedance_ratio)
        weights = [
            (1.0, *(side * mu if k == along else 0.0 for k in range(pair.dimensions - 1)))
            for along, mu in enumerate(coefficients)
            for side in (1, -1)
        ]
    stiffness, pull, damping = _soft(model, pair.softness, gap, weight, touch.present, model.onset)
    basis = basis[: len(weights[0])]
    # A direction in which nothing can move, as across a planar robot, leaves equal rows, and rows that move nothing.
    merged = [tuple(w if row else 0.0 for w, row in zip(edge, basis, strict=True)) for edge in weights]
    edges = [(edge, many) for edge, many in Counter(merged).items() if any(edge)]
    return Constraint(basis, [speed(row, v) for row in basis], stiffness, pull, damping, edges)


def _turning(model: RobotModel, pair: Pair, motions: Motions, direction: Vec) -> Row:
    """The spin of the second body about ``direction``, relative to the first body's."""
    of_first, of_second = (set(model.moved_by(geom.body)) for geom in (pair.first, pair.second))
    row: Row = {}
    for k in sorted(of_first ^ of_second):
        entry = dot(direction, motions.column[k][0])
        if not is_zero(entry):
            row[k] = entry if k in of_second else neg(entry)
    return row


def _jacobian(model: RobotModel, pair: Pair, touch: Touch, motions: Motions, direction: Vec) -> Row:
    """The speed along ``direction`` of the second body's point of contact, relative to the first body's."""
    first, second = pair.first.body, pair.second.body
    moving = set(model.moved_by(first)) ^ set(model.moved_by(second))
    of_second = set(model.moved_by(second))
    offset = origin_offset(motions, first, second)
    row: Row = {}
    for k in sorted(moving):
        point = touch.point
        if k not in of_second and offset is not None:
            point = vadd(point, offset)
        angular, linear = motions.column[k]
        entry = add(dot(direction, linear), dot(angular, cross(point, direction)))
        if not is_zero(entry):
            row[k] = entry if k in of_second else neg(entry)
    return row


def _spring_damper(model: RobotModel, softness: Softness) -> tuple[float, float]:
    """Stiffness and damping of the reference acceleration."""
    first, second = softness.solref
    most = min(max(softness.solimp[1], _LEAST), _MOST)
    if first > 0:
        time = max(first, 2 * model.timestep) if model.shortest_time else first
        return 1.0 / (most * time * second) ** 2, 2.0 / (most * time)
    return -first / most**2, -second / most


def impedance_of(solimp: Sequence[float], gap: Scalar) -> Scalar:
    """MuJoCo's ``efc_KBIP[2]`` at a distance of ``gap`` from where the constraint begins."""
    near, far, width, middle, power = solimp
    near, far, middle = (min(max(a, _LEAST), _MOST) for a in (near, far, middle))
    power = max(1.0, power)
    if near == far or width <= 1e-15:
        return 0.5 * (near + far)
    way: Any = absolute(gap) * (1.0 / width)
    way = way.clamp_max(1.0) if isinstance(way, Tensor) else min(way, 1.0)
    if power == 1:
        share = way
    else:
        rising = _power(way, power) * middle ** (1 - power)
        levelling = 1.0 - _power(1.0 - way, power) * (1 - middle) ** (1 - power)
        share = where(way <= middle, rising, levelling)
    return add(near, mul(far - near, share))


def _power(x: Any, power: float) -> Any:
    return x * x if power == 2 else x**power


def _soft(
    model: RobotModel,
    softness: Softness,
    gap: Scalar,
    weight: float,
    present: Any = True,
    onset: Scalar = 0.0,
) -> tuple[Scalar, Scalar, float]:
    """Stiffness, pull and damping of a constraint that begins at a gap of zero."""
    share = 1.0 if _is_weightless(weight) else begun(gap, onset)
    impedance = mul(share, impedance_of(softness.solimp, gap))
    near = both(present, gap < 0)
    return (
        where(near, stiffness_of(impedance, weight), 0.0, like=gap),
        pulled(model, softness, impedance, gap),
        damping_of(model, softness),
    )


def stiffness_of(impedance: Any, weight: Any) -> Scalar:
    """The inverse of MuJoCo's ``efc_R``, which is at least 1e-15: a body can have no inverse weight."""
    if _is_weightless(weight):
        return 1.0 / larger((1.0 - impedance) / impedance * weight, _LEAST_SOFTNESS)
    return impedance / ((1.0 - impedance) * weight)


def _is_weightless(weight: Any) -> bool:
    return isinstance(weight, float) and weight < _WEIGHTLESS


def pulled(model: RobotModel, softness: Softness, impedance: Scalar, gap: Scalar) -> Scalar:
    """The reference acceleration at rest."""
    return neg(mul(mul(_spring_damper(model, softness)[0], impedance), gap))


def damping_of(model: RobotModel, softness: Softness) -> float:
    return _spring_damper(model, softness)[1]
