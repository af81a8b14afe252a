"""Gymnasium's InvertedDoublePendulum-v5: keep two poles upright on a cart."""

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
from robotics_envs.drawing import Floats
from robotics_envs.robots.bodies import Bodies
from robotics_envs.robots.env import RobotEnv
from robotics_envs.robots.tasks.models import gymnasium_model
from robotics_envs.robots.tasks.starts import near_the_file

POLE = 0.6  # m, from the upper hinge to the tip
LOWEST = 1.0  # m, of the tip


class InvertedDoublePendulum(RobotEnv):
    """A cart on a rail of 2 m has to keep two poles, one on top of the other, upright.

    State (6) ``[position m, two angles rad, velocities]``, action (1) the motor's control.  Observation (8): position,
    sines and cosines of the angles, velocities within ±10; Gymnasium's last entry, the force of the rail's ends in the
    step before, is no function of the state and left out.  An interval of 50 ms costs
    ``0.01 right² + (height - 2)² + 0.001 rate_1² + 0.005 rate_2² - 10`` in the place and height of the tip that are
    reached, and the episode ends with a tip at 1 m or lower, without the 10.
    """

    model = gymnasium_model("inverted_double_pendulum.xml")
    name = "inverted_double_pendulum_v5"
    gym_id = "InvertedDoublePendulum-v5"
    frame_skip = 5
    episode_steps = 1000
    cost_of_reached_state = True
    observation_names = (
        *("slider", "sin_hinge", "sin_hinge2", "cos_hinge", "cos_hinge2"),
        *("slider_rate", "hinge_rate", "hinge2_rate"),
    )
    start_box = Box.symmetric(0.1, 0.1, 0.1, 0.3, 0.3, 0.3)
    state_box = Box.symmetric(0.9, 0.5, 0.5, 2.0, 5.0, 8.0)
    success_criterion = Success(
        words=f"the tip above {LOWEST:g} m throughout",
        share=MOST_STARTS,
        source="Gymnasium's reward threshold of InvertedDoublePendulum-v5, 9100 of 9360, which an episode that ends "
        "early misses",
    )

    def _tip(self, x: States) -> tuple[Tensor, Tensor]:
        """How far right and high the tip is, in m."""
        bodies = Bodies(self.model, x)
        right, height = (
            bodies.place("pole2", axis) + POLE * bodies.direction("pole2", 2, along=axis) for axis in (0, 2)
        )
        return right, height

    def cost(self, x: States, u: Actions, p: Params) -> Costs:
        """Minus Gymnasium's reward."""
        right, height = self._tip(x)
        penalty = 0.01 * right.square() + (height - 2.0).square()
        penalty = penalty + 1e-3 * x[..., 4].square() + 5e-3 * x[..., 5].square()
        return penalty - torch.where(height > LOWEST, 10.0, torch.zeros_like(height))

    def observe(self, x: States) -> Observations:
        """``[position, sines of the angles, their cosines, velocities within ±10]``."""
        position, angles, velocities = x.split((1, 2, 3), -1)
        return torch.cat((position, torch.sin(angles), torch.cos(angles), velocities.clamp(-10.0, 10.0)), -1)

    def observation_from_twin(self, observation: Floats) -> Floats:
        """Gymnasium's observation without the force of the rail's ends."""
        return observation[..., :8]

    def done(self, x: States) -> Bool[Tensor, " batch"]:
        """The tip is at 1 m or below."""
        return self._tip(x)[1] <= LOWEST

    def success(self, states: EpisodeStates) -> Successes:
        """The tip is above 1 m throughout."""
        return (self._tip(states)[1] > LOWEST).all(0)

    def reset(self, batch: int, generator: torch.Generator, dtype: torch.dtype = torch.float32) -> Tensor:
        """Positions uniform within 0.1, velocities normal with std 0.1; the start box is three std."""
        return near_the_file(self.model, 0.1, batch, generator, dtype)
