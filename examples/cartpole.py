"""A simulator of one's own: the swing-up of a cart-pole. Train it from this folder's parent with

diffsim train examples.cartpole:CartPole
"""

from __future__ import annotations

import math
from typing import Any

import torch

from robotics_envs.base import Actions, Box, Costs, Env, Observations, Parameter, Params, States
from solvers.methods.runge_kutta import RK4

_SOURCE = "Barto, Sutton, Anderson 1983, as in Gymnasium's CartPole; force in place of two pushes"


class CartPole(Env):
    """A pole on a cart has to be swung up from hanging and balanced at the centre of the track.

    State ``[position m, angle rad (0 = upright), velocity m/s, rate rad/s]``, action ``[force N]`` in ±10.
    Equations of motion: Florian, Correct equations for the dynamics of the cart-pole system (2007), eq.
    23 and 24 without friction.
    """

    name = "cartpole"
    state_names = ("position", "angle", "velocity", "rate")
    angle_names = ("angle",)
    observation_names = ("position", "cos_angle", "sin_angle", "velocity", "rate")
    parameters = (
        Parameter("g", 9.81, "m/s²", source="standard gravity, rounded"),
        Parameter("m_cart", 1.0, "kg", low=0.0, source=_SOURCE),
        Parameter("m_pole", 0.1, "kg", low=0.0, source=_SOURCE),
        Parameter("l", 0.5, "m, half the pole", low=0.0, source=_SOURCE),
    )
    action_box = Box.symmetric(10.0)
    start_box = Box((-0.1, math.pi - 0.1, -0.1, -0.1), (0.1, math.pi + 0.1, 0.1, 0.1))
    state_box = Box.symmetric(2.0, math.pi, 4.0, 9.0)
    dt = 0.04
    episode_steps = 250
    solver = RK4()

    def dynamics(self, t: Any, x: States, u: Actions, p: Params) -> States:
        """d[position, angle, velocity, rate]/dt."""
        _, angle, velocity, rate = x.unbind(-1)
        sin, cos, mass = torch.sin(angle), torch.cos(angle), p["m_cart"] + p["m_pole"]
        push = (u[..., 0] + p["m_pole"] * p["l"] * rate**2 * sin) / mass
        inertia = p["l"] * (4 / 3 - p["m_pole"] * cos**2 / mass)
        angular = (p["g"] * sin - cos * push) / inertia
        linear = push - p["m_pole"] * p["l"] * angular * cos / mass
        return torch.stack((velocity, rate, linear, angular), dim=-1)

    def cost(self, x: States, u: Actions, p: Params) -> Costs:
        """Height lost, and a little for being off centre, for moving and for force."""
        position, angle, velocity, rate = x.unbind(-1)
        effort = 0.1 * position**2 + 0.01 * (velocity**2 + rate**2) + 1e-4 * u[..., 0] ** 2
        return 1 - torch.cos(angle) + effort

    def observe(self, x: States) -> Observations:
        """``[position, cos angle, sin angle, velocity, rate]``."""
        position, angle, velocity, rate = x.unbind(-1)
        return torch.stack((position, torch.cos(angle), torch.sin(angle), velocity, rate), dim=-1)
