"""The forces of contacts on bodies, as MuJoCo sums them up in ``cfrc_ext``."""

from __future__ import annotations

import torch
from torch import Tensor

from robotics_envs.base import Actions, Params, States
from robotics_envs.robots.bodies import centre_of_mass
from robotics_envs.robots.constraints import contact
from robotics_envs.robots.env import RobotEnv
from robotics_envs.robots.kinematics import kinematics
from robotics_envs.robots.newton import shortfalls
from robotics_envs.robots.rows import Constraint
from robotics_envs.robots.scalars import (
    ZERO,
    Scalar,
    Vec,
    add,
    columns,
    cross,
    larger,
    mul,
    neg,
    scale,
    stack,
    vadd,
    vsub,
)
from robotics_envs.robots.touching import frame, touches


def contact_wrenches(env: RobotEnv, x: States, u: Actions, p: Params) -> Tensor:
    """Torque about the robot's centre of mass (N m) and force (N) of contacts on each body, ``[..., bodies, 6]``.

    MuJoCo's ``cfrc_ext`` without the row of the world.  No gradient comes from them.

    Raises:
        NotImplementedError: the contacts have elliptic cones or resist turning, or there are several robots.
    """
    model = env.model
    if model.cone != "pyramidal" or any(pair.dimensions > 3 for pair in model.pairs):
        raise NotImplementedError(
            f"{model.name}: forces of contacts with elliptic cones, or that resist turning"
        )
    if sum(body.parent == 0 for body in model.bodies[1:]) != 1:
        raise NotImplementedError(f"{model.name}: forces of contacts of several robots")
    x, n = x.detach(), model.positions
    motions = kinematics(model, columns(x[..., :n]), columns(x[..., n:]))
    accelerations = columns(env.dynamics(0.0, x, u.detach(), p)[..., n:].detach())
    middle = centre_of_mass(model, motions)
    wrenches: list[tuple[Vec, Vec]] = [(ZERO, ZERO)] * len(model.bodies)
    for pair in model.pairs:
        for touch in touches(pair, motions):
            row = contact(model, pair, touch, motions, columns(x[..., n:]))
            assert isinstance(row, Constraint)
            along = _forces(row, accelerations)
            directions = frame(touch) if pair.dimensions > 1 else (touch.normal,)
            force: Vec = ZERO
            for share, direction in zip(along, directions, strict=True):
                force = vadd(force, scale(share, direction))
            torque = cross(vsub(touch.point, middle), force)
            for body, sign in ((pair.second.body, 1.0), (pair.first.body, -1.0)):
                before = wrenches[body]
                wrenches[body] = vadd(before[0], scale(sign, torque)), vadd(before[1], scale(sign, force))
    rows = [stack([*torque, *force], x[..., 0]) for torque, force in wrenches[1:]]
    return torch.stack(rows, -2)


def _forces(row: Constraint, a: Vec) -> list[Scalar]:
    """The force along each row of the basis."""
    result: list[Scalar] = [0.0] * len(row.basis)
    for (weights, many), (missing, _) in zip(row.edges, shortfalls(row, a), strict=True):
        force = mul(float(many), mul(row.stiffness, larger(neg(missing), 0.0)))
        result = [add(old, mul(weight, force)) for old, weight in zip(result, weights, strict=True)]
    return result
