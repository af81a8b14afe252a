"""Where the bodies are, how they move, and the motion that each degree of freedom causes, in the axes of the world."""

from __future__ import annotations

from dataclasses import dataclass

from robotics_envs.robots.model import Joint, RobotModel
from robotics_envs.robots.scalars import (
    IDENTITY,
    ZERO,
    Mat,
    Scalar,
    Vec,
    add,
    apply,
    cross,
    mul,
    neg,
    product,
    scale,
    sine_and_cosine,
    sub,
    transpose,
    vadd,
    vsub,
)

Motion = tuple[Vec, Vec]
"""Angular and linear part: of a velocity or acceleration, the linear one that of the body's point at the origin."""


@dataclass
class Motions:
    """By body: rotation, ``origin`` and ``position`` relative to it, velocity and acceleration without joint
    accelerations (gravity as an upward acceleration); by degree of freedom: the motion per unit of velocity.

    The bodies of a tree share an origin, which moves with the tree's base: differences of positions within a tree
    hold no large numbers, and no operations that cancel.
    """

    rotation: list[Mat]
    origin: list[Vec]
    position: list[Vec]
    velocity: list[Motion]
    acceleration: list[Motion]
    column: list[Motion]


def of_quaternion(w: Scalar, x: Scalar, y: Scalar, z: Scalar) -> Mat:
    """The rotation matrix of a quaternion of any length but 0."""
    s = 2.0 / (w * w + x * x + y * y + z * z)
    return [
        [1.0 - s * (y * y + z * z), s * (x * y - w * z), s * (x * z + w * y)],
        [s * (x * y + w * z), 1.0 - s * (x * x + z * z), s * (y * z - w * x)],
        [s * (x * z - w * y), s * (y * z + w * x), 1.0 - s * (x * x + y * y)],
    ]


def about_axis(axis: Vec, sine: Scalar, cosine: Scalar) -> Mat:
    """The rotation about a constant unit axis."""
    rest = sub(1.0, cosine)
    skew = [[0.0, neg(axis[2]), axis[1]], [axis[2], 0.0, neg(axis[0])], [neg(axis[1]), axis[0], 0.0]]
    result: list[list[Scalar]] = []
    for i in range(3):
        row: list[Scalar] = []
        for j in range(3):
            square = axis[i] * axis[j]
            if i == j:
                row.append(
                    1.0 if square == 1.0 else cosine if square == 0.0 else add(cosine, mul(square, rest))
                )
            else:
                row.append(add(mul(square, rest), mul(skew[i][j], sine)))
        result.append(row)
    return result


class _Frame:
    """A body on its way along its joints."""

    def __init__(self, motions: Motions, parent: int, offset: Vec, rotation: Mat) -> None:
        turned = motions.rotation[parent]
        self.rotation: Mat = product(turned, rotation)
        self.origin: Vec = motions.origin[parent]
        self.position: Vec = vadd(motions.position[parent], apply(turned, offset))
        self.velocity, self.acceleration = motions.velocity[parent], motions.acceleration[parent]
        self.is_base = parent == 0
        if self.is_base:
            self.origin, self.position = vadd(self.origin, self.position), ZERO

    def move(self, angular: Vec, linear: Vec) -> None:
        """Add the velocity of a joint, and the acceleration that it causes on a moving frame."""
        (w, v), (aw, av) = self.velocity, self.acceleration
        self.acceleration = (
            vadd(aw, cross(w, angular)),
            vadd(av, vadd(cross(w, linear), cross(v, angular))),
        )
        self.velocity = vadd(w, angular), vadd(v, linear)


def kinematics(model: RobotModel, q: Vec, v: Vec) -> Motions:
    """Motions of all bodies at positions ``q`` and velocities ``v``."""
    count = len(model.bodies)
    motions = Motions(
        rotation=[IDENTITY] * count,
        origin=[ZERO] * count,
        position=[ZERO] * count,
        velocity=[(ZERO, ZERO)] * count,
        acceleration=[(ZERO, scale(-1.0, model.gravity))] * count,
        column=[(ZERO, ZERO)] * model.velocities,
    )
    for b in range(1, count):
        body = model.bodies[b]
        frame = _Frame(motions, body.parent, body.offset, body.rotation)
        turned = False
        for joint in body.joints:
            if joint.kind == "free":
                _free(frame, joint, motions, q, v)
            elif joint.kind == "ball":
                _ball(frame, joint, motions, q, v)
            elif joint.kind == "slide":
                _slide(frame, joint, motions, q, v, moves_origin=frame.is_base and not turned)
            else:
                _hinge(frame, joint, motions, q, v)
            turned = turned or joint.kind != "slide"
        motions.rotation[b], motions.origin[b], motions.position[b] = (
            frame.rotation,
            frame.origin,
            frame.position,
        )
        motions.velocity[b], motions.acceleration[b] = frame.velocity, frame.acceleration
    return motions


def _free(frame: _Frame, joint: Joint, motions: Motions, q: Vec, v: Vec) -> None:
    at, dof = joint.position, joint.velocity
    frame.origin, frame.position = list(q[at : at + 3]), ZERO
    for k in range(3):
        motions.column[dof + k] = (ZERO, IDENTITY[k])
    w, linear = frame.velocity
    frame.velocity = w, vadd(linear, v[dof : dof + 3])
    frame.rotation = of_quaternion(*q[at + 3 : at + 7])
    axes = transpose(frame.rotation)
    for k in range(3):
        motions.column[dof + 3 + k] = (axes[k], ZERO)
    frame.move(apply(frame.rotation, v[dof + 3 : dof + 6]), ZERO)


def _ball(frame: _Frame, joint: Joint, motions: Motions, q: Vec, v: Vec) -> None:
    at, dof = joint.position, joint.velocity
    anchor = vadd(frame.position, apply(frame.rotation, joint.anchor))
    frame.rotation = product(frame.rotation, of_quaternion(*q[at : at + 4]))
    for k, axis in enumerate(transpose(frame.rotation)):
        motions.column[dof + k] = (axis, cross(anchor, axis))
    angular = apply(frame.rotation, v[dof : dof + 3])
    frame.position = vsub(anchor, apply(frame.rotation, joint.anchor))
    frame.move(angular, cross(anchor, angular))


def _slide(frame: _Frame, joint: Joint, motions: Motions, q: Vec, v: Vec, moves_origin: bool) -> None:
    axis = apply(frame.rotation, joint.axis)
    along = scale(sub(q[joint.position], joint.reference), axis)
    motions.column[joint.velocity] = (ZERO, axis)
    if moves_origin:
        frame.origin = vadd(frame.origin, along)
    else:
        frame.position = vadd(frame.position, along)
    frame.move(ZERO, scale(v[joint.velocity], axis))


def _hinge(frame: _Frame, joint: Joint, motions: Motions, q: Vec, v: Vec) -> None:
    axis = apply(frame.rotation, joint.axis)
    anchor = vadd(frame.position, apply(frame.rotation, joint.anchor))
    angle = sub(q[joint.position], joint.reference)
    rotation = about_axis(joint.axis, *sine_and_cosine(angle))
    frame.rotation = product(frame.rotation, rotation)
    motions.column[joint.velocity] = (axis, cross(anchor, axis))
    rate = v[joint.velocity]
    frame.position = vsub(anchor, apply(frame.rotation, joint.anchor))
    frame.move(scale(rate, axis), scale(rate, motions.column[joint.velocity][1]))
