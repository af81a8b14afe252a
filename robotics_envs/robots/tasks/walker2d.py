"""Gymnasium's Walker2d-v5: walk forward without falling."""

from __future__ import annotations

import torch
from jaxtyping import Bool
from torch import Tensor

from robotics_envs.base import (
    MOST_STARTS,
    Actions,
    Box,
    Costs,
    EpisodeStates,
    Observations,
    Params,
    States,
    Success,
    Successes,
)
from robotics_envs.robots.env import RobotEnv
from robotics_envs.robots.tasks.gymnasium_model import gymnasium_model

HEIGHTS, STEEPEST = (0.8, 2.0), 1.0  # m, rad: Gymnasium's healthy ranges
_LEG = ("thigh_joint", "leg_joint", "foot_joint", "thigh_left_joint", "leg_left_joint", "foot_left_joint")

FAST = 2.0  # m/s


class Walker2d(RobotEnv):
    """A planar walker of seven links has to walk forward as fast as it can.

    State (18) and action (6) are those of its MuJoCo model, with x forward and z up; observation (17) without x, with
    velocities clipped to ±10.  An interval of 8 ms costs ``0.001 |u|²`` less the mean forward speed in m/s less 1, as
    long as it lives: its height has to stay between 0.8 and 2 m and its pitch within 1 rad.
    """

    model = gymnasium_model("walker2d_v5.xml")
    name = "walker2d_v5"
    gym_id = "Walker2d-v5"
    frame_skip = 4
    episode_steps = 1000
    observation_names = (
        *("rootz", "rooty", *_LEG),
        *("rootx_rate", "rootz_rate", "rooty_rate", *(f"{name}_rate" for name in _LEG)),
    )
    start_box = Box((-0.005, 1.245, *(-0.005,) * 16), (0.005, 1.255, *(0.005,) * 16))
    state_box = Box(
        (-1.0, 0.9, -0.6, *(-1.0, -1.0, -0.6) * 2, -0.5, -1.5, -3.0, *(-6.0,) * 6),
        (1.0, 1.5, 0.6, *(0.0, 0.0, 0.6) * 2, 4.0, 1.5, 3.0, *(6.0,) * 6),
    )
    success_criterion = Success(
        words=f"lives to the end of the episode, at a mean speed of at least {FAST} m/s",
        share=MOST_STARTS,
        source="this project's choice, a return of about 3000; Gymnasium states no threshold for Walker2d-v5",
    )

    def cost_of_step(self, x: States, following: States, u: Actions, p: Params) -> Costs:
        """Minus Gymnasium's reward: effort less the mean speed of the interval less 1."""
        return 1e-3 * u.square().sum(-1) - (following[..., 0] - x[..., 0]) / self.dt - 1.0

    def cost(self, x: States, u: Actions, p: Params) -> Costs:
        """The same with the speed at this instant; ``step`` returns that of the interval."""
        return 1e-3 * u.square().sum(-1) - x[..., 9] - 1.0

    def observe(self, x: States) -> Observations:
        """All but the distance walked, velocities clipped, which cuts their gradient beyond ±10."""
        return torch.cat((x[..., 1:9], x[..., 9:].clamp(-10.0, 10.0)), -1)

    def done(self, x: States) -> Bool[Tensor, " batch"]:
        """Fallen, or jumped too high."""
        low, high = HEIGHTS
        return ~((x[..., 1] > low) & (x[..., 1] < high) & (x[..., 2].abs() < STEEPEST))

    def success(self, states: EpisodeStates) -> Successes:
        """Lives to the end of the episode, at a mean speed of at least 2.0 m/s."""
        distance = states[-1, :, 0] - states[0, :, 0]
        ended = self.done(states.flatten(0, 1)).unflatten(0, states.shape[:2])
        return ~ended.any(0) & (distance >= FAST * self.dt * (len(states) - 1))
