"""A direct-drive arm of two links in a vertical plane that carries a payload of unknown mass."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from robotics_envs.base import Actions, Box, Costs, Env, Observations, Parameter, Params, States, Success
from robotics_envs.drawing import Circle, Floats, Line, Shape, View
from solvers.methods.runge_kutta import RK4

Pairs = Float[Tensor, "*any 2"]

_REYES = (
    "Reyes and Kelly, Experimental evaluation of model-based controllers on a direct-drive robot arm, 2001"
)
HEAVIEST = 2.0  # kg, of the payload
NEAREST, FURTHEST = 0.3, 0.8  # m, of the targets from the shoulder
WITHIN, SLOWER, HOLD = 0.03, 0.05, 0.5  # m, m/s and s of success
ROUND = 0.01  # m, below which the distance in the cost is rounded off


class PayloadArm(Env):
    """A planar arm has to bring a payload of a mass that it does not see to a random point, and rest there.

    State ``[angle_1 rad, angle_2 rad, rate_1 rad/s, rate_2 rad/s, target_x m, target_z m, payload kg]``, action
    ``[torques of shoulder and elbow as fractions of max_torque_1 and max_torque_2]`` in ±1, observation (10)
    ``[cosines of the angles, their sines, rates, target, tip minus target]``.  World frame: x to the
    right, z up, the shoulder at the origin.  ``angle_1`` is that of the upper arm from hanging straight down,
    ``angle_2`` that of the forearm from the upper arm; both are positive counter-clockwise and not wrapped.
    Target and payload are drawn at the reset and constant.  The payload, a point mass at the tip, is **not observed**.

    Equations: Lagrange's, as in Murray, Li and Sastry, A Mathematical Introduction to Robotic Manipulation, 1994,
    example 4.3, with gravity, in the angles of Kelly, Santibáñez and Loría, Control of Robot Manipulators in
    Joint Space, 2005, chapter 5.  The arm and its friction are those of Reyes and Kelly (2001); their Coulomb
    friction is left out.

    Gradients are cut by clipping the action, and with respect to a payload below 0, which counts as 0.
    """

    name = "payload_arm"
    state_names = ("angle_1", "angle_2", "rate_1", "rate_2", "target_x", "target_z", "payload")
    angle_names = ("angle_1", "angle_2")
    observation_names = (
        *("cos_angle_1", "cos_angle_2", "sin_angle_1", "sin_angle_2", "rate_1", "rate_2"),
        *("target_x", "target_z", "error_x", "error_z"),
    )
    parameters = (
        Parameter("g", 9.81, "m/s²", source="standard gravity, rounded"),
        Parameter("m_1", 23.902, "kg", low=0.0, source=_REYES),
        Parameter("m_2", 3.88, "kg", low=0.0, source=_REYES),
        Parameter("l_1", 0.45, "m, from shoulder to elbow", low=0.0, source=_REYES),
        Parameter("l_2", 0.45, "m, from elbow to tip", low=0.0, source=_REYES),
        Parameter("centre_1", 0.091, "m, from shoulder to centre of mass", low=0.0, source=_REYES),
        Parameter("centre_2", 0.048, "m, from elbow to centre of mass", low=0.0, source=_REYES),
        Parameter("inertia_1", 1.266, "kg m², about the centre of mass", low=0.0, source=_REYES),
        Parameter("inertia_2", 0.093, "kg m², about the centre of mass", low=0.0, source=_REYES),
        Parameter("friction_1", 2.288, "N m s/rad, viscous", low=0.0, source=_REYES),
        Parameter("friction_2", 0.175, "N m s/rad, viscous", low=0.0, source=_REYES),
        Parameter("max_torque_1", 150.0, "N m", low=0.0, source=_REYES),
        Parameter("max_torque_2", 15.0, "N m", low=0.0, source=_REYES),
    )
    action_box = Box.symmetric(1.0, 1.0)
    start_box = Box(
        (-1.0, -1.5, -0.5, -0.5, -FURTHEST, -FURTHEST, 0.0),
        (1.0, 1.5, 0.5, 0.5, FURTHEST, FURTHEST, HEAVIEST),
    )
    state_box = Box(
        (-math.pi, -math.pi, -8.0, -15.0, -FURTHEST, -FURTHEST, 0.0),
        (math.pi, math.pi, 8.0, 15.0, FURTHEST, FURTHEST, HEAVIEST),
    )
    dt = 0.02
    episode_steps = 150
    solver = RK4()
    substeps = 2  # the forearm turns at up to 50 rad/s under torques from bound to bound
    view = View((-1.05, -1.05), (1.05, 1.05))
    success_criterion = Success(
        "tip within 3 cm of the target and slower than 5 cm/s throughout the last 0.5 s",
        0.9,
        "the project's choice",
    )

    def inertia(self, x: States, p: Params) -> tuple[Tensor, Tensor, Tensor]:
        """The mass matrix's elements 11, 12 and 22, each ``[B]`` in kg m²."""
        payload, cos = x[..., 6].clamp_min(0.0), torch.cos(x[..., 1])
        upper = p["m_1"] * p["centre_1"] ** 2 + p["inertia_1"] + (p["m_2"] + payload) * p["l_1"] ** 2
        lower = p["m_2"] * p["centre_2"] ** 2 + p["inertia_2"] + payload * p["l_2"] ** 2
        swing = self._coupling(payload, p) * cos
        return upper + lower + 2 * swing, lower + swing, lower

    def gravity(self, x: States, p: Params) -> tuple[Tensor, Tensor]:
        """The torques ``[B]`` in N m that hold the arm with its payload at rest, of shoulder and elbow."""
        payload = x[..., 6].clamp_min(0.0)
        upper = p["m_1"] * p["centre_1"] + (p["m_2"] + payload) * p["l_1"]
        lower = p["m_2"] * p["centre_2"] + payload * p["l_2"]
        elbow = p["g"] * lower * torch.sin(x[..., 0] + x[..., 1])
        return p["g"] * upper * torch.sin(x[..., 0]) + elbow, elbow

    @staticmethod
    def _coupling(payload: Tensor, p: Params) -> Tensor:
        return p["l_1"] * (p["m_2"] * p["centre_2"] + payload * p["l_2"])

    def dynamics(self, t: Any, x: States, u: Actions, p: Params) -> States:
        """d[angles, rates, target, payload]/dt: Lagrange's equations, and a constant target and payload."""
        rate_1, rate_2 = x[..., 2], x[..., 3]
        turning = self._coupling(x[..., 6].clamp_min(0.0), p) * torch.sin(x[..., 1])
        weight_1, weight_2 = self.gravity(x, p)
        shoulder = p["max_torque_1"] * u[..., 0] - p["friction_1"] * rate_1 - weight_1
        elbow = p["max_torque_2"] * u[..., 1] - p["friction_2"] * rate_2 - weight_2
        shoulder = shoulder + turning * rate_2 * (2 * rate_1 + rate_2)
        elbow = elbow - turning * rate_1**2
        i11, i12, i22 = self.inertia(x, p)
        determinant = i11 * i22 - i12 * i12
        faster_1 = (i22 * shoulder - i12 * elbow) / determinant
        faster_2 = (i11 * elbow - i12 * shoulder) / determinant
        still = torch.zeros_like(rate_1)
        return torch.stack((rate_1, rate_2, faster_1, faster_2, still, still, still), dim=-1)

    def tip(self, angles: Pairs, p: Any) -> Pairs:
        """The position of the tip, m."""
        first, second = angles[..., 0], angles.sum(-1)
        x = p["l_1"] * torch.sin(first) + p["l_2"] * torch.sin(second)
        z = -p["l_1"] * torch.cos(first) - p["l_2"] * torch.cos(second)
        return torch.stack((x, z), dim=-1)

    def tip_velocity(self, angles: Pairs, rates: Pairs, p: Any) -> Pairs:
        """The velocity of the tip, m/s."""
        first, second, turning = angles[..., 0], angles.sum(-1), rates.sum(-1)
        x = p["l_1"] * torch.cos(first) * rates[..., 0] + p["l_2"] * torch.cos(second) * turning
        z = p["l_1"] * torch.sin(first) * rates[..., 0] + p["l_2"] * torch.sin(second) * turning
        return torch.stack((x, z), dim=-1)

    def cost(self, x: States, u: Actions, p: Params) -> Costs:
        """``distance / (1 m) + 0.05 (tip's speed / (1 m/s))² + 0.01 |u|²``.

        The distance d of the tip to the target is rounded off at 0 to ``sqrt(d² + (1 cm)²) - 1 cm``.
        """
        angles, rates, target, _ = x.split((2, 2, 2, 1), dim=-1)
        squared = ((self.tip(angles, p) - target) ** 2).sum(-1)
        distance = torch.sqrt(squared + ROUND**2) - ROUND
        speed = (self.tip_velocity(angles, rates, p) ** 2).sum(-1)
        return distance + 0.05 * speed + 0.01 * (u**2).sum(-1)

    def observe(self, x: States) -> Observations:
        """``[cosines of the angles, their sines, rates, target, tip minus target]``; not the payload."""
        angles, rates, target, _ = x.split((2, 2, 2, 1), dim=-1)
        error = self.tip(angles, self._lengths()) - target
        return torch.cat((torch.cos(angles), torch.sin(angles), rates, target, error), dim=-1)

    def _lengths(self) -> dict[str, float]:
        return {name: self.constants[name].value for name in ("l_1", "l_2")}

    def reset(self, batch: int, generator: torch.Generator, dtype: torch.dtype = torch.float32) -> Tensor:
        """Hanging and slow, with targets uniform in the ring from 0.3 to 0.8 m; ``[batch, 7]``."""
        arm, far, around, payload = super().reset(batch, generator, dtype).split((4, 1, 1, 1), dim=-1)
        # The two draws for the target become an area and an angle.
        share = (0.5 + 0.5 * far / FURTHEST).clamp(0.0, 1.0)
        radius = torch.sqrt(NEAREST**2 + (FURTHEST**2 - NEAREST**2) * share)
        angle = math.pi / FURTHEST * around
        return torch.cat((arm, radius * torch.cos(angle), radius * torch.sin(angle), payload), dim=-1)

    def success(self, states: Float[Tensor, "times batch n"]) -> Bool[Tensor, " batch"]:
        """Whether the tip rests at the target at the end of an episode's states."""
        last = states[-(round(HOLD / self.dt) + 1) :]
        angles, rates, target, _ = last.split((2, 2, 2, 1), dim=-1)
        values = self._lengths()
        near = torch.linalg.vector_norm(self.tip(angles, values) - target, dim=-1) < WITHIN
        slow = torch.linalg.vector_norm(self.tip_velocity(angles, rates, values), dim=-1) < SLOWER
        return (near & slow).all(0)

    def draw(self, x: Floats, u: Floats) -> list[Shape]:
        """The arm, its payload as a ball of steel, the target, and the torques as arcs about their joints."""
        values, first, second = self._lengths(), float(x[0]), float(x[0] + x[1])
        elbow = (values["l_1"] * math.sin(first), -values["l_1"] * math.cos(first))
        tip = (elbow[0] + values["l_2"] * math.sin(second), elbow[1] - values["l_2"] * math.cos(second))
        target = (float(x[4]), float(x[5]))
        # Steel has 7850 kg/m³; drawn at 1.5 times its size.
        ball = 1.5 * (3 * max(float(x[6]), 0.0) / (4 * math.pi * 7850)) ** (1 / 3)
        return [
            Circle(target, WITHIN, "target"),
            Line([tip, target], "target"),
            Line([(0.0, 0.0), elbow], "body", 0.08),
            Line([elbow, tip], "limb", 0.05),
            Circle((0.0, 0.0), 0.06),
            Circle(elbow, 0.04),
            Circle(tip, max(ball, 0.01), "hot"),
            _turn((0.0, 0.0), 0.14, first, float(u[0])),
            _turn(elbow, 0.1, second, float(u[1])),
        ]

    def scenery(self) -> list[Shape]:
        """The ring that targets come from."""
        return [Circle((0.0, 0.0), radius, "faint", filled=False) for radius in (NEAREST, FURTHEST)]


def _turn(centre: tuple[float, float], radius: float, start: float, torque: float) -> Line:
    """An arc that grows with the torque, from the direction of the link it turns."""
    angles = start + np.linspace(0.0, 0.75 * math.pi * float(np.clip(torque, -1.0, 1.0)), 16)
    return Line(
        [(centre[0] + radius * math.sin(a), centre[1] - radius * math.cos(a)) for a in angles], "force", 0.02
    )
