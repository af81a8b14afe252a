"""Gymnasium's HalfCheetah-v5: run forward."""

from __future__ import annotations

import torch
from torch import Tensor

from robotics_envs.base import MOST_STARTS, Box, Success
from robotics_envs.robots.tasks.forward import Forward
from robotics_envs.robots.tasks.models import gymnasium_model
from robotics_envs.robots.tasks.starts import near_the_file


class HalfCheetah(Forward):
    """A planar cheetah of seven links has to run as fast as it can; six hinges with motors and springs.

    State (18) and action (6) are those of its MuJoCo model, with x forward and z up from the pose of the file;
    observation (17) without x.  An interval costs ``0.1 |u|²`` less the mean forward speed in m/s.  Nothing ends an
    episode but its 1000 intervals of 0.05 s.
    """

    model = gymnasium_model("half_cheetah.xml")
    name = "half_cheetah_v5"
    gym_id = "HalfCheetah-v5"
    frame_skip = 5
    effort = 0.1
    fast = 4.8
    start_box = Box((-0.1,) * 9 + (-0.3,) * 9, (0.1,) * 9 + (0.3,) * 9)
    state_box = Box(
        (-500.0, -0.2, -0.5, -0.36, -0.55, -0.28, -0.7, -0.84, -0.35, -1.0, -1.0, -3.0, *(-8.0,) * 6),
        (500.0, 0.2, 0.5, 0.73, 0.55, 0.55, 0.49, 0.6, 0.35, 6.0, 1.0, 3.0, *(8.0,) * 6),
    )
    success_criterion = Success(
        words=f"a mean speed of at least {fast} m/s over the episode",
        share=MOST_STARTS,
        source="Gymnasium's reward threshold of HalfCheetah-v5, 4800 in 1000 intervals, read as metres per second",
    )

    def reset(self, batch: int, generator: torch.Generator, dtype: torch.dtype = torch.float32) -> Tensor:
        """Positions uniform within 0.1, velocities normal with std 0.1; the start box is three std."""
        return near_the_file(self.model, 0.1, batch, generator, dtype)
