"""Gymnasium's Humanoid-v5: walk forward upright."""

from __future__ import annotations

import torch
from jaxtyping import Bool
from torch import Tensor

from robotics_envs.base import MOST_STARTS, Actions, Box, Costs, Params, States, Success
from robotics_envs.drawing import Floats
from robotics_envs.robots.bodies import Bodies
from robotics_envs.robots.env import RobotEnv
from robotics_envs.robots.tasks.forward import Forward
from robotics_envs.robots.tasks.models import gymnasium_model
from robotics_envs.robots.wrenches import contact_wrenches

HEIGHTS = (1.0, 2.0)  # m: Gymnasium's healthy range
CONTACT, MOST = 5e-7, 10.0  # the weight of the contact forces, and the most that they cost
SPEED = 1.25  # the weight of the speed


class Humanoid(Forward):
    """A body of 13 links with 17 hinges has to walk forward upright as fast as it can.

    State (47) and action (17) are those of its MuJoCo model; observation (45) without x and y.  Gymnasium observes
    inertias and velocities of all bodies (functions of these 45), the motors' forces and the contact forces of the last
    step too, 303 numbers: a policy from here does without.  An interval of 15 ms costs ``0.1 |u|²`` and the contact
    forces that are reached, as in Gymnasium, less 1.25 times the mean forward speed of the centre of mass in m/s less
    5, as long as it lives: the torso's height has to stay between 1 and 2 m.
    """

    model = gymnasium_model("humanoid.xml")
    name = "humanoid_v5"
    gym_id = "Humanoid-v5"
    frame_skip = 5
    unseen = 2
    effort, living = 0.1, 5.0
    fast = 1.0
    start_box = Box(
        tuple(q - 0.01 for q in model.reference) + (-0.01,) * model.velocities,
        tuple(q + 0.01 for q in model.reference) + (0.01,) * model.velocities,
    )
    state_box = Box(
        (-1.0, -1.0, 1.1, 0.9, *(-0.2,) * 3, *(-0.5,) * 17, -1.0, -1.0, -1.0, *(-2.0,) * 3, *(-5.0,) * 17),
        (1.0, 1.0, 1.5, 1.0, *(0.2,) * 3, *(0.5,) * 17, 4.0, 1.0, 1.0, *(2.0,) * 3, *(5.0,) * 17),
    )
    success_criterion = Success(
        words=f"lives to the end of the episode, at a mean speed of at least {fast} m/s",
        share=MOST_STARTS,
        source="this project's choice; Gymnasium states no threshold for Humanoid-v5",
    )

    def place(self, x: States) -> Tensor:
        """Of the centre of mass, in m."""
        return Bodies(self.model, x).centre_of_mass(0)

    def speed(self, x: States) -> Tensor:
        """Of the centre of mass, in m/s."""
        return Bodies(self.model, x).speed_of_mass(0)

    def _cost(self, reached: States, u: Actions, speed: Tensor) -> Costs:
        return super()._cost(reached, u, SPEED * speed)

    def cost_of_step(self, x: States, following: States, u: Actions, p: Params) -> Costs:
        """Minus Gymnasium's reward; no gradient comes from the contact forces."""
        squares = contact_wrenches(self, following, u, p).square().sum((-2, -1))
        return super().cost_of_step(x, following, u, p) + (CONTACT * squares).clamp_max(MOST)

    def done(self, x: States) -> Bool[Tensor, " batch"]:
        """Fallen, or jumped too high."""
        low, high = HEIGHTS
        return ~((x[..., 2] > low) & (x[..., 2] < high))

    def observation_from_twin(self, observation: Floats) -> Floats:
        """The first 45 numbers of Gymnasium's observation: positions and velocities."""
        return observation[..., :45]

    def reset(self, batch: int, generator: torch.Generator, dtype: torch.dtype = torch.float32) -> Tensor:
        """Uniform within 0.01 of the file's pose at rest; the quaternion gets its length 1 in the first step."""
        return super(RobotEnv, self).reset(batch, generator, dtype)
