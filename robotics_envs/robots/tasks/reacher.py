"""Gymnasium's Reacher-v5: bring a fingertip to a target."""

from __future__ import annotations

import math

import torch
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
from robotics_envs.robots.bodies import Bodies
from robotics_envs.robots.env import RobotEnv
from robotics_envs.robots.tasks.models import gymnasium_model

DISC = 0.2  # m, the radius of the targets' disc
REACHED = 0.02  # m, for success


class Reacher(RobotEnv):
    """A planar arm of two links in a horizontal plane has to bring its fingertip to a random point.

    State (8) ``[angles of shoulder and elbow rad, target m, their velocities]``: the target is a body that slides, at
    rest.  Action (2): the motors' controls.  Observation (10): cosines and sines of the angles, target, rates, and
    fingertip less target.  An interval of 20 ms costs ``|fingertip - target| + |u|²`` where it ends.
    """

    model = gymnasium_model("reacher.xml")
    name = "reacher_v5"
    gym_id = "Reacher-v5"
    frame_skip = 2
    episode_steps = 50
    cost_of_reached_state = True
    observation_names = (
        *("cos_joint0", "cos_joint1", "sin_joint0", "sin_joint1", "target_x", "target_y"),
        *("joint0_rate", "joint1_rate", "error_x", "error_y"),
    )
    start_box = Box.symmetric(0.1, 0.1, DISC, DISC, 0.005, 0.005, 0.0, 0.0)
    state_box = Box.symmetric(math.pi, 3.0, DISC, DISC, 10.0, 10.0, 0.0, 0.0)
    success_criterion = Success(
        words=f"fingertip within {100 * REACHED:g} cm of the target at the end",
        share=MOST_STARTS,
        source="this project's choice; Gymnasium's reward threshold of Reacher-v5 is a return, -3.75",
    )

    def _error(self, x: States) -> Tensor:
        """Fingertip less target, ``[..., 2]`` m."""
        bodies = Bodies(self.model, x)
        return torch.stack([bodies.place("fingertip", k) - bodies.place("target", k) for k in (0, 1)], -1)

    def cost(self, x: States, u: Actions, p: Params) -> Costs:
        """Minus Gymnasium's reward; below 1e-12 m the distance is taken as constant, as its slope at 0 is infinite."""
        distance = self._error(x).square().sum(-1).clamp_min(1e-24).sqrt()
        return distance + u.square().sum(-1)

    def observe(self, x: States) -> Observations:
        """``[cosines of the angles, their sines, target, rates, fingertip less target]``."""
        angles, target, rates, _ = x.split(2, -1)
        return torch.cat((torch.cos(angles), torch.sin(angles), target, rates, self._error(x)), -1)

    def success(self, states: EpisodeStates) -> Successes:
        """The fingertip is within 2 cm of the target at the end."""
        return self._error(states[-1]).square().sum(-1) < REACHED**2

    def reset(self, batch: int, generator: torch.Generator, dtype: torch.dtype = torch.float32) -> Tensor:
        """Near straight and at rest, targets uniform in the disc of 0.2 m."""
        x = super().reset(batch, generator, dtype)
        far, around = x[:, 2], x[:, 3]
        # The two draws for the target become an area and an angle: r = 0.2 sqrt(share), the share uniform in 0..1.
        radius = DISC * (0.5 + 0.5 * far / DISC).clamp(0.0, 1.0).sqrt()
        angle = math.pi / DISC * around
        return torch.cat(
            (x[:, :2], (radius * torch.cos(angle))[:, None], (radius * torch.sin(angle))[:, None], x[:, 4:]),
            -1,
        )
