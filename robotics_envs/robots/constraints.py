"""MuJoCo's soft constraints as rows: equality, joint limits, dry friction and contacts, with their softness."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_flatten

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
from robotics_envs.robots.touching import FEW, Touch, candidates, frame, origin_offset
from solvers.compiler.contributions import Call, add_contributions

_LEAST, _MOST = 1e-4, 0.9999  # MuJoCo's mjMINIMP and mjMAXIMP
_LEAST_SOFTNESS = 1e-15  # its mjMINVAL
_WEIGHTLESS = 1e-10


def constraints(model: RobotModel, motions: Motions, q: Vec, v: Vec) -> list[Constraint | Cone]:
    """All constraints that can be active at positions ``q`` and velocities ``v``."""
    found: list[Constraint | Cone] = [
        _friction(model, k, v) for k, dof in enumerate(model.dofs) if not is_zero(dof.friction)
    ]
    found += [_limit(model, joint, side, q, v) for joint in model.limits for side in (1.0, -1.0)]
    contacts = [row for _, _, row in contacts_of(model, motions, v)]
    return found + [row for row in contacts if isinstance(row, Cone) or row.edges]


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
    spring, damping = _spring_damper(model, limit.softness)
    stiffness, pull = _hardness(gap, limit.softness, spring, weight, is_weightless(weight), model.onset)
    stiffness = where(gap < 0, stiffness, 0.0, like=gap)
    return Constraint([{k: side}], [mul(side, v[k])], stiffness, pull, damping, [((1.0,), 1)])


def contacts_of(model: RobotModel, motions: Motions, v: Vec) -> list[tuple[Pair, Touch, Constraint | Cone]]:
    """The constraints of two geoms at all points where they can touch."""
    found = candidates(model, motions)
    terms = _terms(model, found, motions, v)
    return [(pair, touch, _contact(model, pair, *of)) for (pair, touch), of in zip(found, terms, strict=True)]


def _contact(
    model: RobotModel, pair: Pair, basis: list[Row], velocity: list[Scalar], stiffness: Scalar, pull: Scalar
) -> Constraint | Cone:
    sliding, torsion, rolling = pair.friction
    coefficients = [sliding, sliding, torsion, rolling, rolling][: pair.dimensions - 1]
    damping = damping_of(model, pair.softness)
    if model.cone == "elliptic" and any(basis[1:]):
        used = [k for k in range(len(basis)) if k == 0 or basis[k]]
        return Cone(
            basis=[basis[k] for k in used],
            velocity=[velocity[k] for k in used],
            stiffness=stiffness,
            pull=pull,
            damping=damping,
            friction=[coefficients[k - 1] for k in used[1:]],
            mu=sliding / math.sqrt(model.impedance_ratio),
        )
    weights: list[tuple[Scalar, ...]] = [(1.0,)]
    if _is_pyramid(model, pair):
        weights = [
            (1.0, *(side * mu if k == along else 0.0 for k in range(pair.dimensions - 1)))
            for along, mu in enumerate(coefficients)
            for side in (1, -1)
        ]
    basis = basis[: len(weights[0])]
    # A direction in which nothing can move, as across a planar robot, leaves equal rows, and rows that move nothing.
    merged = [tuple(w if row else 0.0 for w, row in zip(edge, basis, strict=True)) for edge in weights]
    edges = [(edge, many) for edge, many in Counter(merged).items() if any(edge)]
    return Constraint(basis, velocity[: len(basis)], stiffness, pull, damping, edges)


def _is_pyramid(model: RobotModel, pair: Pair) -> bool:
    return pair.dimensions > 1 and model.cone == "pyramidal"


def _terms(
    model: RobotModel, contacts: Sequence[tuple[Pair, Touch]], motions: Motions, v: Vec
) -> list[tuple[list[Row], list[Scalar], Scalar, Scalar]]:
    """By contact the rows of its Jacobian (along the normal and the tangents, then about them), the speeds along them,
    stiffness and pull.

    Kernels leave them out, as zeros, where no rollout of a vector touches.
    """
    calls, start, shapes = [], 0, []
    for pair, touch in contacts:
        first, second = (set(model.moved_by(geom.body)) for geom in (pair.first, pair.second))
        dofs = sorted(first ^ second)
        offset = origin_offset(motions, pair.first.body, pair.second.body)
        moving = [
            (1.0 if k in second else -1.0, motions.column[k], None if k in second else offset) for k in dofs
        ]
        gap, weight, sliding = sub(touch.distance, pair.margin), pair.inverse_weight, pair.friction[0]
        if _is_pyramid(model, pair):
            weight = weight * ((1 + sliding * sliding) * 2 * sliding * sliding / model.impedance_ratio)
        near = where(both(touch.present, gap < 0), 1.0, 0.0, like=gap)
        soft = (
            pair.softness,
            _spring_damper(model, pair.softness)[0],
            weight,
            is_weightless(weight),
            model.onset,
        )
        at_point = touch.point, touch.normal, touch.tangent, moving, [v[k] for k in dofs], pair.dimensions
        shapes.append((pair.dimensions, dofs, start))
        adds = range(start, start := start + pair.dimensions * (len(dofs) + 1) + 2)
        guard = near if isinstance(near, Tensor) else None
        calls.append(Call(_touching, (near, gap, soft, *at_point), adds, guard))
    spatial = any(isinstance(x, Tensor) for angular, _ in motions.column for x in angular)
    if spatial or len(calls) > FEW:
        found = add_contributions([0.0] * start, calls)
    else:
        found = [x for call in calls for x in tree_flatten(call.function(*call.args))[0]]
    results = []
    for count, dofs, at in shapes:
        stiffness, pull = found[at], found[at + 1]
        own = found[at + 2 : at + 2 + count * (len(dofs) + 1)]
        rows = [own[i * len(dofs) : (i + 1) * len(dofs)] for i in range(count)]
        named = [{k: x for k, x in zip(dofs, row, strict=True) if not is_zero(x)} for row in rows]
        results.append((named, own[count * len(dofs) :], stiffness, pull))
    return results


def _touching(
    near: Scalar, gap: Scalar, soft: tuple[Any, ...], *rows: Any
) -> tuple[Scalar, Scalar, list[list[Scalar]], list[Scalar]]:
    stiffness, pull = _hardness(gap, *soft)
    stiffness = where(near > 0, stiffness, 0.0, like=gap)
    return stiffness, pull, *_jacobian(*rows)


def _jacobian(
    point: Vec,
    normal: Vec,
    tangent: Vec | None,
    moving: list[tuple[float, tuple[Vec, Vec], Vec | None]],
    v: Vec,
    dimensions: int,
) -> tuple[list[list[Scalar]], list[Scalar]]:
    """Rows by the place of a degree of freedom in ``moving``: sign, columns, from its origin's to the point's."""
    directions = frame(Touch(0.0, point, normal, tangent)) if dimensions > 1 else (normal,)
    rows = []
    for direction in directions:
        row = []
        for sign, (angular, linear), offset in moving:
            at = point if offset is None else vadd(point, offset)
            row.append(mul(sign, add(dot(direction, linear), dot(angular, cross(at, direction)))))
        rows.append(row)
    for direction in directions[: max(dimensions - 3, 0)]:
        rows.append([mul(sign, dot(direction, angular)) for sign, (angular, _), _ in moving])
    return rows, [dot(row, v) for row in rows]


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


def _hardness(
    gap: Scalar, softness: Softness, spring: Scalar, weight: Scalar, weightless: bool, onset: Scalar
) -> tuple[Scalar, Scalar]:
    """Stiffness and pull of a constraint that begins at a gap of zero, where the gap is negative."""
    share = 1.0 if weightless else begun(gap, onset)
    impedance = mul(share, impedance_of(softness.solimp, gap))
    return stiffness_of(impedance, weight, weightless), neg(mul(mul(spring, impedance), gap))


def stiffness_of(impedance: Any, weight: Any, weightless: bool) -> Scalar:
    """The inverse of MuJoCo's ``efc_R``, which is at least 1e-15: a body can have no inverse weight."""
    if weightless:
        return 1.0 / larger((1.0 - impedance) / impedance * weight, _LEAST_SOFTNESS)
    return impedance / ((1.0 - impedance) * weight)


def is_weightless(weight: Any) -> bool:
    """Whether a body cannot be shifted, so that its constraints are hard."""
    return isinstance(weight, float) and weight < _WEIGHTLESS


def pulled(model: RobotModel, softness: Softness, impedance: Scalar, gap: Scalar) -> Scalar:
    """The reference acceleration at rest."""
    return neg(mul(mul(_spring_damper(model, softness)[0], impedance), gap))


def damping_of(model: RobotModel, softness: Softness) -> float:
    return _spring_damper(model, softness)[1]
