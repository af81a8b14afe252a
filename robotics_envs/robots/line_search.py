"""How much of a Newton step to take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from robotics_envs.robots.costs import clamp_to, length_of
from robotics_envs.robots.inertia import Matrix
from robotics_envs.robots.rows import Cone, Constraint, along, guard_of
from robotics_envs.robots.scalars import Scalar, Vec, absolute, add, both, cut, dot, mul, sub, where
from solvers.compiler.contributions import Call, add_contributions, is_nowhere

_SECANTS = 4
"""Steps of the line search where the full Newton step goes too far."""
_FLAT = 0.1
"""A full step is taken if the slope at its end is at most this share of that at its start."""


def share_of_step(
    matrix: Matrix,
    force: Sequence[Scalar],
    rows: Sequence[Constraint | Cone],
    a: Vec,
    step: Vec,
    searches: Tensor,
) -> Scalar:
    """The share of ``step`` to take, without derivatives: all of it, unless the cost rises steeply at its end.

    The cost is convex, and the slope along the step a rising function of the share: the end of the search is near
    where it is zero.  Kernels leave the search out where ``searches``, 1 or 0, is 0 for all rollouts of a vector;
    where it is 0 for one, its share is 1.
    """
    if is_nowhere(searches):
        return 1.0
    a, step = [cut(x) for x in a], [cut(s) for s in step]
    below = [[cut(x) for x in row[: i + 1]] for i, row in enumerate(matrix)]
    smooth = Call(_of_inertia, (below, [cut(f) for f in force], a, step), (0, 1))
    flat, bent = add_contributions([0.0, 0.0], [smooth], searches)
    lines = _lines(rows, a, step, searches)

    def slope(share: Scalar, searches: Tensor) -> Any:
        calls = [line.slope(share) for line in lines]
        return add_contributions([add(flat, mul(share, bent))], calls, searches)[0]

    at_start, at_end = slope(0.0 * searches, searches), slope(0.0 * searches + 1.0, searches)
    searches = torch.where(at_end > -_FLAT * at_start, searches, 0.0)
    low, high, at_low, at_high = 0.0 * at_start, 0.0 * at_start + 1.0, at_start, at_end
    for _ in range(_SECANTS):
        width = high - low
        share = low + width * (at_low / (at_low - at_high)).clamp(0.05, 0.95)
        here = slope(share, searches)
        is_beyond = here > 0
        # The end that stays counts half the next time (Illinois), so that it does not stay for ever.
        at_low, at_high = where(is_beyond, 0.5 * at_low, here), where(is_beyond, here, 0.5 * at_high)
        low, high = where(is_beyond, low, share), where(is_beyond, share, high)
    found = where(both(low > 0, absolute(at_low) <= absolute(at_high)), low, high)
    return where(searches > 0, found, 1.0)


def shortened(full: Vec, step: Vec, share: Scalar) -> list[Scalar]:
    """Where ``share`` of a step ends, given where all of it does; with the derivative of all of it.

    Steps that are not full are not the last, which alone is differentiated: so a kernel's derivative has no search.
    """
    return [add(x, cut(mul(sub(share, 1.0), s))) for x, s in zip(full, step, strict=True)]


def _of_inertia(below: Matrix, force: Sequence[Scalar], a: Vec, step: Vec) -> tuple[Scalar, Scalar]:
    """The slope along the step at its start, and how it changes, of the cost without constraints."""
    n = len(force)
    pushed = [dot([below[max(i, j)][min(i, j)] for j in range(n)], step) for i in range(n)]
    return sub(dot(a, pushed), dot(force, step)), dot(step, pushed)


class _Line(NamedTuple):
    """What the cost of a constraint depends on along a step."""

    row: Constraint | Cone
    given: list[Scalar]

    def slope(self, share: Scalar) -> Call:
        """The call that adds the slope of the cost."""
        row = self.row
        given: tuple[Any, ...] = self.given, share, row.stiffness
        if isinstance(row, Cone):
            return Call(_slope_of_cone, (*given, row.mu), (0,), guard_of(row))
        edges = [float(many) for _, many in row.edges]
        return Call(_slope_of_constraint, (*given, edges, row.bound, row.always), (0,), guard_of(row))


def _lines(rows: Sequence[Constraint | Cone], a: Vec, step: Vec, searches: Tensor) -> list[_Line]:
    found: list[tuple[Constraint | Cone, range]] = []
    calls, count = [], 0
    for given in rows:
        row = type(given)(*(tree_map(cut, getattr(given, field.name)) for field in fields(given)))
        size = 5 if isinstance(row, Cone) else 2 * len(row.edges)
        found.append((row, range(count, count := count + size)))
        function, dofs = _line_of_cone if isinstance(row, Cone) else _line_of_constraint, row.moves
        arguments = [a[k] for k in dofs], [step[k] for k in dofs], row.local()
        calls.append(Call(function, arguments, found[-1][1], guard_of(row)))
    entries = add_contributions([0.0] * count, calls, searches)
    return [_Line(row, [entries[k] for k in places]) for row, places in found]


def _line_of_constraint(a: Vec, step: Vec, local: tuple[Any, ...]) -> list[Scalar]:
    """By edge what its acceleration lacks at the start of the step, and how that changes."""
    row = Constraint(*local)
    at, rates = ([along(basis, q) for basis in row.basis] for q in (a, step))
    line = []
    for weights, _ in row.edges:
        lack = add(sub(dot(weights, at), row.pull), mul(row.damping, dot(weights, row.velocity)))
        line += [lack, dot(weights, rates)]
    return line


def _slope_of_constraint(
    line: Vec, share: Scalar, stiffness: Scalar, many: Vec, bound: Scalar | None, always: bool
) -> Scalar:
    found: Scalar = 0.0
    for number, lack, rate in zip(many, line[::2], line[1::2], strict=True):
        push: Any = mul(mul(number, stiffness), add(lack, mul(share, rate)))
        if bound is not None:
            push = clamp_to(push, bound)
        elif not always:
            push = where(push < 0, push, 0.0)
        found = add(found, mul(push, rate))
    return found


def _line_of_cone(a: Vec, step: Vec, local: tuple[Any, ...]) -> list[Scalar]:
    """What the normal acceleration lacks and how that changes, then the square of the tangential, as a polynomial."""
    row = Cone(*local)
    at, rates = ([along(basis, q) for basis in row.basis] for q in (a, step))
    lacks = [add(y, mul(row.damping, v)) for y, v in zip(at, row.velocity, strict=True)]
    sideways, changes = (
        [mul(f, y) for f, y in zip(row.friction, q[1:], strict=True)] for q in (lacks, rates)
    )
    square = dot(sideways, sideways), mul(2.0, dot(sideways, changes)), dot(changes, changes)
    return [sub(lacks[0], row.pull), rates[0], *square]


def _slope_of_cone(line: Vec, share: Scalar, stiffness: Scalar, mu: Scalar) -> Scalar:
    """Sticking, sliding or open: see :mod:`robotics_envs.robots.costs`."""
    lack, rate, constant, linear, quadratic = line
    normal: Any = add(lack, mul(share, rate))
    half = add(mul(0.5, linear), mul(share, quadratic))
    far = length_of(add(constant, mul(share, add(linear, mul(share, quadratic)))))
    of_sideways = mul(stiffness, 1.0 / mul(mu, mu))
    sticking = add(mul(mul(stiffness, normal), rate), mul(of_sideways, half))
    hard = mul(of_sideways, 1.0 / add(1.0, mul(mu, mu)))
    gap: Any = mul(mu, sub(normal, far))
    sliding = mul(mul(mul(hard, mu), gap), sub(rate, mul(half, 1.0 / far)))
    sticks = add(mul(mul(mu, mu), normal), far) <= 0
    return where(sticks, sticking, where(gap < 0, sliding, 0.0))
