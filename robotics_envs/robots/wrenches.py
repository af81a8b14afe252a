"""The forces of contacts on bodies, as MuJoCo sums them up in ``cfrc_ext``."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

from robotics_envs.base import Actions, Params, States
from robotics_envs.robots.bodies import centre_of_mass
from robotics_envs.robots.constraints import contacts_of
from robotics_envs.robots.env import RobotEnv
from robotics_envs.robots.kernels import evaluate
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
from robotics_envs.robots.touching import Touch, frame
from solvers.compiler.contributions import Call, add_contributions


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
    x, u = x.detach(), u.detach()
    accelerations = env.dynamics(0.0, x, u, p)[..., model.positions :].detach()
    packed, width = env.packed(x, u, p, accelerations), 6 * (len(model.bodies) - 1)
    found = evaluate((model.trace_key, "contact_wrenches"), _Field(env).of, packed, width)
    return found.unflatten(-1, (-1, 6))


class _Field(NamedTuple):
    """The wrenches as a function of states, actions, accelerations and parameters side by side."""

    env: RobotEnv

    def of(self, packed: Tensor) -> Tensor:
        model, x, _, accelerations = self.env.unpacked(packed.detach(), more=self.env.model.velocities)
        n, a = model.positions, columns(accelerations)
        motions = kinematics(model, columns(x[..., :n]), columns(x[..., n:]))
        middle = centre_of_mass(model, motions)
        calls = []
        for pair, touch, row in contacts_of(model, motions, columns(x[..., n:])):
            assert isinstance(row, Constraint)
            if isinstance(row.stiffness, Tensor):
                own = [a[k] for k in row.moves]
                given = own, row.local(), touch.point, touch.normal, touch.tangent, middle
                adds = [6 * body + k for body in (pair.second.body, pair.first.body) for k in range(6)]
                calls.append(Call(_wrench, given, adds, row.stiffness))
        found = add_contributions([0.0] * (6 * len(model.bodies)), calls)
        return stack(found[6:], x[..., 0])


def _wrench(
    a: Vec, local: tuple[Any, ...], point: Vec, normal: Vec, tangent: Vec | None, middle: Vec
) -> list[Scalar]:
    """Torque about ``middle`` and force on the second body, and the opposite on the first."""
    row = Constraint(*local)
    directions = frame(Touch(0.0, point, normal, tangent)) if len(row.basis) > 1 else (normal,)
    force: Vec = ZERO
    for share, direction in zip(_forces(row, a), directions, strict=True):
        force = vadd(force, scale(share, direction))
    wrench = [*cross(vsub(point, middle), force), *force]
    return [*wrench, *map(neg, wrench)]


def _forces(row: Constraint, a: Vec) -> list[Scalar]:
    """The force along each row of the basis."""
    result: list[Scalar] = [0.0] * len(row.basis)
    for (weights, many), (missing, _) in zip(row.edges, shortfalls(row, a), strict=True):
        force = mul(float(many), mul(row.stiffness, larger(neg(missing), 0.0)))
        result = [add(old, mul(weight, force)) for old, weight in zip(result, weights, strict=True)]
    return result
