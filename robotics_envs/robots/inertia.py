"""Mass matrix, bias forces, and the factorisation that keeps the zeros of a tree.

Composite rigid bodies and recursive Newton-Euler in world axes; ``M = Lᵀ D L`` with L unit lower triangular.
Featherstone, Rigid Body Dynamics Algorithms, 2008, chapters 5, 6 and 8.
"""

from __future__ import annotations

from robotics_envs.robots.kinematics import Motions
from robotics_envs.robots.model import RobotModel
from robotics_envs.robots.scalars import (
    Scalar,
    Vec,
    add,
    apply,
    cross,
    dot,
    is_zero,
    mul,
    neg,
    product,
    scale,
    sub,
    total,
    vadd,
    vsub,
)

Matrix = list[list[Scalar]]


def triangle(n: int) -> dict[tuple[int, int], int]:
    """The places of the entries of a lower triangle in a list, row after row."""
    return {entry: k for k, entry in enumerate((i, j) for i in range(n) for j in range(i + 1))}


def inertia_and_bias(model: RobotModel, motions: Motions) -> tuple[Matrix, list[Scalar]]:
    """Mass matrix ``[nv, nv]`` (both triangles) and the forces that hold the accelerations of ``motions``.

    Gravity compensation is part of the bias.
    """
    count = len(model.bodies)
    mass: list[Scalar] = [body.mass for body in model.bodies]
    first: list[Vec] = [(0.0, 0.0, 0.0)] * count  # mass times centre
    second: list[Matrix] = [[[0.0] * 3 for _ in range(3)] for _ in range(count)]  # inertia about the origin
    wrench: list[tuple[Vec, Vec]] = [((0.0, 0.0, 0.0), (0.0, 0.0, 0.0))] * count
    for b in range(1, count):
        first[b], second[b] = _about_origin(model, motions, b)
        wrench[b] = _wrench(model, motions, b, mass[b], first[b], second[b])
    n = model.velocities
    matrix: Matrix = [[0.0] * n for _ in range(n)]
    bias: list[Scalar] = [0.0] * n
    dofs_of: dict[int, list[int]] = {}
    for k, dof in enumerate(model.dofs):
        dofs_of.setdefault(dof.body, []).append(k)
    for b in range(count - 1, 0, -1):
        for k in dofs_of.get(b, ()):
            angular, linear = motions.column[k]
            bias[k] = add(dot(angular, wrench[b][0]), dot(linear, wrench[b][1]))
            momentum = vadd(scale(mass[b], linear), cross(angular, first[b]))
            spin = vadd(apply(second[b], angular), cross(first[b], linear))
            other = k
            while other >= 0:
                a, v = motions.column[other]
                matrix[k][other] = matrix[other][k] = add(dot(a, spin), dot(v, momentum))
                other = model.dofs[other].parent
            if not is_zero(model.dofs[k].armature):
                matrix[k][k] = add(matrix[k][k], model.dofs[k].armature)
        parent = model.bodies[b].parent
        if parent:
            mass[parent] = add(mass[parent], mass[b])
            first[parent] = vadd(first[parent], first[b])
            second[parent] = [vadd(x, y) for x, y in zip(second[parent], second[b], strict=True)]
            wrench[parent] = (
                vadd(wrench[parent][0], wrench[b][0]),
                vadd(wrench[parent][1], wrench[b][1]),
            )
    return matrix, bias


def _about_origin(model: RobotModel, motions: Motions, b: int) -> tuple[Vec, Matrix]:
    """Mass times centre, and inertia, both about the origin of the tree."""
    body, rotation = model.bodies[b], motions.rotation[b]
    centre = vadd(motions.position[b], apply(rotation, body.centre))
    first = scale(body.mass, centre)
    turned = product(rotation, body.inertia)
    second: Matrix = [[0.0] * 3 for _ in range(3)]
    for i in range(3):
        for j in range(i, 3):
            if i == j:
                moved = total(mul(first[k], centre[k]) for k in range(3) if k != i)
            else:
                moved = neg(mul(first[i], centre[j]))
            second[i][j] = second[j][i] = add(dot(turned[i], rotation[j]), moved)
    return first, second


def _wrench(
    model: RobotModel, motions: Motions, b: int, mass: Scalar, first: Vec, second: Matrix
) -> tuple[Vec, Vec]:
    """Torque about the origin and force that a body needs for its velocity and acceleration."""
    (w, v), (aw, av) = motions.velocity[b], motions.acceleration[b]
    spin = vadd(apply(second, w), cross(first, v))
    momentum = vadd(scale(mass, v), cross(w, first))
    torque = vadd(
        vadd(apply(second, aw), cross(first, av)),
        vadd(cross(w, spin), cross(v, momentum)),
    )
    force = vadd(vadd(scale(mass, av), cross(aw, first)), cross(w, momentum))
    compensation = model.bodies[b].gravity_compensation
    if compensation:
        lift = scale(-compensation, model.gravity)  # per unit of mass, at the centre of mass
        torque, force = vsub(torque, cross(first, lift)), vsub(force, scale(mass, lift))
    return torque, force


def factor(matrix: Matrix) -> tuple[Matrix, list[Scalar]]:
    """L (below the diagonal) and the inverse of D; an entry that is zero by structure costs nothing."""
    n = len(matrix)
    rest = [list(row) for row in matrix]
    inverse: list[Scalar] = [0.0] * n
    for k in range(n - 1, -1, -1):
        inverse[k] = 1.0 / rest[k][k]
        below = [i for i in range(k) if not is_zero(rest[k][i])]
        for i in below:
            share = mul(rest[k][i], inverse[k])
            for j in (j for j in below if j <= i):
                rest[i][j] = sub(rest[i][j], mul(share, rest[k][j]))
        for i in below:
            rest[k][i] = mul(rest[k][i], inverse[k])
    return rest, inverse


def solve(factors: tuple[Matrix, list[Scalar]], right: Vec) -> list[Scalar]:
    """``M⁻¹ right``."""
    lower, inverse = factors
    x = list(right)
    n = len(x)
    for k in range(n - 1, -1, -1):
        for i in range(k):
            x[i] = sub(x[i], mul(lower[k][i], x[k]))
    x = [mul(x[k], inverse[k]) for k in range(n)]
    for k in range(n):
        for i in range(k):
            x[k] = sub(x[k], mul(lower[k][i], x[i]))
    return x
