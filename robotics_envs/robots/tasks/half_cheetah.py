"""Gymnasium's HalfCheetah-v5: run forward."""

from __future__ import annotations

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
from robotics_envs.robots.env import RobotEnv
from robotics_envs.robots.tasks.gymnasium_model import gymnasium_model

_SPEED = 9  # the index of the torso's forward velocity
FAST = 4.8  # m/s


class HalfCheetah(RobotEnv):
    """A planar cheetah of seven links has to run as fast as it can; six hinges with motors and springs.

    State (18) and action (6) are those of its MuJoCo model, with x forward and z up from the pose of the file;
    observation (17) without x.  An interval costs ``0.1 |u|²`` less the mean forward speed in m/s.  Nothing ends an
    episode but its 1000 intervals of 0.05 s.
    """

    model = gymnasium_model("half_cheetah.xml")
    name = "half_cheetah_v5"
    gym_id = "HalfCheetah-v5"
    frame_skip = 5
    episode_steps = 1000
    observation_names = (
        *(
            "rootz",
            "rooty",
            "bthigh",
            "bshin",
            "bfoot",
            "fthigh",
            "fshin",
            "ffoot",
            "rootx_rate",
            "rootz_rate",
        ),
        *("rooty_rate", "bthigh_rate", "bshin_rate", "bfoot_rate", "fthigh_rate", "fshin_rate", "ffoot_rate"),
    )
    start_box = Box((-0.1,) * 9 + (-0.3,) * 9, (0.1,) * 9 + (0.3,) * 9)
    state_box = Box(
        (-500.0, -0.2, -0.5, -0.36, -0.55, -0.28, -0.7, -0.84, -0.35, -1.0, -1.0, -3.0, *(-8.0,) * 6),
        (500.0, 0.2, 0.5, 0.73, 0.55, 0.55, 0.49, 0.6, 0.35, 6.0, 1.0, 3.0, *(8.0,) * 6),
    )
    success_criterion = Success(
        words=f"a mean speed of at least {FAST} m/s over the episode",
        share=MOST_STARTS,
        source="Gymnasium's reward threshold of HalfCheetah-v5, 4800 in 1000 intervals, read as metres per second",
    )

    def cost_of_step(self, x: States, following: States, u: Actions, p: Params) -> Costs:
        """Minus Gymnasium's reward: effort less the mean speed of the interval."""
        return 0.1 * u.square().sum(-1) - (following[..., 0] - x[..., 0]) / self.dt

    def cost(self, x: States, u: Actions, p: Params) -> Costs:
        """The same with the speed at this instant; ``step`` returns that of the interval."""
        return 0.1 * u.square().sum(-1) - x[..., _SPEED]

    def observe(self, x: States) -> Observations:
        """All but the distance run."""
        return x[..., 1:]

    def success(self, states: EpisodeStates) -> Successes:
        """A mean speed of at least 4.8 m/s over the episode."""
        distance = states[-1, :, 0] - states[0, :, 0]
        return (distance >= FAST * self.dt * (len(states) - 1)) & states.isfinite().all(-1).all(0)

    def reset(self, batch: int, generator: torch.Generator, dtype: torch.dtype = torch.float32) -> Tensor:
        """Positions uniform within 0.1, velocities normal with std 0.1; the start box is three std."""
        device = generator.device
        q = torch.rand(batch, 9, generator=generator, dtype=dtype, device=device) * 0.2 - 0.1
        v = 0.1 * torch.randn(batch, 9, generator=generator, dtype=dtype, device=device)
        return torch.cat((q, v), -1)
