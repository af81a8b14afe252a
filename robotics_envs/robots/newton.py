"""MuJoCo's soft constraints solved to the end by Newton steps.

The acceleration ``a`` minimises ``½ (a - a0)ᵀ M (a - a0) + Σ s(J a - a_ref)``, where every row s is a quadratic on one
side (limits, contacts), on both (equality), or one that turns linear (dry friction): MuJoCo's documentation, chapter
Computation.  A full Newton step is exact as soon as it finds the rows that are active, so that a few steps solve the
problem to rounding; where the rows change back and forth, a line search ends that.  Elliptic friction cones are not
quadratic: :mod:`robotics_envs.robots.cones`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from robotics_envs.robots.cones import conic_step
from robotics_envs.robots.inertia import Matrix, factor, solve, triangle
from robotics_envs.robots.line_search import share_of_step, shortened
from robotics_envs.robots.rows import Cone, Constraint, Row, along
from robotics_envs.robots.scalars import (
    Scalar,
    Vec,
    absolute,
    add,
    both,
    columns,
    dot,
    mul,
    neg,
    stack,
    sub,
    total,
    where,
)
from solvers.compiler.contributions import Call, add_contributions
from solvers.compiler.fixed_point import fixed_point

MOST_STEPS = 40
"""Newton steps at most; few states need more than five (docs/robots.md)."""

_FULL_STEPS = 6
"""After so many, steps end where the cost is least along them: full steps alone can go round in circles."""


def accelerate(
    matrix: Matrix,
    force: Sequence[Scalar],
    rows: Sequence[Constraint | Cone],
    like: Tensor,
    most: int = MOST_STEPS,
) -> list[Scalar]:
    """Accelerations of ``M a = force + constraint forces``; ``like [B]`` is a tensor of their dtype.

    The gradient is that of the last Newton step at the solution, which is exact: rows stay active or not.
    """
    if not rows:
        return solve(factor(matrix), force)
    n = len(force)
    given, unpack = _packed(matrix, force, rows)
    if any(isinstance(row, Cone) for row in rows):
        return columns(fixed_point(_conic(unpack), given.new_zeros(*like.shape, n + 1), given, most))[:n]
    rubbing = [row for row in rows if isinstance(row, Constraint) and row.bound is not None]
    # After the accelerations: on which side of its rows with dry friction the last step was, and the count of steps,
    # which is -1 once settled.
    start = given.new_zeros(*like.shape, n + len(rubbing) + 1)
    tolerance = 64 * torch.finfo(like.dtype).eps

    def step(x: Tensor, packed: Tensor) -> tuple[Tensor, Tensor]:
        known_matrix, known_force, known_rows = unpack(packed)
        *state, count = columns(x)
        a, before = state[:n], iter(state[n:])
        searches: Any = count >= _FULL_STEPS
        hessian, right, pushing = _pressed(known_matrix, known_force, known_rows, a, count)
        sides: dict[int, list[Any]] = {}
        for k, row in enumerate(known_rows):
            if k in pushing:
                continue
            sides[k] = (
                _pushing(row, a, count == 0)
                if row.bound is None
                else [_slip(row, a, count == 0, where(searches, 0.0, next(before)))]
            )
            _add_row(hessian, right, row, sides[k])
        full = solve(factor(hessian), right)
        moving = total(_changed(known_rows[k], full, side, tolerance) for k, side in sides.items())
        moving = _released(moving, known_rows, full, pushing, tolerance)
        searches = where(both(searches, moving != 0), 1.0, 0.0, like=count)
        following = full
        if isinstance(searches, Tensor):  # not where all rows always act
            ahead = [sub(new, old) for old, new in zip(a, full, strict=True)]
            share = share_of_step(known_matrix, known_force, known_rows, a, ahead, searches)
            following = shortened(full, ahead, share)
        following += [side[0] for k, side in sides.items() if known_rows[k].bound is not None]
        next_count = where(moving == 0, -1.0, count + 1)
        return stack([*following, next_count], x[..., 0]), stack([moving], x[..., 0])[..., 0]

    return columns(fixed_point(step, start, given, most))[:n]


def _conic(unpack: Callable[[Tensor], Any]) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """The step of a problem with elliptic cones; the state is the accelerations and the count of steps."""

    def step(x: Tensor, packed: Tensor) -> tuple[Tensor, Tensor]:
        *a, count = columns(x)
        matrix, force, rows = unpack(packed)
        following, settled = conic_step(matrix, force, rows, a, count)
        next_count = where((settled == 1) | (count < 0), -1.0, count + 1)
        return stack([*following, next_count], x[..., 0]), stack([1.0 - settled], x[..., 0])[..., 0]

    return step


def _is_contact(row: Constraint) -> bool:
    """Whether a row has more than what is quicker written out; kernels leave it out where nothing touches."""
    return row.bound is None and not row.always and isinstance(row.stiffness, Tensor) and len(row.moves) > 2


def _pressed(
    matrix: Matrix, force: Sequence[Scalar], rows: Sequence[Constraint], a: Vec, count: Scalar
) -> tuple[Matrix, list[Scalar], dict[int, list[Scalar]]]:
    """:func:`_add_row` of the contacts among ``rows``, and 1 by each of their edges that pushes, by their number."""
    n = len(force)
    place = triangle(n)
    start: list[Scalar] = [matrix[i][j] for i, j in place] + list(force)
    calls, at = [], {}
    for number, row in enumerate(rows):
        if not _is_contact(row):
            continue
        dofs = row.moves
        adds = [place[k, other] for i, k in enumerate(dofs) for other in dofs[: i + 1]]
        adds += [len(place) + k for k in dofs]
        at[number] = range(len(start), len(start) + len(row.edges))
        start += [0.0] * len(row.edges)
        given = [a[k] for k in dofs], count, row.local()
        calls.append(Call(_press, given, [*adds, *at[number]], row.stiffness))
    found = add_contributions(start, calls)
    hessian = [[found[place[i, j]] if j <= i else 0.0 for j in range(n)] for i in range(n)]
    pushing = {number: [found[k] for k in places] for number, places in at.items()}
    return hessian, found[len(place) : len(place) + n], pushing


def _press(a: Vec, count: Tensor, local: tuple[Any, ...]) -> tuple[Matrix, list[Scalar], list[Scalar]]:
    """Below the diagonal ``Jᵀ D J`` of the edges that push, ``Jᵀ D a_ref``, and which push."""
    row, n = Constraint(*local), len(a)
    sides = _pushing(row, a, count == 0)
    hessian: Matrix = [[0.0] * n for _ in range(n)]
    right: list[Scalar] = [0.0] * n
    _add_row(hessian, right, row, sides)
    below = [hessian[i][: i + 1] for i in range(n)]
    return below, right, [where(side, 1.0, 0.0, like=count) for side in sides]


def _released(
    moving: Scalar, rows: Sequence[Constraint], a: Vec, pushing: dict[int, list[Scalar]], tolerance: float
) -> Scalar:
    """``moving`` and how many edges of contacts are on the other side at ``a``."""
    calls = []
    for number, sides in pushing.items():
        row = rows[number]
        given = [a[k] for k in row.moves], sides, tolerance, row.local()
        calls.append(Call(_count_changed, given, [0], row.stiffness))
    (found,) = add_contributions([moving], calls)
    return found


def _count_changed(a: Vec, pushing: list[Tensor], tolerance: Scalar, local: tuple[Any, ...]) -> Scalar:
    return _changed(Constraint(*local), a, [side != 0 for side in pushing], tolerance)


def shortfalls(row: Constraint, a: Vec) -> list[tuple[Scalar, Scalar]]:
    """By edge: its acceleration less the reference, and the reference."""
    rates = [along(basis, a) for basis in row.basis]
    lacks = []
    for weights, _ in row.edges:
        reference = sub(row.pull, mul(row.damping, dot(weights, row.velocity)))
        lacks.append((sub(dot(weights, rates), reference), reference))
    return lacks


def _pushing(row: Constraint, a: Vec, is_first: Any) -> list[Any]:
    """By edge, whether it acts; in the first step all do."""
    return [row.always or is_first | (lack < 0) for lack, _ in shortfalls(row, a)]


def _friction_force(row: Constraint, a: Vec) -> Any:
    """The force of dry friction if it were not bounded."""
    ((lack, _),) = shortfalls(row, a)
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
                inner[i][j] = add(inner[i][j], mul(mul(weights[i], weights[j]), stiffness))
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


def _changed(row: Constraint, a: Vec, sides: list[Any], tolerance: Scalar) -> Scalar:
    """How many edges are on the other side at ``a``; those at the very border, and absent rows, do not count."""
    if row.bound is not None:
        force = _friction_force(row, a)
        # From the middle of the side that it is on: within one bound where it sticks, beyond where it slides.
        (side,) = sides
        room = where(side == 0, row.bound - absolute(force), mul(side, force) - row.bound)
        return where(room < -tolerance * row.bound, 1.0, 0.0, force)
    if row.always:
        return 0.0
    found: Scalar = 0.0
    for (lack, reference), is_active in zip(shortfalls(row, a), sides, strict=True):
        far = absolute(lack) > mul(tolerance, add(1.0, absolute(reference)))
        changed = _differ(lack < 0, is_active) & far
        if isinstance(row.stiffness, Tensor):
            changed = changed & (row.stiffness > 0)
        found = add(found, where(changed, 1.0, 0.0, a[0]))
    return found


def _differ(a: Any, b: Any) -> Any:
    return (a & ~b) | (~a & b)


def _packed(
    matrix: Matrix, force: Sequence[Scalar], rows: Sequence[Constraint | Cone]
) -> tuple[Tensor, Callable[[Tensor], Any]]:
    """The tensors of a problem as one ``[B, k]``, and the way back; equal tensors are packed once."""
    # Below the diagonal only: the other half is equal.
    lower = [[x if j <= i else 0.0 for j, x in enumerate(row)] for i, row in enumerate(matrix)]
    kinds = [type(row) for row in rows]
    listed = [tuple(getattr(row, field.name) for field in fields(row)) for row in rows]
    leaves, shape = tree_flatten((lower, list(force), listed))
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
        known_matrix, known_force, known = tree_unflatten(filled, shape)
        return known_matrix, known_force, [kind(*row) for kind, row in zip(kinds, known, strict=True)]

    return given, unpack
