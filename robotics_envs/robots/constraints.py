"""MuJoCo's soft constraints: joint limits, dry friction and contacts, solved to the end by Newton steps.

The acceleration ``a`` minimises ``½ (a - a0)ᵀ M (a - a0) + Σ s(J a - a_ref)``, where every row s is a quadratic on one
side (limits, contacts), or one that turns linear (dry friction): MuJoCo's documentation, chapter Computation.  A full
Newton step is exact as soon as it finds the rows that are active, so that a few steps solve the problem to rounding.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from robotics_envs.robots.inertia import Matrix, factor, solve
from robotics_envs.robots.kinematics import Motions
from robotics_envs.robots.model import Joint, Pair, RobotModel, Softness
from robotics_envs.robots.scalars import (
    Scalar,
    Vec,
    absolute,
    add,
    both,
    columns,
    cross,
    dot,
    is_zero,
    mul,
    neg,
    stack,
    sub,
    total,
    vadd,
    where,
)
from robotics_envs.robots.touching import Touch, frame, origin_offset, speed, touches
from solvers.compiler.fixed_point import fixed_point

MOST_STEPS = 40
"""Newton steps at most; few states need more than five (docs/robots.md)."""

_FULL_STEPS = 6
"""After so many, every other step is half of one: full steps alone can go round in circles."""

_LEAST, _MOST = 1e-4, 0.9999  # MuJoCo's mjMINIMP and mjMAXIMP

Row = dict[int, Scalar]
"""A row of a Jacobian: what is not zero, by degree of freedom."""


@dataclass
class Constraint:
    """Rows that share a stiffness: edges of a friction pyramid, each a sum of ``basis`` rows with given weights.

    Row e has the reference acceleration ``pull - damping · velocity``, and the force ``stiffness`` times what its
    acceleration lacks of that; ``stiffness`` is 0 where the constraint is absent.  ``edges`` are the weights, and how
    many rows have them.  ``bound`` is the largest force of dry friction, which acts both ways.
    """

    basis: list[Row]
    velocity: list[Scalar]
    stiffness: Scalar
    pull: Scalar
    damping: float
    edges: list[tuple[tuple[float, ...], int]]
    bound: float | None = None


def constraints(model: RobotModel, motions: Motions, q: Vec, v: Vec) -> list[Constraint]:
    """All constraints that can be active at positions ``q`` and velocities ``v``."""
    found = [_friction(model, k, v) for k, dof in enumerate(model.dofs) if dof.friction > 0]
    found += [_limit(model, joint, side, q, v) for joint in model.limits for side in (1.0, -1.0)]
    for pair in model.pairs:
        contacts = [_contact(model, pair, touch, motions, v) for touch in touches(pair, motions)]
        found += [contact for contact in contacts if contact.edges]
    return found


def _friction(model: RobotModel, k: int, v: Vec) -> Constraint:
    dof = model.dofs[k]
    _, damping = _spring_damper(model, dof.softness)
    impedance = _impedance(dof.softness.solimp, 0.0)
    softness = (1.0 - impedance) / impedance * dof.inverse_weight
    return Constraint([{k: 1.0}], [v[k]], 1.0 / softness, 0.0, damping, [((1.0,), 1)], dof.friction)


def _limit(model: RobotModel, joint: Joint, side: float, q: Vec, v: Vec) -> Constraint:
    limit = joint.limit
    assert limit is not None
    at, k = q[joint.position], joint.velocity
    distance = sub(at, limit.range[0]) if side > 0 else sub(limit.range[1], at)
    gap = sub(distance, limit.margin)
    stiffness, pull, damping = _soft(model, limit.softness, gap, model.dofs[k].inverse_weight)
    return Constraint([{k: side}], [mul(side, v[k])], stiffness, pull, damping, [((1.0,), 1)])


def _contact(model: RobotModel, pair: Pair, touch: Touch, motions: Motions, v: Vec) -> Constraint:
    mu, weight = pair.friction, pair.inverse_weight
    directions = frame(touch) if pair.dimensions == 3 else (touch.normal,)
    basis = [_jacobian(model, pair, touch, motions, direction) for direction in directions]
    if pair.dimensions == 3:
        weight *= (1 + mu * mu) * 2 * mu * mu / model.impedance_ratio
        weights = [(1.0, s * mu, 0.0) for s in (1, -1)] + [(1.0, 0.0, s * mu) for s in (1, -1)]
    else:
        weights = [(1.0,)]  # type: ignore[list-item]
    gap = sub(touch.distance, pair.margin)
    stiffness, pull, damping = _soft(model, pair.softness, gap, weight, touch.present)
    # A direction in which nothing can move, as across a planar robot, leaves equal rows, and rows that move nothing.
    used = [tuple(w if row else 0.0 for w, row in zip(edge, basis, strict=True)) for edge in weights]
    edges = [(edge, many) for edge, many in Counter(used).items() if any(edge)]
    return Constraint(basis, [speed(row, v) for row in basis], stiffness, pull, damping, edges)


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


def _impedance(solimp: Sequence[float], gap: Scalar) -> Scalar:
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
    model: RobotModel, softness: Softness, gap: Scalar, weight: float, present: Any = True
) -> tuple[Scalar, Scalar, float]:
    """Stiffness, pull and damping of a constraint that begins at a gap of zero."""
    spring, damping = _spring_damper(model, softness)
    impedance = _impedance(softness.solimp, gap)
    # mjMINVAL; a body that turns about its middle has no weight of its own.
    stiffness = impedance / ((1.0 - impedance) * max(weight, 1e-15))
    near = both(present, gap < 0)
    return (
        where(near, stiffness, 0.0, like=gap),
        neg(mul(mul(spring, impedance), gap)),
        damping,
    )


def accelerate(
    matrix: Matrix, force: Sequence[Scalar], rows: list[Constraint], like: Tensor, most: int = MOST_STEPS
) -> list[Scalar]:
    """Accelerations of ``M a = force + constraint forces``; ``like [B]`` is a tensor of their dtype.

    The gradient is that of the last Newton step at the solution, which is exact: rows stay active or not.
    """
    if not rows:
        return solve(factor(matrix), force)
    n = len(force)
    rubbing = [row for row in rows if row.bound is not None]
    given, unpack = _packed((matrix, list(force), rows))
    # After the accelerations: on which side of its rows with dry friction the last step was, and the count of steps,
    # which is -1 once settled.
    start = given.new_zeros(*like.shape, n + len(rubbing) + 1)
    tolerance = 64 * torch.finfo(like.dtype).eps

    def step(x: Tensor, packed: Tensor) -> tuple[Tensor, Tensor]:
        known_matrix, known_force, known_rows = unpack(packed)
        *state, count = columns(x)
        a, before = state[:n], iter(state[n:])
        is_first, is_half = count == 0, _is_half(count)
        sides = [
            _pushing(row, a, is_first) if row.bound is None else [_slip(row, a, is_first, next(before))]
            for row in known_rows
        ]
        full, moving = _newton(known_matrix, known_force, known_rows, sides, tolerance)
        following = [where(is_half, 0.5 * (old + new), new) for old, new in zip(a, full, strict=True)]
        following += [side[0] for row, side in zip(known_rows, sides, strict=True) if row.bound is not None]
        moving = where(is_half, 1.0, moving)
        next_count = where(moving == 0, -1.0, count + 1)
        return stack([*following, next_count], x[..., 0]), stack([moving], x[..., 0])[..., 0]

    return columns(fixed_point(step, start, given, most))[:n]


def _is_half(count: Any) -> Any:
    half = 0.5 * count
    return (count >= _FULL_STEPS) & (half == torch.floor(half))


def _newton(
    matrix: Matrix, force: list[Scalar], rows: list[Constraint], sides: list[list[Any]], tolerance: float
) -> tuple[list[Scalar], Scalar]:
    """The acceleration where every row is on its side, and a number that is not zero where some are not, then."""
    hessian, right = [list(row) for row in matrix], list(force)
    for row, side in zip(rows, sides, strict=True):
        _add_row(hessian, right, row, side)
    following = solve(factor(hessian), right)
    moving = total(_changed(row, following, side, tolerance) for row, side in zip(rows, sides, strict=True))
    return following, moving


def _lack(row: Constraint, a: Vec) -> list[tuple[Scalar, Scalar]]:
    """By edge: its acceleration less the reference, and the reference."""
    along = [total(mul(x, a[k]) for k, x in basis.items()) for basis in row.basis]
    lacks = []
    for weights, _ in row.edges:
        reference = sub(row.pull, mul(row.damping, dot(weights, row.velocity)))
        lacks.append((sub(dot(weights, along), reference), reference))
    return lacks


def _pushing(row: Constraint, a: Vec, is_first: Any) -> list[Any]:
    """By edge, whether it pushes; in the first step all do."""
    return [is_first | (lack < 0) for lack, _ in _lack(row, a)]


def _friction_force(row: Constraint, a: Vec) -> Any:
    """The force of dry friction if it were not bounded."""
    ((lack, _),) = _lack(row, a)
    return neg(mul(row.stiffness, lack))


def _slip(row: Constraint, a: Vec, is_first: Any, before: Scalar) -> Scalar:
    """The sign of the force of dry friction that slides, 0 where it sticks.

    A row that would go from one bound of its force to the other sticks first: between the bounds is little room.
    """
    force = _friction_force(row, a)
    side = where(force >= row.bound, 1.0, where(force <= -row.bound, -1.0, 0.0, force), force)  # type: ignore[operator]
    return where(is_first | (mul(side, before) < 0), 0.0, side)


def _add_row(hessian: Matrix, right: list[Scalar], row: Constraint, sides: list[Any]) -> None:
    """``H x = force + Σ Jᵀ D (a_ref)`` over the active rows, with ``H = M + Σ Jᵀ D J``."""
    count = len(row.basis)
    inner: Matrix = [[0.0] * count for _ in range(count)]
    pulls: list[Scalar] = [0.0] * count
    for (weights, many), side in zip(row.edges, sides, strict=True):
        is_active = side if row.bound is None else side == 0
        reference = sub(row.pull, mul(row.damping, dot(weights, row.velocity)))
        like = next(speed for speed in row.velocity if isinstance(speed, Tensor))
        stiffness = where(is_active, mul(float(many), row.stiffness), 0.0, like=like)
        push = mul(stiffness, reference)
        if row.bound is not None:
            push = where(is_active, push, mul(row.bound, side))
        for i in range(count):
            pulls[i] = add(pulls[i], mul(weights[i], push))
            for j in range(i + 1):
                inner[i][j] = add(inner[i][j], mul(weights[i] * weights[j], stiffness))
    for i, basis in enumerate(row.basis):
        spread: Row = {}
        for j, other in enumerate(row.basis):
            factor_ij = inner[i][j] if j <= i else inner[j][i]
            for k, y in other.items():
                spread[k] = add(spread.get(k, 0.0), mul(factor_ij, y))
        for k, x in basis.items():
            right[k] = add(right[k], mul(x, pulls[i]))
            for other_k, y in spread.items():
                if other_k <= k:
                    hessian[k][other_k] = add(hessian[k][other_k], mul(x, y))


def _changed(row: Constraint, a: Vec, sides: list[Any], tolerance: float) -> Scalar:
    """How many edges are on the other side at ``a``; those at the very border, and absent rows, do not count."""
    if row.bound is not None:
        force = _friction_force(row, a)
        # From the middle of the side that it is on: within one bound where it sticks, beyond where it slides.
        (side,) = sides
        room = where(side == 0, row.bound - absolute(force), mul(side, force) - row.bound)
        return where(room < -tolerance * row.bound, 1.0, 0.0, force)
    found: Scalar = 0.0
    for (lack, reference), is_active in zip(_lack(row, a), sides, strict=True):
        far = absolute(lack) > mul(tolerance, add(1.0, absolute(reference)))
        changed = _differ(lack < 0, is_active) & far
        if isinstance(row.stiffness, Tensor):
            changed = changed & (row.stiffness > 0)
        found = add(found, where(changed, 1.0, 0.0, a[0]))
    return found


def _differ(a: Any, b: Any) -> Any:
    return (a & ~b) | (~a & b)


def _packed(parts: Any) -> tuple[Tensor, Callable[[Tensor], Any]]:
    """The tensors in nested lists as one ``[B, k]``, and the way back; equal tensors are packed once."""
    plain = _plain(parts)
    leaves, shape = tree_flatten(plain)
    order: dict[int, int] = {}
    tensors: list[Tensor] = []
    places: list[int | None] = []
    for leaf in leaves:
        if not isinstance(leaf, Tensor):
            places.append(None)
            continue
        if id(leaf) not in order:
            order[id(leaf)] = len(tensors)
            tensors.append(leaf)
        places.append(order[id(leaf)])
    given = torch.stack(tensors, -1)

    def unpack(packed: Tensor) -> Any:
        values = columns(packed)
        filled = [
            leaf if place is None else values[place] for leaf, place in zip(leaves, places, strict=True)
        ]
        matrix, force, rows = tree_unflatten(filled, shape)
        return matrix, force, [Constraint(*row) for row in rows]

    return given, unpack


def _plain(parts: Any) -> Any:
    matrix, force, rows = parts
    # Below the diagonal only: the other half is equal.
    lower = [[x if j <= i else 0.0 for j, x in enumerate(row)] for i, row in enumerate(matrix)]
    listed = [
        (row.basis, row.velocity, row.stiffness, row.pull, row.damping, row.edges, row.bound) for row in rows
    ]
    return lower, force, listed
