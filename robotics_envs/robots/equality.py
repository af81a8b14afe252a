"""Equality constraints as rows: points that are connected, frames that are welded, joints that are coupled.

Source: ``mj_instantiateEquality`` of MuJoCo's ``engine_core_constraint.c``.  A weld's error of orientation is the
vector part of a quaternion times ``torquescale``; of the quaternion's two signs any will do.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from robotics_envs.robots.constraints import damping_of, impedance_of, is_weightless, pulled, stiffness_of
from robotics_envs.robots.integrators import quaternion_product
from robotics_envs.robots.kinematics import Motions, of_quaternion
from robotics_envs.robots.model import Equality, Joint, RobotModel
from robotics_envs.robots.rows import Constraint, Row
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
    sine_and_cosine,
    sub,
    total,
    transpose,
    vadd,
    vsub,
)
from robotics_envs.robots.touching import origin_offset, speed

_LEAST = 1e-30
"""The square of an error is taken for at least this, so that its length has a derivative."""


def equalities(model: RobotModel, motions: Motions, q: Vec, v: Vec) -> list[Constraint]:
    """The rows of all equality constraints."""
    found: list[Constraint] = []
    for equality in model.equalities:
        if equality.kind == "joint":
            rows, errors = _coupled(model, equality, q)
            weights: list[Any] = [equality.inverse_weights[0]]
            drifts: list[Scalar] = [0.0]
        else:
            rows, errors, drifts = _connected(model, equality, motions)
            weights = [equality.inverse_weights[0]] * 3
        if equality.kind == "weld":
            turning, turned, turned_drifts = _welded(model, equality, motions, q)
            rows, errors, drifts = [*rows, *turning], [*errors, *turned], [*drifts, *turned_drifts]
            weights += [equality.inverse_weights[1]] * 3
        if not any(rows):
            continue  # nothing that it could move
        error = errors[0] if len(errors) == 1 else _length(errors)
        impedance = impedance_of(equality.softness.solimp, error)
        if not model.equality_drifts:
            drifts = [0.0] * len(rows)
        for row, lack, weight, drift in zip(rows, errors, weights, drifts, strict=True):
            if row:
                found.append(
                    Constraint(
                        basis=[row],
                        velocity=[speed(row, v)],
                        stiffness=stiffness_of(impedance, weight, is_weightless(weight)),
                        pull=sub(pulled(model, equality.softness, impedance, lack), drift),
                        damping=damping_of(model, equality.softness),
                        edges=[((1.0,), 1)],
                        always=True,
                    )
                )
    return found


def _length(errors: Vec) -> Scalar:
    square = total(mul(x, x) for x in errors)
    return math.sqrt(square) if isinstance(square, float) else torch.sqrt(square.clamp_min(_LEAST))


def _coupled(model: RobotModel, equality: Equality, q: Vec) -> tuple[list[Row], list[Scalar]]:
    """A joint's coordinate as a polynomial of another's, or at a constant, both from the pose of the file."""
    joints = {joint.velocity: joint for joint in model.joints}

    def moved(joint: Joint) -> Scalar:
        return sub(q[joint.position], joint.reference)

    coefficients = equality.polynomial
    row: Row = {equality.first: 1.0}
    error = sub(moved(joints[equality.first]), coefficients[0])
    if equality.second >= 0:
        other = moved(joints[equality.second])
        value: Scalar = 0.0
        slope: Scalar = 0.0
        for c in reversed(coefficients[1:]):
            slope = add(value, mul(other, slope))
            value = add(c, mul(other, value))
        # Of c1 + c2 x + …: the polynomial is x times that.
        slope = add(value, mul(other, slope))
        error = sub(error, mul(other, value))
        row[equality.second] = neg(slope)
    return [{k: x for k, x in row.items() if not is_zero(x)}], [error]


def _connected(
    model: RobotModel, equality: Equality, motions: Motions
) -> tuple[list[Row], list[Scalar], list[Scalar]]:
    """From the second body's point to the first's, its derivative, and its second one without accelerations."""
    bodies = equality.first, equality.second
    points = [
        vadd(motions.position[b], apply(motions.rotation[b], anchor))
        for b, anchor in zip(bodies, equality.anchors, strict=True)
    ]
    error = vsub(*points)
    offset = origin_offset(motions, equality.second, equality.first)
    if offset is not None:
        error = vadd(error, offset)
    rows: list[Row] = [{}, {}, {}]
    of_first, of_second = (set(model.moved_by(b)) for b in bodies)
    for k in sorted(of_first | of_second):
        angular, linear = motions.column[k]
        entry: Vec = (0.0, 0.0, 0.0)
        if k in of_first:
            entry = vadd(linear, cross(angular, points[0]))
        if k in of_second:
            entry = vsub(entry, vadd(linear, cross(angular, points[1])))
        if k in of_first and k in of_second:
            entry = cross(angular, error)
        for row, x in zip(rows, entry, strict=True):
            if not is_zero(x):
                row[k] = x
    return rows, list(error), vsub(*map(_drift, (motions, motions), bodies, points))


def _drift(motions: Motions, body: int, point: Vec) -> list[Scalar]:
    """The acceleration of a point of a body if no joint accelerates, gravity as an upward one."""
    (w, linear), (aw, av) = motions.velocity[body], motions.acceleration[body]
    return vadd(vadd(av, cross(aw, point)), cross(w, vadd(linear, cross(w, point))))


def _welded(
    model: RobotModel, equality: Equality, motions: Motions, q: Vec
) -> tuple[list[Row], list[Scalar], list[Scalar]]:
    """The first frame's orientation in the second one's, and its derivatives as of :func:`_connected`."""
    first, second = equality.first, equality.second
    common = model.path(first) & model.path(second)
    orientations = [
        quaternion_product(_orientation(model, b, common, q), frame)
        for b, frame in zip((first, second), equality.frames, strict=True)
    ]
    w, x, y, z = quaternion_product(_conjugate(orientations[1]), orientations[0])
    axis = (x, y, z)
    inwards = product(transpose(of_quaternion(*equality.frames[1])), transpose(motions.rotation[second]))
    rows: list[Row] = [{}, {}, {}]
    of_first, of_second = (set(model.moved_by(b)) for b in (first, second))
    for k in sorted(of_first ^ of_second):
        angular = motions.column[k][0]
        if k in of_second:
            angular = scale(-1.0, angular)
        local = apply(inwards, angular)
        entry = scale(0.5 * equality.torque_scale, vadd(scale(w, local), cross(local, axis)))
        for row, value in zip(rows, entry, strict=True):
            if not is_zero(value):
                row[k] = value
    (w1, w2), (a1, a2) = (
        [part[b][0] for b in (first, second)] for part in (motions.velocity, motions.acceleration)
    )
    spin = apply(inwards, vsub(w1, w2))
    bend = apply(inwards, vsub(vsub(a1, a2), cross(w2, w1)))
    rates = scale(0.5, vadd(scale(w, spin), cross(spin, axis)))
    drift = vadd(scale(mul(-0.5, dot(spin, axis)), spin), cross(spin, rates))
    drift = vadd(drift, vadd(scale(w, bend), cross(bend, axis)))
    return rows, scale(equality.torque_scale, axis), scale(0.5 * equality.torque_scale, drift)


def _orientation(model: RobotModel, b: int, above: frozenset[int], q: Vec) -> list[Scalar]:
    """The quaternion of a body in the frame of its last ancestor among ``above``, or of the world."""
    turned: list[Scalar] = [1.0, 0.0, 0.0, 0.0]
    for k in sorted(model.path(b) - above):
        body = model.bodies[k]
        turned = quaternion_product(turned, body.quaternion)
        for joint in body.joints:
            turned = _by_joint(turned, joint, q)
    return turned


def _by_joint(turned: Vec, joint: Joint, q: Vec) -> list[Scalar]:
    at = joint.position
    if joint.kind == "hinge":
        sine, cosine = sine_and_cosine(mul(0.5, sub(q[at], joint.reference)))
        return quaternion_product(turned, [cosine, *scale(sine, joint.axis)])
    if joint.kind == "slide":
        return list(turned)
    if joint.kind == "free":
        return _unit(q[at + 3 : at + 7])  # it stands in the world
    return quaternion_product(turned, _unit(q[at : at + 4]))


def _unit(quaternion: Vec) -> list[Scalar]:
    square = total(mul(x, x) for x in quaternion)
    inverse = 1.0 / math.sqrt(square) if isinstance(square, float) else torch.rsqrt(square)
    return scale(inverse, quaternion)


def _conjugate(quaternion: Vec) -> list[Scalar]:
    return [quaternion[0], *(neg(x) for x in quaternion[1:])]
