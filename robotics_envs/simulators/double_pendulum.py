"""Gymnasium's ``InvertedDoublePendulum-v5`` as a differentiable simulator."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
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
from robotics_envs.drawing import Circle, Floats, Line, Point, Polygon, Shape, View
from robotics_envs.mechanics.capsule import capsule_gyration, capsule_mass
from robotics_envs.mechanics.joint_limit import JointLimit
from solvers.methods.runge_kutta import RK4

_MJCF = "Gymnasium, envs/mujoco/assets/inverted_double_pendulum.xml"
POLE_RADIUS = 0.045  # m, of the capsules
RAIL = 1.0  # m, the slider's range to either side
FALLEN = 1.0  # m, the height of the tip at which an episode ends
ALIVE = 10.0  # reward of an interval that does not end in a fall
OBSERVED_SPEED = 10.0  # m/s and rad/s, the clip of observed velocities


def _inertia(p: Params) -> tuple[Tensor, ...]:
    """The mass matrix upright, of ``[position, angle of pole 1, angle of pole 2]``: xx, x1, x2, 11, 12, 22.

    Both angles are from the vertical.  In another pose x1 and x2 go with the cosine of the pole's angle
    and 12 with that of the angle between the poles.
    """
    m_1, m_2, l_1, l_2 = p["m_1"], p["m_2"], p["l_1"], p["l_2"]
    moment_2 = m_2 * l_2 / 2
    return (
        p["m_cart"] + m_1 + m_2,
        (m_1 / 2 + m_2) * l_1,
        moment_2,
        m_1 * (capsule_gyration(POLE_RADIUS, l_1) + l_1**2 / 4) + m_2 * l_1**2,
        moment_2 * l_1,
        m_2 * (capsule_gyration(POLE_RADIUS, l_2) + l_2**2 / 4),
    )


def _inverse(xx: Tensor, x1: Tensor, x2: Tensor, i11: Tensor, i12: Tensor, i22: Tensor) -> tuple[Tensor, ...]:
    """The inverse of a symmetric 3x3 matrix by cofactors, in the order of the arguments."""
    first, second, third = i11 * i22 - i12 * i12, x2 * i12 - x1 * i22, x1 * i12 - x2 * i11
    determinant = xx * first + x1 * second + x2 * third
    rest = (xx * i22 - x2 * x2, x1 * x2 - xx * i12, xx * i11 - x1 * x1)
    return tuple(cofactor / determinant for cofactor in (first, second, third, *rest))


class DoublePendulum(Env):
    """Two poles, hinged one on the other on a cart, have to be kept upright.

    State ``[position m, angle_1 rad, angle_2 rad, velocity m/s, rate_1 rad/s, rate_2 rad/s]``: of the cart
    to the right, of the first pole from the vertical and of the second from the first, positive
    clockwise, 0 upright.  Action ``[force on the cart as a fraction of gear]`` in ±1.  Observation (8)
    ``[position, sin angle_1, sin angle_2, cos angle_1, cos angle_2, velocity, rate_1, rate_2]``, velocities
    clipped to ±10, which is Gymnasium's without its last entry, the force of the rail's ends.

    Equations, constants, cost, end and starts are those of Gymnasium's ``InvertedDoublePendulum-v5`` on
    MuJoCo: RK4, five steps of 0.01 s to an interval, viscous friction in the joints, soft ends of the
    rail at ±1 m (``JointLimit``).

    Gymnasium computes the tip's position from the last of RK4's intermediate states, which MuJoCo leaves in
    its data; here it is that of the state reached.

    Cut gradients: of a velocity where its observation is clipped.  The jump of the cost by 10 where the tip
    falls below 1 m contributes none.
    """

    name = "double_pendulum"
    gym_id = "InvertedDoublePendulum-v5"
    state_names = ("position", "angle_1", "angle_2", "velocity", "rate_1", "rate_2")
    angle_names = ("angle_1", "angle_2")
    observation_names = (
        *("position", "sin_angle_1", "sin_angle_2", "cos_angle_1", "cos_angle_2"),
        *("velocity", "rate_1", "rate_2"),
    )
    parameters = (
        Parameter("g", 9.81, "m/s², downwards", source=_MJCF),
        Parameter("g_sideways", 1e-5, "m/s², to the right", source=_MJCF),
        Parameter("gear", 500.0, "N at an action of 1", low=0.0, source=_MJCF),
        Parameter(
            "m_cart",
            capsule_mass(0.1, 0.2),
            "kg",
            low=0.0,
            source=f"{_MJCF}: a capsule of radius 0.1 m and length 0.2 m",
        ),
        Parameter(
            "m_1",
            capsule_mass(POLE_RADIUS, 0.6),
            "kg",
            low=0.0,
            source=f"{_MJCF}: a capsule of radius 0.045 m and length 0.6 m",
        ),
        Parameter(
            "m_2",
            capsule_mass(POLE_RADIUS, 0.6),
            "kg",
            low=0.0,
            source=f"{_MJCF}: a capsule of radius 0.045 m and length 0.6 m",
        ),
        Parameter("l_1", 0.6, "m, from hinge to hinge", low=0.0, source=_MJCF),
        Parameter("l_2", 0.6, "m, from hinge to tip", low=0.0, source=_MJCF),
        Parameter("damping_cart", 0.05, "N·s/m", low=0.0, source=_MJCF),
        Parameter("damping_hinge", 0.05, "N·m·s/rad, of either hinge", low=0.0, source=_MJCF),
    )
    action_box = Box.symmetric(1.0)
    start_box = Box.symmetric(0.1, 0.1, 0.1, 0.3, 0.3, 0.3)
    state_box = Box.symmetric(0.8, 0.3, 0.5, 2.0, 3.0, 5.0)
    dt = 0.05
    episode_steps = 1000
    solver = RK4()
    substeps = 5
    cost_of_reached_state = True
    view = View((-1.5, -0.45), (1.5, 1.5))
    success_criterion = Success(
        words=f"tip above {FALLEN:g} m throughout the episode",
        share=MOST_STARTS,
        source="where an episode of Gymnasium's InvertedDoublePendulum-v5 ends",
    )

    def dynamics(self, t: Any, x: States, u: Actions, p: Params) -> States:
        """d[position, angles, rates]/dt from Lagrange's equations in the poles' angles from the vertical."""
        position, hinge_1, hinge_2, velocity, rate_1, rate_2 = x.unbind(-1)
        angle, spin = hinge_1 + hinge_2, rate_1 + rate_2  # of the second pole, from the vertical
        sin_1, cos_1, sin_2, cos_2 = (
            torch.sin(hinge_1),
            torch.cos(hinge_1),
            torch.sin(angle),
            torch.cos(angle),
        )
        upright = _inertia(p)
        mass, moment_1, moment_2, inertia_1, coupling, inertia_2 = upright

        across = coupling * torch.sin(hinge_2)
        centrifugal = moment_1 * sin_1 * rate_1**2 + moment_2 * sin_2 * spin**2
        force = p["gear"] * u[..., 0] - p["damping_cart"] * velocity + mass * p["g_sideways"] + centrifugal
        torque_1 = moment_1 * (p["g"] * sin_1 + p["g_sideways"] * cos_1) + across * spin**2
        torque_2 = moment_2 * (p["g"] * sin_2 + p["g_sideways"] * cos_2) - across * rate_1**2
        torque_1 = torque_1 + p["damping_hinge"] * (rate_2 - rate_1)
        torque_2 = torque_2 - p["damping_hinge"] * rate_2

        xx, x1, x2, i11, i12, i22 = _inverse(
            mass, moment_1 * cos_1, moment_2 * cos_2, inertia_1, coupling * torch.cos(hinge_2), inertia_2
        )
        free = xx * force + x1 * torque_1 + x2 * torque_2
        # The limit's softness follows from the joint's inverse inertia in the reference pose, upright (dof_invweight0).
        limit = JointLimit(-RAIL, RAIL, _inverse(*upright)[0], margin=0.01)
        end = limit.force(position, velocity, free, xx)
        angular_1 = x1 * (force + end) + i11 * torque_1 + i12 * torque_2
        angular_2 = x2 * (force + end) + i12 * torque_1 + i22 * torque_2
        return torch.stack(
            (velocity, rate_1, rate_2, free + xx * end, angular_1, angular_2 - angular_1), dim=-1
        )

    def cost(self, x: States, u: Actions, p: Params) -> Costs:
        """``0.01 right² + (height - 2)² + 0.001 rate_1² + 0.005 rate_2²``, minus 10 while the tip is above 1 m.

        ``right`` and ``height`` are the tip's, in m.  Upright at the centre an interval costs -9.36.
        """
        position, hinge_1, hinge_2, _, rate_1, rate_2 = x.unbind(-1)
        angle = hinge_1 + hinge_2
        right = position + p["l_1"] * torch.sin(hinge_1) + p["l_2"] * torch.sin(angle)
        height = p["l_1"] * torch.cos(hinge_1) + p["l_2"] * torch.cos(angle)
        alive = torch.where(height > FALLEN, ALIVE, torch.zeros_like(height))
        return 0.01 * right**2 + (height - 2) ** 2 + 1e-3 * rate_1**2 + 5e-3 * rate_2**2 - alive

    def observe(self, x: States) -> Observations:
        """``[position, sines of the angles, their cosines, velocities within ±10]``."""
        position, angles, velocities = x.split((1, 2, 3), dim=-1)
        velocities = velocities.clamp(-OBSERVED_SPEED, OBSERVED_SPEED)
        return torch.cat((position, torch.sin(angles), torch.cos(angles), velocities), dim=-1)

    def done(self, x: Float[Tensor, "*batch 6"]) -> Bool[Tensor, "*batch"]:
        """The tip is at 1 m or below."""
        return self._height(x) <= FALLEN

    def _height(self, x: Float[Tensor, "*batch 6"]) -> Float[Tensor, "*batch"]:
        """Of the tip above the cart's hinge, m."""
        l_1, l_2 = self.constants["l_1"].value, self.constants["l_2"].value
        return l_1 * torch.cos(x[..., 1]) + l_2 * torch.cos(x[..., 1] + x[..., 2])

    def reset(self, batch: int, generator: torch.Generator, dtype: torch.dtype = torch.float32) -> Tensor:
        """Positions uniform in ±0.1 m and rad, velocities normal with std 0.1; ``[batch, 6]``."""
        places = super().reset(batch, generator, dtype)[:, :3]
        device = generator.device
        normal = torch.randn(batch, 3, generator=generator, dtype=dtype, device=device)
        return torch.cat((places, 0.1 * normal), dim=-1)

    def observation_from_twin(self, observation: Floats) -> Floats:
        """Gymnasium's observation without its last entry, the force of the rail's ends."""
        return observation[..., :8]

    def success(self, states: EpisodeStates) -> Successes:
        """The tip is above 1 m throughout, so that the episode does not end early."""
        return (self._height(states) > FALLEN).all(0)

    def draw(self, x: Floats, u: Floats) -> list[Shape]:
        """The cart and its poles; the force as an arrow, 0.6 m long at full force."""
        l_1, l_2 = self.constants["l_1"].value, self.constants["l_2"].value
        hinge, angle = float(x[0]), float(x[1] + x[2])
        elbow = (hinge + l_1 * math.sin(x[1]), l_1 * math.cos(x[1]))
        tip = (elbow[0] + l_2 * math.sin(angle), elbow[1] + l_2 * math.cos(angle))
        cart = [(hinge + a, b) for a, b in ((-0.2, -0.1), (0.2, -0.1), (0.2, 0.1), (-0.2, 0.1))]
        return [
            Polygon(cart),
            Line([(hinge, 0.0), elbow], "limb", 2 * POLE_RADIUS),
            Line([elbow, tip], "limb", 2 * POLE_RADIUS),
            Circle((hinge, 0.0), 0.03),
            Circle(elbow, 0.03),
            *_arrow((hinge, -0.22), 0.6 * float(np.clip(u[0], -1.0, 1.0))),
        ]

    def scenery(self) -> list[Shape]:
        """The rail with its ends, and the height at which the tip counts as fallen."""
        ends: list[Shape] = [Line([(a, -0.08), (a, 0.08)], "ground", 0.03) for a in (-RAIL, RAIL)]
        rail = Line([(-RAIL, 0.0), (RAIL, 0.0)], "ground", 0.03)
        fallen = [
            Line([(a, FALLEN), (a + 0.06, FALLEN)], "faint", 0.01) for a in np.arange(-1.47, 1.45, 0.12)
        ]
        return [rail, *ends, *fallen]


def _arrow(start: Point, length: float) -> list[Shape]:
    """A horizontal arrow, to the right where ``length`` is positive."""
    (x, y), head = start, math.copysign(min(0.09, abs(length)), length)
    end = x + length
    tip = [(end, y), (end - head, y + 0.05), (end - head, y - 0.05)]
    return [Line([(x, y), (end - head, y)], "force", 0.03), Polygon(tip, "force")]
