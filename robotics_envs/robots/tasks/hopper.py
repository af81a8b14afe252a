"""Gymnasium's Hopper-v5: hop forward without falling."""

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

LOWEST, STEEPEST, WILDEST = 0.7, 0.2, 100.0  # m, rad, and any unit: Gymnasium's healthy ranges

FAST = 2.8  # m/s


class Hopper(RobotEnv):
    """A planar leg of four links has to hop forward as fast as it can.

    State (12) and action (3) are those of its MuJoCo model, with x forward and z up; observation (11) without x, with
    velocities clipped to ±10.  An interval of 8 ms costs ``0.001 |u|²`` less the mean forward speed in m/s less 1, as
    long as it lives: it falls below a height of 0.7 m or beyond a pitch of 0.2 rad.
    """

    model = gymnasium_model("hopper.xml")
    name = "hopper_v5"
    gym_id = "Hopper-v5"
    frame_skip = 4
    episode_steps = 1000
    observation_names = (
        *(
            "rootz",
            "rooty",
            "thigh_joint",
            "leg_joint",
            "foot_joint",
            "rootx_rate",
            "rootz_rate",
            "rooty_rate",
        ),
        *("thigh_joint_rate", "leg_joint_rate", "foot_joint_rate"),
    )
    start_box = Box((-0.005, 1.245, *(-0.005,) * 10), (0.005, 1.255, *(0.005,) * 10))
    state_box = Box(
        (-1.0, 0.9, -0.15, -1.0, -1.0, -0.6, -0.5, -1.5, -2.0, -5.0, -5.0, -5.0),
        (1.0, 1.5, 0.15, 0.0, 0.0, 0.6, 3.0, 1.5, 2.0, 5.0, 5.0, 5.0),
    )
    success_criterion = Success(
        words=f"lives to the end of the episode, at a mean speed of at least {FAST} m/s",
        share=MOST_STARTS,
        source="Gymnasium's reward threshold of Hopper-v5, 3800 in 1000 intervals, of which it gets 1 each for living",
    )

    def cost_of_step(self, x: States, following: States, u: Actions, p: Params) -> Costs:
        """Minus Gymnasium's reward: effort less the mean speed of the interval less 1."""
        return 1e-3 * u.square().sum(-1) - (following[..., 0] - x[..., 0]) / self.dt - 1.0

    def cost(self, x: States, u: Actions, p: Params) -> Costs:
        """The same with the speed at this instant; ``step`` returns that of the interval."""
        return 1e-3 * u.square().sum(-1) - x[..., 6] - 1.0

    def observe(self, x: States) -> Observations:
        """All but the distance run, velocities clipped, which cuts their gradient beyond ±10."""
        return torch.cat((x[..., 1:6], x[..., 6:].clamp(-10.0, 10.0)), -1)

    def done(self, x: States) -> Bool[Tensor, " batch"]:
        """Fallen, or out of all bounds."""
        standing = (x[..., 1] > LOWEST) & (x[..., 2].abs() < STEEPEST)
        return ~(standing & (x[..., 2:].abs().amax(-1) < WILDEST))

    def success(self, states: EpisodeStates) -> Successes:
        """Lives to the end of the episode, at a mean speed of at least 2.8 m/s."""
        distance = states[-1, :, 0] - states[0, :, 0]
        ended = self.done(states.flatten(0, 1)).unflatten(0, states.shape[:2])
        return ~ended.any(0) & (distance >= FAST * self.dt * (len(states) - 1))
