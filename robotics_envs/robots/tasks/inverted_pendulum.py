"""Gymnasium's InvertedPendulum-v5: keep a pole upright on a cart."""

from __future__ import annotations

from jaxtyping import Bool
from torch import Tensor

from robotics_envs.base import (
    MOST_STARTS,
    Actions,
    Box,
    Costs,
    EpisodeStates,
    Params,
    States,
    Success,
    Successes,
)
from robotics_envs.robots.env import RobotEnv
from robotics_envs.robots.tasks.models import gymnasium_model

LARGEST = 0.2  # rad
LONG = 950  # intervals


class InvertedPendulum(RobotEnv):
    """A cart on a rail of 2 m has to keep its pole within 0.2 rad of upright.

    State and observation (4) ``[position m, angle rad, velocity, rate]``, action (1) the motor's control.  Gymnasium
    rewards every interval of 40 ms with 1 and ends the episode with the first one that leaves 0.2 rad, which gets 0.
    Such a reward has no gradient: an interval here costs that, and the square of the angle over 0.2 rad, which is at
    most 1 while it lives.
    """

    model = gymnasium_model("inverted_pendulum.xml")
    name = "inverted_pendulum_v5"
    frame_skip = 2
    episode_steps = 1000
    cost_of_reached_state = True
    start_box = Box.symmetric(0.01, 0.01, 0.01, 0.01)
    state_box = Box.symmetric(0.9, 0.2, 1.0, 1.5)
    success_criterion = Success(
        words=f"the pole within {LARGEST} rad throughout the first {LONG} intervals",
        share=MOST_STARTS,
        source="Gymnasium's reward threshold of InvertedPendulum-v5, 950 in 1000 intervals",
    )

    def cost(self, x: States, u: Actions, p: Params) -> Costs:
        """The cost of the angle, less Gymnasium's reward."""
        return (x[..., 1] / LARGEST).square() - (~self.done(x)).to(x.dtype)

    def done(self, x: States) -> Bool[Tensor, " batch"]:
        """The pole leans by more than 0.2 rad."""
        return x[..., 1].abs() > LARGEST

    def success(self, states: EpisodeStates) -> Successes:
        """The pole within 0.2 rad throughout the first 950 intervals."""
        return (states[: LONG + 1, :, 1].abs() <= LARGEST).all(0)
