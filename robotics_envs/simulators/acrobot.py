"""The swing-up of a double pendulum with a motor at its elbow only, the task of dm_control's suite."""

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
from robotics_envs.mechanics.capsule import capsule_gyration
from solvers.methods.runge_kutta import RK4

_MODEL = "dm_control, suite/acrobot.xml"
TARGET = 2.0  # m above the shoulder
TARGET_RADIUS = 0.2  # m
HOLD = 2.0  # s at the end of an episode, for success


def tip_to_target(x: Float[Tensor, "*any 4"], p: Params) -> Float[Tensor, "*any"]:
    """The squared distance m² of the tip to the centre of the target."""
    shoulder, elbow, _, _ = x.unbind(-1)
    lower = shoulder + elbow
    right = p["upper_length"] * torch.sin(shoulder) + p["lower_length"] * torch.sin(lower)
    up = p["upper_length"] * torch.cos(shoulder) + p["lower_length"] * torch.cos(lower)
    return right**2 + (up - TARGET) ** 2


class Acrobot(Env):
    """Two links hang from a shoulder without a motor; the elbow's motor has to swing them up and balance them.

    State ``[shoulder angle rad (0 = upper arm upright), elbow angle rad (0 = stretched), their rates rad/s]``,
    angles not wrapped and positive clockwise in the picture (about +y, x to the right and z up); action
    ``[drive]`` in ±1, the motor's torque as a fraction of the parameter ``gear``; observation ``[x of the
    direction of the upper and of the lower arm, z of both, the two rates]``.  Model, reward (a number in
    0..1 for the state that an interval ends in), starts, interval and integrator (RK4 of 0.01 s, 1000
    steps) are those of ``acrobot-swingup`` in dm_control's suite.  That model disables all constraints, so
    there are no collisions and no joint limits.

    The gradient of the reward is cut within 0.2 m of the target, where it is the constant 1, and that of
    a drive beyond its bounds.
    """

    name = "acrobot"
    gym_id = "dm_control/acrobot-swingup-v0"
    state_names = ("shoulder", "elbow", "shoulder_rate", "elbow_rate")
    angle_names = ("shoulder", "elbow")
    observation_names = ("upper_x", "lower_x", "upper_z", "lower_z", "shoulder_rate", "elbow_rate")
    parameters = (
        Parameter("g", 9.81, "m/s²", source="MuJoCo's default"),
        Parameter("upper_mass", 1.0, "kg", low=0.0, source=_MODEL),
        Parameter("upper_length", 1.0, "m, without its round ends", low=0.0, source=_MODEL),
        Parameter("upper_radius", 0.05, "m", low=0.0, source=_MODEL),
        Parameter("lower_mass", 1.0, "kg", low=0.0, source=_MODEL),
        Parameter("lower_length", 1.0, "m, without its round ends", low=0.0, source=_MODEL),
        Parameter("lower_radius", 0.049, "m", low=0.0, source=_MODEL),
        Parameter("shoulder_damping", 0.05, "N m s/rad", low=0.0, source=_MODEL),
        Parameter("elbow_damping", 0.05, "N m s/rad", low=0.0, source=_MODEL),
        Parameter("gear", 2.0, "N m at full drive", low=0.0, source=_MODEL),
    )
    action_box = Box.symmetric(1.0)
    start_box = Box.symmetric(math.pi, math.pi, 0.0, 0.0)
    state_box = Box.symmetric(math.pi, math.pi, 8.0, 16.0)
    dt = 0.01
    episode_steps = 1000
    solver = RK4()
    cost_of_reached_state = True
    view = View((-2.4, -2.4), (2.4, 2.4))
    success_criterion = Success(
        words=f"tip within {TARGET_RADIUS} m of the target throughout the last {HOLD:g} s",
        share=MOST_STARTS,
        source=f"the ball in which the reward is 1: {_MODEL}; the time is this project's choice",
    )

    def dynamics(self, t: Any, x: States, u: Actions, p: Params) -> States:
        """d[angles, rates]/dt: Lagrange's equations of the double pendulum, ``M angles'' = torques``.

        Centres of mass are half way along the links; ``inertia_*`` are moments about a link's own joint.
        """
        shoulder, elbow, shoulder_rate, elbow_rate = x.unbind(-1)
        upper_centre, lower_centre = 0.5 * p["upper_length"], 0.5 * p["lower_length"]
        of_upper = p["upper_mass"] * capsule_gyration(p["upper_radius"], p["upper_length"])
        of_lower = p["lower_mass"] * capsule_gyration(p["lower_radius"], p["lower_length"])
        inertia_upper = of_upper + p["upper_mass"] * upper_centre**2
        inertia_lower = of_lower + p["lower_mass"] * lower_centre**2
        lever = p["lower_mass"] * p["upper_length"] * lower_centre
        aligned, crossed = lever * torch.cos(elbow), lever * torch.sin(elbow)

        m22 = inertia_lower
        m12 = inertia_lower + aligned
        m11 = inertia_upper + p["lower_mass"] * p["upper_length"] ** 2 + m12 + aligned

        upper_moment = p["upper_mass"] * upper_centre + p["lower_mass"] * p["upper_length"]
        fall_lower = p["g"] * p["lower_mass"] * lower_centre * torch.sin(shoulder + elbow)
        fall_upper = p["g"] * upper_moment * torch.sin(shoulder)
        turning = crossed * elbow_rate * (2 * shoulder_rate + elbow_rate)
        torque_1 = turning + fall_upper + fall_lower - p["shoulder_damping"] * shoulder_rate
        torque_2 = fall_lower - crossed * shoulder_rate**2 - p["elbow_damping"] * elbow_rate
        torque_2 = torque_2 + p["gear"] * u[..., 0]

        determinant = m11 * m22 - m12**2
        first = (m22 * torque_1 - m12 * torque_2) / determinant
        second = (m11 * torque_2 - m12 * torque_1) / determinant
        return torch.stack((shoulder_rate, elbow_rate, first, second), dim=-1)

    def cost(self, x: States, u: Actions, p: Params) -> Costs:
        """Minus dm_control's reward: ``0.1^(d²)`` with d the tip's distance in m from the target's ball.

        The target is a ball of radius 0.2 m around the point 2 m above the shoulder; d is 0 inside.
        """
        # Clamped before the square root, so that the derivative at the centre is finite.
        squared = tip_to_target(x, p).clamp_min(TARGET_RADIUS**2)
        return -torch.exp(math.log(0.1) * (torch.sqrt(squared) - TARGET_RADIUS) ** 2)

    def observe(self, x: States) -> Observations:
        """``[sin of the upper and lower arm's angle from the vertical, their cos, the two rates]``."""
        shoulder, elbow, shoulder_rate, elbow_rate = x.unbind(-1)
        lower = shoulder + elbow
        directions = (torch.sin(shoulder), torch.sin(lower), torch.cos(shoulder), torch.cos(lower))
        return torch.stack((*directions, shoulder_rate, elbow_rate), dim=-1)

    def success(self, states: EpisodeStates) -> Successes:
        """The tip is in the target's ball, of radius 0.2 m, throughout the last 2 s."""
        x = self.final_states(states, HOLD)
        return (tip_to_target(x, self.params(x)) < TARGET_RADIUS**2).all(0)

    def draw(self, x: Floats, u: Floats) -> list[Shape]:
        """The two arms, and the motor's torque as an arc about the elbow."""
        c = {name: constant.value for name, constant in self.constants.items()}
        shoulder, lower = float(x[0]), float(x[0] + x[1])
        elbow = (c["upper_length"] * math.sin(shoulder), c["upper_length"] * math.cos(shoulder))
        tip = (
            elbow[0] + c["lower_length"] * math.sin(lower),
            elbow[1] + c["lower_length"] * math.cos(lower),
        )
        turn = lower + np.linspace(0.0, 0.75 * math.pi * float(u[0]), 16)
        arc = [(elbow[0] + 0.28 * math.sin(a), elbow[1] + 0.28 * math.cos(a)) for a in turn]
        return [
            Line([(0.0, 0.0), elbow], "body", 2 * c["upper_radius"]),
            Line([elbow, tip], "limb", 2 * c["lower_radius"]),
            Circle((0.0, 0.0), 0.06),
            Circle(elbow, 0.045),
            Line(arc, "force", 0.04),
        ]

    def scenery(self) -> list[Shape]:
        """The floor, the shoulder's stand, and the target ball for the tip."""
        return [
            Line([(-2.4, -TARGET), (2.4, -TARGET)], "ground", 0.04),
            Line([(0.0, -TARGET), (0.0, 0.0)], "faint", 0.08),
            Circle((0.0, TARGET), TARGET_RADIUS, "target", filled=False),
        ]
