"""Gymnasium's ``Reacher-v5`` as a differentiable simulator."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from robotics_envs.base import (
    MOST_STARTS,
    Actions,
    Box,
    Costs,
    Env,
    EpisodeStates,
    Observations,
    Parameter,
    Params,
    States,
    Success,
    Successes,
)
from robotics_envs.drawing import Circle, Floats, Line, Shape, View
from robotics_envs.mechanics.capsule import DENSITY, capsule_gyration, capsule_mass
from robotics_envs.mechanics.joint_limit import JointLimit
from solvers.methods.runge_kutta import RK4

Pairs = Float[Tensor, "batch 2"]

_MJCF = "Gymnasium, envs/mujoco/assets/reacher.xml"
LINK_RADIUS = 0.01  # m, of the capsules
TIP_RADIUS = 0.01  # m, of the ball at the fingertip
TARGET_RADIUS = 0.2  # m, of the disc of targets
ELBOW = 3.0  # rad, the elbow's range to either side
WALL = 0.3  # m, from the shoulder; only drawn, there are no collisions
REACHED = 0.02  # m from the target, for success


def _inertia(p: Params) -> tuple[Tensor, Tensor, Tensor]:
    """``(upper, lower, coupling)`` kg m²: the mass matrix is ``[[upper + 2 c, lower + c], [., armature + lower]]``.

    ``c`` is ``coupling`` times the cosine of the elbow's angle.
    """
    m_1, m_2, m_tip, l_1, l_2, reach = (p[k] for k in ("m_1", "m_2", "m_tip", "l_1", "l_2", "reach"))
    ball = m_tip * (2 / 5 * TIP_RADIUS**2 + reach**2)
    lower = m_2 * (capsule_gyration(LINK_RADIUS, l_2) + l_2**2 / 4) + ball
    upper = m_1 * (capsule_gyration(LINK_RADIUS, l_1) + l_1**2 / 4) + (m_2 + m_tip) * l_1**2
    return p["armature"] + upper + lower, lower, l_1 * (m_2 * l_2 / 2 + m_tip * reach)


class Reacher(Env):
    """A planar arm of two links in a horizontal plane has to bring its fingertip to a random point.

    State ``[angle_1 rad, angle_2 rad, rate_1 rad/s, rate_2 rad/s, target_x m, target_y m]``: of the upper
    arm from x and of the forearm from the upper arm, positive counter-clockwise; the target is
    constant.  Action ``[torques of shoulder and elbow as fractions of gear]`` in ±1.  Observation (10)
    ``[cosines of the angles, their sines, target, rates, fingertip minus target]``.

    Equations, constants, cost and starts are those of Gymnasium's ``Reacher-v5`` on MuJoCo: RK4, two steps
    of 0.01 s to an interval, viscous friction and a large rotor inertia (armature) in both joints, soft
    ends of the elbow's range at ±3 rad (``JointLimit``).

    Gymnasium computes the fingertip's position from the last of RK4's intermediate states, which MuJoCo leaves
    in its data; here it is that of the state reached.

    The cost is a distance and not its square: its gradient has length 1 everywhere but at the target,
    where it is 0.
    """

    name = "reacher"
    gym_id = "Reacher-v5"
    state_names = ("angle_1", "angle_2", "rate_1", "rate_2", "target_x", "target_y")
    angle_names = ("angle_1",)
    observation_names = (
        *("cos_angle_1", "cos_angle_2", "sin_angle_1", "sin_angle_2"),
        *("target_x", "target_y", "rate_1", "rate_2", "error_x", "error_y"),
    )
    parameters = (
        Parameter("gear", 200.0, "N·m at an action of 1, of either joint", low=0.0, source=_MJCF),
        Parameter("armature", 1.0, "kg m², rotor inertia at each joint", low=0.0, source=_MJCF),
        Parameter("damping", 1.0, "N·m·s/rad, of each joint", low=0.0, source=_MJCF),
        Parameter(
            "m_1",
            capsule_mass(LINK_RADIUS, 0.1),
            "kg",
            low=0.0,
            source=f"{_MJCF}: a capsule of radius 0.01 m and length 0.1 m",
        ),
        Parameter(
            "m_2",
            capsule_mass(LINK_RADIUS, 0.1),
            "kg",
            low=0.0,
            source=f"{_MJCF}: a capsule of radius 0.01 m and length 0.1 m",
        ),
        Parameter(
            "m_tip",
            DENSITY * 4 / 3 * math.pi * TIP_RADIUS**3,
            "kg",
            low=0.0,
            source=f"{_MJCF}: a ball of radius 0.01 m",
        ),
        Parameter("l_1", 0.1, "m, from shoulder to elbow", low=0.0, source=_MJCF),
        Parameter(
            "l_2", 0.1, "m, of the forearm's capsule, which starts at the elbow", low=0.0, source=_MJCF
        ),
        Parameter("reach", 0.11, "m, from elbow to fingertip", low=0.0, source=_MJCF),
    )
    action_box = Box.symmetric(1.0, 1.0)
    start_box = Box.symmetric(0.1, 0.1, 0.005, 0.005, TARGET_RADIUS, TARGET_RADIUS)
    state_box = Box.symmetric(math.pi, ELBOW, 10.0, 10.0, TARGET_RADIUS, TARGET_RADIUS)
    dt = 0.02
    episode_steps = 50
    solver = RK4()
    substeps = 2
    cost_of_reached_state = True
    view = View((-0.36, -0.36), (0.36, 0.36))
    success_criterion = Success(
        words=f"fingertip within {100 * REACHED:g} cm of the target at the end",
        share=MOST_STARTS,
        source="this project's choice; Gymnasium judges Reacher-v5 by its return",
    )

    def dynamics(self, t: Any, x: States, u: Actions, p: Params) -> States:
        """d[angles, rates, target]/dt: Lagrange's equations of the arm, and a constant target."""
        angles, rates, target = x.split(2, dim=-1)
        bend = angles[..., 1]
        rate_1, rate_2 = rates.unbind(-1)
        shoulder, elbow = (p["gear"].unsqueeze(-1) * u - p["damping"].unsqueeze(-1) * rates).unbind(-1)
        upper, lower, coupling = _inertia(p)
        turning = coupling * torch.sin(bend)
        shoulder = shoulder + turning * rate_2 * (2 * rate_1 + rate_2)
        elbow = elbow - turning * rate_1**2

        swing = coupling * torch.cos(bend)
        i11, i12, i22 = upper + 2 * swing, lower + swing, p["armature"] + lower
        determinant = i11 * i22 - i12 * i12
        free = (i11 * elbow - i12 * shoulder) / determinant
        # The limit's softness follows from the inverse inertia in the reference pose, straight (dof_invweight0).
        s11, s12 = upper + 2 * coupling, lower + coupling
        limit = JointLimit(-ELBOW, ELBOW, s11 / (s11 * i22 - s12 * s12))
        elbow = elbow + limit.force(bend, rate_2, free, i11 / determinant)
        angular_1 = (i22 * shoulder - i12 * elbow) / determinant
        angular_2 = (i11 * elbow - i12 * shoulder) / determinant
        changes = torch.stack((angular_1, angular_2), dim=-1)
        return torch.cat((rates, changes, torch.zeros_like(target)), dim=-1)

    def fingertip(self, angles: Pairs, p: Any) -> Pairs:
        """The position of the fingertip relative to the shoulder, m."""
        first, second = angles[..., 0], angles.sum(-1)
        x = p["l_1"] * torch.cos(first) + p["reach"] * torch.cos(second)
        y = p["l_1"] * torch.sin(first) + p["reach"] * torch.sin(second)
        return torch.stack((x, y), dim=-1)

    def cost(self, x: States, u: Actions, p: Params) -> Costs:
        """The distance m of the fingertip to the target, plus the sum of squared actions."""
        angles, _, target = x.split(2, dim=-1)
        squared = ((self.fingertip(angles, p) - target) ** 2).sum(-1)
        # The square root's slope at 0 is infinite; below 1e-12 m the distance is taken as constant.
        return torch.sqrt(squared.clamp_min(1e-24)) + (u**2).sum(-1)

    def observe(self, x: States) -> Observations:
        """``[cosines of the angles, their sines, target, rates, fingertip minus target]``."""
        angles, rates, target = x.split(2, dim=-1)
        error = self.fingertip(angles, self._lengths()) - target
        return torch.cat((torch.cos(angles), torch.sin(angles), target, rates, error), dim=-1)

    def _lengths(self) -> dict[str, float]:
        return {name: self.constants[name].value for name in ("l_1", "reach")}

    def reset(self, batch: int, generator: torch.Generator, dtype: torch.dtype = torch.float32) -> Tensor:
        """Near straight and at rest, with targets uniform in the disc of 0.2 m; ``[batch, 6]``."""
        arm, far, around = super().reset(batch, generator, dtype).split((4, 1, 1), dim=-1)
        # The two draws for the target become an area and an angle: r = 0.2 sqrt(v), v uniform in 0..1.
        share = (0.5 + 0.5 * far / TARGET_RADIUS).clamp(0.0, 1.0)
        radius, angle = TARGET_RADIUS * torch.sqrt(share), math.pi / TARGET_RADIUS * around
        return torch.cat((arm, radius * torch.cos(angle), radius * torch.sin(angle)), dim=-1)

    def success(self, states: EpisodeStates) -> Successes:
        """The fingertip is within 2 cm of the target at the end."""
        angles, _, target = states[-1].split(2, dim=-1)
        error = self.fingertip(angles, self._lengths()) - target
        return (error**2).sum(-1) < REACHED**2

    def draw(self, x: Floats, u: Floats) -> list[Shape]:
        """The arm, the target, the error as a thin line, and the torques as arcs about their joints."""
        values, first, second = self._lengths(), float(x[0]), float(x[0] + x[1])
        elbow = (values["l_1"] * math.cos(first), values["l_1"] * math.sin(first))
        tip = tuple(
            a + values["reach"] * b for a, b in zip(elbow, (math.cos(second), math.sin(second)), strict=True)
        )
        target = (float(x[4]), float(x[5]))
        return [
            Circle(target, 0.012, "target"),
            Line([tip, target], "target"),
            Line([(0.0, 0.0), elbow], "body", 2 * LINK_RADIUS),
            Line([elbow, tip], "limb", 2 * LINK_RADIUS),
            Circle((0.0, 0.0), 0.011),
            Circle(elbow, 0.007),
            Circle(tip, 0.008, "hot"),
            _turn((0.0, 0.0), first, float(u[0])),
            _turn(elbow, second, float(u[1])),
        ]

    def scenery(self) -> list[Shape]:
        """The walls, and the disc that targets come from."""
        a = WALL
        walls = Line([(-a, -a), (a, -a), (a, a), (-a, a), (-a, -a)], "ground", 0.02)
        return [walls, Circle((0.0, 0.0), TARGET_RADIUS, "faint", filled=False)]


def _turn(centre: tuple[float, float], start: float, torque: float) -> Line:
    """An arc that grows with the torque, from the direction of the link it turns.

    Proportional to the square root of the torque, because good policies use small torques.
    """
    torque = float(np.clip(torque, -1.0, 1.0))
    angles = start + np.linspace(0.0, math.copysign(0.75 * math.pi * math.sqrt(abs(torque)), torque), 16)
    return Line(
        [(centre[0] + 0.03 * math.cos(a), centre[1] + 0.03 * math.sin(a)) for a in angles], "force", 0.005
    )
