"""Gymnasium's Ant-v5: walk forward on four legs."""

from __future__ import annotations

from typing import ClassVar

import torch
from jaxtyping import Bool
from torch import Tensor

from robotics_envs.base import MOST_STARTS, Actions, Box, Costs, Params, States, Success
from robotics_envs.drawing import Floats
from robotics_envs.robots.tasks.forward import Forward
from robotics_envs.robots.tasks.models import gymnasium_model
from robotics_envs.robots.tasks.starts import near_the_file
from robotics_envs.robots.wrenches import contact_wrenches

HEIGHTS = (0.2, 1.0)  # m: Gymnasium's healthy range
CONTACT, LARGEST = 5e-4, 1.0  # the weight of the contact forces, and where each of their components is cut


class Ant(Forward):
    """A torso with four legs of two hinges each has to walk forward as fast as it can.

    State (29) and action (8) are those of its MuJoCo model; observation (27) without x and y.  Gymnasium observes
    the contact forces of the last step too, 78 numbers that are no function of the state: a policy from here does
    without.  An interval of 50 ms costs ``0.5 |u|²`` and the contact forces that are reached, as in Gymnasium, less
    the mean forward speed in m/s less 1, as long as it lives: the torso's height has to stay between 0.2 and 1 m.
    """

    model = gymnasium_model("ant.xml")
    name = "ant_v5"
    gym_id = "Ant-v5"
    frame_skip = 5
    unseen = 2
    effort, living = 0.5, 1.0
    fast = 5.0
    # Hips and ankles; episodes start with straight ankles, which is beyond their ranges.
    _lowest: ClassVar[tuple[float, ...]] = (-0.5, -0.1, -0.5, -1.2, -0.5, -1.2, -0.5, -0.1)
    _highest: ClassVar[tuple[float, ...]] = (0.5, 1.2, 0.5, 0.1, 0.5, 0.1, 0.5, 1.2)
    start_box = Box(
        (-0.1, -0.1, 0.65, 0.9, *(-0.1,) * 11, *(-0.3,) * 14),
        (0.1, 0.1, 0.85, 1.1, *(0.1,) * 11, *(0.3,) * 14),
    )
    state_box = Box(
        (-1.0, -1.0, 0.3, 0.8, *(-0.3,) * 3, *_lowest, -1.0, -1.0, -1.0, *(-3.0,) * 3, *(-6.0,) * 8),
        (1.0, 1.0, 0.9, 1.1, *(0.3,) * 3, *_highest, 6.0, 1.0, 1.0, *(3.0,) * 3, *(6.0,) * 8),
    )
    success_criterion = Success(
        words=f"lives to the end of the episode, at a mean speed of at least {fast} m/s",
        share=MOST_STARTS,
        source="Gymnasium's reward threshold of Ant-v5, 6000 in 1000 intervals, of which it gets 1 each for living",
    )

    def cost_of_step(self, x: States, following: States, u: Actions, p: Params) -> Costs:
        """Minus Gymnasium's reward; no gradient comes from the contact forces."""
        wrenches = contact_wrenches(self, following, u, p).clamp(-LARGEST, LARGEST)
        return super().cost_of_step(x, following, u, p) + CONTACT * wrenches.square().sum((-2, -1))

    def done(self, x: States) -> Bool[Tensor, " batch"]:
        """Fallen, or jumped too high, or out of all numbers."""
        low, high = HEIGHTS
        return ~((x[..., 2] >= low) & (x[..., 2] <= high) & x.isfinite().all(-1))

    def observation_from_twin(self, observation: Floats) -> Floats:
        """Gymnasium's observation without the contact forces."""
        return observation[..., :27]

    def reset(self, batch: int, generator: torch.Generator, dtype: torch.dtype = torch.float32) -> Tensor:
        """Positions uniform within 0.1 of the file's, quaternion included, velocities normal with std 0.1.

        The quaternion is not made one of length 1, as in Gymnasium: the first step does that.
        """
        return near_the_file(self.model, 0.1, batch, generator, dtype)
