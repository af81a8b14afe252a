"""A Newton step with a line search for constraints with elliptic friction cones.

The cost of a sliding contact is not quadratic (:mod:`robotics_envs.robots.costs`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from robotics_envs.robots.costs import cost_of
from robotics_envs.robots.inertia import Matrix, factor, solve, triangle
from robotics_envs.robots.line_search import share_of_step, shortened
from robotics_envs.robots.rows import Cone, Constraint, along, guard_of
from robotics_envs.robots.scalars import (
    Scalar,
    Vec,
    absolute,
    add,
    both,
    cut,
    dot,
    larger,
    mul,
    neg,
    sub,
    where,
)
from solvers.compiler.contributions import Call, add_contributions


def conic_step(
    matrix: Matrix, force: list[Scalar], rows: Sequence[Constraint | Cone], a: Vec, count: Scalar
) -> tuple[list[Scalar], Scalar]:
    """The accelerations after one step, and whether it settled (1 or 0).

    ``count`` is that of the steps before: in the first all constraints push, and once settled, where it is -1, the
    steps are full ones.  The derivative is that of the gradient of the cost alone: at the solution, where that is zero,
    the change of the Hessian has no effect.
    """
    is_first, is_last = count == 0, count < 0
    n = len(force)
    smooth = [sub(dot(row, a), f) for row, f in zip(symmetric(matrix), force, strict=True)]
    place = triangle(n)
    start = [cut(matrix[i][j]) for i, j in place] + smooth
    calls = []
    for row in rows:
        dofs = row.moves
        adds = [place[k, other] for i, k in enumerate(dofs) for other in dofs[: i + 1]]
        adds += [len(place) + k for k in dofs]
        function = _of_cone if isinstance(row, Cone) else _of_constraint
        calls.append(Call(function, ([a[k] for k in dofs], count, row.local()), adds, guard_of(row)))
    found = add_contributions(start, calls)
    hessian = [[found[place[i, j]] if j <= i else 0.0 for j in range(n)] for i in range(n)]
    slope = found[len(place) :]
    step = solve(factor(hessian), [neg(x) for x in slope])
    size = largest([absolute(cut(x)) for x in a])
    moved = largest([absolute(cut(s)) for s in step])
    tolerance = torch.finfo(a[0].dtype).eps ** 0.6  # type: ignore[union-attr]
    is_small = moved <= mul(tolerance, add(1.0, size))
    searches: Any = where(is_first | is_last | is_small, 0.0, 1.0, like=a[0])
    full = [add(x, s) for x, s in zip(a, step, strict=True)]
    following = shortened(full, step, share_of_step(matrix, force, rows, a, step, searches))
    return following, where(both(is_small, ~is_first), 1.0, 0.0, like=a[0])


def _of_constraint(a: Vec, count: Any, local: tuple[Any, ...]) -> tuple[Matrix, list[Scalar]]:
    return _contribution(Constraint(*local), a, count == 0)


def _of_cone(a: Vec, count: Any, local: tuple[Any, ...]) -> tuple[Matrix, list[Scalar]]:
    return _contribution(Cone(*local), a, count == 0)


def _contribution(row: Constraint | Cone, a: Vec, is_first: Any) -> tuple[Matrix, list[Scalar]]:
    """What a constraint adds below the diagonal of the Hessian, without derivatives, and to the slope."""
    n = len(a)
    cost = cost_of(row, [along(basis, a) for basis in row.basis], is_first)
    slope: list[Scalar] = [0.0] * n
    hessian: Matrix = [[0.0] * n for _ in range(n)]
    for basis, pull in zip(row.basis, cost.slope, strict=True):
        for k, x in basis.items():
            slope[k] = add(slope[k], mul(x, pull))
    for i, basis in enumerate(row.basis):
        spread: dict[int, Scalar] = {}
        for j, other in enumerate(row.basis):
            for k, y in other.items():
                spread[k] = add(spread.get(k, 0.0), mul(cut(cost.curvature[i][j]), cut(y)))
        for k, x in basis.items():
            for other_k, y in spread.items():
                if other_k <= k:
                    hessian[k][other_k] = add(hessian[k][other_k], mul(cut(x), y))
    return [row[: i + 1] for i, row in enumerate(hessian)], slope


def largest(values: Sequence[Scalar]) -> Scalar:
    result = values[0]
    for value in values[1:]:
        result = larger(result, value)
    return result


def symmetric(lower: Matrix) -> Matrix:
    """Both triangles of a matrix that is given below its diagonal."""
    n = len(lower)
    return [[lower[max(i, j)][min(i, j)] for j in range(n)] for i in range(n)]
