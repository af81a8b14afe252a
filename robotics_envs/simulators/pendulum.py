"""Gymnasium's ``Pendulum-v1`` as a white box."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
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
from solvers.methods.symplectic import SemiImplicitEuler

_SOURCE = "Gymnasium, envs/classic_control/pendulum.py"
MAX_TORQUE = 2.0  # N·m
MAX_SPEED = 8.0  # rad/s
UPRIGHT = 0.98  # cosine of the angle, 11.5 degrees
HOLD = 2.0  # s at the end of an episode, for success


def angle_normalize(angle: Tensor) -> Tensor:
    """The angle in [-pi, pi), rad. Its derivative is 1, also across the jump at ±pi."""
    return torch.remainder(angle + math.pi, 2 * math.pi) - math.pi


class Pendulum(Env):
    """A torque-limited rod that has to swing up and balance upright.

    State ``[angle rad (0 = upright, positive counter-clockwise, not wrapped), rate rad/s]``, action
    ``[torque N·m]`` in ±2, observation ``[cos angle, sin angle, rate]``.  Constants, clipping, cost and
    integration are those of Gymnasium's ``Pendulum-v1`` (200 steps of 0.05 s): semi-implicit Euler
    with the rate clamped to ±8 rad/s before the angle is updated.  The clamp cuts the gradient of the rate
    where it acts, as clipping the torque does.
    """

    name = "pendulum"
    gym_id = "Pendulum-v1"
    state_names = ("angle", "rate")
    angle_names = ("angle",)
    observation_names = ("cos_angle", "sin_angle", "rate")
    parameters = (
        Parameter("g", 10.0, "m/s²", source=_SOURCE),
        Parameter("m", 1.0, "kg", low=0.0, source=_SOURCE),
        Parameter("l", 1.0, "m", low=0.0, source=_SOURCE),
    )
    action_box = Box.symmetric(MAX_TORQUE)
    start_box = Box.symmetric(math.pi, 1.0)
    state_box = Box.symmetric(math.pi, MAX_SPEED)
    dt = 0.05
    episode_steps = 200
    view = View((-1.4, -1.4), (1.4, 1.4))
    success_criterion = Success(
        words=f"upright, cos(angle) > {UPRIGHT}, throughout the last {HOLD:g} s",
        share=MOST_STARTS,
        source="this project's choice; Gymnasium states none for Pendulum-v1",
    )
    solver = SemiImplicitEuler(project_velocity=lambda rate: rate.clamp(-MAX_SPEED, MAX_SPEED))

    def dynamics(self, t: Any, x: States, u: Actions, p: Params) -> States:
        """d[angle, rate]/dt of a uniform rod about its end: ``3g/(2l) sin(angle) + 3/(m l²) torque``."""
        angle, rate = x.unbind(-1)
        acceleration = 3 * p["g"] / (2 * p["l"]) * torch.sin(angle) + 3 / (p["m"] * p["l"] ** 2) * u[..., 0]
        return torch.stack((rate, acceleration), dim=-1)

    def cost(self, x: States, u: Actions, p: Params) -> Costs:
        """``angle² + 0.1 rate² + 0.001 torque²`` with the angle wrapped to [-pi, pi)."""
        angle, rate = x.unbind(-1)
        return angle_normalize(angle) ** 2 + 0.1 * rate**2 + 0.001 * u[..., 0] ** 2

    def observe(self, x: States) -> Observations:
        """``[cos angle, sin angle, rate]``."""
        angle, rate = x.unbind(-1)
        return torch.stack((torch.cos(angle), torch.sin(angle), rate), dim=-1)

    def success(self, states: EpisodeStates) -> Successes:
        """Upright, ``cos(angle) > 0.98``, throughout the last 2 s."""
        return (torch.cos(self.final_states(states, HOLD)[..., 0]) > UPRIGHT).all(0)

    def draw(self, x: Floats, u: Floats) -> list[Shape]:
        """The rod, and the torque as an arc about its pivot."""
        length = self.constants["l"].value
        tip = (-length * math.sin(x[0]), length * math.cos(x[0]))
        turn = np.linspace(0.0, 0.75 * math.pi * float(u[0]) / MAX_TORQUE, 16)
        arc = [(-0.3 * math.sin(a), 0.3 * math.cos(a)) for a in turn]
        rod = Line([(0.0, 0.0), tip], "limb", 0.12)
        return [rod, Circle((0.0, 0.0), 0.05), Line(arc, "force", 0.03)]
